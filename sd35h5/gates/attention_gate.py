"""The gates of one attention, as a module: what is multiplied onto the output of each of its streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sd35h5.gates.kinds import ACTIVATIONS


class AttentionGate(nn.Module):
    """The gates of one attention: `to_gate` for the image stream, `add_gate` for the text stream.

    Args:
        width: channels of both streams' inputs.
        outputs: values a token: the number of heads (headwise) or of channels (elementwise).
        text: False where there is no text output: in the last block, and in attn2.
    """

    def __init__(self, width: int, outputs: int, text: bool = True, activation: str = "sigmoid"):
        super().__init__()
        self.factor = ACTIVATIONS[activation]
        self.forced: float | None = None  # a constant in place of the gate: the counterfactual run
        self.to_gate = nn.Linear(width, outputs)
        self.add_gate = nn.Linear(width, outputs) if text else None

    def forward(self, image_states: Tensor, text_states: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the gates of both streams, (B, tokens, outputs), in (0, 1) (or (0, 2) for 2sigmoid)."""
        image = self._gate(self.to_gate, image_states)
        if self.add_gate is None or text_states is None:
            return image, None
        return image, self._gate(self.add_gate, text_states)

    def _gate(self, linear: nn.Linear, states: Tensor) -> Tensor:
        if self.forced is not None:
            return states.new_full((*states.shape[:-1], linear.out_features), self.forced)
        return torch.sigmoid(linear(states)) * self.factor
