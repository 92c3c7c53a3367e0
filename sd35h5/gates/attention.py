"""Joint attention exactly as diffusers' JointAttnProcessor2_0 computes it, in named steps, with an optional gate.

MMDiT-X's second attention (`attn2`) is the same without a text stream; `regroup` is how sd-scripts computes it.

The steps are apart so that the probe can put its measurement between `project_joint` and `finish_joint`
while the output stays bit for bit that of diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

    from sd35h5.gates.attention_gate import AttentionGate


@dataclass(frozen=True)
class JointQKV:
    """Query, key and value over the joint axis [image | text], each (batch, heads, tokens, head_dim)."""

    query: Tensor
    key: Tensor
    value: Tensor
    image_tokens: int


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) -> (B, heads, N, d), as a view."""
    batch, _, width = states.shape
    return states.view(batch, -1, heads, width // heads).transpose(1, 2)


def project_joint(attn: Attention, image_states: Tensor, text_states: Tensor | None) -> JointQKV:
    """Project both streams to normalised q, k and v and join them, image first.

    Args:
        attn: the attention module of one transformer block.
        image_states: (B, image tokens, width), the block's modulated image stream.
        text_states: (B, text tokens, width), or None for an image-only attention (`attn2`).
    """
    states = _project(image_states, attn.heads, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
    if text_states is not None:
        text = _project(
            text_states, attn.heads, (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
            (attn.norm_added_q, attn.norm_added_k),
        )  # fmt: skip
        states = [torch.cat(pair, dim=2) for pair in zip(states, text, strict=True)]
    return JointQKV(*states, image_states.shape[1])


def _project(
    states: Tensor,
    heads: int,
    projections: Sequence[nn.Module],
    norms: Sequence[nn.Module | None],
) -> list[Tensor]:
    """Query, key and value of one stream, (B, heads, N, d), the first two normalised where there is a norm."""
    parts = [_split_heads(projection(states), heads) for projection in projections]
    return [part if norm is None else norm(part) for part, norm in zip(parts, (*norms, None), strict=True)]


def finish_joint(
    attn: Attention,
    attended: Tensor,
    image_states: Tensor,
    text_states: Tensor | None,
    gates: tuple[Tensor, Tensor | None] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Join the heads, gate each stream if gates are given, and apply the output projections.

    Args:
        attended: (B, heads, tokens, head_dim), what the attention call returned.
        gates: (image gate, text gate) as `AttentionGate` returns them; the text gate is None where the block
            drops its text output.
    """
    batch, heads, _, head_dim = attended.shape  # of the attention call, which may be regrouped
    joined = attended.transpose(1, 2).reshape(batch, -1, heads * head_dim).to(attended.dtype)
    image_out, text_out = joined, None
    if text_states is not None:
        image_out, text_out = joined[:, : image_states.shape[1]], joined[:, image_states.shape[1] :]
    if gates is not None:
        image_gate, text_gate = gates
        image_out = apply_gate(image_out, image_gate, attn.heads)
        if text_out is not None and text_gate is not None:
            text_out = apply_gate(text_out, text_gate, attn.heads)
    if text_out is not None and not attn.context_pre_only:
        text_out = attn.to_add_out(text_out)
    image_out = attn.to_out[1](attn.to_out[0](image_out))
    return image_out if text_out is None else (image_out, text_out)


def apply_gate(output: Tensor, gate: Tensor, heads: int) -> Tensor:
    """Multiply a stream's attention output (B, N, heads * d) by its gate, (B, N, heads) or (B, N, heads * d)."""
    if gate.shape[-1] == output.shape[-1]:
        return output * gate
    return (output.unflatten(-1, (heads, -1)) * gate.unsqueeze(-1)).flatten(-2)


def regroup(joint: JointQKV, head_dim: int) -> JointQKV:
    """Split the channels, already normalised, into heads of another size, as sd-scripts does in attn2.

    It passes the number of heads where the size of a head is meant: SD3.5-Medium's 24 heads of 64 channels
    become 64 heads of 24.
    """

    def anew(states: Tensor) -> Tensor:
        channels = states.transpose(1, 2).flatten(2)  # (B, N, heads * d)
        return _split_heads(channels, channels.shape[-1] // head_dim)

    return JointQKV(anew(joint.query), anew(joint.key), anew(joint.value), joint.image_tokens)


class JointAttention:
    """Attention processor: diffusers' joint attention, with a gate on each stream's output if one is given.

    A plain object, not an nn.Module, so that gates never enter the transformer's own state dict.

    Args:
        regrouped: compute with heads as sd-scripts has them in attn2.
    """

    def __init__(self, gate: AttentionGate | None = None, regrouped: bool = False):
        self.gate, self.regrouped = gate, regrouped

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        joint = project_joint(attn, hidden_states, encoder_hidden_states)
        if self.regrouped:
            joint = regroup(joint, attn.heads)
        attended = F.scaled_dot_product_attention(
            joint.query, joint.key, joint.value, dropout_p=0.0, is_causal=False
        ).to(joint.query.dtype)
        gates = None if self.gate is None else self.gate(hidden_states, encoder_hidden_states)
        return finish_joint(attn, attended, hidden_states, encoder_hidden_states, gates)
