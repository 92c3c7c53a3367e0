"""info, verify, runs, missing: what is in a file or a folder, and whether it is whole."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from sd35h5.commands.command_line import Subparsers, command, flag
from sd35h5.store.places.addresses import name_of
from sd35h5.store.showable import as_json, showable


def add(commands: Subparsers) -> None:
    """Add them to the parser of `python -m sd35h5`."""
    one = command(commands, info, "run.h5", afar=True)
    flag(one, "--json", help="print everything as JSON, for programs")

    one = command(commands, verify, "run.h5 --deep", afar=True)
    flag(one, "--deep", help="also read every value and compare each sample with the hash that sealed it")
    flag(one, "--json", help="print the result as JSON, for programs")

    one = command(commands, runs, "runs")
    flag(one, "--json", help="print the list as JSON, for programs")

    one = command(commands, missing, "run.h5.parts")
    flag(one, "--json", help="print the result as JSON, for programs")


def info(args: argparse.Namespace) -> int:
    """Print what is inside."""
    from sd35h5.reports.info import as_text, describe
    from sd35h5.store.processes.guarded_store import open_checked

    with open_checked(args.path) as store:
        told = describe(store)
    print(as_json(told, indent=1, allow_nan=False) if args.json else "\n".join(as_text(told)))
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check that a file is well-formed, whole and safe to open; exit 1 if not."""
    from sd35h5.store.verifying import verify

    report = verify(args.path, deep=args.deep)
    if args.json:
        print(as_json({**asdict(report), "deep": args.deep}))
    elif report.ok:
        print(
            f"{showable(name_of(args.path))}: well-formed and safe to open"
            + (", every value as sealed" if args.deep else "")
        )
        for what, phrases in (
            ("checked by", (report.by,)), ("looked at", report.checks),
            ("as sealed", report.covered), ("not sealed", report.not_covered),
        ):  # fmt: skip
            for place, phrase in enumerate(phrases):
                print(f"  {'' if place else what:<12}{showable(phrase)}")
    else:
        print("\n".join(showable(f"{name_of(args.path)}: {problem}") for problem in report.problems))
    return 0 if report.ok else 1


def runs(args: argparse.Namespace) -> int:
    """List the captures of a folder, and below it: how far each is, how fast, how large, how many samples failed."""
    from sd35h5.reports.run_table import as_data, as_text, rows_of

    rows = rows_of(args.path)
    print(as_json(as_data(rows), indent=1) if args.json else "\n".join(as_text(rows)))
    return 0


def missing(args: argparse.Namespace) -> int:
    """Tell which samples of a capture are missing, why, and how to draw them; exit 1 if any is."""
    from sd35h5.reports.missing_samples import as_text, missing_samples
    from sd35h5.store.runs import out_of
    from sd35h5.store.verifying import refuse_problems

    if (out := out_of(args.path) or args.path).is_file():
        refuse_problems(out)
    told = missing_samples(args.path)
    print(as_json(told, indent=1) if args.json else "\n".join(as_text(told)))
    return 1 if told["missing"] else 0
