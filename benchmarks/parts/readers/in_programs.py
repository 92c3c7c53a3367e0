"""Readers that are programs: what they print, parsed; and scripts of other languages, which write a table."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from parts.readers.shown import ROOT, Shown, truth

HERE = Path(__file__).parent
SEPARATOR = "\x1e"
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')


def output(command: Sequence[str | Path], env: dict[str, str] | None = None) -> str:
    """What a program prints; its errors are its answer, too."""
    told = subprocess.run(list(map(str, command)), capture_output=True, timeout=600, env=env)
    return (told.stdout or told.stderr).decode("utf-8", "replace")


def h5dump(path: Path) -> Shown:
    """The HDF5 tools of HDF5 1.10: numbers as bytes, texts and attributes as printed."""
    shown, expected = Shown(), truth(path)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "values"
        for name, values in expected.numbers.items():
            output(["h5dump", "-d", f"/{name}", "-b", "LE", "-o", raw, path])
            shown.numbers[name] = np.frombuffer(raw.read_bytes(), values.dtype.newbyteorder("<"))
    for name in expected.texts:
        printed = output(["h5dump", "-y", "-w", "1000000", "-d", f"/{name}", path]).partition("   DATA {")[2]
        body = printed.partition("\n   }")[0].strip()
        alone = name.startswith("provenance/")  # quotes within a text are printed as they are
        shown.texts[name] = [_unescaped(one) for one in ([body[1:-1]] if alone else _TEXT.findall(body))]
    _h5dump_attributes(shown, output(["h5dump", "-A", "-w", "1000000", path]))
    return shown


def _h5dump_attributes(shown: Shown, printed: str) -> None:
    places: list[str] = []
    attribute = ""
    for line in printed.splitlines():
        opened = re.match(r'\s*(GROUP|DATASET|ATTRIBUTE) "(.*)" \{', line)
        if opened and opened[1] == "ATTRIBUTE":
            attribute = opened[2]
        elif opened:
            places = [*places[: (len(line) - len(line.lstrip())) // 3], opened[2]]
        elif (value := re.match(r"\s*\(0\): (.*)", line)) and attribute:
            name = "/".join(places[1:]) or ROOT
            if attribute == "DIMENSION_LIST":
                shown.axes[name] = re.findall(r"/(\w+)", line)
            elif text := _TEXT.match(value[1]):
                shown.attributes.setdefault(name, {})[attribute] = _unescaped(text[1]).rstrip("\0")
            attribute = ""


def ncdump(path: Path) -> Shown:
    """netCDF's own tool: the whole file as text."""
    shown, expected, groups, name, held = Shown(), truth(path), [], "", []
    for line in output(["ncdump", "-p", "9,17", path]).splitlines():
        if name:
            held.append(line)
        elif found := re.match(r"\s*group: (\w+) \{", line):
            groups.append(found[1])
        elif re.match(r"\s*\} // group", line):
            groups.pop()
        elif found := re.match(r"\s+\w+ (\w+)\((.*)\) ;", line):
            shown.axes["/".join([*groups, found[1]])] = found[2].split(", ")
        elif found := re.match(r'\s+(?:string )?(\w*) ?:(\w+) = (".*") ;', line):
            place = "/".join([*groups, found[1]]) if found[1] else ROOT
            shown.attributes.setdefault(place, {})[found[2]] = _unescaped(found[3][1:-1])
        elif found := re.match(r"\s+(\w+) =(.*)", line):
            name, held = "/".join([*groups, found[1]]), [found[2]]
        if name and held[-1].endswith(";"):
            body, dataset = "\n".join(held)[:-1], name
            name = ""
            if dataset in expected.texts:
                shown.texts[dataset] = [
                    _unescaped(one[1:-1])
                    for one in re.findall(rf"{_TEXT.pattern.replace('(', '(?:', 1)}|_|NIL", body)
                ]  # ncdump prints an empty text as its fill value
            else:
                numbers = [one.strip().replace("_", "nan") for one in body.split(",")]
                shown.numbers[dataset] = np.array(numbers, np.float64)
                if expected.numbers[dataset].dtype == np.float32:  # nine digits tell a float32
                    shown.numbers[dataset] = shown.numbers[dataset].astype(np.float32)
    return shown


def gdal(path: Path) -> Shown:
    """GDAL's multidimensional driver for HDF5."""
    shown = Shown()

    def walk(group: dict, prefix: str) -> None:
        for name, each in _named(group.get("arrays", {})):
            values = _flat(each.get("values", []))
            if each["datatype"] == "String":
                shown.texts[prefix + name] = [str(one) for one in values]
            else:
                shown.numbers[prefix + name] = np.array(values, np.float64)
                if each["datatype"] == "Float32":
                    shown.numbers[prefix + name] = shown.numbers[prefix + name].astype(np.float32)
            shown.axes[prefix + name] = [_dimension(dim) for dim in each.get("dimensions", [])]
            texts = {key: _told(value) for key, value in each.get("attributes", {}).items()}
            shown.describe(prefix + name, texts | ({"units": each["unit"]} if "unit" in each else {}))
        for name, inner in _named(group.get("groups", {})):
            walk(inner, f"{prefix}{name}/")

    printed = output(["gdalmdiminfo", "-detailed", "-if", "HDF5", path])
    found = json.loads(printed.replace("NaN", '"nan"').replace('""nan""', '"nan"'))
    shown.describe(ROOT, {key: _told(value) for key, value in found.get("attributes", {}).items()})
    walk(found, "")
    return shown


def _named(things: dict | list) -> Iterator[tuple[str, dict]]:
    yield from things.items() if isinstance(things, dict) else ((one["name"], one) for one in things)


def _dimension(told: object) -> str:
    return (told["full_name"] if isinstance(told, dict) else str(told)).strip("/")


def _told(value: object) -> object:
    return value.get("value") if isinstance(value, dict) else value


def _flat(values: object) -> list:
    return [one for each in values for one in _flat(each)] if isinstance(values, list) else [values]


def script(command: Sequence[str | Path]) -> Callable[[Path], Shown]:
    """A script of another language: FILE, a list of datasets and an empty folder are its arguments.

    It writes shown.tsv: numbers NAME FILE (float64, little-endian) | texts NAME FILE | axes NAME "a b" |
    attribute NAME KEY TEXT | trouble SENTENCE.
    """

    def read(path: Path) -> Shown:
        expected, shown = truth(path), Shown()
        with tempfile.TemporaryDirectory() as told:
            folder = Path(told)
            kinds = [("numbers", name) for name in expected.numbers] + [
                ("texts", name) for name in expected.texts
            ]
            (folder / "names.tsv").write_text("".join(f"{kind}\t{name}\n" for kind, name in kinds))
            printed = output([*command, path, folder / "names.tsv", folder])
            if not (folder / "shown.tsv").is_file():
                shown.trouble.append(printed.strip()[-300:])
                return shown
            for line in (folder / "shown.tsv").read_text("utf-8", "replace").split("\n"):
                _take(shown, line.split("\t"), folder)
        return shown

    return read


def _take(shown: Shown, row: list[str], folder: Path) -> None:
    kind, *rest = row
    if kind == "numbers":
        shown.numbers[rest[0]] = np.fromfile(folder / rest[1], "<f8")
    elif kind == "texts":
        shown.texts[rest[0]] = (folder / rest[1]).read_text("utf-8", "replace").split(SEPARATOR)
    elif kind == "axes":
        shown.axes[rest[0]] = rest[1].split()
    elif kind == "attribute":
        shown.attributes.setdefault(rest[0], {})[rest[1]] = "\t".join(rest[2:])
    elif kind == "trouble":
        shown.trouble.append(rest[0][:200])


def _unescaped(text: str) -> str:
    plain = re.sub(r"\\([^0-7])", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), text)
    if not re.search(r"\\[0-7]{3}", plain):
        return plain
    octal = re.sub(rb"\\3777777[0-7]*([0-7]{3})|\\([0-7]{3})", _byte, plain.encode())
    return octal.decode("utf-8", "replace")  # h5dump prints bytes beyond ASCII so


def _byte(found: re.Match[bytes]) -> bytes:
    """The byte of an octal escape, also of one that a tool printed with its sign: `\\37777777742`."""
    return bytes([int(found[1] or found[2], 8) & 255])
