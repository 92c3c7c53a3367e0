"""The layouts in which SD3's weights come: told by their keys, and each diffusers key looked up in them.

A layout answers one question: which tensor, or which third of its rows, is the model's parameter NAME? Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

COMPONENTS = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
ENCODERS = COMPONENTS[1:4]
TITLES = {
    "transformer": "an SD3 transformer", "text_encoder": "CLIP-L", "text_encoder_2": "CLIP-G",
    "text_encoder_3": "a T5 encoder", "vae": "a VAE",
}  # fmt: skip
# what an all-in-one file puts before a component's keys; a file of one component has none
_PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "text_encoder": ("text_encoders.clip_l.transformer.", "text_encoders.clip_l."),
    "text_encoder_2": ("text_encoders.clip_g.transformer.", "text_encoders.clip_g."),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl."),
    "vae": ("first_stage_model.", "vae."),
}
_MARKS = {  # component -> layout -> how a key of it begins
    "transformer": {"original": "joint_blocks.", "diffusers": "transformer_blocks."},
    "text_encoder": {"transformers": "text_model."},
    "text_encoder_2": {"transformers": "text_model.", "openclip": "transformer.resblocks."},
    "text_encoder_3": {"transformers": "encoder.block.", "llama.cpp": "enc.blk."},
    "vae": {"original": "decoder.up.", "diffusers": "decoder.up_blocks."},
}
_OTHERS = (  # a part of a key -> what such a file is
    ("single_transformer_blocks.", "a FLUX transformer"),
    ("double_blocks.", "a FLUX transformer"),
    ("input_blocks.", "a UNet of Stable Diffusion 1, 2 or XL"),
    ("down_blocks.0.attentions.", "a UNet of Stable Diffusion 1, 2 or XL"),
    ("resblocks.", "an OpenCLIP model"),
)
HARMLESS = re.compile(r"(^|\.)(position_ids|logit_scale)$")


@dataclass(frozen=True)
class Place:
    """Where a parameter is in a file.

    Args:
        third: the tensor holds q, k and v one above the other; this one is number 0, 1 or 2.
        swap: shift and scale are exchanged: take the lower half of the rows first.
        flatten: a 1 × 1 convolution in the file, a matrix in the model.
        transpose: the file's matrix is multiplied from the right.
    """

    key: str
    third: int | None = None
    swap: bool = False
    flatten: bool = False
    transpose: bool = False


@dataclass(frozen=True)
class Layout:
    """How a component is laid out in a file: its name, what stands before its keys, and how to look one up.

    Args:
        depth: number of blocks, or of levels of a VAE.
        gap: a block below that of which there is no key, or None.
    """

    component: str
    name: str
    prefix: str
    depth: int
    gap: int | None = None

    def place(self, parameter: str) -> Place:
        """Where the model's parameter, by its name in diffusers or transformers, is in the file."""
        if self.name not in ("original", "openclip", "llama.cpp"):
            return Place(self.prefix + parameter)
        originals: dict[str, Callable[[str, int], Place]] = {
            "transformer": _mmdit, "vae": _ldm_vae, "text_encoder_2": _openclip,
            "text_encoder_3": _llama_t5,
        }  # fmt: skip
        place = originals[self.component](parameter, self.depth)
        return replace(place, key=self.prefix + place.key)

    def owns(self, key: str) -> bool:
        """Whether a key of the file belongs to this component."""
        if self.prefix:
            return key.startswith(self.prefix)
        return not any(key.startswith(each) for others in _PREFIXES.values() for each in others)


def find_layout(component: str, keys: Collection[str]) -> Layout | None:
    """Tell how a component is laid out in a file with these keys; None if it is not there."""
    if component == "transformer" and any("single_transformer_blocks." in key for key in keys):
        return None  # FLUX's, which also has transformer_blocks
    for prefix in (*_PREFIXES[component], ""):
        for name, mark in _MARKS[component].items():
            block = re.compile(re.escape(prefix + mark) + r"(?:\D*\.)?(\d{1,4})\.")
            numbers = {int(match[1]) for key in keys if (match := block.match(key))}
            if numbers:
                depth = max(numbers) + 1
                gap = next((number for number in range(depth) if number not in numbers), None)
                return Layout(component, name, prefix, depth, gap)
    return None


def describe_keys(keys: Collection[str]) -> str:
    """Say what a file seems to be, for the sentence that refuses it."""
    for part, what in _OTHERS:
        if any(part in key for key in keys):
            return what
    held = [TITLES[each] for each in COMPONENTS if find_layout(each, keys) is not None]
    if held[:2] == ["CLIP-L", "CLIP-G"] and not any("clip_g" in key for key in keys):
        held[:2] = ["a CLIP text encoder"]
    return " and ".join(held) or f"nothing known (its first key is {min(keys)})"


_MMDIT = {  # without a block
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_MMDIT_BLOCK = {  # name in a block -> name in a joint block, and which third of it
    "attn.to_q": ("x_block.attn.qkv", 0),
    "attn.to_k": ("x_block.attn.qkv", 1),
    "attn.to_v": ("x_block.attn.qkv", 2),
    "attn.add_q_proj": ("context_block.attn.qkv", 0),
    "attn.add_k_proj": ("context_block.attn.qkv", 1),
    "attn.add_v_proj": ("context_block.attn.qkv", 2),
    "attn.norm_q": ("x_block.attn.ln_q", None),
    "attn.norm_k": ("x_block.attn.ln_k", None),
    "attn.norm_added_q": ("context_block.attn.ln_q", None),
    "attn.norm_added_k": ("context_block.attn.ln_k", None),
    "attn.to_out.0": ("x_block.attn.proj", None),
    "attn.to_add_out": ("context_block.attn.proj", None),
    "attn2.to_q": ("x_block.attn2.qkv", 0),
    "attn2.to_k": ("x_block.attn2.qkv", 1),
    "attn2.to_v": ("x_block.attn2.qkv", 2),
    "attn2.norm_q": ("x_block.attn2.ln_q", None),
    "attn2.norm_k": ("x_block.attn2.ln_k", None),
    "attn2.to_out.0": ("x_block.attn2.proj", None),
    "norm1.linear": ("x_block.adaLN_modulation.1", None),
    "norm1_context.linear": ("context_block.adaLN_modulation.1", None),
    "ff.net.0.proj": ("x_block.mlp.fc1", None),
    "ff.net.2": ("x_block.mlp.fc2", None),
    "ff_context.net.0.proj": ("context_block.mlp.fc1", None),
    "ff_context.net.2": ("context_block.mlp.fc2", None),
}


def _mmdit(parameter: str, depth: int) -> Place:
    """A parameter of SD3Transformer2DModel in Stability's MMDiT.

    The last modulations come as (shift, scale) there, and as (scale, shift) in diffusers.
    """
    if parameter in _MMDIT:
        return Place(_MMDIT[parameter])
    name, _, kind = parameter.rpartition(".")
    if name in _MMDIT:
        return Place(f"{_MMDIT[name]}.{kind}", swap=name == "norm_out.linear")
    _, block, inner = name.split(".", 2)
    original, third = _MMDIT_BLOCK[inner]
    last = int(block) == depth - 1 and inner == "norm1_context.linear"
    return Place(f"joint_blocks.{block}.{original}.{kind}", third, swap=last)


def mmdit_modules(depth: int) -> list[str]:
    """The linear layers of SD3Transformer2DModel with so many blocks, and its patches' convolution, by their names."""
    inner = [name for name in _MMDIT_BLOCK if ".norm_" not in name]
    return [
        *(name for name in _MMDIT if name != "pos_embed.pos_embed"),
        *(f"transformer_blocks.{block}.{name}" for block in range(depth) for name in inner),
    ]


_VAE_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"
}  # fmt: skip


def _ldm_vae(parameter: str, depth: int) -> Place:
    """A parameter of AutoencoderKL in the original VAE, whose decoder counts its levels from the image up."""
    if match := re.fullmatch(r"(\w+\.mid)_block\.attentions\.0\.(.+)\.(weight|bias)", parameter):
        key = f"{match[1]}.attn_1.{_VAE_ATTENTION[match[2]]}.{match[3]}"
        return Place(key, flatten=match[2] != "group_norm" and match[3] == "weight")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", parameter)
    key = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{depth - 1 - int(found[1])}", key)
    key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key).replace("resnets.", "block.")
    key = re.sub(r"(down|up)samplers\.0\.conv", r"\1sample.conv", key)
    return Place(key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out"))


_OPENCLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPENCLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def _openclip(parameter: str, depth: int) -> Place:
    """A parameter of CLIPTextModelWithProjection in OpenCLIP, as CLIP-G was released."""
    if parameter == "text_projection.weight":
        return Place("text_projection", transpose=True)
    if parameter in _OPENCLIP:
        return Place(_OPENCLIP[parameter])
    match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", parameter)
    if match is None:
        return Place(parameter)
    layer, name, kind = match.groups()
    if name[-6:] in ("q_proj", "k_proj", "v_proj"):
        return Place(f"transformer.resblocks.{layer}.attn.in_proj_{kind}", third="qkv".index(name[-6]))
    return Place(f"transformer.resblocks.{layer}.{_OPENCLIP_LAYER[name]}.{kind}")


_LLAMA_T5 = {
    "shared": "token_embd", "encoder.embed_tokens": "token_embd", "encoder.final_layer_norm": "enc.output_norm"
}  # fmt: skip
_LLAMA_T5_BLOCK = {
    "0.SelfAttention.q": "attn_q", "0.SelfAttention.k": "attn_k", "0.SelfAttention.v": "attn_v",
    "0.SelfAttention.o": "attn_o", "0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "0.layer_norm": "attn_norm", "1.layer_norm": "ffn_norm", "1.DenseReluDense.wi_0": "ffn_gate",
    "1.DenseReluDense.wi_1": "ffn_up", "1.DenseReluDense.wi": "ffn_up", "1.DenseReluDense.wo": "ffn_down",
}  # fmt: skip


def _llama_t5(parameter: str, depth: int) -> Place:
    """A parameter of T5EncoderModel as llama.cpp names it, in GGUF files."""
    name = parameter.removesuffix(".weight")
    if name in _LLAMA_T5:
        return Place(f"{_LLAMA_T5[name]}.weight")
    _, _, block, _, inner = name.split(".", 4)
    return Place(f"enc.blk.{block}.{_LLAMA_T5_BLOCK[inner]}.weight")
