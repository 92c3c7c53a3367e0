"""Readers that are Python packages, each asked for everything in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from parts.readers.shown import HIDDEN, ROOT, Shown, truth


def netcdf4(path: Path) -> Shown:
    """netCDF4-python, the netCDF C library."""
    import netCDF4

    shown = Shown()

    def walk(group: netCDF4.Group, prefix: str) -> None:
        for name, each in group.variables.items():
            each.set_auto_maskandscale(False)
            shown.put(prefix + name, each[...])
            shown.describe(prefix + name, {key: each.getncattr(key) for key in each.ncattrs()})
            shown.axes[prefix + name] = list(each.dimensions)
        for name, inner in group.groups.items():
            walk(inner, f"{prefix}{name}/")

    with netCDF4.Dataset(path) as file:
        shown.describe(ROOT, {key: file.getncattr(key) for key in file.ncattrs()})
        walk(file, "")
    return shown


def xarray(engine: str) -> Callable[[Path], Shown]:
    """xarray's DataTree, as people open it."""

    def read(path: Path) -> Shown:
        import xarray as xr

        shown = Shown()
        with xr.open_datatree(path, engine=engine) as tree:
            shown.describe(ROOT, {**tree.attrs, **tree.encoding})
            for node in tree.subtree:
                for name, each in node.to_dataset(inherit=False).variables.items():
                    full = f"{node.path}/{name}".strip("/").replace("//", "/")
                    shown.put(full, each.values)
                    shown.describe(full, {**each.attrs, **each.encoding})
                    shown.axes[full] = list(each.dims)
        return shown

    return read


def pytables(path: Path) -> Shown:
    """PyTables, whose attributes are of the nodes."""
    import tables

    shown, names = Shown(), truth(path)
    with tables.open_file(str(path)) as file:
        shown.describe(ROOT, _attributes(file.root))
        for name in (*names.numbers, *names.texts):
            _each(
                shown,
                (
                    lambda name=name: shown.put(name, file.get_node(f"/{name}").read()),
                    lambda name=name: shown.describe(name, _attributes(file.get_node(f"/{name}"))),
                ),
            )
    return shown


def _attributes(node) -> dict[str, object]:
    names = [name for name in node._v_attrs._v_attrnames if name not in HIDDEN]
    return {name: node._v_attrs[name] for name in names}


def pyfive(path: Path) -> Shown:
    """pyfive, HDF5 in Python alone."""
    import pyfive

    shown = Shown()
    names = truth(path)
    with pyfive.File(str(path)) as file:
        shown.describe(ROOT, dict(file.attrs))
        for name in (*names.numbers, *names.texts):
            _each(
                shown,
                (
                    lambda name=name: shown.put(name, _decoded(file[name][()])),
                    lambda name=name: shown.describe(name, dict(file[name].attrs)),
                    lambda name=name: shown.axes.update(
                        {name: [d[0].name.strip("/") for d in file[name].dims]}
                    ),
                ),
            )
    return shown


def _decoded(values):
    return values.encode() if isinstance(values, str) else values


def _each(shown: Shown, steps: Iterable[Callable[[], object]]) -> None:
    """Take each step, and note what the reader says where it cannot: a benchmark of readers expects them to fail."""
    for step in steps:
        try:
            step()
        except Exception as error:
            shown.trouble.append(f"{type(error).__name__}: {error}"[:160])
