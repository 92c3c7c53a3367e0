"""A small MMDiT(-X) with gates in plain torch, float64, on the original checkpoint's keys: what the formulas say.

Nothing of diffusers and nothing of ours is used, but for `original_state`, which renames diffusers' weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Gate = Callable[
    [int, str, str, Tensor], Tensor | float
]  # (layer, attention, stream, its input) -> (B, N, channels)


def original_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' SD3 transformer weights under the names of the original MMDiT."""
    layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks."))
    names = {
        "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "proj_out": "final_layer.linear",
    }  # fmt: skip
    out = {"pos_embed": state["pos_embed.pos_embed"]}
    for ours, theirs in names.items():
        out |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for layer in range(layers):
        out |= _original_block(state, layer, last=layer == layers - 1)
    return {key: value.clone() for key, value in out.items()}


def _original_block(state: Mapping[str, Tensor], layer: int, last: bool) -> dict[str, Tensor]:
    block, out, theirs = f"transformer_blocks.{layer}", {}, f"joint_blocks.{layer}"
    attentions = [("x_block.attn", "attn", "to_q to_k to_v", "to_out.0", "norm_q norm_k"),
                  ("context_block.attn", "attn", "add_q_proj add_k_proj add_v_proj", "to_add_out",
                   "norm_added_q norm_added_k")]  # fmt: skip
    if f"{block}.attn2.to_q.weight" in state:
        attentions.append(("x_block.attn2", "attn2", "to_q to_k to_v", "to_out.0", "norm_q norm_k"))
    for name, attention, qkv, proj, norms in attentions:
        for kind in ("weight", "bias"):
            parts = [state[f"{block}.{attention}.{each}.{kind}"] for each in qkv.split()]
            out[f"{theirs}.{name}.qkv.{kind}"] = torch.cat(parts)
            if f"{block}.{attention}.{proj}.{kind}" in state:
                out[f"{theirs}.{name}.proj.{kind}"] = state[f"{block}.{attention}.{proj}.{kind}"]
        for norm, letter in zip(norms.split(), "qk", strict=True):
            out[f"{theirs}.{name}.ln_{letter}.weight"] = state[f"{block}.{attention}.{norm}.weight"]
    for kind in ("weight", "bias"):
        out[f"{theirs}.x_block.adaLN_modulation.1.{kind}"] = state[f"{block}.norm1.linear.{kind}"]
        context = state[f"{block}.norm1_context.linear.{kind}"]
        out[f"{theirs}.context_block.adaLN_modulation.1.{kind}"] = (
            torch.cat(context.chunk(2)[::-1]) if last else context
        )
        for ours, other in (("ff", "x_block"), ("ff_context", "context_block")):
            for name, fc in (("net.0.proj", "fc1"), ("net.2", "fc2")):
                if f"{block}.{ours}.{name}.{kind}" in state:
                    out[f"{theirs}.{other}.mlp.{fc}.{kind}"] = state[f"{block}.{ours}.{name}.{kind}"]
    return out


class PlainMMDiT:
    """Forward pass from the weights of an ungated original checkpoint.

    Args:
        gate: what multiplies an attention's output before its projection.
        attn2_head: channels of a head in the second attention.
    """

    def __init__(self, state: Mapping[str, Tensor], head: int, gate: Gate, attn2_head: int | None = None):
        self.w = {key: value.double() for key, value in state.items()}
        self.head, self.gate, self.attn2_head = head, gate, attn2_head or head
        self.layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("joint_blocks."))

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def mlp(self, x: Tensor, name: str) -> Tensor:
        return self.linear(F.gelu(self.linear(x, f"{name}.fc1"), approximate="tanh"), f"{name}.fc2")

    def modulation(self, c: Tensor, name: str) -> list[Tensor]:
        width = self.w["pos_embed"].shape[-1]
        return [
            part.unsqueeze(1)
            for part in self.linear(F.silu(c), f"{name}.adaLN_modulation.1").split(width, -1)
        ]

    def qkv(self, x: Tensor, name: str) -> list[Tensor]:
        """q and k normalised by heads of the model's own size, v; (B, N, channels) each."""
        width = x.shape[-1]
        q, k, v = self.linear(x, f"{name}.qkv").split(width, -1)

        def normed(states: Tensor, letter: str) -> Tensor:
            by_head = states.unflatten(-1, (-1, self.head))
            by_head = by_head / (by_head.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            return (by_head * self.w[f"{name}.ln_{letter}.weight"]).flatten(-2)

        return [normed(q, "q"), normed(k, "k"), v]

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, head: int) -> Tensor:
        outs = []
        for start in range(0, q.shape[-1], head):
            part = slice(start, start + head)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(head)
            outs.append(scores.softmax(-1) @ v[..., part])
        return torch.cat(outs, -1)

    def block(self, layer: int, x: Tensor, text: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        name, last = f"joint_blocks.{layer}", layer == self.layers - 1

        def norm(states: Tensor) -> Tensor:
            return F.layer_norm(states, states.shape[-1:], eps=1e-6)

        shift, scale, gate_msa, shift_mlp, scale_mlp, gate_mlp, *second = self.modulation(
            c, f"{name}.x_block"
        )
        text_mod = self.modulation(c, f"{name}.context_block")
        x_in, text_in = norm(x) * (1 + scale) + shift, norm(text) * (1 + text_mod[1]) + text_mod[0]
        parts = [
            torch.cat(pair, 1)
            for pair in zip(
                self.qkv(x_in, f"{name}.x_block.attn"), self.qkv(text_in, f"{name}.context_block.attn"),
                strict=True,
            )
        ]  # fmt: skip
        out = self.attend(*parts, self.head)
        image_out, text_out = out[:, : x.shape[1]], out[:, x.shape[1] :]
        image_out = image_out * self.gate(layer, "attn", "image", x_in)
        x_next = x + gate_msa * self.linear(image_out, f"{name}.x_block.attn.proj")
        if second:
            x2_in = norm(x) * (1 + second[1]) + second[0]
            out2 = self.attend(*self.qkv(x2_in, f"{name}.x_block.attn2"), self.attn2_head)
            out2 = out2 * self.gate(layer, "attn2", "image", x2_in)
            x_next = x_next + second[2] * self.linear(out2, f"{name}.x_block.attn2.proj")
        x = x_next + gate_mlp * self.mlp(norm(x_next) * (1 + scale_mlp) + shift_mlp, f"{name}.x_block.mlp")
        if last:
            return x, text
        _, _, gate_c, shift_c, scale_c, gate_c_mlp = text_mod
        text_out = text_out * self.gate(layer, "attn", "text", text_in)
        text = text + gate_c * self.linear(text_out, f"{name}.context_block.attn.proj")
        text = text + gate_c_mlp * self.mlp(norm(text) * (1 + scale_c) + shift_c, f"{name}.context_block.mlp")
        return x, text

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        latents, text, pooled = latents.double(), text.double(), pooled.double()
        batch, channels, height, width = latents.shape
        rows, columns = height // 2, width // 2
        patches = latents.reshape(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        kernel, bias = self.w["x_embedder.proj.weight"].flatten(1), self.w["x_embedder.proj.bias"]
        x = patches.flatten(3).flatten(1, 2) @ kernel.T + bias
        side = math.isqrt(self.w["pos_embed"].shape[1])
        grid = self.w["pos_embed"].reshape(side, side, -1)
        top, left = (side - rows) // 2, (side - columns) // 2
        x = x + grid[top : top + rows, left : left + columns].flatten(0, 1)
        angles = timestep.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(128).double() / 128)
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        c = self.linear(F.silu(self.linear(waves, "t_embedder.mlp.0")), "t_embedder.mlp.2")
        c = c + self.linear(F.silu(self.linear(pooled, "y_embedder.mlp.0")), "y_embedder.mlp.2")
        text = self.linear(text, "context_embedder")
        for layer in range(self.layers):
            x, text = self.block(layer, x, text, c)
        shift, scale = self.modulation(c, "final_layer")
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        x = self.linear(x, "final_layer.linear").reshape(batch, rows, columns, 2, 2, channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)
