"""What is measured of gates beyond their statistics: means at each token group, what a key adds after the gate."""

from __future__ import annotations

import torch
from torch import Tensor

from sd35h5.gates.attention import JointQKV
from sd35h5.measuring.reductions import IMAGE, TEXT


def gate_group_means(gates: tuple[Tensor | None, Tensor | None], membership: Tensor, heads: int) -> Tensor:
    """Mean of each stream's gate over the queries of a group (and over channels).

    Args:
        gates: of the image and of the text stream, (batch, tokens, heads) or (batch, tokens, heads * d); None
            where no gate is applied.
        membership: float32 (batch, text tokens, text groups), 1 where a token belongs to a group.

    Returns: float32 (batch, query stream, text groups + 1, heads), the image last; NaN where a stream has no
        queries of a group.
    """
    batch, _, groups = membership.shape
    means = membership.new_full((batch, 2, groups + 1, heads), float("nan"))
    image, text = (None if gate is None else _by_head(gate, heads) for gate in gates)
    if image is not None:
        means[:, IMAGE, groups] = image.mean(1)
    if text is not None:
        counts = membership.sum(1).unsqueeze(-1)  # 0 for a group without tokens: 0 / 0 is NaN
        means[:, TEXT, :groups] = torch.einsum("bng,bnh->bgh", membership, text) / counts
    return means


def _by_head(gate: Tensor, heads: int) -> Tensor:
    """(batch, tokens, outputs) -> float32 (batch, tokens, heads), mean over a head's channels."""
    return gate.float().unflatten(-1, (heads, -1)).mean(-1)


def mean_gate(gate: Tensor, joint: JointQKV) -> Tensor:
    """Mean of a gate over tokens and over the channels of each head that attends, which need not be a head of the
    gate: regrouped heads lie across those.

    Args:
        gate: (tokens, outputs), a scalar a head of the model or one a channel.

    Returns: float32 (heads of `joint`).
    """
    _, heads, _, width = joint.value.shape
    means = gate.float().mean(0)
    channels = means.repeat_interleave(heads * width // len(means))
    return channels.unflatten(0, (heads, width)).mean(1)


def gated_contribution(mass: Tensor, value_norm: Tensor, mean_gate: Tensor) -> Tensor:
    """What a key adds to the output after the gate: mass × mean gate of the querying stream × value norm.

    Args:
        mass, value_norm: (…, heads, query stream, rank). mean_gate: (…, query stream, heads), NaN where no gate is.
    """
    return mass * value_norm * mean_gate.transpose(-1, -2).unsqueeze(-1)
