"""The shapes of the bundled models, and how they are written: SD3.5's architecture, small enough for a repository.

Every shape below is the real model's with smaller numbers, except the VAE's, which drops mid attention and quant convs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from data.recipe.scenes import CANVAS
from data.recipe.vocabularies import CLIP_LENGTH, T5_LENGTH, captions, clip_tokenizers, t5_tokenizer

LATENT_CHANNELS, LATENT_SIDE = 16, CANVAS // 8
T5_WIDTH = 192
SHIFT = 3.0  # of the flow-matching schedule, in training and sampling alike, as SD3.5 has it
CLIP_WIDTHS = (64, 96)
TEXT_FOLDERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZER_FOLDERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def make_vae() -> AutoencoderKL:
    """Return an untrained VAE: 8 x smaller sides, 16 channels, 3.8 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=32,
        sample_size=CANVAS,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def make_transformer(channels: int = LATENT_CHANNELS) -> SD3Transformer2DModel:
    """Return an untrained MMDiT of 8 layers and 5 heads of 32 whose every block starts as the identity."""
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=8,
        num_attention_heads=5,
        attention_head_dim=32,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=160,
        pooled_projection_dim=sum(CLIP_WIDTHS),
        pos_embed_max_size=24,
        qk_norm="rms_norm",
    )
    zeroed = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm1_context.linear]
    for linear in zeroed:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def make_tokenizers() -> tuple[CLIPTokenizer, CLIPTokenizer, T5TokenizerFast]:
    """Return the three tokenizers; they follow from the captions of the first training scenes."""
    texts = captions()
    return (*clip_tokenizers(texts), t5_tokenizer(texts))


def make_text_encoders(tokenizers) -> nn.ModuleList:
    """Return untrained CLIP-L, CLIP-G and T5 stand-ins for these tokenizers; 1.5 M parameters together."""
    clips = [
        _clip(width, act, tokenizers[0])
        for width, act in zip(CLIP_WIDTHS, ("quick_gelu", "gelu"), strict=True)
    ]
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizers[2]),
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=2 * T5_WIDTH,
            num_layers=3,
            num_heads=6,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            use_cache=False,
            pad_token_id=tokenizers[2].pad_token_id,
            eos_token_id=tokenizers[2].eos_token_id,
        )
    )
    encoders = nn.ModuleList([*clips, t5])
    for encoder in encoders:
        nn.init.normal_(encoder.get_input_embeddings().weight, std=0.3)
    return encoders


def _clip(width: int, act: str, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=width // 32,
            max_position_embeddings=CLIP_LENGTH,
            hidden_act=act,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,  # 2 would mean "pool at the highest id"
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizers, texts: list[str]) -> list[Tensor]:
    """Return input ids as the SD3 pipeline makes them: (N, 77), (N, 77) and (N, 256), int32.

    Padded here: the tokenizers' own padding of 200,000 captions builds Python lists of fifty million numbers.
    """
    padded = []
    for tokenizer, length in zip(tokenizers, (CLIP_LENGTH, CLIP_LENGTH, T5_LENGTH), strict=True):
        ids = np.full((len(texts), length), tokenizer.pad_token_id, np.int32)
        for row, tokens in zip(
            ids, tokenizer(texts, max_length=length, truncation=True).input_ids, strict=True
        ):
            row[: len(tokens)] = tokens
        padded.append(torch.from_numpy(ids))
    return padded


def encode_text(encoders: nn.ModuleList, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return prompt embeddings (N, 77 + 256, 192) and pooled (N, 160), as StableDiffusion3Pipeline joins them."""
    clips = [
        clip(tokens.long(), output_hidden_states=True)
        for clip, tokens in zip(encoders[:2], ids[:2], strict=True)
    ]
    clip_states = torch.cat([out.hidden_states[-2] for out in clips], dim=-1)
    clip_states = nn.functional.pad(clip_states, (0, T5_WIDTH - clip_states.shape[-1]))
    t5_states = encoders[2](ids[2].long())[0]
    pooled = torch.cat([out.text_embeds for out in clips], dim=-1)
    return torch.cat([clip_states, t5_states], dim=-2), pooled


def save_text(folder: Path, tokenizers, encoders: nn.ModuleList) -> None:
    """Write tokenizers and encoders (fp16 files that load in fp32: see `_load_as_float32`)."""
    for name, tokenizer in zip(TOKENIZER_FOLDERS, tokenizers, strict=True):
        tokenizer.save_pretrained(folder / name)
    for name, encoder in zip(TEXT_FOLDERS, encoders, strict=True):
        encoder.half().save_pretrained(folder / name)
        encoder.float()
        _load_as_float32(folder / name / "config.json")


def _load_as_float32(config: Path) -> None:
    """transformers loads in the config's dtype, diffusers in float32: without this the plain pipeline mixes both."""
    text = json.loads(config.read_text())
    text.pop("torch_dtype", None)
    config.write_text(json.dumps({**text, "dtype": "float32"}, indent=2) + "\n")


def load_text(folder: Path):
    """Return (tokenizers, encoders) as `save_text` wrote them, encoders in float32."""
    tokenizers = (
        *(CLIPTokenizer.from_pretrained(folder / name) for name in TOKENIZER_FOLDERS[:2]),
        T5TokenizerFast.from_pretrained(folder / TOKENIZER_FOLDERS[2]),
    )
    classes = (CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel)
    return tokenizers, nn.ModuleList(
        kind.from_pretrained(folder / name) for kind, name in zip(classes, TEXT_FOLDERS, strict=True)
    )


def save_frame(folder: Path) -> None:
    """Write scheduler and model_index.json, which make the folder a StableDiffusion3Pipeline."""
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **{name: ["transformers", "CLIPTextModelWithProjection"] for name in TEXT_FOLDERS[:2]},
        TEXT_FOLDERS[2]: ["transformers", "T5EncoderModel"],
        **{name: ["transformers", "CLIPTokenizer"] for name in TOKENIZER_FOLDERS[:2]},
        TOKENIZER_FOLDERS[2]: ["transformers", "T5TokenizerFast"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
