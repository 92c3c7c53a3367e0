"""Adapters as trainers save them, made of random matrices, and what they add, in float64.

Nothing here uses the maps under test: layers are named in the original layout, and what an adapter adds is added there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RANK, ALPHA = 4, 3.0
LAYERS = (  # of a transformer whose first layer has a second attention, three blocks
    "joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.context_block.attn.qkv", "joint_blocks.0.x_block.attn2.qkv",
    "joint_blocks.0.x_block.attn.proj", "joint_blocks.1.context_block.mlp.fc2",
    "joint_blocks.1.x_block.adaLN_modulation.1",
    "joint_blocks.2.context_block.adaLN_modulation.1", "final_layer.adaLN_modulation.1", "context_embedder",
    "t_embedder.mlp.0",
)  # fmt: skip
CONVOLUTION = "x_embedder.proj"
KINDS = ("LoRA", "LoHa", "LoKr", "LoKr of products", "DoRA by row", "DoRA by column", "LoKr with DoRA")


def matrices(kind: str, weight: Tensor, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """An adapter's tensors for one weight, by the ends of their keys, and what they make of it at scale 1; float64.

    The weight is (row, column, ...).
    """
    random = torch.Generator().manual_seed(seed)
    rows, columns = weight.shape[0], weight[0].numel()

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random) * 0.2

    if kind.startswith("LoHa"):
        parts = {"hada_w1_a": noise(rows, RANK), "hada_w1_b": noise(RANK, columns)}
        parts |= {"hada_w2_a": noise(rows, RANK), "hada_w2_b": noise(RANK, columns)}
        first, second = (parts[f"hada_w{n}_a"].double() @ parts[f"hada_w{n}_b"].double() for n in (1, 2))
        added = first * second * (ALPHA / RANK)
    elif kind == "LoKr of products":
        parts = {"lokr_w1_a": noise(2, RANK), "lokr_w1_b": noise(RANK, 4)}
        parts |= {"lokr_w2_a": noise(rows // 2, RANK), "lokr_w2_b": noise(RANK, columns // 4)}
        first, second = (parts[f"lokr_w{n}_a"].double() @ parts[f"lokr_w{n}_b"].double() for n in (1, 2))
        added = torch.kron(first, second) * (ALPHA / RANK)
    elif kind.startswith("LoKr"):
        parts = {"lokr_w1": noise(4, 2), "lokr_w2": noise(rows // 4, columns // 2)}
        added = torch.kron(
            parts["lokr_w1"].double(), parts["lokr_w2"].double()
        )  # alpha counts for products alone
    else:
        parts = {"lora_down.weight": noise(RANK, *weight.shape[1:])}
        parts["lora_up.weight"] = noise(rows, RANK, *(1,) * (weight.ndim - 2))
        down = parts["lora_down.weight"].double().flatten(1)
        added = parts["lora_up.weight"].double().flatten(1) @ down * (ALPHA / RANK)
    parts["alpha"] = torch.tensor(ALPHA)
    total = weight.double() + added.view(weight.shape)
    if "DoRA" in kind:
        by_row = "column" not in kind
        parts["dora_scale"] = noise(rows, 1).abs() + 1 if by_row else noise(1, columns).abs() + 1
        total = total * parts["dora_scale"].double() / total.norm(dim=int(by_row), keepdim=True)
    return parts, total


def spelled(spelling: str, layer: str) -> str:
    """The name of a layer of the original layout in a file of an adapter."""
    if spelling == "sd-scripts":
        return f"lora_unet_{layer.replace('.', '_')}"
    return f"diffusion_model.{layer}"


def adapter(
    kind: str,
    spelling: str,
    state: Mapping[str, Tensor],
    layers: tuple[str, ...] = LAYERS,
    scale: float = 1.0,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An adapter's file for weights in the original layout, and these weights with so much of it, float64."""
    file, changed = {}, {key: tensor.double() for key, tensor in state.items()}
    for seed, layer in enumerate(layers):
        weight = state[f"{layer}.weight"]
        parts, total = matrices(kind, weight, seed)
        file |= {f"{spelled(spelling, layer)}.{part}": tensor for part, tensor in parts.items()}
        changed[f"{layer}.weight"] = weight.double() + scale * (total - weight.double())
    return file, changed
