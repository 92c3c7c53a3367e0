"""Attention with keys taken out, scaled, or their values zeroed: its output, and what measures it exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sd35h5.errors import CaptureError
from sd35h5.gates.attention import JointQKV
from sd35h5.measuring import reductions
from sd35h5.measuring.attend import attend, blocked_lse
from sd35h5.planning.interventions import (
    JOINT,
    NO_SECOND,
    SECOND,
    Intervention,
    Reach,
    SecondAttention,
    named_keys,
    reach,
)

_TAKEN_OUT = -1e4  # stands for -inf where it is multiplied by 0: exp of it is 0 in float32, and 0 of it is 0
_FITTINGS = 16


@dataclass(frozen=True)
class _Alteration:
    """One intervention in one model and prompt; `named` bool (joint key) of each branch."""

    intervention: Intervention
    reach: Reach
    named: Mapping[str, Tensor]

    def keys(self, mass: Tensor, branches: Sequence[str]) -> Tensor:
        """The altered keys, bool (batch row, head, key), by mass of the same shape."""
        chosen = torch.stack([self.named[branch] for branch in branches])[:, None].expand(mass.shape).clone()
        if self.intervention.top:
            chosen.scatter_(-1, mass.topk(self.intervention.top, dim=-1).indices, True)
        heads = torch.zeros(mass.shape[1], dtype=torch.bool, device=mass.device)
        heads[list(self.reach.heads)] = True
        return chosen & heads[:, None]


class Interventions:
    """The interventions of one sample.

    Args:
        layers, heads, steps: sizes of the capture. patches: (y, x) of the image tokens.
        token_groups: group of each text token, of every branch.
        control: seed of the equal-mass control, None to alter the keys themselves.
        sample: index of the sample, so that each has lots of its own.
        second: the model's attn2.
    """

    def __init__(
        self,
        interventions: Sequence[Intervention],
        sizes: tuple[int, int, int],
        patches: tuple[int, int],
        token_groups: Mapping[str, np.ndarray],
        control: int | None,
        sample: int,
        device: torch.device,
        second: SecondAttention = NO_SECOND,
    ) -> None:
        self._alterations = [
            _Alteration(
                each,
                reach(each, sizes, second),
                {
                    branch: torch.from_numpy(named_keys(each, groups, patches)).to(device)
                    for branch, groups in token_groups.items()
                },
            )
            for each in interventions
        ]
        self._control, self._sample, self._workspace = control, sample, reductions.Workspace()

    def at(self, step: int, branches: Sequence[str]) -> AlteredPass | None:
        """What is altered in a call of the transformer with these batch rows; None for nothing."""
        acting = [each for each in self._alterations if step in each.reach.steps]
        lots = None if self._control is None else (self._control, self._sample, step)
        return AlteredPass(acting, branches, lots, self._workspace) if acting else None


@dataclass
class AlteredPass:
    """One call of the transformer under interventions.

    Args:
        lots: seeds of the control's lots, or None.
        mass: attention (`joint`, `attn2`) -> layer -> float32 (batch row, query stream, head), the share of
            attention that the altered keys had in this call before they were altered; NaN for heads and streams
            that are left alone.
    """

    alterations: Sequence[_Alteration]
    branches: Sequence[str]
    lots: tuple[int, ...] | None
    workspace: reductions.Workspace
    mass: dict[str, dict[int, Tensor]] = field(default_factory=lambda: {JOINT: {}, SECOND: {}})

    @torch.no_grad()
    def attend(
        self, layer: int, joint: JointQKV, attn: str = JOINT
    ) -> tuple[JointQKV, Tensor, Tensor | None] | None:
        """Attend as altered in this layer; None if nothing is.

        Args:
            joint: of the joint attention or, with attn `attn2`, of the second one, which has image tokens alone.

        Returns: a joint whose softmax(q·kᵀ/√d) is the altered A and whose value vectors are the altered ones; the
            output in the model's dtype; the LSE of that joint, or None where the backend keeps none.

        Raises:
            CaptureError: no key is left.
        """
        acting = [
            each for each in self.alterations if layer in each.reach.layers and each.intervention.attn == attn
        ]
        if not acting:
            return None
        bias, zeroed = self._alter(layer, joint, acting, attn)
        return _attend_altered(joint, bias.to(joint.query.dtype).float(), zeroed)

    def stacked_mass(self, layers: int) -> dict[str, Tensor]:
        """Of each attention that was altered: float32 (batch row, query stream, layer, head), NaN for layers that
        are left alone."""
        stacked = {}
        for attn, mass in self.mass.items():
            if mass:
                gap = torch.full_like(next(iter(mass.values())), math.nan)
                stacked[attn] = torch.stack([mass.get(layer, gap) for layer in range(layers)], dim=2)
        return stacked

    def _alter(
        self, layer: int, joint: JointQKV, acting: Sequence[_Alteration], attn: str
    ) -> tuple[Tensor, Tensor]:
        """What is added to the logits, and whose values are zero: both (batch row, head, query stream, key)."""
        image = joint.image_tokens
        _, lse = attend(joint.query, joint.key, joint.value)
        if lse is None:
            lse = blocked_lse(joint.query, joint.key)
        mass = reductions.reduce_keys(
            joint.query, joint.key, lse, image, workspace=self.workspace, row_sums=False
        ).mass
        own = (1,) * (attn == SECOND)  # the joint attention of this layer draws other lots
        random = None if self.lots is None else np.random.default_rng([*self.lots, layer, *own])
        bias, touched = torch.zeros_like(mass), torch.zeros_like(mass, dtype=torch.bool)
        zeroed, acts = touched.clone(), touched[..., 0].clone()
        for each in acting:
            streams = list(each.intervention.streams)
            seen = mass[:, :, streams[0]]  # by the image's queries, unless only the text's are altered
            chosen = each.keys(seen, self.branches)
            if random is not None:
                lots = torch.from_numpy(random.random(seen.shape)).to(seen.device)
                chosen = equal_mass_keys(chosen, seen, lots)
            for stream in streams:
                acts[:, list(each.reach.heads), stream] = attn == JOINT or stream == reductions.IMAGE
                touched[:, :, stream] |= chosen
                zeroed[:, :, stream] |= chosen & each.intervention.zero_values
                if each.intervention.odds != 1:
                    odds = math.log(each.intervention.odds) if each.intervention.odds else -math.inf
                    bias[:, :, stream] += chosen.float().masked_fill(chosen, odds)
        altered = (mass * touched).sum(-1).masked_fill(~acts, math.nan)
        self.mass[attn][layer] = altered.transpose(1, 2)
        return bias, zeroed


def equal_mass_keys(chosen: Tensor, mass: Tensor, lots: Tensor) -> Tensor:
    """Other keys than the chosen ones with about the same total mass, never more.

    In the order of their lots, each key that is not chosen is taken if its mass still fits into what is left of
    the chosen keys' mass, until 16 keys in turn were too heavy. Their number is another one; where
    the chosen keys hold more than half of all mass, the others cannot reach it.

    Args:
        chosen, mass, lots: (…, keys).

    Returns: bool (…, keys).
    """
    order = lots.masked_fill(chosen, 2.0).argsort(-1)
    sorted_mass, free = mass.gather(-1, order), ~chosen.gather(-1, order)
    left = (mass * chosen).sum(-1, keepdim=True)
    taken = torch.zeros_like(free)
    for _ in range(_FITTINGS):
        fits = free & ~taken & (sorted_mass > 0) & (sorted_mass <= left)
        running = torch.where(fits, sorted_mass, 0.0).cumsum(-1)
        fits &= running <= left
        taken |= fits
        left = left - torch.where(fits, sorted_mass, 0.0).sum(-1, keepdim=True)
    return torch.zeros_like(chosen).scatter(-1, order, taken)


def _attend_altered(joint: JointQKV, bias: Tensor, zeroed: Tensor) -> tuple[JointQKV, Tensor, Tensor | None]:
    """Both streams at once where they are altered alike, else one after the other."""
    image = joint.image_tokens
    alike = torch.equal(bias[:, :, 0], bias[:, :, 1]) and torch.equal(zeroed[:, :, 0], zeroed[:, :, 1])
    streams = [(0, slice(None))] if alike else [(0, slice(image)), (1, slice(image, None))]
    parts = [
        _attend_part(
            joint.query[:, :, queries], joint.key, joint.value, bias[:, :, stream], zeroed[:, :, stream]
        )
        for stream, queries in streams
    ]
    measured = widened(joint, bias) if bias.any() else joint
    value = joint.value.masked_fill(zeroed.all(2).unsqueeze(-1), 0)
    measured = JointQKV(measured.query, measured.key, value, image)
    output = torch.cat([part for part, _ in parts], dim=2)
    if any(lse is None for _, lse in parts):
        return measured, output, blocked_lse(measured.query, measured.key) if bias.any() else None
    return measured, output, torch.cat([lse for _, lse in parts], dim=2)


def _attend_part(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, zeroed: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Output and, where the backend keeps it, LSE of queries that are altered alike; bias, zeroed (batch, head,
    key)."""
    value = value.masked_fill(zeroed.unsqueeze(-1), 0)
    if not bias.any():
        return attend(query, key, value)
    gone = torch.isneginf(bias)
    if gone.all(-1).any():
        raise CaptureError("--intervene takes every key out of an attention: some must stay")
    if (gone == gone[:1, :1]).all() and not bias.masked_fill(gone, 0).any():
        stay = ~gone[0, 0]  # the same keys everywhere: without them, no mask is needed
        return attend(query, key[:, :, stay], value[:, :, stay])
    mask = bias.to(query.dtype).unsqueeze(2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask), None


def widened(joint: JointQKV, bias: Tensor) -> JointQKV:
    """The joint whose q·kᵀ/√d holds the bias: two more channels, one a query stream, in float32.

    q′·k′/√(d + 2) = q·k/√d + bias[stream of q, k]. So whatever measures A from query, key and LSE measures the
    altered A, and need not know of it.

    Args:
        bias: (batch, heads, query stream, key); -inf becomes -10,000, whose exponential is 0.
    """
    width, image = joint.query.shape[-1], joint.image_tokens
    root = math.sqrt(width + 2)
    streams = joint.query.new_zeros((*joint.query.shape[:-1], 2), dtype=torch.float32)
    streams[:, :, :image, 0] = streams[:, :, image:, 1] = root
    query = torch.cat([joint.query.float() * (root / math.sqrt(width)), streams], dim=-1)
    key = torch.cat([joint.key.float(), bias.clamp(min=_TAKEN_OUT).transpose(2, 3)], dim=-1)
    return JointQKV(query, key, joint.value, image)
