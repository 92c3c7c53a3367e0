"""Muon for the blocks' matrices, AdamW for the rest, and an exponential moving average: all inside one CUDA graph.

torch.optim.Muon does the same update matrix by matrix: thousands of small kernels a step, and a learning rate frozen
into the graph. Here matrices of one shape are stacked and the learning rate is a tensor.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, "Muon"


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices of a stack (N, rows, columns), rows <= columns, in bf16."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon:
    """Nesterov momentum, orthogonalised: a matrix moves by spectral norm lr * sqrt(max(1, rows / columns))."""

    def __init__(self, parameters: list[nn.Parameter], lr: Tensor, momentum: float = 0.95):
        self.lr, self.momentum = lr, momentum
        self.groups: dict[tuple, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self.groups[tuple(sorted(parameter.shape))].append(parameter)
        self.buffers = {
            shape: torch.zeros(len(group), *shape, device=lr.device) for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update from the parameters' gradients."""
        for shape, group in self.groups.items():
            wide = torch.stack([p.grad if p.shape[0] <= p.shape[1] else p.grad.mT for p in group])
            buffer = self.buffers[shape]
            buffer.lerp_(wide, 1 - self.momentum)
            updates = orthogonalise(wide.lerp(buffer, self.momentum)).float() * -self.lr
            for p, update in zip(group, updates, strict=True):
                rows, columns = p.shape
                p.add_((update if rows <= columns else update.mT) * max(1.0, rows / columns) ** 0.5)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the momentum buffers by shape."""
        return {str(shape): buffer for shape, buffer in self.buffers.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the buffers in place, so that a captured graph keeps seeing them."""
        for shape, buffer in self.buffers.items():
            buffer.copy_(state[str(shape)])


class Ema:
    """Exponential moving average of parameters, in place."""

    def __init__(self, module: nn.Module, decay: float):
        self.live = [p for p in module.parameters() if p.requires_grad]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Move the mean towards the parameters."""
        torch._foreach_lerp_(self.mean, self.live, 1 - self.decay)

    @torch.no_grad()
    def put_into_module(self) -> None:
        """Overwrite the parameters by their mean: for saving, when training is over."""
        for parameter, mean in zip(self.live, self.mean, strict=True):
            parameter.copy_(mean)


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return (matrices of transformer blocks except modulations and gates, everything else)."""
    matrices, rest = [], []
    for name, parameter in module.named_parameters():
        is_block = "transformer_blocks." in name and parameter.ndim == 2
        is_modulation = ".norm1" in name or "gate." in name
        (matrices if is_block and not is_modulation else rest).append(parameter)
    return matrices, rest
