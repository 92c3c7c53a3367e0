"""Commands that are killed, run out of disk, lose their folder, a process or a thread: what is lost, what goes on.

    python benchmarks/faults.py                 500 SIGKILLs and every other fault
    python benchmarks/faults.py --kills 60      the same in short
    python benchmarks/faults.py --kills 6 --stages slicing packing --mishaps

A SIGKILL comes at some moment of capturing, sealing, packing, slicing, merging and importing; moments are spread
evenly over the whole command, and over the part of it that is the stage. Then every sample that is sealed must be as
undisturbed, and the same command again must make a file whose every array is equal to the undisturbed one's, without
drawing anew what was sealed and without leaving anything beside. Every other fault must cost one sentence and an exit
code as well. A command is a child of one process that has imported torch; it runs the command's own main. Prints rows
as they come, and writes the table to benchmarks/results/faults.md.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["OMP_NUM_THREADS"] = "1"  # children are forked from this process, which has no other threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from parts.dying.kills import Found, kill_once
from parts.dying.mishaps import MISHAPS, Row, mishaps
from parts.dying.stages import STAGES, Sources, Stage, warm_up
from parts.machine import RESULTS, machine, machine_told

PACKAGES = ("torch", "diffusers", "h5py", "numpy")
HEAD = (
    "| stage | command | SIGKILLs | that left half a file | that came after the last byte | samples sealed by then | "
    "of these lost | made anew | finished files that differ |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)
MISHAP_HEAD = (
    "| fault | stage | exit code | what is said | sealed by then, lost | the same command again |",
    "| --- | --- | ---: | --- | --- | --- |",
)


def killed_row(stage: Stage, folder: Path, kills: int, seed: int) -> tuple[str, Found]:
    """Kill a stage's command at as many moments. Returns: its row, and what was found."""
    calm = stage.undisturbed(folder / f"calm-{stage.name}")
    lot, found = random.Random(f"{seed} {stage.name}"), Found()
    differing = 0
    for trial in range(kills):
        share, before = (trial + lot.random()) / kills, len(found.wrong)
        kill_once(stage, calm, folder / "killed", trial, share, lot, found)
        differing += len(found.wrong) > before
    row = (
        f"| {stage.name} | {stage.told} | {found.kills} | {found.half} | {found.there} | {found.sealed} | "
        f"**{found.lost}** | **{found.anew}** | **{differing}** |"
    )
    return row, found


def share_of(kills: int, stages: int, place: int) -> int:
    """How many of the kills a stage gets."""
    return kills // stages + (place < kills % stages)


def run(args: argparse.Namespace, folder: Path) -> tuple[list[str], list[str]]:
    """Every row, printed as it comes. Returns: the lines, and what is wrong."""
    sources, wrong, lines = Sources(folder / "sources"), [], [*HEAD]
    sources.folder.mkdir()
    warm_up(args.stages)
    print("\n".join(HEAD), flush=True)
    for place, name in enumerate(args.stages):
        kills = share_of(args.kills, len(args.stages), place)
        row, found = killed_row(sources.stage(name), folder, kills, args.seed)
        print(row, flush=True)
        lines.append(row)
        wrong += found.wrong
    chosen = [fault for fault in MISHAPS if fault.name in args.mishaps]
    if not chosen:
        return lines, wrong
    lines += ["", *MISHAP_HEAD]
    print("\n".join(["", *MISHAP_HEAD]), flush=True)
    for fault in chosen:
        for told in mishaps(fault, [sources.stage(name) for name in args.stages], folder):
            row = told if isinstance(told, str) else table_row(told)
            print(row, flush=True)
            lines.append(row)
            wrong += told.wrong if isinstance(told, Row) else []
    return lines, wrong


def table_row(told: Row) -> str:
    """A line of the second table."""
    sealed = f"{told.sealed}, **{told.lost}**"
    return f"| {told.fault} | {told.stage} | {told.status} | {told.said} | {sealed} | {told.again} |"


def main() -> int:
    """Run, print, write. Returns: 1 if something was lost, differs or was told otherwise than in a sentence."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--kills", type=int, default=500)
    options.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    options.add_argument(
        "--mishaps", nargs="*", choices=[each.name for each in MISHAPS], default=[each.name for each in MISHAPS],
        help="the other faults; with nothing behind it, SIGKILLs alone",
    )  # fmt: skip
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=RESULTS, help="folder for faults.md")
    args = options.parse_args()
    facts, began = machine(PACKAGES, 1), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sd35h5-faults-") as place:
        lines, wrong = run(args, Path(place))
    flags = " ".join(["", *sys.argv[1:]])
    page = "\n".join([
        "# Faults", "", *lines, "", *(f"- wrong: {each}" for each in wrong), *[""] * bool(wrong),
        f"Seed {args.seed}. {machine_told(facts)}",
        f"Made by `python benchmarks/faults.py{flags}`.",
    ]) + "\n"  # fmt: skip
    print("\n" + page[page.index(lines[-1]) + len(lines[-1]) :].strip())
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "faults.md").write_text(page, encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
