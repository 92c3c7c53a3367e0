"""Configs of the four published models, and the config of a single file from its tensors' shapes. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sd35h5.errors import ConfigError
from sd35h5.weights.layouts import Layout

Shape = tuple[int, ...]
Config = dict[str, Any]
_LARGE = {
    "num_layers": 38, "num_attention_heads": 38, "attention_head_dim": 64, "caption_projection_dim": 2432,
    "pos_embed_max_size": 192, "qk_norm": "rms_norm", "dual_attention_layers": (),
}  # fmt: skip
_MEDIUM = {
    "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536,
}  # fmt: skip
_ALL = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
}  # fmt: skip
TRANSFORMERS: dict[str, Config] = {
    "stabilityai/stable-diffusion-3-medium-diffusers": {
        **_ALL, **_MEDIUM, "pos_embed_max_size": 192, "qk_norm": None, "dual_attention_layers": (),
    },
    "stabilityai/stable-diffusion-3.5-medium": {
        **_ALL, **_MEDIUM, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    },
    "stabilityai/stable-diffusion-3.5-large": {**_ALL, **_LARGE},
    "stabilityai/stable-diffusion-3.5-large-turbo": {**_ALL, **_LARGE},
}  # fmt: skip
COMPONENT_CONFIGS: dict[str, Config] = {  # equal in all four
    "text_encoder": {
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "projection_dim": 768, "max_position_embeddings": 77,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
    },
    "text_encoder_2": {
        "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
        "num_attention_heads": 20, "projection_dim": 1280, "max_position_embeddings": 77,
        "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0,
    },
    "text_encoder_3": {
        "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    },
    "vae": {
        "in_channels": 3, "out_channels": 3, "latent_channels": 16, "layers_per_block": 2,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "act_fn": "silu", "norm_num_groups": 32, "sample_size": 1024, "force_upcast": True,
        "scaling_factor": 1.5305, "shift_factor": 0.0609,
        "use_quant_conv": False, "use_post_quant_conv": False,
    },
}  # fmt: skip
SCHEDULER: Config = {"num_train_timesteps": 1000, "shift": 3.0}  # FlowMatchEulerDiscreteScheduler
_HEAD_DIM = 64  # of MMDiT without norms of q and k, and of every published CLIP


def derive_config(layout: Layout, shapes: Mapping[str, Shape], base: Config | None, file: str) -> Config:
    """The config of a component from its tensors' shapes.

    Args:
        shapes: of every tensor of the file, by the file's keys.
        base: config of the same component of the base model, for what no shape tells; published values else.
        file: for the sentences.

    Raises:
        ConfigError: a tensor that tells the shape is missing or of another rank.
    """

    def shape_of(parameter: str, rank: int) -> Shape:
        key = layout.place(parameter).key
        if key not in shapes:
            raise ConfigError(f"{file} lacks {key}, a tensor that tells the model's shape")
        if len(shapes[key]) != rank or 0 in shapes[key]:
            raise ConfigError(f"{file}: {key} has shape {shapes[key]}, expected {rank} axes")
        return shapes[key]

    derive = {
        "transformer": _transformer, "text_encoder": _clip, "text_encoder_2": _clip,
        "text_encoder_3": _t5, "vae": _vae,
    }[layout.component]  # fmt: skip
    published = _ALL if layout.component == "transformer" else COMPONENT_CONFIGS[layout.component]
    given = {**published, **(base or {})}
    return {**given, **derive(layout, shapes.keys(), shape_of, given, file)}


ShapeOf = Callable[[str, int], Shape]


def _transformer(layout: Layout, keys: Collection[str], shape_of: ShapeOf, base: Config, file: str) -> Config:
    """Heads come from the size of the norms of q and k, not from the depth."""
    channels, in_channels, patch, _ = shape_of("pos_embed.proj.weight", 4)
    positions = math.isqrt(shape_of("pos_embed.pos_embed", 3)[1])
    norm = "transformer_blocks.0.attn.norm_q.weight"
    has_norm = layout.place(norm).key in keys
    same = base.get("caption_projection_dim") == channels  # as wide as the base: its heads, then
    without = base["attention_head_dim"] if same else _HEAD_DIM
    head_dim = shape_of(norm, 1)[0] if has_norm else without
    size = min(128, positions * patch)  # 1024 pixels, as published, or what the positions allow
    if same and base.get("pos_embed_max_size") == positions:
        size = base["sample_size"]
    if channels % head_dim:
        raise ConfigError(
            f"{file} has {channels} channels, which are no whole number of heads of {head_dim}: "
            "give a folder with a config.json"
        )
    second = re.compile(
        re.escape(layout.prefix) + r"(?:joint|transformer)_blocks\.(\d+)\.(?:x_block\.)?attn2\."
    )
    dual = sorted({int(match[1]) for key in keys if (match := second.match(key))})
    return {
        "sample_size": size, "patch_size": patch, "in_channels": in_channels,
        "num_layers": layout.depth, "num_attention_heads": channels // head_dim,
        "attention_head_dim": head_dim,
        "joint_attention_dim": shape_of("context_embedder.weight", 2)[1],
        "caption_projection_dim": shape_of("context_embedder.weight", 2)[0],
        "pooled_projection_dim": shape_of("time_text_embed.text_embedder.linear_1.weight", 2)[1],
        "out_channels": shape_of("proj_out.weight", 2)[0] // patch**2,
        "pos_embed_max_size": positions, "qk_norm": "rms_norm" if has_norm else None,
        "dual_attention_layers": tuple(dual),
    }  # fmt: skip


def _clip(layout: Layout, keys: Collection[str], shape_of: ShapeOf, base: Config, file: str) -> Config:
    words, hidden = shape_of("text_model.embeddings.token_embedding.weight", 2)
    projection = "text_projection.weight"
    has_projection = layout.place(projection).key in keys
    return {
        "vocab_size": words, "hidden_size": hidden, "num_hidden_layers": layout.depth,
        "intermediate_size": shape_of("text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_attention_heads": base["num_attention_heads"] if base["hidden_size"] == hidden
        else max(1, hidden // _HEAD_DIM),
        "projection_dim": shape_of(projection, 2)[-1 if layout.name == "openclip" else 0]
        if has_projection else hidden,
        "max_position_embeddings": shape_of("text_model.embeddings.position_embedding.weight", 2)[0],
    }  # fmt: skip


def _t5(layout: Layout, keys: Collection[str], shape_of: ShapeOf, base: Config, file: str) -> Config:
    shared = "shared.weight" if layout.place("shared.weight").key in keys else "encoder.embed_tokens.weight"
    words, width = shape_of(shared, 2)
    attention, feed = (f"encoder.block.0.layer.{i}." for i in (0, 1))
    buckets, heads = shape_of(attention + "SelfAttention.relative_attention_bias.weight", 2)
    gated = layout.place(feed + "DenseReluDense.wi_0.weight").key in keys
    return {
        "vocab_size": words, "d_model": width, "num_layers": layout.depth, "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "d_kv": shape_of(attention + "SelfAttention.q.weight", 2)[0] // heads,
        "d_ff": shape_of(feed + f"DenseReluDense.{'wi_0' if gated else 'wi'}.weight", 2)[0],
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }  # fmt: skip


def _vae(layout: Layout, keys: Collection[str], shape_of: ShapeOf, base: Config, file: str) -> Config:
    levels = range(layout.depth)
    resnet = "encoder.down_blocks.{}.resnets.{}.conv1.weight"
    blocks = 1
    while layout.place(resnet.format(0, blocks)).key in keys:
        blocks += 1
    return {
        "block_out_channels": tuple(shape_of(resnet.format(level, 0), 4)[0] for level in levels),
        "down_block_types": ("DownEncoderBlock2D",) * layout.depth,
        "up_block_types": ("UpDecoderBlock2D",) * layout.depth,
        "latent_channels": shape_of("decoder.conv_in.weight", 4)[1], "layers_per_block": blocks,
        "mid_block_add_attention": layout.place("decoder.mid_block.attentions.0.to_q.weight").key in keys,
        "use_quant_conv": layout.prefix + "quant_conv.weight" in keys,
        "use_post_quant_conv": layout.prefix + "post_quant_conv.weight" in keys,
    }  # fmt: skip


def published_name(config: Mapping[str, Any]) -> str | None:
    """Name of the published transformers with this config: `SD3.5-Large or Large-Turbo`; None for another."""
    short = {name: name.rpartition("/")[2].removesuffix("-diffusers") for name in TRANSFORMERS}
    fields = (*_LARGE, "joint_attention_dim", "pooled_projection_dim")
    names = [
        short[name]
        for name, known in TRANSFORMERS.items()
        if all(_plain(config.get(field)) == _plain(known[field]) for field in fields)
    ]
    return " or ".join(names) or None


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value
