"""import: what another tool dumped, made a store."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from sd35h5.commands.command_line import Subparsers, command, flag, option, print_paths
from sd35h5.errors import ConfigError


def add(commands: Subparsers) -> None:
    """Add it to the parser of `python -m sd35h5`."""
    told = "a folder with attn_maps.pt, or one of such folders (000, 001, …)"
    one = command(commands, import_, 'out --out run.h5 --model_id "my model"', told, several=True)
    option(
        one,
        "--out",
        type=Path,
        required=True,
        help="the file to make; until it is whole, the folder OUT.parts",
    )
    option(
        one, "--prompt", nargs="+", default=[], metavar="TEXT",
        help="the prompts of folders without tokens.json, in their order",
    )  # fmt: skip
    option(
        one,
        "--negative_prompt",
        default="",
        help="what the unconditional branch read; the older tool gave none",
    )
    option(
        one, "--model_id", default="",
        help="which model drew; a folder in diffusers' layout also gives its tokenizers",
    )  # fmt: skip
    option(one, "--seed", nargs="+", type=int, default=[], help="the seed of each sample, where you know it")
    option(one, "--guidance", type=float, help="the guidance scale, where you know it")
    option(
        one, "--t5_length", type=int, help="T5's tokens, 0 without T5; asked for where the dump does not tell"
    )
    option(
        one, "--tokenizer_path", default="",
        help="a folder with the subfolders tokenizer, tokenizer_2 and tokenizer_3; by default those of SD3 and SD3.5",
    )  # fmt: skip
    option(
        one, "--maps", default="words", choices=("off", "first", "words", "all"),
        help="maps of the start token, of that and at most 23 words, or of every token",
    )  # fmt: skip
    option(one, "--words", nargs="+", default=[], help="words or phrases to map in place of the first ones")
    option(
        one, "--map_steps", default="every:4", help="steps of the maps: every:4, all, or a list such as 0,5,9"
    )
    option(
        one, "--map_layers", default="all", help="layers with maps: all, every:2, or a list such as 0,12-18"
    )
    option(
        one, "--map_heads", default="mean", choices=("mean", "all"), help="all keeps a map of each head, too"
    )
    option(
        one, "--map_pool", type=int, default=2, choices=(1, 2, 4), help="average maps over so many patches"
    )
    option(
        one, "--branches", nargs="+", default=["cond"], choices=("cond", "uncond"),
        help="branches whose mass is kept for every token",
    )  # fmt: skip
    option(
        one,
        "--precision",
        default="rounded",
        choices=("rounded", "exact"),
        help="of the large arrays, as in a capture",
    )
    flag(one, "--no_images", help="leave the pictures out")
    flag(one, "--overwrite", help="remove what is at --out first")


def import_(args: argparse.Namespace) -> int:
    """Make a store of the attention that the older tool dumped: attn_maps.pt, tokens.json and the pictures beside."""
    if find_spec("torch") is None:
        raise ConfigError(
            'attn_maps.pt is read with torch, which is not installed: pip install "sd35h5[capture]"'
        )
    from sd35h5.importing.import_options import ImportOptions
    from sd35h5.importing.older_folders import find_folders
    from sd35h5.planning.options import Tiers

    told = vars(args)
    tiers = Tiers(
        **{name: told[name] for name in ("maps", "map_steps", "map_layers", "map_heads", "map_pool", "precision")},
        words=tuple(args.words), branches=tuple(args.branches), no_images=args.no_images, topk=0,
    )  # fmt: skip
    options = ImportOptions(
        **{name: told[name] for name in ("out", "negative_prompt", "model_id", "guidance", "t5_length",
                                         "tokenizer_path", "overwrite")},
        prompts=tuple(args.prompt), seeds=tuple(args.seed), tiers=tiers,
    )  # fmt: skip
    folders = find_folders(args.path)  # before torch is imported, which takes seconds
    from sd35h5.importing.run_import import import_folders

    return print_paths([import_folders(folders, options)])
