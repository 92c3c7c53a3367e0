"""What statistics of very many samples cost: analyze, compare and the dashboard on 1,000 samples of two runs.

    python benchmarks/out_of_core.py                       1,000 samples x 2 runs of SD3.5-Large's shape, about 10 GB
    python benchmarks/out_of_core.py --samples 3 --pairs 2  a small one, to try it
    python benchmarks/out_of_core.py --folder /mnt/fast    where the runs are made; they are removed afterwards

The runs are written by the real writer: 38 layers x 38 heads x 28 steps, one branch, masses of groups, entropies,
heaviest keys, tokens and images of 1024 x 1024 pixels; ten samples have numbers of their own, the others repeat theirs
under names of their own. Each command is a process of its own; its memory is the largest sum of what it and the readers
that it starts hold, looked at twenty times a second. The dashboard's server is visited by a browser, on every page.
Prints its table and writes it to benchmarks/results/out_of_core.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from parts.machine import RESULTS, machine, machine_told
from parts.measured_commands import command, family_mb
from parts.synthetic import SIZES, make_run
from parts.visits import PAGES, browser, first_chart, seen, server, settle

WITHOUT = (
    "sinks/mass_image",
    "maps/",
)  # masses of single tokens and maps: no number of these tables is of them
LARGE = {**SIZES, "branch": 1}
LIMITS = {  # what issue 16 asks for: name -> (limit, unit, what)
    "pairs_s": (45, "s", "compare, {pairs} pairs"),
    "compare_s": (None, "s", "compare, {samples} pairs"),
    "compare_mb": (1000, "MB", "its memory"),
    "csv_s": (None, "s", "analyze, {samples} samples, CSV of {csv_gb:.2f} GB"),
    "csv_mb": (1000, "MB", "its memory"),
    "parquet_s": (None, "s", "analyze, {samples} samples, Parquet of {parquet_gb:.2f} GB"),
    "parquet_mb": (1000, "MB", "its memory"),
    "chart_s": (None, "s", "dashboard, first chart of {samples} samples"),
    "dashboard_mb": (1000, "MB", "memory of its server and readers after every page"),
}


def measure(folder: Path, samples: int, pairs: int, sizes: dict[str, int], visited: bool) -> dict[str, float]:
    """Make the runs, work on them and remove them. Returns: what LIMITS and the table name."""
    found: dict[str, float] = {}
    for count, asked in ((pairs, False), (samples, True)):
        runs = [
            make_run(folder / f"{name}.h5", count, seed, False, sizes, min(10, count), WITHOUT)
            for seed, name in enumerate(("baseline", "headwise"))
        ]
        seconds, most = command("compare", *runs, "--out_dir", folder / "out")
        if not asked:
            found["pairs_s"] = seconds
            for run in runs:
                run.unlink()
            continue
        found |= {"compare_s": seconds, "compare_mb": most, "bytes": sum(run.stat().st_size for run in runs)}
        for kind in ("csv", "parquet"):
            out = folder / kind
            found[f"{kind}_s"], found[f"{kind}_mb"] = command(
                "analyze", runs[0], "--out_dir", out, "--format", kind
            )
            found[f"{kind}_gb"] = (out / f"first_token_metrics.{kind}").stat().st_size / 1e9
            shutil.rmtree(out)
    shutil.rmtree(folder / "out")
    if visited:
        found |= visit(folder)
    return found


def visit(folder: Path) -> dict[str, float]:
    """Open every page of the dashboard. Returns: seconds to the first chart, the server's memory with its readers."""
    from playwright.sync_api import sync_playwright

    with (
        sync_playwright() as playwright,
        server(folder) as (address, process, _),
        browser(playwright) as chromium,
    ):
        page, seconds = first_chart(chromium, address)
        most = family_mb(process)
        for name in PAGES:
            page.get_by_role("link", name=name, exact=True).click()
            settle(page)
            seen(page)
            most = max(most, family_mb(process))
    return {"chart_s": seconds, "dashboard_mb": most}


def table(found: dict[str, float], facts: dict[str, object]) -> str:
    """The results as Markdown."""
    lines = [
        "# What statistics of many samples cost",
        "",
        "| what | measured | asked for |",
        "| --- | --- | --- |",
    ]
    for name, (limit, unit, what) in LIMITS.items():
        if name in found:
            asked = "printed" if limit is None else f"≤ {limit:,} {unit}"
            lines.append(f"| {what.format(**found, **facts)} | **{_number(found[name])} {unit}** | {asked} |")
    lines += [
        "",
        f"Two runs of {facts['shape']}, {found['bytes'] / 1e9:.2f} GB at {facts['samples']} samples; times from the "
        "command to its end, memory with the reader processes that it starts. "
        f"{machine_told(facts)}",
        "Made by `python benchmarks/out_of_core.py`.",
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1000, help="samples of each of the two runs")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of the comparison that is timed")
    parser.add_argument("--folder", type=Path, default=None, help="where the runs are made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for out_of_core.md and .json")
    asked = parser.parse_args()
    if min(asked.samples, asked.pairs) < 1:
        parser.error("--samples and --pairs are 1 or more")
    has_browser = shutil.which("chromium") is not None
    if not has_browser:
        print("without Debian's chromium the dashboard is not visited", file=sys.stderr)
    facts = machine(("numpy", "h5py", "xarray", "pandas", "streamlit"), os.cpu_count() or 1)
    shape = "{layer} layers × {head} heads × {step} steps × {pixel_y} × {pixel_x} pixels".format(**LARGE)
    facts |= {"samples": asked.samples, "pairs": asked.pairs, "shape": shape}
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="sd35h5-out-of-core-") as folder:
        found = measure(Path(folder), asked.samples, asked.pairs, LARGE, has_browser)
    text = table(found, facts)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "out_of_core.md").write_text(text, encoding="utf-8")
    (asked.out / "out_of_core.json").write_text(json.dumps({**facts, "measured": found}, indent=1) + "\n")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
