"""Store: a sealed or packed file, a folder of sealed files or a running capture, read lazily and alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sd35h5.errors import StoreError
from sd35h5.store import schema
from sd35h5.store.blocks import fill_of, numpy_dtype
from sd35h5.store.places.read_once import ReadOnce
from sd35h5.store.schema import SCALES, Variable, variable
from sd35h5.store.showable import seen

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from sd35h5.store.data_tree import Chunks
    from sd35h5.store.processes.guarded_files import GuardedFiles
    from sd35h5.store.sample_files import Parts

_FLAG_DIMS = tuple(name for name, scale in SCALES.items() if scale.labels and scale.is_dimension)
_MAX_PIXELS = 1 << 26  # 8192 x 8192
_UNASKED_BYTES, _MOST_DEFLATED = 32 << 20, 100  # a larger read has to be of something: values deflate to half
_TRUE_STEPS = ("step", "top_step", "map_step", "raw_step")


class Store:
    """What a capture measured, by name and labelled dimension; values are read when they are asked for."""

    def __init__(self, parts: Parts | GuardedFiles | ReadOnce, max_read_bytes: int | None = None) -> None:
        self._parts = parts
        self._max_read_bytes = max_read_bytes
        self.path: Path = parts.path
        self.name: str = parts.name
        self.planned: int = parts.planned
        self.status: str = "complete" if len(parts) >= parts.planned else "capturing"
        self.attributes: dict[str, str] = parts.attributes
        self.provenance: dict[str, Any] = parts.provenance
        self.config: dict[str, Any] = parts.config
        self.sizes: dict[str, int] = {
            name: len(v) for name, v in parts.scales.items() if SCALES[name].is_dimension
        }
        self.sizes["sample"] = len(parts)
        self.variables: tuple[str, ...] = parts.variables

    def __contains__(self, name: object) -> bool:
        return name in self.variables

    def __len__(self) -> int:
        return len(self._parts)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "\n".join(map(seen, self._lines()))

    def close(self) -> None:
        """Close the files; a closed store answers what it knows and refuses to read."""
        self._parts.close()

    @property
    def samples(self) -> pd.DataFrame:
        """A row a sample: sample (0..N-1), sample_id, prompt_id, prompt, seed, pairing_key, and so on."""
        import pandas as pd

        return pd.DataFrame(self.table())

    def table(self) -> dict[str, np.ndarray]:
        """The columns of `samples` without pandas."""
        specs = [variable(name) for name in self.variables]
        columns = {each.short_name: self._values(each.name, {}) for each in specs if each.dims == ("sample",)}
        return {"sample": np.arange(len(self)), **columns}

    def reading_once(self) -> Store:
        """The same store, which remembers all that it reads: for a few samples of which much is computed."""
        return Store(ReadOnce(self._parts), self._max_read_bytes)

    def bytes_on_disk(self, name: str | None = None) -> int:
        """Bytes that a variable takes, compressed, or that the files take."""
        return self._parts.bytes_on_disk(name)

    def chunks(self, name: str) -> tuple[int, ...] | None:
        """Shape of one stored chunk of a variable, None where it is one piece."""
        return self._parts.chunks(self._spec(name).name)

    def read(self, name: str, **sel: Any) -> xr.DataArray:
        """Read a variable, or the part of it that is selected, with its coordinates.

        Args:
            sel: dimension -> position (drops the dimension), list of positions, or slice; branch, query,
                group and encoder also take a label ("cond", "image", "clip_bos") or a list of labels.
        Returns: an array with the dimensions that are left, in the file's order; NaN (-1 for int, 255 for
            uint8) where nothing was measured.
        """
        return self._read(self._spec(name), sel)

    def mean(self, name: str, samples: Sequence[int], **sel: Any) -> xr.DataArray | None:
        """The mean of a variable over samples, where the file holds it ready; NaN has no weight in it.

        Args:
            name: of `schema.SUMMARIES`; sel: as of `read`.
        Returns: float32, without the samples; None where the file has no mean of exactly these samples.
        """
        if sorted(samples) != list(range(len(self))) or name not in self._parts.summaries():
            return None
        return self._read(schema.SUMMARIES[name], sel)

    def tokens(self, sample: int, branch: str | int = "cond") -> pd.DataFrame:
        """The token table of a sample.

        Returns: columns token, encoder, text, group, word, char_start, char_end, id_clip_l, id_clip_g, id_t5.
        """
        import pandas as pd

        def column(name: str, **more: str) -> np.ndarray:
            spec = self._spec(f"tokens/{name}")
            return self._values(spec.name, self._key(spec, {"sample": sample, "branch": branch, **more}))

        table = {
            "token": self._parts.scales["token"],
            "encoder": _words(schema.TOKEN_ENCODERS, self._parts.scales["token_encoder"]),
            "text": column("token_text"),
            "group": _words(schema.GROUPS, column("token_group")),
            "word": column("token_word"),
            "char_start": column("token_char_start"),
            "char_end": column("token_char_end"),
        }
        return pd.DataFrame(table | {f"id_{e}": column("token_id", encoder=e) for e in schema.ENCODERS})

    def image(self, sample: int) -> np.ndarray | None:
        """The generated image, or None if it was not kept. Returns: uint8 (pixel_y, pixel_x, 3)."""
        name = "images/image"
        if name not in self:
            return None
        spec = self._spec(name)
        height, width = self.sizes["pixel_y"], self.sizes["pixel_x"]
        if height * width > _MAX_PIXELS:
            raise StoreError(
                f"the images of {self.name} are {width} x {height} pixels, more than {_MAX_PIXELS:,}: "
                "a picture of that size is not drawn, read it with h5py"
            )
        position = self._key(spec, {"sample": sample})["sample"]
        if not self._parts.is_stored(name, position):
            return None
        return self._values(name, {"sample": position})

    def labels(self, dim: str) -> tuple[str, ...]:
        """Labels of the positions along branch, query, group or encoder, as `read` takes them."""
        return tuple(_words(SCALES[dim].labels, self._parts.scales[dim]))

    def numbers(self, dim: str) -> tuple[int, ...]:
        """True indices along layer, head, step and the like: those of the capture, of which a slice holds some."""
        return tuple(self._parts.scales[dim].tolist())

    def coords(self, name: str) -> dict[str, Any]:
        """Coordinates of a variable as `read` attaches them: name -> (dimension, values)."""
        return self._coords(self._spec(name), {})

    def to_xarray(self, chunks: Chunks = None) -> xr.DataTree:
        """The whole store as a lazy xarray DataTree: a node a group, values unmasked as in the file.

        Args:
            chunks: dask arrays in place of xarray's own lazy ones: "auto" in blocks of whole chunks of the file, up to
                dask's `array.chunk-size`; or dimension -> positions a block, other dimensions whole. Workers of a
                scheduler open the files themselves.
        Raises: StoreError without dask, and for a dimension that the store lacks.
        """
        from sd35h5.store.data_tree import data_tree

        return data_tree(self, chunks)

    def _read(self, spec: Variable, sel: Mapping[str, Any]) -> xr.DataArray:
        import xarray as xr

        key = self._key(spec, sel)
        values = self._values(spec.name, key)
        dims = [dim for dim in spec.dims if not isinstance(key.get(dim), int)]
        attrs = {"long_name": spec.long_name, "units": spec.units}
        if spec.labels:
            attrs["flag_meanings"] = " ".join(spec.labels)
        coords = self._coords(spec, key)
        return xr.DataArray(values, dims=dims, coords=coords, name=spec.short_name, attrs=attrs)

    def _spec(self, name: str) -> Variable:
        spec = variable(name)
        if name not in self.variables:
            if not len(self):
                raise StoreError(f"{self.name} has no sealed sample yet: wait for the first")
            raise StoreError(f"{self.name} has no {name}: it was captured with {', '.join(self._groups())}")
        return spec

    def _key(self, spec: Variable, sel: Mapping[str, Any]) -> dict[str, int | np.ndarray]:
        for dim in sel:
            if dim not in spec.dims:
                raise StoreError(f"{spec.name} has no dimension '{dim}': it has {', '.join(spec.dims)}")
        return {dim: self._positions(dim, wanted) for dim, wanted in sel.items()}

    def _positions(self, dim: str, wanted: Any) -> int | np.ndarray:
        """Resolve labels, slices and negative positions. Returns: an int, or an int64 array of positions."""
        size = self.sizes[dim]
        if isinstance(wanted, slice):
            return np.arange(size)[wanted]
        if isinstance(wanted, (str, int, np.integer)):
            return self._position(dim, wanted)
        if isinstance(wanted, np.ndarray) and wanted.dtype == bool:
            raise StoreError(f"{dim} is selected by positions, not by a mask: use numpy.flatnonzero")
        if not isinstance(wanted, Iterable):
            raise StoreError(f"{dim}={wanted!r} is no position, list of positions, slice or label")
        return np.array([self._position(dim, one) for one in wanted], np.int64)

    def _position(self, dim: str, wanted: Any) -> int:
        size = self.sizes[dim]
        if isinstance(wanted, str):
            if dim not in _FLAG_DIMS:
                raise StoreError(f"{dim}={wanted!r}: {dim} is selected by position, it has no labels")
            if wanted not in (known := self.labels(dim)):
                raise StoreError(f"{self.name} has no {dim} '{wanted}': it has {', '.join(known)}")
            return known.index(wanted)
        if isinstance(wanted, bool) or not isinstance(wanted, (int, np.integer)):
            raise StoreError(f"{dim}={wanted!r} is no position")
        if not -size <= wanted < size:
            raise StoreError(f"{dim}={wanted} is outside 0..{size - 1} of {self.name}")
        return int(wanted) % size

    def _values(self, name: str, key: Mapping[str, Any]) -> np.ndarray:
        spec = variable(name)
        wanted = tuple(key.get(dim, np.arange(self.sizes[dim])) for dim in spec.dims)
        lists = tuple(np.atleast_1d(w) for w in wanted)
        shape, dtype = [len(w) for w in lists], numpy_dtype(spec)
        nbytes = math.prod(shape) * dtype.itemsize
        if self._max_read_bytes is not None:
            self._refuse_too_large(name, nbytes)
        out = np.full(shape, fill_of(spec), dtype)
        self._parts.read_into(out, spec, lists)
        return out[tuple(0 if isinstance(w, int) else slice(None) for w in wanted)]

    def _refuse_too_large(self, name: str, nbytes: int) -> None:
        """Refuse a read by what it would take, before anything is read."""
        if nbytes > self._max_read_bytes:
            raise StoreError(
                f"{name} of {self.name}: this part of it takes {nbytes >> 20} MiB, more than the "
                f"{self._max_read_bytes >> 20} MiB that are read at once: choose fewer samples or steps"
            )
        if nbytes > _UNASKED_BYTES and nbytes > _MOST_DEFLATED * (stored := self.bytes_on_disk(name)):
            raise StoreError(
                f"{name} of {self.name}: this part of it would take {nbytes >> 20} MiB, of which the file holds "
                f"{stored} bytes: nearly nothing was measured there, or it is made to exhaust readers"
            )

    def _coords(self, spec: Variable, key: Mapping[str, Any]) -> dict[str, Any]:
        coords: dict[str, Any] = {}
        for dim in spec.dims:
            positions = key.get(dim, slice(None))
            values = np.arange(len(self)) if dim == "sample" else self._parts.scales[dim]
            if dim in _FLAG_DIMS:
                values = np.array(_words(SCALES[dim].labels, values))
            coords[dim] = _along(dim, values[positions])
            if dim in _TRUE_STEPS:
                steps = self._parts.scales[dim][positions]
                for name in ("timestep", "sigma"):
                    if name in self._parts.scales:
                        coords[name] = _along(dim, self._at_steps(name, steps))
        return coords

    def _at_steps(self, name: str, steps: np.ndarray) -> np.ndarray:
        """Timestep or sigma at true step indices, NaN where the file does not know the step."""
        known = dict(zip(self._parts.scales["step"].tolist(), self._parts.scales[name], strict=True))
        return np.vectorize(known.get, otypes=[np.float32])(steps, np.nan)

    def _groups(self) -> list[str]:
        return list(dict.fromkeys(name.split("/")[0] for name in self.variables))

    def _lines(self) -> Iterable[str]:
        yield f"<sd35h5.Store {self.name!r}: {self.status}, {len(self)} of {self.planned} samples>"
        model = [self.attributes[name] for name in ("model_id", "gate_type") if self.attributes.get(name)]
        if model:
            yield f"  model    {', gates '.join(model)}"
        if self.sizes:
            yield f"  sizes    {', '.join(f'{dim} {size}' for dim, size in self.sizes.items())}"
        for group in self._groups():
            names = [name.split("/")[1] for name in self.variables if name.startswith(f"{group}/")]
            yield f"  {group:<8} {', '.join(names)}"


def _words(labels: tuple[str, ...], flags: np.ndarray) -> list[str]:
    return [labels[flag] if flag < len(labels) else f"unknown_{flag}" for flag in np.asarray(flags).tolist()]


def _along(dim: str, values: np.ndarray) -> Any:
    return values if np.ndim(values) == 0 else (dim, values)
