"""How fast raw values get into a file: our writer, one thread of plain h5py, and the disk alone.

    python benchmarks/writer_rate.py                          maps of SD3.5-Large, 400 MB of values, five runs each
    python benchmarks/writer_rate.py --megabytes 2000 --folder /mnt/fast

The values are synthetic maps and masses, smooth over the image and over tokens as attention is. All three
write the same values in turns: our writer rounds, shuffles, hashes, deflates and check-sums in threads, h5py
shuffles, deflates and check-sums values that are rounded already, the disk takes the bytes of our file.
Each ends with fsync. Prints its table and writes it to benchmarks/results/writer_rate.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import h5py
import numpy as np
from parts.machine import RESULTS, machine

from sd35h5.store import chunks, schema
from sd35h5.store.blocks import round_mantissa
from sd35h5.store.bounded_queue import half_of_the_cores
from sd35h5.store.schema import REQUIRED, variable
from sd35h5.store.writer import Header, SampleWriter

NAME = "maps/image_to_text_per_head"
SIZES = {"branch": 1, "step": 1, "layer": 38, "head": 38, "token": 4, "y": 32, "x": 32}
MAP_BYTES = 38 * 38 * 32 * 32 * 4


def make_maps(count: int) -> np.ndarray:
    """Float32 (map, layer, head, y, x): a smooth bump each, times what varies from patch to patch."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1:32j, 0:1:32j]
    maps = np.empty((count, SIZES["layer"], SIZES["head"], 32, 32), np.float32)
    for place in np.ndindex(count, SIZES["layer"]):
        centre = rng.random((SIZES["head"], 2, 1, 1))
        bump = np.exp(-8 * ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2))
        maps[place] = 1e-3 * bump * rng.lognormal(0, 0.3, bump.shape)
    return maps


def write_ours(folder: Path, maps: np.ndarray) -> Path:
    """Write with the writer of a capture, in the pieces in which a capture does."""
    scales = {name: np.arange(length) for name, length in SIZES.items()}
    scales |= {"map_step": np.arange(1), "map_token": np.arange(len(maps))}
    writer = SampleWriter(folder, 0, Header({}, scales, {"config": "{}"}))
    for name in REQUIRED:
        spec = variable(name)
        if name not in ("samples/sealed", "samples/content_sha256"):
            writer.put(name, np.full(spec.shape(writer.sizes)[1:], "" if spec.is_text else 0))
    writer.put(NAME, maps, branch=0, map_step=0, map_token=range(len(maps)))
    return writer.seal()


def write_h5py(folder: Path, maps: np.ndarray) -> Path:
    """Write the same chunks with the same filters by plain h5py, in one thread."""
    path = folder / "plain.h5"
    sizes = {**SIZES, "sample": 1, "map_step": 1, "map_token": len(maps)}
    with h5py.File(path, "w", libver=schema.LIBVER) as file:
        dataset = file.create_dataset(
            "maps", maps.shape, "<f4", chunks=variable(NAME).chunks(sizes)[3:],
            shuffle=True, compression="gzip", compression_opts=schema.GZIP_LEVEL, fletcher32=True,
        )  # fmt: skip
        for place, values in enumerate(maps):
            dataset[place] = values
    _fsync(path)
    return path


def write_bytes(folder: Path, data: bytes) -> Path:
    """Write what our file holds, as it is."""
    path = folder / "bytes"
    path.write_bytes(data)
    _fsync(path)
    return path


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def measure(folder: Path, megabytes: int, runs: int) -> dict[str, object]:
    """Time all three in turns. Returns: seconds of each run, raw bytes, bytes of the files."""
    maps = make_maps(max(1, round(megabytes * 1e6 / MAP_BYTES)))
    rounded = round_mantissa(maps)
    warm = write_ours(folder, maps[:1])
    sizes: dict[str, int] = {"values": maps.nbytes}
    data = b""

    def ours() -> Path:
        return write_ours(folder, maps)

    writers: dict[str, Callable[[], Path]] = {
        "sd35h5": ours,
        "h5py": lambda: write_h5py(folder, rounded),
        "disk": lambda: write_bytes(folder, data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    warm.unlink()
    for run in range(runs):
        for name, write in writers.items():
            begin = time.perf_counter()
            path = write()
            seconds[name].append(time.perf_counter() - begin)
            sizes[name] = path.stat().st_size
            data = path.read_bytes() if name == "sd35h5" else data
            path.unlink()
            print(f"run {run + 1} of {runs}, {name}: {seconds[name][-1]:.2f} s", file=sys.stderr)
    return {"seconds": seconds, "bytes": sizes}


def summary(measured: dict[str, dict]) -> dict[str, dict[str, float]]:
    """MB/s of raw values (of the disk: as if it were the only limit), median and spread; and ratios."""
    told = {}
    for name, seconds in measured["seconds"].items():
        rates = [measured["bytes"]["values"] / each / 1e6 for each in seconds]
        told[name] = {"median": statistics.median(rates), "least": min(rates), "most": max(rates)}
    for name in told:
        told[name]["of_h5py"] = told[name]["median"] / told["h5py"]["median"]
        told[name]["of_disk"] = told[name]["median"] / told["disk"]["median"]
    return told


def table(results: dict[str, dict[str, float]], facts: dict[str, object]) -> str:
    """The results as Markdown."""
    names = {
        "sd35h5": f"sd35h5, {facts['threads']} deflating threads",
        "h5py": "h5py, one thread",
        "disk": "the disk alone, same bytes",
    }
    lines = [
        "# How fast raw values get into a file",
        "",
        "| writer | MB/s of raw values | × plain h5py | share of the disk | bytes in the file |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        size = facts["bytes"][name] / facts["bytes"]["values"]
        lines.append(
            f"| {names[name]} | {result['median']:.0f} ({result['least']:.0f}–{result['most']:.0f}) "
            f"| **{result['of_h5py']:.2f}** | {result['of_disk']:.2f} | {size:.2f} of raw |"
        )
    told = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return "\n".join([
        *lines,
        "",
        f"{facts['bytes']['values'] / 1e6:.0f} MB of synthetic maps per head, chunks of 38 × 32 × 32 float32; "
        f"median (smallest–largest) of {facts['runs']} runs in turns, fsync counted; "
        f"deflate by {facts['deflate']}.",
        f"{facts['cpu']}, {facts['cores']} cores, load before the runs {facts['load_before']:.2f}; "
        f"{facts['system']}, HDF5 {h5py.version.hdf5_version}, {told}. {facts['date']}.",
        "Made by `python benchmarks/writer_rate.py`.",
    ]) + "\n"  # fmt: skip


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=400, help="raw values to write")
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind")
    parser.add_argument("--folder", type=Path, default=None, help="where to write, on the disk to measure")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for writer_rate.md and writer_rate.json"
    )
    asked = parser.parse_args()
    if asked.megabytes < 1 or asked.runs < 1:
        parser.error("--megabytes and --runs are 1 or more")
    if asked.folder is not None and not asked.folder.is_dir():
        parser.error(f"--folder {asked.folder}: there is no such folder")
    facts = {
        **machine(("numpy", "h5py", "isal"), half_of_the_cores()),
        "deflate": chunks.compress.__module__,
        "runs": asked.runs,
    }
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        measured = measure(Path(temporary), asked.megabytes, asked.runs)
    results = summary(measured)
    facts |= {"bytes": measured["bytes"], "seconds": measured["seconds"]}
    asked.out.mkdir(parents=True, exist_ok=True)
    text = table(results, facts)
    (asked.out / "writer_rate.md").write_text(text, encoding="utf-8")
    (asked.out / "writer_rate.json").write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
