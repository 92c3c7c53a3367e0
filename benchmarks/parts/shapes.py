"""Pipelines of SD3.5's shapes with random weights, which cost what real ones cost: for the benchmarks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from data.recipe import models as recipe


@dataclass(frozen=True)
class Shape:
    """A transformer's configuration, the picture it draws, and the channels of the VAE that decodes it."""

    transformer: dict[str, object]
    height: int
    width: int
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    t5_tokens: int = 256


def _sd35(layers: int, positions: int, **more: object) -> dict[str, object]:
    """SD3.5's configuration: as many heads of 64 as layers."""
    return {
        "sample_size": 128, "num_layers": layers, "num_attention_heads": layers, "attention_head_dim": 64,
        "joint_attention_dim": 4096, "caption_projection_dim": 64 * layers, "pooled_projection_dim": 2048,
        "pos_embed_max_size": positions, **{"qk_norm": "rms_norm", **more},
    }  # fmt: skip


SHAPES = {
    "large": Shape(_sd35(38, 192), 1024, 1024),
    "medium": Shape(_sd35(24, 384, dual_attention_layers=tuple(range(13))), 1024, 1024),
    "sd3-medium": Shape(_sd35(24, 192, qk_norm=None), 1024, 1024),
    "emoji": Shape(
        _sd35(8, 24)
        | {
            "sample_size": 32, "num_attention_heads": 5, "attention_head_dim": 32,
            "joint_attention_dim": 192, "caption_projection_dim": 160, "pooled_projection_dim": 160,
        }, 256, 256, (32, 64, 128, 128),
    ),
    "tiny": Shape(
        _sd35(3, 16)
        | {
            "sample_size": 8, "num_attention_heads": 2, "attention_head_dim": 16,
            "joint_attention_dim": 192, "caption_projection_dim": 32, "pooled_projection_dim": 160,
        }, 64, 96, (32, 32, 32, 32), 40,
    ),
}  # fmt: skip


def small(shape: Shape) -> Shape:
    """The same kind of transformer with three layers of two heads, for 64 × 96 pixels."""
    config = shape.transformer | {
        "sample_size": 8, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16,
        "joint_attention_dim": 192, "caption_projection_dim": 32, "pooled_projection_dim": 160,
    }  # fmt: skip
    if "dual_attention_layers" in config:
        config["dual_attention_layers"] = (0, 1)
    return Shape(config, 64, 96, (32, 32, 32, 32), 40)


def make_pipeline(shape: Shape, device: torch.device, dtype: torch.dtype) -> StableDiffusion3Pipeline:
    """Make a pipeline whose transformer and VAE have the shape; its text encoders are as small as can be."""
    torch.manual_seed(0)
    with torch.device(device):  # 8 billion random numbers take a GPU a second
        transformer = SD3Transformer2DModel(**shape.transformer).to(dtype).eval()
        vae = _vae(shape).to(dtype).eval()
    clip_l, clip_g, t5 = recipe.make_tokenizers()
    pooled, width = shape.transformer["pooled_projection_dim"], shape.transformer["joint_attention_dim"]
    encoders = [
        _clip(tokenizer, part) for tokenizer, part in ((clip_l, pooled * 3 // 8), (clip_g, pooled * 5 // 8))
    ]
    t5_config = T5Config(vocab_size=len(t5), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=encoders[0], tokenizer=clip_l, text_encoder_2=encoders[1], tokenizer_2=clip_g,
        text_encoder_3=T5EncoderModel(t5_config).eval(), tokenizer_3=t5,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


def _vae(shape: Shape) -> AutoencoderKL:
    blocks = len(shape.vae_channels)
    return AutoencoderKL(
        latent_channels=16, block_out_channels=shape.vae_channels, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609,
    )  # fmt: skip


def _clip(tokenizer: object, projection: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, projection_dim=projection,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config).eval()
