"""What slicing and merging a large file takes: seconds, memory and bytes of the new file.

    python benchmarks/cutting.py                     a packed run of SD3.5-Large's shape, 10 GB
    python benchmarks/cutting.py --gigabytes 0.3     a small one, to try it
    python benchmarks/cutting.py --folder /mnt/fast  where the files are made; they are removed afterwards

The run is written by the real writer, default tiers with maps of 24 tokens; six samples have numbers of their own, the
others repeat theirs under names of their own. Each command is a process of its own; its memory is the largest sum of
what it and the processes that it starts hold, looked at twenty times a second. "again" is the same command right after
it, when the system holds what it reads; before the first one the file was written, and lies partly in memory too.
Prints its table and writes it to benchmarks/results/cutting.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from parts.machine import RESULTS, machine, machine_told
from parts.measured_commands import command
from parts.synthetic import SIZES, make_run

DIFFERENT = 6  # samples with numbers of their own
LAYER, HEAD = 5, 3
LIMITS = {
    "one layer": 10.0,
    "one layer, again": 10.0,
}  # seconds: "a slice of one layer of 10 GB takes seconds"
MAX_MB = 1000


def cuts(run: Path, samples: int) -> dict[str, list[object]]:
    """The commands by name, but for where they write."""
    half = samples // 2
    layer = ["slice", run, "--layers", LAYER]
    return {
        "one layer": layer,
        "one layer, again": layer,
        "one layer, sinks alone": [*layer, "--tiers", "sinks"],
        "one head of all layers": ["slice", run, "--heads", HEAD],
        "ten samples": ["slice", run, "--samples", f"0-{min(9, samples - 1)}"],
        "the first half of the samples": ["slice", run, "--samples", f"0-{half - 1}"],
        "the other half": ["slice", run, "--samples", f"{half}-{samples - 1}"],
    }


def measure(
    folder: Path, gigabytes: float, sizes: dict[str, int]
) -> tuple[list[str], list[str], dict[str, float]]:
    """Make the run and cut it. Returns: rows of the table, what missed its limit, the run's samples and bytes."""
    few = make_run(folder / "few.h5", DIFFERENT, 0, False, sizes)
    samples = max(DIFFERENT, round(gigabytes * 1e9 / few.stat().st_size * DIFFERENT))
    few.unlink()
    run = make_run(folder / "run.h5", samples, 0, False, sizes, DIFFERENT)
    rows, missed, made = [], [], {}
    for name, arguments in cuts(run, samples).items():
        made[name] = folder / f"{len(made)}.h5"
        rows.append(_row(name, arguments, made[name], missed))
    halves = [made["the first half of the samples"], made["the other half"]]
    rows.append(_row("both halves joined", ["merge", *halves], folder / "joined.h5", missed))
    return rows, missed, {"samples": samples, "bytes": run.stat().st_size}


def _row(name: str, arguments: list[object], out: Path, missed: list[str]) -> str:
    seconds, most = command(*arguments, "--out", out)
    limit = LIMITS.get(name)
    if limit is not None and seconds > limit:
        missed.append(f"{name}: {seconds:.1f} s, more than {limit:g}")
    if most > MAX_MB:
        missed.append(f"{name}: {most:.0f} MB of memory, more than {MAX_MB}")
    asked = f"≤ {limit:g} s" if limit else "printed"
    row = f"| {name} | **{seconds:.1f}** | {most:.0f} MB | {out.stat().st_size / 1e6:.1f} MB | {asked} |"
    print(row, flush=True)
    return row


def main() -> int:
    """Measure, print, write. Returns: 1 if something missed its limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of the run that is cut")
    parser.add_argument("--small", action="store_true", help="small samples, of another shape: to try it")
    parser.add_argument(
        "--folder", type=Path, help="where the files are made: twice and a half of --gigabytes"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    small = {"layer": 6, "head": 4, "step": 7, "y": 8, "x": 12, "pixel_y": 64, "pixel_x": 96}
    sizes = SIZES | small if args.small else SIZES
    facts = machine(("h5py", "numpy", "isal"), 1)
    folder = Path(tempfile.mkdtemp(prefix="cutting-", dir=args.folder))
    try:
        rows, missed, run = measure(folder, args.gigabytes, sizes)
    finally:
        shutil.rmtree(folder)
    page = "\n".join([
        "# What cutting and joining takes", "",
        "| what | seconds | memory | new file | asked for |", "| --- | --- | --- | --- | --- |", *rows, "",
        *(f"- missed: {each}" for each in missed), *[""] * bool(missed),
        f"Of a packed run of {run['samples']} samples, {run['bytes'] / 1e9:.2f} GB: {sizes['layer']} layers × "
        f"{sizes['head']} heads × {sizes['step']} steps. Memory: at most {MAX_MB} MB.",
        machine_told(facts),
        f"Made by `python benchmarks/cutting.py{' --small' * args.small} --gigabytes {args.gigabytes:g}`.",
    ]) + "\n"  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cutting.md").write_text(page, encoding="utf-8")
    print(page, end="")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
