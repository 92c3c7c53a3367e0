"""Which weights a part of an adapter changes, by the name under which a trainer saved it. Torch-free.

Names come as diffusers' and peft's (`transformer.transformer_blocks.0.attn.to_q`), as ComfyUI's
(`diffusion_model.joint_blocks.0.x_block.attn.qkv`) and, with underscores alone, as sd-scripts', OneTrainer's and
LyCORIS' (`lora_unet_joint_blocks_0_x_block_attn_qkv`): points are made underscores, and then all are looked up alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sd35h5.weights.layouts import Layout, mmdit_modules

_PREFIXES = {  # component -> what may stand before a name; the encoders' first, for a transformer's may have none
    "text_encoder": ("text_encoder.", "lora_te1_", "lora_te_", "text_encoders.clip_l.transformer."),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_", "text_encoders.clip_g.transformer."),
    "text_encoder_3": ("text_encoder_3.", "lora_te3_", "text_encoders.t5xxl.transformer."),
    "transformer": (
        "transformer.", "base_model.model.", "model.diffusion_model.", "diffusion_model.", "lora_unet_",
        "lora_transformer_", "lycoris_", "",
    ),
}  # fmt: skip
_CLIP = re.compile(r"(?:text_model_)?(?:encoder_layers_(\d+)_(self_attn|mlp)_(\w+)|(text_projection))")
_T5 = re.compile(r"encoder_block_(\d+)_layer_(\d+)_(SelfAttention|DenseReluDense)_(\w+)")


@dataclass(frozen=True)
class Target:
    """The weights that one part of an adapter changes.

    Args:
        modules: by their names in diffusers and transformers; three are one above the other, as qkv.
        swap: the file counts the lower half of the rows first.
    """

    component: str
    modules: tuple[str, ...]
    swap: bool = False


def transformer_targets(depth: int) -> dict[str, Target]:
    """The weights of a transformer of so many blocks, by the names of both layouts with underscores."""
    layout, modules = Layout("transformer", "original", "", depth), mmdit_modules(depth)
    found = {module.replace(".", "_"): Target("transformer", (module,)) for module in modules}
    original: dict[str, list[str]] = {}
    swapped = set()
    for module in modules:  # q, k and v in this order
        place = layout.place(f"{module}.weight")
        name = place.key.removesuffix(".weight").replace(".", "_")
        original.setdefault(name, []).append(module)
        swapped |= {name} if place.swap else set()
    return found | {
        name: Target("transformer", tuple(those), name in swapped) for name, those in original.items()
    }


def find_target(name: str, transformer: Mapping[str, Target]) -> Target | None:
    """The weights that a part of this name changes; None for a name that SD3 does not have.

    Args:
        transformer: `transformer_targets` of its depth.
    """
    for component, prefixes in _PREFIXES.items():
        for prefix in prefixes:
            if name.startswith(prefix):
                rest = name.removeprefix(prefix).replace(".", "_")
                target = transformer.get(rest) if component == "transformer" else _encoder(component, rest)
                if target is not None:
                    return target
    return None


def _encoder(component: str, name: str) -> Target | None:
    if component == "text_encoder_3":
        match = _T5.fullmatch(name)
        module = match and f"encoder.block.{match[1]}.layer.{match[2]}.{match[3]}.{match[4]}"
    else:
        match = _CLIP.fullmatch(name)
        module = match and (match[4] or f"text_model.encoder.layers.{match[1]}.{match[2]}.{match[3]}")
    return Target(component, (module,)) if module else None
