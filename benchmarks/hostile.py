"""Files from strangers: every refused kind built for real, and thousands of mutated ones.

    python benchmarks/hostile.py               5,000 mutated files; half an hour
    python benchmarks/hostile.py --limit 60    the same in short, without a table

Each kind must get a sentence from `verify --deep`. A mutated file (flipped bytes, zeroed ranges, a cut end, of the
golden file of this version and of the example packed anew) either gets one too, or h5py and xarray show of it exactly
what they show of the file that it was. And whatever it is, readers as the server and the commands have them answer or
end in their time, and the process that asks goes on. Prints a table and writes it to benchmarks/results/hostile.md.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import h5py
from parts.machine import RESULTS
from parts.strangers.hostile_kinds import KINDS

from sd35h5 import verify
from sd35h5.errors import Sd35h5Error
from sd35h5.reports.info import describe
from sd35h5.store import schema
from sd35h5.store.packing import pack
from sd35h5.store.processes.guarded_store import open_through
from sd35h5.store.processes.reader_pool import Readers
from sd35h5.store.showable import showable

GOLDEN = ROOT / "tests" / "golden" / f"v{schema.SCHEMA_VERSION}.h5"
EXAMPLE = ROOT / "data" / "example-baseline.h5"
BATCH, READ_SECONDS, CHECK_SECONDS = 100, 3, 60


def kinds(folder: Path, only: int | None) -> dict[str, str]:
    """What verify says of every kind, "" where it finds nothing."""
    paths = {}
    for place, name in enumerate(list(KINDS)[:only]):
        paths[name] = folder / f"{place:06d}.h5"
        shutil.copy(GOLDEN, paths[name])
        with h5py.File(paths[name], "r+", libver=schema.LIBVER) as file:
            KINDS[name](file)
    problems = verify(folder, deep=True, seconds=10 * CHECK_SECONDS).problems
    told = {name: [each for each in problems if each.startswith(path.name)] for name, path in paths.items()}
    for path in paths.values():
        path.unlink()
    return {name: showable(found[0].partition(": ")[2]) if found else "" for name, found in told.items()}


def packed(folder: Path) -> Path:
    """The example, which an earlier version wrote, packed by this one."""
    (folder / "run.h5.parts").mkdir()
    shutil.copy(EXAMPLE, folder / "run.h5.parts" / "000000.h5")
    return pack(folder / "run.h5.parts", folder / "packed.h5")


def mutated(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A damaged copy, and how it was damaged."""
    copy, kind = bytearray(data), rng.choice(("flipped bytes", "zeroed range", "cut end"))
    if kind == "flipped bytes":
        for _ in range(rng.choice((1, 1, 3, 30))):
            copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
    elif kind == "zeroed range":
        start, length = rng.randrange(len(copy)), rng.choice((1, 8, 64, 512))
        copy[start : start + length] = bytes(len(copy[start : start + length]))
    else:
        del copy[rng.randrange(len(copy)) :]
    return kind, bytes(copy)


def shown(paths: list[Path]) -> dict[str, str]:
    """What other programs show of files, by name; where one ends them, or all take too long, each is asked alone."""
    line = [
        sys.executable,
        str(ROOT / "benchmarks" / "parts" / "strangers" / "others_show.py"),
        *map(str, paths),
    ]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=CHECK_SECONDS)
        output = done.stdout
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode()
    says = dict(line.split() for line in output.splitlines())
    left = [path for path in paths if path.name not in says]
    if len(paths) == 1:
        return says or {paths[0].name: "refused:it ends h5py or xarray"}
    return says | {name: told for path in left for name, told in shown([path]).items()}


def read_alone(readers: Readers, path: Path) -> str:
    """How a file is read that nobody verified, as if the check had overlooked it."""
    begin = time.monotonic()
    try:
        describe(open_through(readers, path, (time.monotonic_ns(),)))
        how = "read"
    except Sd35h5Error as error:
        how = "its reader was ended" if "crashed" in str(error) or "did not end" in str(error) else "refused"
    return how if time.monotonic() - begin < 4 * READ_SECONDS else "past its limit"


def batch(
    folder: Path, source: Path, rng: random.Random, count: int, expected: str, readers: Readers
) -> Counter:
    """Damage so many copies and count what became of them."""
    found: Counter = Counter()
    how = {}
    for place in range(count):
        path = folder / f"{place:06d}.h5"
        how[path], data = mutated(source.read_bytes(), rng)
        path.write_bytes(data)
        found[how[path], read_alone(readers, path)] += 1
    problems = [problem for path in how for problem in _of(path, folder, how)]
    sound = [path for path in how if not any(problem.startswith(path.name) for problem in problems)]
    says = shown(sound) if sound else {}
    for path, kind in how.items():
        if path not in sound:
            found[kind, "told"] += 1
        else:
            is_refused = says[path.name].startswith("refused")
            what = "passes, h5py or xarray refuse it" if is_refused else "CHANGED UNNOTICED"
            found[kind, "equal" if says[path.name] == expected else what] += 1
            if says[path.name] != expected:
                shutil.copy(
                    path, Path(tempfile.gettempdir()) / f"unnoticed-{source.stem}-{rng.randrange(10**6)}.h5"
                )
        path.unlink()
    return found


def _of(path: Path, folder: Path, how: dict[Path, str]) -> list[str]:
    """The problems of a whole batch, asked once, with the first of its files."""
    if path != next(iter(how)):
        return []
    problems: list[str] = []
    left = list(how)
    while left:  # a check is given up after some files that end it: the rest is asked for again
        report = verify(folder, deep=True, seconds=CHECK_SECONDS)
        problems += report.problems
        if not any("were not looked at" in problem for problem in report.problems):
            break
        for each in left:
            if any(problem.startswith(each.name) for problem in report.problems):
                each.rename(each.with_suffix(".told"))
        left = [each for each in left if each.exists()]
    for each in folder.glob("*.told"):
        each.rename(each.with_suffix(".h5"))
    return problems


def main() -> int:
    """Run; exit 1 if a kind passes, a file changes unnoticed or a read goes past its limit."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--limit", type=int, default=0, help="so many mutated files, a third as many kinds, no table"
    )
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--count", type=int, default=5000, help="mutated files in all")
    args = options.parse_args()
    count, rng = args.limit or args.count, random.Random(args.seed)
    found: Counter = Counter()
    with tempfile.TemporaryDirectory() as place, Readers(1, READ_SECONDS) as readers:
        folder = Path(place)
        told = kinds(folder, max(4, args.limit // 3) if args.limit else None)
        sources = [GOLDEN] if args.limit else [GOLDEN, packed(folder)]
        for source in sources:
            expected = shown([source])[source.name]
            done, wanted = 0, count // len(sources)
            while done < wanted:
                size = min(BATCH, wanted - done)
                found += batch(folder, source, rng, size, expected, readers)
                done += size
                print(f"{source.name}: {done} of {wanted}", *found.items(), file=sys.stderr, flush=True)
    lines = ["| kind | what verify --deep says |", "| --- | --- |"]
    lines += [f"| {name} | {problem or 'NOTHING'} |" for name, problem in told.items()]
    lines += [
        "",
        f"{count} mutated files, seed {args.seed}:",
        "",
        "| damage | what became of it | files |",
        "| --- | --- | ---: |",
    ]
    lines += [f"| {kind} | {what} | {number} |" for (kind, what), number in sorted(found.items())]
    print("\n".join(lines))
    if not args.limit:
        (RESULTS / "hostile.md").write_text(
            "# Files from strangers\n\n" + "\n".join(lines) + "\n", encoding="utf-8"
        )
    wrong = {"CHANGED UNNOTICED", "past its limit"}
    return int(any(what in wrong for _, what in found) or not all(told.values()))


if __name__ == "__main__":
    sys.exit(main())
