"""What one call of the transformer yields: each layer's query, key and log-sum-exp through the reductions, stacked."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import wraps
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from sd35h5.errors import CaptureError
from sd35h5.gates.attention import JointQKV
from sd35h5.measuring import optional_tiers, reductions
from sd35h5.measuring.attend import as_attended, attend, blocked_lse
from sd35h5.measuring.gate_measures import gate_group_means, gated_contribution, mean_gate
from sd35h5.measuring.passes import PassPlan, PassResult, never_ran
from sd35h5.measuring.reducer import Reducer, reducer_for, torch_reducer
from sd35h5.measuring.reductions import IMAGE, TEXT, KeyReduction
from sd35h5.planning.interventions import SECOND
from sd35h5.store.schema import GATE_STATISTICS

if TYPE_CHECKING:
    from sd35h5.measuring.altering import AlteredPass

log = logging.getLogger("sd35h5")
_Result = TypeVar("_Result")


def attend_plainly(layer: int, joint: JointQKV) -> tuple[JointQKV, Tensor, Tensor | None]:
    """Attend as the model does. Returns: what to measure, the output, and the LSE or None."""
    return as_attended(joint), *attend(joint.query, joint.key, joint.value)


def _exactly(method: Callable[..., _Result]) -> Callable[..., _Result]:
    """Measure without gradients, and in float32 under an autocast too."""

    @wraps(method)
    def measured(probe: Probe, *given: object) -> _Result:
        kind = "cpu" if probe.plan is None else probe.plan.membership.device.type
        is_cast = torch.is_autocast_enabled(kind)
        with torch.no_grad(), torch.autocast(kind, enabled=False) if is_cast else nullcontext():
            return method(probe, *given)

    return measured


def _at_home(
    home: torch.device, joint: JointQKV, lse: Tensor | None, gates: tuple[Tensor, Tensor | None] | None
) -> tuple[JointQKV, Tensor | None, tuple[Tensor, Tensor | None] | None]:
    """The same on the device where the transformer is called: with a `device_map` its layers are on several."""
    if joint.query.device == home:
        return joint, lse, gates
    parts = (each.to(home) for each in (joint.query, joint.key, joint.value))
    brought = None if gates is None else tuple(each if each is None else each.to(home) for each in gates)
    return JointQKV(*parts, joint.image_tokens), lse if lse is None else lse.to(home), brought


@dataclass
class _Common:
    """What the probes of one transformer share: the reductions with their buffers, and what was said once."""

    plain: Reducer = field(default_factory=torch_reducer)
    usual: Reducer | None = None
    noted: bool = False


class Probe:
    """Measures one call of the transformer at a time: `begin`, then every layer reports, then `end`."""

    def __init__(self, layers: int, heads: int, gated: bool, second_gated: bool = False) -> None:
        self.layers, self.heads, self.gated, self.second_gated = layers, heads, gated, second_gated
        self.plan: PassPlan | None = None
        self._reducer: Reducer | None = None  # of the pass under way
        self._common = _Common()
        self._seen: dict[int, dict[str, Tensor]] = {}
        self._second: dict[int, Tensor] = {}
        self._second_seen: dict[int, dict[str, Tensor]] = {}
        self.altered: AlteredPass | None = None  # the interventions of the call under way

    def twin(self) -> Probe:
        """Another probe of the same transformer, for another sample of the same call."""
        twin = Probe(self.layers, self.heads, self.gated, self.second_gated)
        twin._common = self._common
        return twin

    def attend_joint(self, layer: int, joint: JointQKV) -> tuple[JointQKV, Tensor, Tensor | None]:
        """Attend, as the interventions alter it. Returns: what to measure, the output, and the LSE or None."""
        altered = None if self.altered is None else self.altered.attend(layer, joint)
        return altered or attend_plainly(layer, joint)

    def attend_second(self, layer: int, joint: JointQKV) -> tuple[JointQKV, Tensor, Tensor | None]:
        """The same of the layer's second attention."""
        altered = None if self.altered is None else self.altered.attend(layer, joint, SECOND)
        return altered or attend_plainly(layer, joint)

    def begin(self, plan: PassPlan) -> None:
        """Measure what the plan says until `end`."""
        self.plan, self._seen, self._second, self._second_seen = plan, {}, {}, {}
        usual = self.reducer_on(plan.membership.device)
        # what measures altered attention is float32 and two channels wider: nothing for the kernels
        self._reducer = usual if self.altered is None else self._common.plain

    def reducer_on(self, device: torch.device) -> Reducer:
        """The reductions that measure there."""
        if self._common.usual is None:
            self._common.usual = reducer_for(device)
        return self._common.usual

    def abandon(self) -> None:
        """Forget the pass under way, after an error."""
        self.plan, self._seen, self._second, self._second_seen = None, {}, {}, {}

    @_exactly
    def end(self) -> PassResult | None:
        """Stack what the layers reported; None if none ran.

        Raises:
            CaptureError: a layer that should have reported did not.
        """
        plan, seen, second, second_seen = self.plan, self._seen, self._second, self._second_seen
        self.abandon()
        if plan is None:
            raise CaptureError("a pass of the transformer ended that never began")
        expected = set(range(self.layers)) - plan.skipped
        if missing := expected - seen.keys() - plan.may_rest:
            raise never_ran(missing)
        if not seen:
            return None
        mass = self._stack(seen, "mass")
        result = PassResult(
            mass=mass.permute(1, 3, 0, 2, 4),
            group=self._group_mass(mass, plan.membership),
            entropy=self._stack(seen, "entropy").permute(1, 3, 0, 2),
            gates=self._stack(seen, "gates").permute(1, 2, 3, 0, 4) if self.gated else None,
            gate_groups=self._stack(seen, "gate_groups").permute(1, 2, 3, 0, 4) if self.gated else None,
            second_gates=self._stack_second(second, plan) if self.second_gated else None,
            second=self._stack_second_keys(second_seen, plan),
            top=self._stack_top(seen, plan) if plan.top else None,
            maps=self._stack(seen, "maps", dim=1) if any("maps" in each for each in seen.values()) else None,
            rows=self._stack_rows(seen) if plan.tiers.rows is not None else None,
            atlas=self._stack_atlas(seen) if plan.tiers.atlas else None,
            rested=frozenset(expected - seen.keys()),
        )
        if plan.check:
            errors = [values["error"] for values in (*seen.values(), *second_seen.values())]
            result.row_sum_error = torch.stack(errors).max()
        return result

    def _stack(self, seen: dict[int, dict[str, Tensor]], name: str, dim: int = 0) -> Tensor:
        """Join the layers' tensors along a new axis `dim`; layers without one are NaN (−1 for integers)."""
        like = next(values[name] for values in seen.values() if name in values)
        fill = float("nan") if like.is_floating_point() else (255 if like.dtype == torch.uint8 else -1)
        gap = torch.full_like(like, fill)
        return torch.stack([seen.get(layer, {}).get(name, gap) for layer in range(self.layers)], dim)

    def _group_mass(self, mass: Tensor, membership: Tensor) -> Tensor:
        """(batch row, query stream, group, layer, head), of all layers in one product, not a launch for each."""
        every_head = mass.transpose(0, 1).flatten(1, 2)  # (B, layer * head, query stream, token)
        groups = reductions.group_mass(every_head, membership)
        return groups.unflatten(1, (self.layers, self.heads)).permute(0, 3, 4, 1, 2)

    def _stack_rows(self, seen: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: self._stack(seen, f"rows_{name}").transpose(0, 1) for name in ("image", "text")}

    def _stack_atlas(self, seen: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: self._stack(seen, name).transpose(0, 1) for name in ("patch_mass", "entropy_all")}

    def _stack_top(self, seen: dict[int, dict[str, Tensor]], plan: PassPlan) -> dict[str, Tensor]:
        """The heaviest keys of all layers, picked in one go: apart they would take five times as long."""
        row, there = plan.branches.index("cond"), sorted(seen)
        image, text, norms = (
            torch.stack([pick(seen[layer]) for layer in there])
            for pick in (itemgetter("image_mass"), lambda of: of["mass"][row], itemgetter("norms"))
        )
        found = vars(reductions.top_keys(image, text, norms, plan.top))
        if self.gated:
            gates = torch.stack([seen[layer]["gates"][0, row] for layer in there])
            found["contribution"] = gated_contribution(found["mass"], found["value_norm"], gates)
        each = {layer: {name: found[name][i] for name in found} for i, layer in enumerate(there)}
        return {name: self._stack(each, name).permute(2, 0, 1, 3) for name in found}

    def _stack_second(self, second: dict[int, Tensor], plan: PassPlan) -> Tensor:
        """(statistic, batch row, query stream, layer, head), NaN for layers without a gate on attn2."""
        gap = self._gate_values(None, len(plan.branches), plan.membership.device)
        return torch.stack([second.get(layer, gap) for layer in range(self.layers)], dim=3)

    def _stack_second_keys(
        self, seen: dict[int, dict[str, Tensor]], plan: PassPlan
    ) -> dict[str, Tensor] | None:
        """What the second attentions yielded, where the plan asks for more than the check."""
        if not seen or not (plan.top or plan.tiers.atlas):
            return None
        names = {name for values in seen.values() for name in values} - {"error"}  # not all layers are gated
        return {name: self._stack(seen, name) for name in sorted(names)}

    @_exactly
    def measure_second(
        self, layer: int, joint: JointQKV, lse: Tensor | None, gates: tuple[Tensor, Tensor | None] | None
    ) -> None:
        """Reduce one layer's second, image-only attention: the cond row, at the steps of the heaviest keys."""
        if (plan := self.plan) is None:
            return
        joint, lse, gates = _at_home(plan.membership.device, joint, lse, gates)
        if gates is not None:
            self._second[layer] = self._gate_values(gates, *gates[0].shape[:1], gates[0].device)
        if "cond" not in plan.branches or not (plan.check or plan.top or plan.tiers.atlas):
            return
        if lse is None:
            self._note_fallback()
            lse = blocked_lse(joint.query, joint.key)
        row = plan.branches.index("cond")
        gate = None if gates is None else mean_gate(gates[0][row], joint)
        self._second_seen[layer] = optional_tiers.measure_second(
            joint, lse, row, plan.patches, plan.top, self._reducer, gate
        )

    @_exactly
    def measure(
        self, layer: int, joint: JointQKV, lse: Tensor | None, gates: tuple[Tensor, Tensor | None] | None
    ) -> None:
        """Reduce one layer's attention call. Text tokens follow the image tokens on the joint axis."""
        if (plan := self.plan) is None:
            return
        image = joint.image_tokens
        joint, lse, gates = _at_home(plan.membership.device, joint, lse, gates)
        if layer in self._seen:
            raise CaptureError(
                f"layer {layer} attends twice in one call of the transformer: something else runs its blocks again"
            )
        if (rows := joint.query.shape[0]) != len(plan.branches) or image != math.prod(plan.patches):
            raise CaptureError(
                f"layer {layer} attends to {rows} rows of {image} patches where {len(plan.branches)} of "
                f"{math.prod(plan.patches)} came into the transformer: something divides the batch or the picture"
            )
        if lse is None:
            self._note_fallback()
            lse = blocked_lse(joint.query, joint.key)
        row = plan.branches.index("cond") if "cond" in plan.branches else -1
        text = self._reducer.reduce_keys(joint.query, joint.key[:, :, image:], lse, image, entropy=True)
        values = {"mass": text.mass, "entropy": text.entropy}
        if plan.check or plan.top or plan.tiers.atlas:
            values |= self._measure_image_keys(plan, joint, lse, text, row)
        values |= optional_tiers.measure_maps(plan.tiers, layer, joint, lse, row, plan.patches, self._reducer)
        if plan.tiers.rows is not None:
            values |= optional_tiers.measure_rows(plan.tiers.rows, joint, lse, row, plan.patches)
        if self.gated:
            values |= self._measure_gates(plan, gates, joint)
        self._seen[layer] = values

    def _measure_image_keys(
        self, plan: PassPlan, joint: JointQKV, lse: Tensor, text: KeyReduction, row: int
    ) -> dict[str, Tensor]:
        """Measure the other half of the keys: all rows for the self check, else the cond row alone."""
        image, rows = joint.image_tokens, slice(None) if plan.check else slice(row, row + 1)
        keys = self._reducer.reduce_keys(
            joint.query[rows], joint.key[rows, :, :image], lse[rows], image,
            entropy=plan.tiers.atlas, row_sums=plan.check,
        )  # fmt: skip
        values = {}
        if plan.check:
            values["error"] = (keys.row_sum + text.row_sum - 1).abs().max()
            keys = keys.of_row(row)
        text = text.of_row(row)
        if plan.top:
            values |= {"image_mass": keys.mass[0], "norms": reductions.value_norms(joint.value[row])}
        if plan.tiers.atlas:
            values |= optional_tiers.measure_atlas(text, keys, image, plan.patches)
        return values

    def _measure_gates(
        self, plan: PassPlan, gates: tuple[Tensor, Tensor | None] | None, joint: JointQKV
    ) -> dict[str, Tensor]:
        return {
            "gates": self._gate_values(gates, joint.query.shape[0], joint.query.device),
            "gate_groups": gate_group_means(gates or (None, None), plan.membership, self.heads),
        }

    def _gate_values(
        self, gates: tuple[Tensor, Tensor | None] | None, batch: int, device: torch.device
    ) -> Tensor:
        """(statistic, batch row, query stream, head), NaN for a stream without a gate."""
        shape = (len(GATE_STATISTICS), batch, 2, self.heads)
        values = torch.full(shape, float("nan"), device=device)
        for stream, gate in zip((IMAGE, TEXT), gates or (None, None), strict=True):
            if gate is not None:
                values[:, :, stream] = reductions.gate_statistics(gate, self.heads)
        return values

    def _note_fallback(self) -> None:
        if not self._common.noted:
            log.warning(
                "this attention backend gives no log-sum-exp: it is computed apart, which takes longer"
            )
            self._common.noted = True
