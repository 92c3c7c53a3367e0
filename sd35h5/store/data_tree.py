"""A store as a lazy xarray DataTree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from sd35h5.errors import StoreError
from sd35h5.store.blocks import numpy_dtype
from sd35h5.store.schema import variable

Chunks = str | Mapping[str, int] | None
_TEXT_BYTES = 64  # that a text counts for where blocks are cut


class Readable(Protocol):
    """What a tree needs of a store: it reads nothing else."""

    name: str
    attributes: Mapping[str, str]
    sizes: Mapping[str, int]
    variables: Sequence[str]

    def coords(self, name: str) -> dict[str, Any]: ...

    def chunks(self, name: str) -> tuple[int, ...] | None: ...

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


class _Blocks:
    """Reads the blocks that dask asks for, in its threads or, since the store opens its files itself, elsewhere."""

    def __init__(self, store: Readable, name: str) -> None:
        spec = variable(name)
        self._store, self._name, self._dims = store, name, spec.dims
        self.shape = spec.shape(store.sizes)
        self.dtype, self.ndim = numpy_dtype(spec), len(spec.dims)

    def __getitem__(self, key: tuple[slice | int, ...]) -> np.ndarray:
        return self._store.read(self._name, **dict(zip(self._dims, key, strict=True))).values


def data_tree(store: Readable, chunks: Chunks = None) -> xr.DataTree:
    """Every group of the store as a node, every variable lazy, coordinates as `Store.read` gives them.

    Args: chunks: see `Store.to_xarray`.
    """
    nodes: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=store.attributes)}
    for name in store.variables:
        spec = variable(name)
        data = (
            indexing.LazilyIndexedArray(_LazyVariable(store, name))
            if chunks is None
            else _dask_array(store, name, chunks)
        )
        attrs = {"long_name": spec.long_name, "units": spec.units}
        node = nodes.get(spec.group, xr.Dataset())
        coords = {c: v for c, v in store.coords(name).items() if c not in node.coords}
        node = node.assign_coords(coords)
        nodes[spec.group] = node.assign({spec.short_name: xr.Variable(spec.dims, data, attrs)})
    return xr.DataTree.from_dict(nodes, name=store.name)


def _dask_array(store: Readable, name: str, chunks: str | Mapping[str, int]) -> Any:
    """A variable as a dask array whose blocks are whole chunks of the file."""
    if find_spec("dask") is None:
        raise StoreError("chunks needs dask: pip install 'sd35h5[cluster]', or pip install dask")
    import dask.array as da

    blocks, dims = _Blocks(store, name), variable(name).dims
    if isinstance(chunks, str):
        asked = dict.fromkeys(dims, chunks)
    elif unknown := sorted(set(chunks) - set(store.sizes)):
        raise StoreError(f"chunks names {', '.join(unknown)}: {store.name} has {', '.join(store.sizes)}")
    else:
        asked = {dim: chunks.get(dim, -1) for dim in dims}
    sized = np.dtype(f"S{_TEXT_BYTES}") if blocks.dtype == object else blocks.dtype
    cut = da.core.normalize_chunks(
        tuple(asked.values()), blocks.shape, dtype=sized, previous_chunks=store.chunks(name) or blocks.shape
    )
    meta = np.empty((0,) * blocks.ndim, blocks.dtype)
    return da.from_array(blocks, cut, name=False, lock=False, fancy=False, meta=meta)
