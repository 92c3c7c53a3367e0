"""analyze, compare, export, findings: tables, charts, reports and pictures of what was captured."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd35h5.commands.command_line import A_RUN, Subparsers, command, flag, option, print_paths
from sd35h5.errors import StoreError


def add(commands: Subparsers) -> None:
    """Add them to the parser of `python -m sd35h5`."""
    one = command(commands, analyze, "run.h5 --out_dir out", afar=True)
    option(one, "--out_dir", type=Path, required=True, help="folder for the CSV and the charts")
    option(
        one, "--first_token_index", type=int, default=0, help="position of the token the metrics are about"
    )
    option(
        one, "--value_col", default="first_token_mean", help="the metric that the charts show",
        choices=("first_token_mean", "first_token_share", "text_mass_fraction"),
    )  # fmt: skip
    branches = ("cond", "uncond", "both")
    option(one, "--branch", default="cond", choices=branches, help="row of the guided batch")
    flag(one, "--per_prompt", help="write the charts for every prompt too")
    option(
        one, "--format", default="csv", choices=("csv", "parquet"),
        help="of the table: parquet for pandas and DuckDB, a fraction of the bytes",
    )  # fmt: skip
    _scheduler(one)

    one = command(
        commands,
        compare,
        "baseline.h5 gated.h5 --out_dir out",
        f"{A_RUN}; the reference first",
        several=True,
        afar=True,
    )
    option(
        one, "--out_dir", type=Path, required=True, help="folder for the report, its CSV files and figures"
    )
    option(
        one, "--metric", default="first_token_mean", metavar="NAME",
        help="what heads, steps and pairs are compared in; the table of the report holds every other measure too",
    )  # fmt: skip
    option(
        one, "--target", default="token:0", metavar="KIND:VALUE",
        help="the keys it is about: token:POSITION, group:clip_pad or word:cat",
    )  # fmt: skip
    option(one, "--branch", default="cond", choices=("cond", "uncond"), help="row of the guided batch")
    option(
        one, "--allow_mismatch", nargs="+", default=[], metavar="FIELD",
        help="settings that may differ between paired samples; the report says so",
    )  # fmt: skip
    option(one, "--resamples", type=int, default=9999, help="how often prompts are drawn, and signs flipped")
    option(one, "--seed", type=int, default=0, help="of the resampling: the same seed gives the same report")
    _scheduler(one)

    one = command(
        commands, export, "run.h5 --out_dir out --maps",
        f"{A_RUN}; of several, with --parquet, the reference first", several=True, afar=True,
    )  # fmt: skip
    option(
        one, "--out_dir", type=Path, required=True, help="folder for images, tokens and maps, or for tables"
    )
    either = one.add_mutually_exclusive_group()
    flag(either, "--maps", help="also write attention maps, overlays and a GIF over steps")
    flag(
        either, "--parquet",
        help="write samples, tokens, first-token metrics and, of several runs, effects against the first as Parquet, "
        "for pandas, DuckDB and the hub's viewer, in place of images",
    )  # fmt: skip

    one = command(commands, findings, "run.h5 --out findings.html", several=True)
    option(
        one,
        "--out",
        type=Path,
        help="HTML file for the findings with their figures; lines to read without it",
    )


def _scheduler(one: argparse.ArgumentParser) -> None:
    option(
        one, "--scheduler", default="", metavar="ADDRESS",
        help="measure with the workers of a running dask.distributed scheduler: its address, tcp://host:8786, or its "
        "scheduler file; only give one that you trust. They must see the files under the same path. Without it: here",
    )  # fmt: skip


def analyze(args: argparse.Namespace) -> int:
    """Write the first-token metrics as CSV, and heatmap, step curve and group masses as PNG."""
    from sd35h5.reports.analyze import analyze

    return print_paths(
        analyze(
            args.path,
            args.out_dir,
            args.first_token_index,
            args.value_col,
            args.branch,
            args.per_prompt,
            args.format,
            args.scheduler,
        )
    )


def compare(args: argparse.Namespace) -> int:
    """Compare runs with the first, sample paired with sample: CSV, figures and one report.html to read."""
    from sd35h5.comparing.comparison import Question
    from sd35h5.metrics.targets import parse_target
    from sd35h5.reports.comparison_folder import compare_runs

    target = parse_target(args.target)
    question = Question(
        args.metric, target, args.branch, tuple(args.allow_mismatch), args.resamples, args.seed
    )
    return print_paths(compare_runs(args.path, args.out_dir, question, args.scheduler))


def export(args: argparse.Namespace) -> int:
    """Write images and tokens, with --maps also maps; or, with --parquet, tables of one run or several."""
    from sd35h5.reports.export import export
    from sd35h5.reports.output_files import open_runs
    from sd35h5.reports.sidecars import write_sidecars

    if args.parquet:
        with open_runs(args.path) as stores:
            return print_paths(write_sidecars(stores, args.out_dir))
    if len(args.path) > 1:
        raise StoreError("images are exported of one run: name one, or pass --parquet for tables of several")
    return print_paths(export(args.path[0], args.out_dir, maps=args.maps))


def findings(args: argparse.Namespace) -> int:
    """Tell which views of runs were kept in the dashboard, or write them with figures as one HTML page."""
    from sd35h5.reports.findings import findings_page

    if args.out:
        return print_paths([findings_page.write_page(args.path, args.out)])
    for path in args.path:
        print(*findings_page.lines(path), sep="\n")
    return 0
