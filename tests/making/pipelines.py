"""A tiny random SD3 pipeline with real tokenizers, its sizes, and what it draws without us."""

from __future__ import annotations

import numpy as np

WORDS = ("a", "red", "apple", "left", "of", "cat", "on", "blue", "background", "green", "tree", "dog")
LAYERS, HEADS, HEAD_DIM = 3, 2, 8
HEIGHT, WIDTH = 64, 96  # 4 x 6 patches
T5_TOKENS = 24


def _byte_alphabet() -> list[str]:
    """The printable stand-ins of all bytes that GPT-2's and CLIP's byte-level BPE use."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def make_clip_tokenizer(pad_token: str = "<|endoftext|>"):
    """A CLIPTokenizer that knows WORDS as whole tokens and spells out all else."""
    from transformers import CLIPTokenizer

    alphabet = _byte_alphabet()
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        letters = [*word[:-1], word[-1] + "</w>"]
        left = letters[0]
        for right in letters[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            pieces.append(left)
    vocabulary = {
        piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    }
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=77)


def make_t5_tokenizer():
    """A T5 tokenizer over a hand-built unigram list: WORDS whole, all else by letters."""
    from transformers import T5TokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!?'-()"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -6.0)]
    pieces += [("▁" + word, -3.0) for word in WORDS] + [(letter, -9.0) for letter in letters]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def make_pipeline(qk_norm: str | None = "rms_norm", seed: int = 0, **transformer_changes: object):
    """A random StableDiffusion3Pipeline with 3 layers and 2 heads of 8, for 64 x 96 pixels."""
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    clip_l, clip_g, t5 = make_clip_tokenizer(), make_clip_tokenizer(pad_token="!"), make_t5_tokenizer()
    transformer = SD3Transformer2DModel(
        **{
            "sample_size": 8, "num_layers": LAYERS, "num_attention_heads": HEADS,
            "attention_head_dim": HEAD_DIM,
            "joint_attention_dim": 32, "caption_projection_dim": HEADS * HEAD_DIM,
            "pooled_projection_dim": 32,
            "pos_embed_max_size": 16, "qk_norm": qk_norm, **transformer_changes,
        }
    )  # fmt: skip
    encoders = []
    for tokenizer in (clip_l, clip_g):
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        encoders.append(CLIPTextModelWithProjection(config))
    t5_config = T5Config(vocab_size=len(t5), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5,
        sample_size=64,
    )  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=encoders[0], tokenizer=clip_l, text_encoder_2=encoders[1], tokenizer_2=clip_g,
        text_encoder_3=T5EncoderModel(t5_config), tokenizer_3=t5,
    )  # fmt: skip
    for component in (transformer, vae, *encoders, pipe.text_encoder_3):
        component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plain_image(pipe, prompt: str, seed: int, **call):
    """What the pipeline draws without us."""
    return pipe(prompt, generator=torch_generator(seed), **call).images[0]


def torch_generator(seed: int):
    """A CPU generator with this seed."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def pixels(image) -> np.ndarray:
    """A picture as uint8 (y, x, rgb)."""
    return np.asarray(image)
