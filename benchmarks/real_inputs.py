"""Files, prompts, folders and machines as people have them: every kind that was reported of neighbouring tools.

    python benchmarks/real_inputs.py

Runs tests/real, which builds each kind for real and holds it against its right answer, and says for each what
was tried and what came. Prints the table and writes it to benchmarks/results/real_inputs.md; exits with 1 if a
kind fell short, or if nothing was tried.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import pytest
from parts.machine import RESULTS, machine

NAME = "real_inputs.md"
PACKAGES = ("h5py", "streamlit", "torch", "transformers", "diffusers")


@dataclass
class Tried:
    """One test: what it says, its cases with how each ended, and why some were left out."""

    kind: str
    sentence: str
    cases: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @property
    def fell_short(self) -> list[str]:
        return [case for case, outcome in self.cases.items() if outcome == "failed"]


class Watcher:
    """What pytest reports of each test, by its file and name."""

    def __init__(self) -> None:
        self.tried: dict[str, Tried] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Take each test's sentence from its name, and its kind from what its file says of itself."""
        for item in items:
            name = item.nodeid.partition("[")[0]
            kind = _first_sentence(item.module.__doc__ or item.path.stem)
            sentence = item.originalname.removeprefix("test_").replace("_", " ")
            self.tried.setdefault(name, Tried(kind, sentence))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep how a case ended: the worst of its set-up, its call and its tear-down."""
        name, _, case = report.nodeid.partition("[")
        one, case = self.tried[name], case.removesuffix("]") or "it"
        if report.skipped:
            one.cases[case] = "left out"
            one.reasons.append(str(report.longrepr[2]).removeprefix("Skipped: "))
        elif report.failed:
            one.cases[case] = "failed"
        elif report.when == "call":
            one.cases.setdefault(case, "passed")


def table(tried: Sequence[Tried]) -> str:
    """Return a Markdown table: a row a test, its cases beside it."""
    lines = ["| kind | what was tried, and what must come | cases | what came |", "| --- | --- | --- | --- |"]
    before = ""
    for one in tried:
        cases = "" if list(one.cases) == ["it"] else ", ".join(one.cases)
        cells = ("" if one.kind == before else one.kind, one.sentence, cases, _came(one))
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        before = one.kind
    return "\n".join(lines)


def _came(one: Tried) -> str:
    if one.fell_short:
        return f"**fell short: {', '.join(one.fell_short)}**"
    passed = sum(outcome == "passed" for outcome in one.cases.values())
    left_out = f"left out here: {one.reasons[0]}" if one.reasons else ""
    return "; ".join(filter(None, ("that" if passed else "", left_out))) or "nothing was run"


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the kinds, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="a word of the tests to run, as pytest's -k takes it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the table")
    args = parser.parse_args(arguments)
    watcher = Watcher()
    chosen = ["-k", args.only] if args.only else []
    with contextlib.redirect_stdout(sys.stderr):  # the table alone is the result
        status = pytest.main(
            [str(ROOT / "tests" / "real"), "-q", "-p", "no:cacheprovider", *chosen], [watcher]
        )
    tried = [one for one in watcher.tried.values() if one.cases]
    if not tried or status not in (0, pytest.ExitCode.TESTS_FAILED):
        print("nothing was tried, or not all could be: no table is written", file=sys.stderr)
        return 1
    short = [one for one in tried if one.fell_short]
    cases = sum(len(one.cases) for one in tried)
    about = machine(PACKAGES, 1)
    text = (
        f"# Real files, prompts and machines\n\n{len({one.kind for one in tried})} kinds, {cases} cases, "
        f"{len(short)} tests fell short. {about['system']}, {about['date']}.\n\n{table(tried)}\n"
    )
    print(text, end="")
    (args.out / NAME).write_text(text, encoding="utf-8")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
