"""publish: runs as a page to send."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd35h5.commands.command_line import A_RUN, Subparsers, command, flag, option, print_paths


def add(commands: Subparsers) -> None:
    """Add it to the parser of `python -m sd35h5`."""
    one = command(commands, publish, "run.h5 gated.h5 --out site", A_RUN, several=True)
    option(
        one,
        "--out",
        type=Path,
        required=True,
        help="the folder to make; with --single also a file, NAME.html",
    )
    flag(
        one,
        "--single",
        help="one HTML file with everything in it, of 25 MB at most, that opens without a server",
    )
    option(
        one, "--words", nargs="+", default=[], metavar="WORD",
        help="whose maps and numbers are shown; by default maps of all words, and numbers of the most frequent ones",
    )  # fmt: skip
    flag(one, "--overwrite", help="replace a page that is there already")


def publish(args: argparse.Namespace) -> int:
    """Make a page to send, which shows runs in any browser: a static folder, or one file."""
    from sd35h5.reports.publishing.publish import publish

    return print_paths(publish(args.path, args.out, args.single, args.words, args.overwrite))
