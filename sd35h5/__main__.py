"""python -m sd35h5 info | verify | runs | missing | pack | scores | analyze | compare | export | gates"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from sd35h5.errors import Sd35h5Error, StoreError
from sd35h5.gates.cli import add_gates
from sd35h5.store.opening import reason
from sd35h5.store.runs import parts_of
from sd35h5.store.showable import as_json, showable

DESCRIPTION = """Look at, check, pack, analyse, compare and export the attention captured from Stable Diffusion 3.5.

A PATH is run.h5 (also while it is being captured), one sealed sample, or a folder of sealed samples.
To capture: python capture_cli.py --help. To browse: streamlit run dashboard/app.py -- PATH"""


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
        print(as_json({"ok": report.ok, "deep": args.deep, "problems": report.problems}))
    elif report.ok:
        print(
            f"{showable(args.path.name)}: well-formed and safe to open"
            + (", every value as sealed" if args.deep else "")
        )
    else:
        print("\n".join(showable(f"{args.path.name}: {problem}") for problem in report.problems))
    return 0 if report.ok else 1


def runs(args: argparse.Namespace) -> int:
    """List the captures of a folder: how far each is, how fast, how large, and how many samples failed."""
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


def analyze(args: argparse.Namespace) -> int:
    """Write the first-token metrics as CSV, and heatmap, step curve and group masses as PNG."""
    from sd35h5.reports.analyze import analyze

    return _made(
        analyze(
            args.path,
            args.out_dir,
            args.first_token_index,
            args.value_col,
            args.branch,
            args.per_prompt,
            args.format,
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
    return _made(compare_runs(args.path, args.out_dir, question))


def export(args: argparse.Namespace) -> int:
    """Write images as PNG and tokens as JSON; with --maps also maps, overlays and a GIF over steps."""
    from sd35h5.reports.export import export

    return _made(export(args.path, args.out_dir, maps=args.maps))


def _made(paths: Sequence[Path]) -> int:
    print("\n".join(map(showable, paths)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line: a subparser a command, each with an example."""
    top = argparse.ArgumentParser("python -m sd35h5", description=DESCRIPTION, formatter_class=_Help)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = _command(commands, info, "run.h5")
    _flag(one, "--json", help="print everything as JSON, for programs")

    one = _command(commands, verify, "run.h5 --deep")
    _flag(one, "--deep", help="also read every value and compare each sample with the hash that sealed it")
    _flag(one, "--json", help="print the result as JSON, for programs")

    one = _command(commands, runs, "runs")
    _flag(one, "--json", help="print the list as JSON, for programs")

    one = _command(commands, missing, "run.h5.parts")
    _flag(one, "--json", help="print the result as JSON, for programs")

    one = _command(commands, pack, "run.h5.parts")
    _option(one, "--out", type=Path, help="the file to make; by default the folder's name without .parts")
    _flag(one, "--partial", help="pack what is sealed, though the capture planned more samples")
    _flag(one, "--overwrite", help="replace the file; samples of the run that only it holds stay")
    _flag(one, "--remove_parts", help="remove the folder once it is packed")

    one = _command(commands, scores, "run.h5 table.csv")
    _option(
        one, "table", type=Path, metavar="CSV",
        help="a row a sample, named by sample_id or by prompt_id and seed; an empty cell is no value",
    )  # fmt: skip
    _option(
        one, "--columns", nargs="+", default=[], metavar="NAME",
        help="the columns to join; by default all that are not of the file's own table of samples",
    )  # fmt: skip
    _flag(one, "--overwrite", help="replace scores of the same name")

    one = _command(commands, analyze, "run.h5 --out_dir out")
    _option(one, "--out_dir", type=Path, required=True, help="folder for the CSV and the charts")
    _option(
        one, "--first_token_index", type=int, default=0, help="position of the token the metrics are about"
    )
    _option(
        one, "--value_col", default="first_token_mean", help="the metric that the charts show",
        choices=("first_token_mean", "first_token_share", "text_mass_fraction"),
    )  # fmt: skip
    branches = ("cond", "uncond", "both")
    _option(one, "--branch", default="cond", choices=branches, help="row of the guided batch")
    _flag(one, "--per_prompt", help="write the charts for every prompt too")
    _option(
        one, "--format", default="csv", choices=("csv", "parquet"),
        help="of the table: parquet for pandas and DuckDB, a fraction of the bytes",
    )  # fmt: skip

    one = _command(commands, compare, "baseline.h5 gated.h5 --out_dir out", several=True)
    _option(
        one, "--out_dir", type=Path, required=True, help="folder for the report, its CSV files and figures"
    )
    _option(
        one, "--metric", default="first_token_mean", metavar="NAME",
        help="what heads, steps and pairs are compared in; the table of the report holds every other measure too",
    )  # fmt: skip
    _option(
        one, "--target", default="token:0", metavar="KIND:VALUE",
        help="the keys it is about: token:POSITION, group:clip_pad or word:cat",
    )  # fmt: skip
    _option(one, "--branch", default="cond", choices=("cond", "uncond"), help="row of the guided batch")
    _option(
        one, "--allow_mismatch", nargs="+", default=[], metavar="FIELD",
        help="settings that may differ between paired samples; the report says so",
    )  # fmt: skip
    _option(one, "--resamples", type=int, default=9999, help="how often prompts are drawn, and signs flipped")
    _option(one, "--seed", type=int, default=0, help="of the resampling: the same seed gives the same report")

    one = _command(commands, export, "run.h5 --out_dir out --maps")
    _option(one, "--out_dir", type=Path, required=True, help="folder for images, tokens and maps")
    _flag(one, "--maps", help="also write attention maps, overlays and a GIF over steps")

    add_gates(commands, _Help)
    return top


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps line breaks and shows defaults."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, False) else action.help


def _command(
    commands: argparse._SubParsersAction, run: Callable, example: str, several: bool = False
) -> argparse.ArgumentParser:
    name, told = run.__name__, (run.__doc__ or "").strip()
    one = commands.add_parser(
        name, help=told, description=told, formatter_class=_Help,
        epilog=f"example:\n  python -m sd35h5 {name} {example}",
    )  # fmt: skip
    one.set_defaults(run=run)
    told = "run.h5, a sealed sample, or a folder of them" + ("; the reference first" if several else "")
    one.add_argument("path", type=Path, metavar="PATH", nargs="+" if several else None, help=told)
    _flag(one, "--debug", help="show the traceback of an error")
    return one


def _flag(one: argparse.ArgumentParser, name: str, **more: object) -> None:
    _option(one, name, action="store_true", **more)


def _option(one: argparse.ArgumentParser, name: str, **more: object) -> None:
    hyphened = name.replace("_", "-")
    one.add_argument(name, *([hyphened] if hyphened != name else []), **more)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns: 0, or 1 after an error in one line on stderr."""
    args = parser().parse_args(arguments)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except Sd35h5Error as error:
        if args.debug:
            raise
        print(f"error: {showable(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # `... | head`, or where the output goes is full
        if error.filename is None:  # what is left of the output is not tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        if args.debug:
            raise
        print(f"error: {error.filename or 'the output'}: {reason(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
