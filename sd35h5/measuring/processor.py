"""The attention processor that lets a probe look on: diffusers' output to the bit, and putting it on a transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sd35h5.errors import CaptureError
from sd35h5.gates.attention import JointQKV, finish_joint, project_joint, regroup
from sd35h5.measuring.attend import as_attended
from sd35h5.measuring.compiled import free_slot, look, new_slot, traced_attend
from sd35h5.measuring.probe import Probe, attend_plainly
from sd35h5.measuring.replaced import check_attentions
from sd35h5.planning.interventions import SecondAttention

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel
    from diffusers.models.attention_processor import Attention

    from sd35h5.gates.modules import AttentionGate
    from sd35h5.measuring.batch_probe import BatchProbe


class ProbeProcessor:
    """Attention processor of one layer: computes what `JointAttention` does, and lets the probe look on.

    Args:
        measure: takes (layer, joint, lse, gates): `Probe.measure`, or `Probe.measure_second` for an attn2.
        attend: takes (layer, joint): `Probe.attend_joint`, `Probe.attend_second`, or `attend_plainly`.
        regrouped: attend with heads as sd-scripts has them in attn2.
    """

    def __init__(
        self,
        layer: int,
        measure: Callable[..., None],
        gate: AttentionGate | None,
        attend: Callable[[int, JointQKV], tuple[JointQKV, Tensor, Tensor | None]] = attend_plainly,
        regrouped: bool = False,
    ):
        self.layer, self.measure, self.gate, self.attend = layer, measure, gate, attend
        self.regrouped, self.slot = regrouped, new_slot(partial(measure, layer))

    def close(self) -> None:
        """Look at nothing any more, in graphs that were compiled with it."""
        free_slot(self.slot)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: object,
        **kwargs: object,
    ) -> Tensor | tuple[Tensor, Tensor]:
        joint = project_joint(attn, hidden_states, encoder_hidden_states)
        if self.regrouped:
            joint = regroup(joint, attn.heads)
        gates = None if self.gate is None else self.gate(hidden_states, encoder_hidden_states)
        if torch.compiler.is_compiling():
            attending = as_attended(joint)
            query, key, value = attending.query, attending.key, attending.value
            attended, lse = traced_attend(query, key, value)
            look(self.slot, query, key, value, lse, joint.image_tokens, *(gates or (None, None)))
        else:
            attending, attended, lse = self.attend(self.layer, joint)
            self.measure(self.layer, attending, lse, gates)
        attended = attended.to(joint.query.dtype)  # as diffusers does, for an autocast
        return finish_joint(attn, attended, hidden_states, encoder_hidden_states, gates)


def check_processors(transformer: SD3Transformer2DModel) -> None:
    """Refuse what the probe cannot measure beside.

    Raises:
        CaptureError: another capture, or attention that the probe cannot stand in for, by name.
    """
    if any(isinstance(processor, ProbeProcessor) for processor in transformer.attn_processors.values()):
        raise CaptureError(
            "this pipeline is being captured already: leave the other `with capture(...)` first"
        )
    check_attentions(transformer)


@contextmanager
def installed(transformer: SD3Transformer2DModel, probe: Probe | BatchProbe) -> Iterator[None]:
    """Put the probe on every attention; what was there comes back on exit, after an error too."""
    check_processors(transformer)
    before = dict(transformer.attn_processors)
    processors = dict(before)
    for name, processor in before.items():
        layer, gate = int(name.split(".")[1]), getattr(processor, "gate", None)
        if name.endswith(".attn.processor"):
            processors[name] = ProbeProcessor(layer, probe.measure, gate, probe.attend_joint)
        else:
            regrouped = getattr(processor, "regrouped", False)
            processors[name] = ProbeProcessor(
                layer, probe.measure_second, gate, probe.attend_second, regrouped
            )
    transformer.set_attn_processor(dict(processors))  # which empties what it is given
    try:
        yield
    finally:
        transformer.set_attn_processor(dict(before))
        for processor in processors.values():
            if isinstance(processor, ProbeProcessor):
                processor.close()


def replaced_layers(transformer: SD3Transformer2DModel) -> set[int]:
    """Layers whose joint attention has another processor than a probe's, while one is installed."""
    processors = transformer.attn_processors.items()
    return {
        int(name.split(".")[1])
        for name, each in processors
        if name.endswith(".attn.processor") and not isinstance(each, ProbeProcessor)
    }


def second_attention(transformer: SD3Transformer2DModel) -> SecondAttention:
    """The model's attn2, as its processors compute it."""
    config = transformer.config
    regrouped = any(getattr(each, "regrouped", False) for each in transformer.attn_processors.values())
    return SecondAttention(tuple(config.dual_attention_layers), config.attention_head_dim if regrouped else 0)
