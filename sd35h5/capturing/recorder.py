"""From the probe's results on the device to the sample's file on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sd35h5.capturing.sample_facts import Layout, SampleFacts, put_facts
from sd35h5.capturing.transfer import Transfer
from sd35h5.errors import CaptureError
from sd35h5.measuring import reductions
from sd35h5.planning.token_table import TokenTable
from sd35h5.store import schema
from sd35h5.store.processes.writer_client import ProcessWriter
from sd35h5.store.schema import GATE_STATISTICS
from sd35h5.store.writer import Header, SampleWriter

if TYPE_CHECKING:
    from sd35h5.gates.modules import Gates
    from sd35h5.measuring.passes import PassResult

ROW_SUM_TOLERANCE = 1e-3
_IMAGE = schema.QUERIES.index("image")
_PIECE_BYTES = 32 << 20  # small enough for a processor's cache, of which two processes copy it
_HEAD_MAPS = "maps/image_to_text_per_head"
_LARGE = ("mass.", "maps", "rows.", "atlas.patch_mass", "second.patch_mass")


class SampleRecorder:
    """Writes one sample: per-step arrays as they come, arrays whose chunks span all steps at the end.

    Args:
        apart: write in a process of its own, so that its threads do not hold up those of this one.
        round_mantissa: as `reductions.round_mantissa`, on the device.
    """

    def __init__(
        self,
        parts: Path,
        header: Header,
        layout: Layout,
        facts: SampleFacts,
        tables: Mapping[str, TokenTable],
        kept_branches: Sequence[str],
        text_queries: bool,
        map_tokens: Sequence[int],
        gates: Gates | None,
        rows: Sequence[tuple[int, int]] = (),
        altered: Sequence[str] = (),
        apart: bool = False,
        round_mantissa: Callable[[Tensor], Tensor] = reductions.round_mantissa,
    ) -> None:
        self._layout, self._rows = layout, rows
        self._cond, self.index = layout.branches.index("cond"), facts.index
        self._kept = [branch for branch in kept_branches if branch in layout.branches]
        self._masses = ("mass_image", "mass_text") if text_queries else ("mass_image",)
        self._transfer = Transfer()
        self._rounded = round_mantissa if header.precision == "rounded" else lambda values: values
        writer = ProcessWriter if apart else partial(SampleWriter, owned=True)
        self._writer = writer(parts, facts.index, header, rounded_already=True)
        shape = (len(layout.branches), len(schema.QUERIES))
        steps = (len(layout.timesteps), layout.layers, layout.heads)
        self._group = _nan(*shape, len(schema.GROUPS), *steps)
        self._entropy = _nan(*shape, *steps)
        self._entropy_all = _nan(len(schema.QUERIES), *steps) if layout.atlas else None
        gated, second = gates is not None and gates.layers, gates is not None and gates.second_layers
        self._gates = _nan(len(GATE_STATISTICS), *shape, *steps) if gated else None
        self._gate_groups = _nan(*shape, len(schema.GROUPS), *steps) if gated else None
        self._second_gates = _nan(len(GATE_STATISTICS), *shape, *steps) if second else None
        self._top: dict[str, dict[int, np.ndarray]] = {}  # variable -> top_step -> values
        self._second_top: dict[str, dict[int, np.ndarray]] = {}
        self._second_entropy = _nan(*steps[:2], layout.second.own_heads or layout.heads)
        self._band: dict[int, Tensor] = {}  # maps of every head of the layers of one chunk
        self._drawn_last: set[str] = set()  # branches of the last step so far
        self._is_gathered = False
        self._altered_mass = {name: _nan(*shape, *steps[:2], layout.heads_of(name)) for name in altered}
        self._row_sum_error = float("nan")
        try:
            put_facts(self._writer.put, facts, layout, tables, map_tokens, rows)
        except BaseException:
            self._writer.abandon()
            raise

    def add(
        self, step: int, rows: Sequence[str], result: PassResult | None, flags: Mapping[str, Tensor],
        check: Callable[[Mapping[str, np.ndarray]], None],
    ) -> None:  # fmt: skip
        """Take one pass of the transformer; `rows` names the branch of each batch row.

        Args:
            result: None if no layer ran. flags: come over with the results.
            check: looks at both first, and refuses them by an error.
        Raises:
            CaptureError: as `check`, or rows of A did not sum to 1; said of an earlier pass where results come later.
        """

        def take(arrays: dict[str, np.ndarray]) -> None:
            check(arrays)
            self._take(step, rows, arrays)

        while self._band:  # of layers whose chunk has one that did not run
            self._send_band(step, min(self._band))
        self._transfer.send(
            {**self._outgoing(rows, result), **flags} if result else flags, take if result else check
        )

    def add_altered(self, step: int, rows: Sequence[str], masses: Mapping[str, Tensor]) -> None:
        """Take the masses that were altered in one pass: variable -> (batch row, query stream, layer, head)."""

        def take(arrays: dict[str, np.ndarray]) -> None:
            for name, mass in arrays.items():
                for row, at in self._places(rows):
                    self._altered_mass[name][at, :, step] = mass[row]

        self._transfer.send(masses, take)

    def add_head_maps(self, step: int, layer: int, maps: Tensor) -> None:
        """Take one layer's maps of every head, (map, head, y, x). The layers of a chunk are sent together, as soon
        as they are there: the writer works during the pass, not after it."""
        self._band[layer] = maps
        if layer == max(each for each in self._band_of(layer) if each in self._layout.map_layers):
            self._send_band(step, layer)

    def _band_of(self, layer: int) -> range:
        count = schema.variable(_HEAD_MAPS).chunk["layer"]
        return range(layer - layer % count, min(layer - layer % count + count, self._layout.layers))

    def _send_band(self, step: int, layer: int) -> None:
        band, maps = self._band_of(layer), self._band[layer]
        gap = maps.new_full((), float("nan")).expand_as(maps)
        each = torch.stack([self._band.pop(one, gap) for one in band], dim=1)
        at = {"map_step": self._layout.map_steps.index(step), "layer": band}
        self._send_large(_HEAD_MAPS, self._rounded(each), "map_token", at)

    def add_raw(self, step: int, layer: int, values: Tensor) -> None:
        """Take the raw probabilities of one layer, (raw_head, raw_token, patch_y, patch_x)."""
        raw = self._layout.raw
        at = {"raw_step": raw["raw_step"].index(step), "raw_layer": raw["raw_layer"].index(layer)}
        self._send_large("raw/probability", self._rounded(values), "raw_head", at)

    def _send_large(self, name: str, values: Tensor, dim: str, at: Mapping[str, int | Sequence[int]]) -> None:
        """Send what may be gigabytes in pieces along its first dimension: their copies overlap with deflating."""
        count = max(1, _PIECE_BYTES // values[0].nbytes)
        for first in range(0, len(values), count):
            piece = values[first : first + count]
            there = {**at, "branch": self._cond, dim: range(first, first + len(piece))}
            self._transfer.send({name: piece}, partial(self._put_all, there))

    def _put_all(self, at: Mapping[str, int | Sequence[int]], arrays: Mapping[str, np.ndarray]) -> None:
        for name, values in arrays.items():
            self._writer.put(name, values, **at)

    def _outgoing(self, rows: Sequence[str], result: PassResult) -> dict[str, Tensor]:
        """What is written of a pass, by names like `entropy` and `top.mass`; large arrays rounded."""
        fields = dict(vars(result))
        mass = fields.pop("mass")[:, : len(self._masses)]
        fields["mass"] = {branch: mass[row] for row, branch in enumerate(rows) if branch in self._kept}
        tensors = {}
        for name, value in fields.items():
            parts = value if isinstance(value, dict) else {"": value}
            tensors |= {f"{name}.{part}".rstrip("."): each for part, each in parts.items()}
        return {
            name: self._rounded(each) if name.startswith(_LARGE) else each
            for name, each in tensors.items()
            if isinstance(each, Tensor)
        }

    def _take(self, step: int, rows: Sequence[str], arrays: dict[str, np.ndarray]) -> None:
        """Write one pass of the transformer, or keep what is written at the end."""
        if "row_sum_error" in arrays:
            self._check_row_sums(float(arrays["row_sum_error"]))
        for row, at in self._places(rows):
            self._group[at, :, :, step] = arrays["group"][row]
            self._entropy[at, :, step] = arrays["entropy"][row]
            if self._gates is not None:
                self._gates[:, at, :, step] = arrays["gates"][:, row]
                self._gate_groups[at, :, :, step] = arrays["gate_groups"][row]
            if self._second_gates is not None:
                self._second_gates[:, at, :, step] = arrays["second_gates"][:, row]
            if rows[row] in self._kept:
                for name, mass in zip(self._masses, arrays[f"mass.{rows[row]}"], strict=True):
                    self._writer.put(f"sinks/{name}", mass, branch=at, step=step)
        for name, values in _part(arrays, "top").items():
            variable = "gates/contribution" if name == "contribution" else f"topk/top_{name}"
            self._top.setdefault(variable, {})[self._layout.top_steps.index(step)] = values.copy()
        if "maps" in arrays:
            self._put_maps(step, arrays["maps"])
        if second := _part(arrays, "second"):
            self._take_second(step, second)
        if chosen := _part(arrays, "rows"):
            self._put_rows(step, chosen)
        if atlas := _part(arrays, "atlas"):
            at = self._layout.top_steps.index(step)
            self._entropy_all[:, step] = atlas["entropy_all"]
            for query, mass in enumerate(atlas["patch_mass"]):
                self._writer.put("atlas/mass_patch", mass, branch=self._cond, query=query, top_step=at)
        if step == len(self._layout.timesteps) - 1:
            self._drawn_last |= set(rows)
            if self._drawn_last >= set(self._layout.branches):
                self._put_gathered()  # while the picture is decoded

    def _places(self, rows: Sequence[str]) -> list[tuple[int, int]]:
        """Batch rows and their places along the branches; a branch that the file has no place for is left out."""
        branches = self._layout.branches
        return [(row, branches.index(branch)) for row, branch in enumerate(rows) if branch in branches]

    def _check_row_sums(self, error: float) -> None:
        self._row_sum_error = float(np.fmax(self._row_sum_error, error)) if error == error else error
        if not error <= ROW_SUM_TOLERANCE:
            raise CaptureError(
                f"rows of attention sum to 1 ± {error:.2g} at the first step, expected within "
                f"{ROW_SUM_TOLERANCE:g}: this attention backend's log-sum-exp cannot be used"
            )

    def _take_second(self, step: int, second: dict[str, np.ndarray]) -> None:
        """Take what the image's queries see in the second attentions, (layer, head, …)."""
        self._second_entropy[step] = second.pop("entropy_all")
        at, mass = self._layout.top_steps.index(step), second.pop("patch_mass")
        named = self._layout.second.variable
        if self._layout.atlas:
            self._writer.put(named("attn2/mass_patch"), mass, branch=self._cond, query=_IMAGE, top_step=at)
        for name, values in second.items():
            self._second_top.setdefault(named(f"attn2/{name}"), {})[at] = values.copy()

    def seal(
        self, image: np.ndarray | None, key: str, events: Sequence[Mapping[str, object]] = (),
        provenance: Mapping[str, str] | None = None,
    ) -> Path:  # fmt: skip
        """Write what was gathered and make the file appear; arguments as of `Sealing`. Returns: the sealed file."""
        self._transfer.finish()
        if not self._is_gathered:
            self._put_gathered()
        for name, values in self._altered_mass.items():
            self._writer.put(name, values)
        if image is not None and self._layout.pixels is not None:
            self._writer.put("images/image", image)
        self._writer.put("samples/pairing_key", key)
        return self._writer.seal(events, provenance)

    def _put_gathered(self) -> None:
        """Write the arrays whose chunks span all steps; after the last pass."""
        self._is_gathered = True
        put = self._writer.put
        put("sinks/mass_group", self._group)
        put("sinks/entropy_text", self._entropy)
        put("samples/row_sum_error", self._row_sum_error)
        if self._gates is not None:
            for name, values in zip(GATE_STATISTICS, self._gates, strict=True):
                put(f"gates/{name}", values)
            put("gates/group_mean", self._gate_groups)
        if self._second_gates is not None:
            for name, values in zip(GATE_STATISTICS, self._second_gates, strict=True):
                put(f"attn2/{name}", values)
        if np.isfinite(self._second_entropy).any():
            name = self._layout.second.variable("attn2/entropy_all")
            put(name, self._second_entropy, branch=self._cond, query=_IMAGE)
        for name, steps in self._second_top.items():
            put(name, self._every_top_step(name, steps, 0), branch=self._cond, query=_IMAGE)
        if self._entropy_all is not None:
            put("sinks/entropy_all", self._entropy_all, branch=self._cond)
        for name, steps in self._top.items():
            put(name, self._every_top_step(name, steps, 1), branch=self._cond)

    def _every_top_step(self, name: str, steps: Mapping[int, np.ndarray], axis: int) -> np.ndarray:
        """The values of all top steps; steps in which nothing ran stay empty."""
        gap = np.full_like(next(iter(steps.values())), schema.variable(name).fill)
        return np.stack([steps.get(at, gap) for at in range(len(self._layout.top_steps))], axis=axis)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._transfer.cancel()
        self._writer.abandon()

    def _put_maps(self, step: int, maps: np.ndarray) -> None:
        """Write (map, layer, y, x): places without a token stay empty."""
        at = {"branch": self._cond, "map_step": self._layout.map_steps.index(step)}
        self._writer.put("maps/image_to_text", maps, map_token=range(len(maps)), **at)

    def _put_rows(self, step: int, rows: dict[str, np.ndarray]) -> None:
        """Write (query, layer, …): places of absent words stay empty."""
        at = self._layout.map_steps.index(step)
        there = [place for place, (_, position) in enumerate(self._rows) if position >= 0]
        for name, values in rows.items():
            self._writer.put(f"rows/to_{name}", values, branch=self._cond, map_step=at, row=there)


def _nan(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, dtype=np.float32)


def _part(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Arrays named `name.KEY`, by KEY."""
    return {key.partition(".")[2]: each for key, each in arrays.items() if key.startswith(f"{name}.")}
