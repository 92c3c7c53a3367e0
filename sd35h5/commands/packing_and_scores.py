"""pack, scores: a capture's samples made one file, and numbers of one's own joined to it."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

from sd35h5.commands.command_line import Subparsers, command, flag, option
from sd35h5.errors import StoreError
from sd35h5.store.runs import parts_of
from sd35h5.store.showable import showable


def add(commands: Subparsers) -> None:
    """Add them to the parser of `python -m sd35h5`."""
    one = command(commands, pack, "run.h5.parts")
    option(one, "--out", type=Path, help="the file to make; by default the folder's name without .parts")
    flag(one, "--partial", help="pack what is sealed, though the capture planned more samples")
    flag(one, "--overwrite", help="replace the file; samples of the run that only it holds stay")
    flag(one, "--remove_parts", help="remove the folder once it is packed")

    one = command(commands, scores, "run.h5 table.csv")
    option(
        one, "table", type=Path, metavar="CSV",
        help="a row a sample, named by sample_id or by prompt_id and seed; an empty cell is no value",
    )  # fmt: skip
    option(
        one, "--columns", nargs="+", default=[], metavar="NAME",
        help="the columns to join; by default all that are not of the file's own table of samples",
    )  # fmt: skip
    flag(one, "--overwrite", help="replace scores of the same name")


def pack(args: argparse.Namespace) -> int:
    """Make one file of the sealed samples of a capture."""
    from sd35h5.store.packing import pack
    from sd35h5.store.runs import out_of, read_run, running, sealed_indices
    from sd35h5.store.verifying import refuse_problems

    refuse_problems(args.path)
    parts = args.path if args.path.is_dir() else parts_of(args.path)
    out = args.out or out_of(parts)
    if out is None:
        raise StoreError(f"{parts.name} does not end in .parts: say with --out FILE.h5 where to pack it")
    if out.exists() and not args.overwrite:
        raise StoreError(f"{out.name} is there already: pass --overwrite to replace it")
    sealed, planned = len(sealed_indices(parts)), 0
    if (parts / "run.json").is_file():
        planned = read_run(parts)["planned"]
    if sealed < planned and not args.partial:
        raise StoreError(
            f"{sealed} of {planned} samples are sealed: run the capture again to make the rest, "
            "or pass --partial to pack these"
        )
    own = out_of(parts)
    with running(own) if own and (own == out or args.remove_parts) else nullcontext():  # not under a capture
        print(showable(pack(parts, out, keep_parts=not args.remove_parts)))
    return 0


def scores(args: argparse.Namespace) -> int:
    """Join numbers of your own, CLIP scores say, to the samples of a packed file, from a CSV."""
    from sd35h5.store.score_joining import join_scores

    told = join_scores(args.path, args.table, args.columns, args.overwrite)
    with_value = [f"scores/{name}: {count} samples have a value" for name, count in told.items()]
    print("\n".join(with_value))
    return 0
