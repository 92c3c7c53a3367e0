"""What every reader at hand shows of a file, value by value: `python benchmarks/portability.py [FILE] [--npm FOLDER]`.

Readers: `pip install netCDF4 tables pyfive`, `apt install hdf5-tools netcdf-bin gdal-bin r-cran-hdf5r r-cran-ncdf4
octave octave-netcdf`, `npm install h5wasm jsfive` in a folder that --npm names. Absent ones are told as not installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from parts.machine import machine
from parts.readers import in_programs, in_python
from parts.readers.shown import Shown, compared, truth, wrong

WHAT = ("numbers", "texts", "axes", "attributes")
Reader = tuple[str, Callable[[Path], Shown]]


def readers(npm: Path) -> dict[str, Reader | None]:
    """Name -> version and how to read with it; None where it is not installed."""
    here = in_programs.HERE
    found = {
        "xarray, h5netcdf": _package("xarray", "h5netcdf", read=in_python.xarray("h5netcdf")),
        "xarray, netcdf4": _package("xarray", "netCDF4", read=in_python.xarray("netcdf4")),
        "netCDF4-python": _package("netCDF4", read=in_python.netcdf4),
        "PyTables": _package("tables", read=in_python.pytables),
        "pyfive": _package("pyfive", read=in_python.pyfive),
        "h5dump": _program("h5dump", ["h5dump", "--version"], in_programs.h5dump),
        "ncdump": _program("ncdump", ["nc-config", "--version"], in_programs.ncdump),
        "GDAL": _program("gdalmdiminfo", ["gdalinfo", "--version"], in_programs.gdal),
    }
    for package in ("hdf5r", "ncdf4"):
        asked = ["Rscript", "-e", f"cat(as.character(packageVersion('{package}')))"]
        read = in_programs.script(["Rscript", here / f"read_{package}.R"])
        found[f"R, {package}"] = _program("Rscript", asked, read)
    octave = in_programs.script(["octave-cli", "-q", here / "read.m"])
    found["Octave, netcdf"] = _program("octave-cli", ["octave-cli", "--version"], octave)
    for package in ("h5wasm", "jsfive"):
        about = npm / package / "package.json"
        there = about.is_file() and shutil.which("node")
        read = in_programs.script(["node", here / "read.mjs", npm, package])
        found[package] = (json.loads(about.read_text())["version"], read) if there else None
    return found


def _package(*names: str, read: Callable[[Path], Shown]) -> Reader | None:
    try:
        return ", ".join(version(name) for name in names), read
    except PackageNotFoundError:
        return None


def _program(name: str, asked: list[str], read: Callable[[Path], Shown]) -> Reader | None:
    if shutil.which(name) is None:
        return None
    told = in_programs.output(asked) if shutil.which(asked[0]) else ""
    return next((word.strip(",") for word in told.split() if word[:1].isdigit()), "of Debian"), read


def row(name: str, reader: Reader | None, path: Path) -> dict:
    """What one reader shows of a file."""
    if reader is None:
        return {"reader": name, "version": "not installed"}
    expected = truth(path)
    try:
        shown = reader[1](path)
    except Exception as error:  # a reader that gives up is a row of the table
        return {"reader": name, "version": reader[0], "trouble": f"{type(error).__name__}: {error}"[:200]}
    return {
        "reader": name, "version": reader[0], **{what: list(pair) for what, pair in compared(shown, expected).items()},
        "shown otherwise": wrong(shown, expected), "trouble": "; ".join(dict.fromkeys(shown.trouble))[:200],
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """The rows as Markdown: how many are what h5py reads, of how many."""
    lines = [
        f"| reader | version | {' | '.join(WHAT)} | shown otherwise | it says |",
        "| --- " * (len(WHAT) + 4) + "|",
    ]
    for one in rows:
        parts = [" of ".join(map(str, one[what])) if what in one else "" for what in WHAT]
        wrongly = ", ".join(one.get("shown otherwise", [])[:3])
        lines.append(
            f"| {one['reader']} | {one['version']} | {' | '.join(parts)} | {wrongly} | "
            f"{one.get('trouble', '').replace('|', '/')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("file", type=Path, nargs="?", default=ROOT / "tests" / "golden" / "v1.1.h5")
    given.add_argument(
        "--npm", type=Path, default=Path("node_modules"), help="node_modules with h5wasm and jsfive"
    )
    given.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = given.parse_args()
    rows = []
    for name, reader in readers(args.npm.resolve()).items():
        rows.append(row(name, reader, args.file))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    text = (
        f"# What readers show of {args.file.name}\n\n"
        "Numbers, texts, names of axes and text attributes that are, one by one, "
        f"what h5py {version('h5py')} reads. Made by `python benchmarks/portability.py`.\n\n{table(rows)}"
    )
    (args.out / "portability.md").write_text(text, encoding="utf-8")
    told = {"file": args.file.name, "machine": machine(("h5py", "xarray", "h5netcdf"), 2), "readers": rows}
    (args.out / "portability.json").write_text(
        json.dumps(told, indent=1, default=str) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
