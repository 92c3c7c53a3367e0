"""Files from strangers: every refused kind built for real, and thousands of mutated ones.

    python benchmarks/hostile.py               5,000 mutated files; half an hour
    python benchmarks/hostile.py --limit 60    the same in short, without a table

Each kind must get a sentence from `verify --deep`. A mutated file (flipped bytes, zeroed ranges, a cut end, of the
golden file of this version and of the example packed anew) either gets one too, or h5py, and of every fifth xarray
too, shows of it exactly what it shows of the file that it was. And whatever it is, readers as the server and the
commands have them answer or end in their time, and the process that asks goes on. Prints a table and writes it to
benchmarks/results/hostile.md.
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
from concurrent.futures import ThreadPoolExecutor
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
XARRAY_EVERY = 5  # passed files of a whole batch: it takes 1.4 s a file, and reads through h5py
ENDED = "its reader was ended"


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


def shown(paths: list[Path], program: str) -> dict[str, str]:
    """What a program shows of files, by name; where one ends it, or all take too long, each is asked alone."""
    script = ROOT / "benchmarks" / "parts" / "strangers" / "others_show.py"
    line = [sys.executable, str(script), program, *map(str, paths)]
    try:
        output = subprocess.run(line, capture_output=True, text=True, timeout=2 * CHECK_SECONDS).stdout
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode()
    says = dict(line.split() for line in output.splitlines())
    if len(paths) == 1:
        return says or {paths[0].name: "refused:it ends the program"}
    left = [path for path in paths if path.name not in says]
    return says | {name: told for path in left for name, told in shown([path], program).items()}


def read_alone(readers: Readers, path: Path) -> str:
    """How a file is read that nobody verified, as if the check had overlooked it."""
    begin = time.monotonic()
    try:
        describe(open_through(readers, path, (time.monotonic_ns(),)))
        how = "read"
    except Sd35h5Error as error:
        how = ENDED if "crashed" in str(error) or "did not end" in str(error) else "refused"
    return how if time.monotonic() - begin < 4 * READ_SECONDS else "past its limit"


def batch(place: Path, source: Path, count: int, seed: str, expected: tuple[str, str]) -> Counter:
    """Damage so many copies and count what became of them.

    Args: expected: what h5py shows of the source, and what xarray does.
    """
    found: Counter = Counter()
    how, told, rng = {}, set(), random.Random(seed)
    with tempfile.TemporaryDirectory(dir=place) as name, Readers(1, READ_SECONDS) as readers:
        folder = Path(name)
        for number in range(count):
            path = folder / f"{number:06d}.h5"
            how[path], data = mutated(source.read_bytes(), rng)
            path.write_bytes(data)
            read = read_alone(readers, path)
            found[how[path], read] += 1
            if read == ENDED:  # it would take the time of the others
                told |= {path} if verify(path, deep=True, seconds=READ_SECONDS).problems else set()
                path.rename(path.with_suffix(".alone"))
        problems = _problems(folder) if any(folder.glob("*.h5")) else []
        told |= {path for path in how if any(problem.startswith(path.name) for problem in problems)}
        for path in how:
            if path.with_suffix(".alone").exists():
                path.with_suffix(".alone").rename(path)
        passed = [path for path in how if path not in told]
        says = shown(passed, "h5py") if passed else {}
        by_xarray = passed[:: 1 if count < BATCH else XARRAY_EVERY]
        says_too = shown(by_xarray, "xarray") if by_xarray else {}
        for path, kind in how.items():
            became = "told" if path in told else _outcome(says[path.name], says_too.get(path.name), expected)
            found[kind, became] += 1
            if became not in ("told", "equal"):
                shutil.copy(path, Path(tempfile.gettempdir()) / f"unnoticed-{source.stem}-{seed}-{path.name}")
    return found


def _outcome(h5py_shows: str, xarray_shows: str | None, expected: tuple[str, str]) -> str:
    """What a file is that verify passes: equal, or shown otherwise; a reader that refuses it shows nothing wrong."""
    shows = [(h5py_shows, expected[0])] + ([(xarray_shows, expected[1])] if xarray_shows else [])
    if all(found == wanted for found, wanted in shows):
        return "equal"
    is_refused = all(found == wanted or found.startswith("refused") for found, wanted in shows)
    return "passes, h5py or xarray refuse it" if is_refused else "CHANGED UNNOTICED"


def _problems(folder: Path) -> list[str]:
    """What verify says of a folder: it gives up after some files that end it, then the rest is asked for again."""
    problems: list[str] = []
    while True:
        found = verify(folder, deep=True, seconds=CHECK_SECONDS).problems
        problems += found
        if not any("were not looked at" in problem for problem in found):
            return problems
        for path in list(folder.glob("*.h5")):
            if any(problem.startswith(path.name) for problem in found):
                path.unlink()


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
    count = args.limit or args.count
    found: Counter = Counter()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(1 if args.limit else 2) as threads:
        folder = Path(place)
        told = kinds(folder, max(4, args.limit // 3) if args.limit else None)
        sources = [GOLDEN] if args.limit else [GOLDEN, packed(folder)]
        runs = []
        for source in sources:
            expected = tuple(shown([source], program)[source.name] for program in ("h5py", "xarray"))
            rest = count // len(sources)
            for start in range(0, rest, BATCH):
                size, seed = min(BATCH, rest - start), f"{args.seed}-{source.stem}-{start}"
                runs.append(threads.submit(batch, folder, source, size, seed, expected))
        for done, run in enumerate(runs, 1):
            found += run.result()
            print(f"{done} of {len(runs)} batches", *found.items(), file=sys.stderr, flush=True)
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
