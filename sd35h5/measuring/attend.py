"""The attention call itself: the output of F.scaled_dot_product_attention to the bit, and its log-sum-exp."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._device import DeviceContext

from sd35h5.gates.attention import JointQKV

_FLASH, _EFFICIENT, _CUDNN = 1, 2, 3  # torch.nn.attention.SDPBackend, as _fused_sdp_choice answers
_SDPA = torch._C._nn.scaled_dot_product_attention  # what F.scaled_dot_product_attention is by itself
_LSE_TILE = {"cpu": 1 << 20}
_LSE_TILE_ELSEWHERE = 1 << 25


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Call the backend that F.scaled_dot_product_attention would choose, and take its log-sum-exp along.

    Returns: the output, bit for bit that of F.scaled_dot_product_attention, and the LSE, float32 (batch,
    heads, S), or None where the backend keeps none.
    """
    dtype = dtype_in_force(query)
    cast = [each.to(dtype) for each in (query, key, value)]
    backend = chosen_backend(*cast)
    return attend_by(backend, *((query, key, value) if backend == "other" else cast))


def dtype_in_force(states: Tensor) -> torch.dtype:
    """The dtype in which a transformer that is given these states computes: autocast's, under which sdpa casts and its
    operators do not, or their own. That of its weights may be another: quantised ones are stored as integers."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def as_attended(joint: JointQKV) -> JointQKV:
    """The same in the dtype that it attends in, which is autocast's where that is on."""
    dtype = dtype_in_force(joint.query)
    if joint.query.dtype == dtype:
        return joint
    return JointQKV(*(each.to(dtype) for each in (joint.query, joint.key, joint.value)), joint.image_tokens)


def is_replaced() -> bool:
    """Whether the user has put something else in the place of F.scaled_dot_product_attention, as SageAttention is
    plugged in, or lets a TorchFunctionMode look at its calls: then that is what attends."""
    modes = torch.overrides._get_current_function_mode_stack()
    return F.scaled_dot_product_attention is not _SDPA or any(not isinstance(m, DeviceContext) for m in modes)


def chosen_backend(query: Tensor, key: Tensor, value: Tensor) -> str:
    """The backend that F.scaled_dot_product_attention would choose: one that keeps the log-sum-exp, or `other`."""
    if is_replaced():
        return "other"
    choice = torch._fused_sdp_choice(query, key, value)
    if choice == _FLASH and query.device.type == "cpu":
        return "flash_cpu"
    if choice == _FLASH and query.is_cuda and query.shape[-1] % 8 == 0:
        return "flash"
    if query.is_cuda and choice in (_CUDNN, _EFFICIENT):
        return "cudnn" if choice == _CUDNN else "efficient"
    return "other"


def attend_by(backend: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Attend by a backend of `chosen_backend`, with its log-sum-exp. Returns: as `attend`."""
    tokens = query.shape[2]
    if backend == "flash_cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    elif backend == "flash":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[:2]
    elif backend == "cudnn":
        output, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)[:2]
        lse = lse.reshape(*query.shape[:2], -1)
    elif backend == "efficient":
        answer = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
        output, lse = answer[:2]
    else:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=0.0, is_causal=False), None
    return output, lse[..., :tokens].float()


def blocked_lse(query: Tensor, key: Tensor) -> Tensor:
    """Log-sum-exp of q·kᵀ/√d over all keys, float32 (batch, heads, S), in tiles of queries."""
    batch, heads, _, width = query.shape
    scaled = (key.float() * width**-0.5).transpose(-1, -2)
    rows = max(1, _LSE_TILE.get(query.device.type, _LSE_TILE_ELSEWHERE) // (batch * heads * key.shape[2]))
    tiles = [torch.logsumexp(tile.float() @ scaled, dim=-1) for tile in query.split(rows, dim=2)]
    return torch.cat(tiles, dim=-1)
