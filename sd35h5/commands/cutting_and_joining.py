"""slice, merge: files made of other files."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd35h5.commands.command_line import A_RUN, Subparsers, command, flag, option
from sd35h5.store.showable import showable

_LIST = "all, every:4, or a list such as 0,5,9-12, by their numbers in the capture"


def add(commands: Subparsers) -> None:
    """Add them to the parser of `python -m sd35h5`."""
    one = command(commands, slice_, "run.h5 --layers 5 --tiers sinks --out layer5.h5")
    option(one, "--out", type=Path, required=True, help="the file to make")
    for name in ("samples", "layers", "heads", "steps"):
        option(one, f"--{name}", default="all", metavar="LIST", help=f"{name} to keep: {_LIST}")
    option(
        one, "--tokens", default="all", metavar="LIST",
        help="text positions whose masses and maps are kept, spelled alike; the axis stays whole",
    )  # fmt: skip
    option(
        one, "--branches", nargs="+", default=[], metavar="NAME",
        help="branches to keep: cond, uncond, skip; by default all",
    )  # fmt: skip
    option(
        one, "--tiers", nargs="+", default=[], metavar="NAME",
        help="groups to keep, such as sinks topk maps rows atlas gates attn2 raw images scores, or single variables "
        "such as sinks/mass_group; by default all; samples and tokens are always kept",
    )  # fmt: skip
    option(
        one,
        "--prompts",
        default="",
        metavar="TEXT",
        help="keep samples whose prompt or its name holds this text",
    )
    option(
        one, "--tags", nargs="+", default=[], metavar="TAG", help="keep samples that have all of these tags"
    )
    flag(one, "--overwrite", help="replace the file if it is there")

    one = command(
        commands,
        merge,
        "seeds-0.h5 seeds-1.h5 --out all.h5",
        f"{A_RUN}; of one shape and one model",
        several=True,
    )
    option(one, "--out", type=Path, required=True, help="the file to make")
    flag(
        one,
        "--skip_equal",
        help="take a sample once that several files hold with equal values, which is refused else",
    )
    flag(one, "--overwrite", help="replace the file if it is there")


def slice_(args: argparse.Namespace) -> int:
    """Cut out samples, branches, layers, heads, steps, tokens or tiers, as a file of its own."""
    from sd35h5.store.cutting.slicing import cut
    from sd35h5.store.cutting.wanted_part import Wanted

    wanted = Wanted(
        args.samples, args.prompts, tuple(args.tags), tuple(args.branches), args.layers, args.heads, args.steps,
        args.tokens, tuple(args.tiers),
    )  # fmt: skip
    made = cut(args.path, args.out, wanted, args.overwrite)
    print(showable(args.out))
    for why in dict.fromkeys(made.left_out.values()):
        print(f"left out, {why}: {', '.join(name for name, each in made.left_out.items() if each == why)}")
    return 0


def merge(args: argparse.Namespace) -> int:
    """Put the samples of several files of one shape and one model into one file."""
    from sd35h5.store.cutting.joining import join

    made = join(args.path, args.out, args.overwrite, args.skip_equal)
    print(showable(args.out))
    for row, names in made.names.items():
        print(
            f"sample {row}: "
            + ", ".join(f"{name.split('/')[1]} is now {showable(new)}" for name, new in names.items())
        )
    if made.skipped:
        print(f"{len(made.skipped)} samples were there already and are taken once")
    return 0
