"""A store as a lazy xarray DataTree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from sd35h5.store.blocks import numpy_dtype
from sd35h5.store.schema import variable


class Readable(Protocol):
    """What a tree needs of a store: it reads nothing else."""

    name: str
    attributes: Mapping[str, str]
    sizes: Mapping[str, int]
    variables: Sequence[str]

    def coords(self, name: str) -> dict[str, Any]: ...

    def read(self, name: str, **sel: Any) -> xr.DataArray: ...


class _LazyVariable(BackendArray):
    """Reads from the store what xarray asks for, when it asks."""

    def __init__(self, store: Readable, name: str) -> None:
        spec = variable(name)
        self._store, self._name, self._dims = store, name, spec.dims
        self.shape = spec.shape(store.sizes)
        self.dtype = numpy_dtype(spec)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        return self._store.read(self._name, **dict(zip(self._dims, key, strict=True))).values


def data_tree(store: Readable) -> xr.DataTree:
    """Every group of the store as a node, every variable lazy, coordinates as `Store.read` gives them."""
    nodes: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=store.attributes)}
    for name in store.variables:
        spec = variable(name)
        data = indexing.LazilyIndexedArray(_LazyVariable(store, name))
        attrs = {"long_name": spec.long_name, "units": spec.units}
        node = nodes.get(spec.group, xr.Dataset())
        coords = {c: v for c, v in store.coords(name).items() if c not in node.coords}
        node = node.assign_coords(coords)
        nodes[spec.group] = node.assign({spec.short_name: xr.Variable(spec.dims, data, attrs)})
    return xr.DataTree.from_dict(nodes, name=store.name)
