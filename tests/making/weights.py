"""Weights in the layouts of the original release, made from diffusers' models module by module.

Nothing here uses the key maps under test: keys and shapes follow Stability's code (`mmditx.py`, `sd3_impls.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from making.pipelines import make_clip_tokenizer, make_t5_tokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

from sd35h5.weights.checkpoints import Entry
from sd35h5.weights.configs import derive_config
from sd35h5.weights.layouts import find_layout
from sd35h5.weights.loading import build, plan
from sd35h5.weights.sources import Part

Shapes = dict[str, tuple[int, ...]]
DIT = "model.diffusion_model."
VAE = "first_stage_model."
CLIP_L, CLIP_G, T5 = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))
PREFIXES = {
    "transformer": DIT, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5, "vae": VAE
}  # fmt: skip


def linear(key: str, rows: int, columns: int) -> Shapes:
    return {f"{key}.weight": (rows, columns), f"{key}.bias": (rows,)}


def norm(key: str, width: int) -> Shapes:
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def conv(key: str, out: int, into: int, kernel: int) -> Shapes:
    return {f"{key}.weight": (out, into, kernel, kernel), f"{key}.bias": (out,)}


def mmdit_shapes(
    depth: int, width: int, positions: int, head_dim: int | None, dual: int = 0, context: int = 4096,
    pooled: int = 2048,
) -> Shapes:  # fmt: skip
    """Keys and shapes of Stability's MMDiT(-X), from its architecture.

    Args:
        positions: side of the grid of position embeddings.
        head_dim: size of the norms of q and k; None without them.
        dual: number of first blocks with a second attention.
    """
    shapes = {"pos_embed": (1, positions**2, width)}
    shapes |= conv("x_embedder.proj", width, 16, 2)
    shapes |= linear("t_embedder.mlp.0", width, 256) | linear("t_embedder.mlp.2", width, width)
    shapes |= linear("y_embedder.mlp.0", width, pooled) | linear("y_embedder.mlp.2", width, width)
    shapes |= linear("context_embedder", width, context)
    shapes |= linear("final_layer.adaLN_modulation.1", 2 * width, width)
    shapes |= linear("final_layer.linear", 2 * 2 * 16, width)
    for block in range(depth):
        for stream in ("context_block", "x_block"):
            key = f"joint_blocks.{block}.{stream}"
            ends = stream == "context_block" and block == depth - 1  # only q, k and v of the text are used
            second = stream == "x_block" and block < dual
            shapes |= linear(f"{key}.adaLN_modulation.1", (2 if ends else 9 if second else 6) * width, width)
            for attention in ("attn", "attn2") if second else ("attn",):
                shapes |= linear(f"{key}.{attention}.qkv", 3 * width, width)
                if head_dim is not None:
                    shapes |= {f"{key}.{attention}.ln_{each}.weight": (head_dim,) for each in "qk"}
                if not ends:
                    shapes |= linear(f"{key}.{attention}.proj", width, width)
            if not ends:
                shapes |= linear(f"{key}.mlp.fc1", 4 * width, width) | linear(
                    f"{key}.mlp.fc2", width, 4 * width
                )
    return shapes


def vae_shapes(widths: tuple[int, ...] = (128, 256, 512, 512), blocks: int = 2, latents: int = 16) -> Shapes:
    """Keys and shapes of the original VAE without quant convolutions, from its architecture."""

    def resnet(key: str, into: int, out: int) -> Shapes:
        shapes = norm(f"{key}.norm1", into) | conv(f"{key}.conv1", out, into, 3)
        shapes |= norm(f"{key}.norm2", out) | conv(f"{key}.conv2", out, out, 3)
        return shapes | (conv(f"{key}.nin_shortcut", out, into, 1) if into != out else {})

    def middle(key: str) -> Shapes:
        shapes = resnet(f"{key}.block_1", widths[-1], widths[-1])
        shapes |= resnet(f"{key}.block_2", widths[-1], widths[-1])
        shapes |= norm(f"{key}.attn_1.norm", widths[-1])
        for each in ("q", "k", "v", "proj_out"):
            shapes |= conv(f"{key}.attn_1.{each}", widths[-1], widths[-1], 1)
        return shapes

    shapes = conv("encoder.conv_in", widths[0], 3, 3)
    into = widths[0]
    for level, width in enumerate(widths):
        for block in range(blocks):
            shapes |= resnet(f"encoder.down.{level}.block.{block}", into, width)
            into = width
        if level < len(widths) - 1:
            shapes |= conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    shapes |= middle("encoder.mid") | norm("encoder.norm_out", into)
    shapes |= conv("encoder.conv_out", 2 * latents, into, 3)
    shapes |= conv("decoder.conv_in", into, latents, 3) | middle("decoder.mid")
    for level, width in reversed(list(enumerate(widths))):
        for block in range(blocks + 1):
            shapes |= resnet(f"decoder.up.{level}.block.{block}", into, width)
            into = width
        if level > 0:
            shapes |= conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    return shapes | norm("decoder.norm_out", into) | conv("decoder.conv_out", 3, into, 3)


def clip_shapes(width: int, layers: int, words: int = 49408, positions: int = 77) -> Shapes:
    """Keys and shapes of a CLIP text encoder with projection, in transformers' layout."""
    shapes = {
        "text_model.embeddings.token_embedding.weight": (words, width),
        "text_model.embeddings.position_embedding.weight": (positions, width),
        "text_projection.weight": (width, width),
    }
    for layer in range(layers):
        key = f"text_model.encoder.layers.{layer}"
        for each in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{key}.self_attn.{each}", width, width)
        shapes |= norm(f"{key}.layer_norm1", width) | norm(f"{key}.layer_norm2", width)
        shapes |= linear(f"{key}.mlp.fc1", 4 * width, width) | linear(f"{key}.mlp.fc2", width, 4 * width)
    return shapes | norm("text_model.final_layer_norm", width)


def t5_shapes(width: int = 4096, layers: int = 24, hidden: int = 10240, heads: int = 64) -> Shapes:
    """Keys and shapes of T5 v1.1's encoder."""
    shapes: Shapes = {"shared.weight": (32128, width), "encoder.final_layer_norm.weight": (width,)}
    for layer in range(layers):
        key = f"encoder.block.{layer}.layer"
        shapes |= {f"{key}.0.SelfAttention.{each}.weight": (width, width) for each in "qkvo"}
        shapes |= {f"{key}.{part}.layer_norm.weight": (width,) for part in (0, 1)}
        shapes |= {f"{key}.1.DenseReluDense.{each}.weight": (hidden, width) for each in ("wi_0", "wi_1")}
        shapes[f"{key}.1.DenseReluDense.wo.weight"] = (width, hidden)
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
    return shapes


REAL_TRANSFORMERS = {  # as published: depth, width, positions, head_dim, blocks with a second attention
    "stabilityai/stable-diffusion-3-medium-diffusers": mmdit_shapes(24, 1536, 192, None),
    "stabilityai/stable-diffusion-3.5-medium": mmdit_shapes(24, 1536, 384, 64, 13),
    "stabilityai/stable-diffusion-3.5-large": mmdit_shapes(38, 2432, 192, 64),
    "stabilityai/stable-diffusion-3.5-large-turbo": mmdit_shapes(38, 2432, 192, 64),
}
REAL_OTHERS = {
    "text_encoder": clip_shapes(768, 12), "text_encoder_2": clip_shapes(1280, 32),
    "text_encoder_3": t5_shapes(), "vae": vae_shapes(),
}  # fmt: skip


def _stacked(key: str, *layers: nn.Linear) -> dict[str, Tensor]:
    return {
        f"{key}.weight": torch.cat([layer.weight for layer in layers]),
        f"{key}.bias": torch.cat([layer.bias for layer in layers]),
    }


def _swapped(key: str, layer: nn.Linear) -> dict[str, Tensor]:
    """Diffusers' (scale, shift) as the original's (shift, scale)."""
    (scale_w, shift_w), (scale_b, shift_b) = layer.weight.chunk(2), layer.bias.chunk(2)
    return {f"{key}.weight": torch.cat([shift_w, scale_w]), f"{key}.bias": torch.cat([shift_b, scale_b])}


def original_mmdit(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a diffusers SD3 transformer as Stability's MMDiT holds them."""
    embed, texts = model.pos_embed, model.time_text_embed
    state = {"pos_embed": embed.pos_embed} | _stacked("x_embedder.proj", embed.proj)
    for ours, theirs in (("t_embedder", texts.timestep_embedder), ("y_embedder", texts.text_embedder)):
        state |= _stacked(f"{ours}.mlp.0", theirs.linear_1) | _stacked(f"{ours}.mlp.2", theirs.linear_2)
    state |= _stacked("context_embedder", model.context_embedder)
    state |= _swapped("final_layer.adaLN_modulation.1", model.norm_out.linear)
    state |= _stacked("final_layer.linear", model.proj_out)
    last = len(model.transformer_blocks) - 1
    for number, block in enumerate(model.transformer_blocks):
        state |= _joint_block(f"joint_blocks.{number}", block, number == last)
    return {key: tensor.detach().clone() for key, tensor in state.items()}


def _joint_block(key: str, block: nn.Module, is_last: bool) -> dict[str, Tensor]:
    attn, image, text = block.attn, f"{key}.x_block", f"{key}.context_block"
    state = _stacked(f"{image}.attn.qkv", attn.to_q, attn.to_k, attn.to_v)
    state |= _stacked(f"{text}.attn.qkv", attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    state |= _stacked(f"{image}.attn.proj", attn.to_out[0])
    if attn.norm_q is not None:
        state |= {
            f"{image}.attn.ln_q.weight": attn.norm_q.weight,
            f"{image}.attn.ln_k.weight": attn.norm_k.weight,
        }
        state[f"{text}.attn.ln_q.weight"] = attn.norm_added_q.weight
        state[f"{text}.attn.ln_k.weight"] = attn.norm_added_k.weight
    if (second := getattr(block, "attn2", None)) is not None:
        state |= _stacked(f"{image}.attn2.qkv", second.to_q, second.to_k, second.to_v)
        state |= _stacked(f"{image}.attn2.proj", second.to_out[0])
        state[f"{image}.attn2.ln_q.weight"] = second.norm_q.weight
        state[f"{image}.attn2.ln_k.weight"] = second.norm_k.weight
    state |= _stacked(f"{image}.adaLN_modulation.1", block.norm1.linear)
    state |= _stacked(f"{image}.mlp.fc1", block.ff.net[0].proj) | _stacked(
        f"{image}.mlp.fc2", block.ff.net[2]
    )
    modulation = f"{text}.adaLN_modulation.1"
    if is_last:
        return state | _swapped(modulation, block.norm1_context.linear)
    state |= _stacked(modulation, block.norm1_context.linear) | _stacked(f"{text}.attn.proj", attn.to_add_out)
    feed = block.ff_context.net
    return state | _stacked(f"{text}.mlp.fc1", feed[0].proj) | _stacked(f"{text}.mlp.fc2", feed[2])


def original_vae(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a diffusers AutoencoderKL as the original VAE holds them."""
    state = {}
    for key, module in _vae_modules(model):
        weight = module.weight
        if isinstance(module, nn.Linear):  # a 1 × 1 convolution there
            weight = weight[:, :, None, None]
        state |= {f"{key}.weight": weight, f"{key}.bias": module.bias}
    return {key: tensor.detach().clone() for key, tensor in state.items()}


def _vae_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for key in ("quant_conv", "post_quant_conv"):
        if getattr(model, key) is not None:
            yield key, getattr(model, key)

    def resnet(key: str, block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name in ("norm1", "conv1", "norm2", "conv2"):
            yield f"{key}.{name}", getattr(block, name)
        if block.conv_shortcut is not None:
            yield f"{key}.nin_shortcut", block.conv_shortcut

    for side in ("encoder", "decoder"):
        half = getattr(model, side)
        yield f"{side}.conv_in", half.conv_in
        for number, block in enumerate(half.mid_block.resnets, 1):
            yield from resnet(f"{side}.mid.block_{number}", block)
        if (attention := half.mid_block.attentions[0]) is not None:
            parts = {"norm": attention.group_norm, "q": attention.to_q, "k": attention.to_k}
            for name, module in (parts | {"v": attention.to_v, "proj_out": attention.to_out[0]}).items():
                yield f"{side}.mid.attn_1.{name}", module
        levels = list(half.down_blocks) if side == "encoder" else list(reversed(half.up_blocks))
        way, sampler = ("down", "downsample") if side == "encoder" else ("up", "upsample")
        for level, block in enumerate(levels):
            for number, inner in enumerate(block.resnets):
                yield from resnet(f"{side}.{way}.{level}.block.{number}", inner)
            for inner in getattr(block, f"{sampler}rs") or ():
                yield f"{side}.{way}.{level}.{sampler}.conv", inner.conv
        yield f"{side}.norm_out", half.conv_norm_out
        yield f"{side}.conv_out", half.conv_out


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's own state without T5's second name of its embedding, which safetensors cannot hold."""
    return {
        key: tensor.detach().clone()
        for key, tensor in model.state_dict().items()
        if key != "encoder.embed_tokens.weight"
    }


def openclip(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A CLIP text encoder as OpenCLIP names its tensors, written down from its text transformer's modules."""
    text = model.text_model
    found = {
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "ln_final.weight": text.final_layer_norm.weight, "ln_final.bias": text.final_layer_norm.bias,
        "text_projection": model.text_projection.weight.T,  # x @ text_projection there
    }  # fmt: skip
    for number, layer in enumerate(text.encoder.layers):
        key, attention = f"transformer.resblocks.{number}.", layer.self_attn
        stacked = _stacked("", attention.q_proj, attention.k_proj, attention.v_proj)
        found |= {f"{key}attn.in_proj_{kind.strip('.')}": tensor for kind, tensor in stacked.items()}
        modules = {
            "attn.out_proj": attention.out_proj, "ln_1": layer.layer_norm1, "ln_2": layer.layer_norm2,
            "mlp.c_fc": layer.mlp.fc1, "mlp.c_proj": layer.mlp.fc2,
        }  # fmt: skip
        for name, module in modules.items():
            found |= {f"{key}{name}.weight": module.weight, f"{key}{name}.bias": module.bias}
    return {prefix + key: tensor.detach().clone().contiguous() for key, tensor in found.items()}


FACTORS = (("scale_weight", "scale_input"), ("weight_scale", "input_scale"))  # the older names and the newer
_LINEAR = re.compile(r"(\.(qkv|fc1|fc2|proj)|SelfAttention\.[qkvo]|DenseReluDense\.w\w+)\.weight$")


def scaled_fp8(state: Mapping[str, Tensor], names: tuple[str, str]) -> tuple[dict, dict[str, Tensor]]:
    """A transformer or T5 in ComfyUI's scaled fp8: linear layers in fp8 beside a factor, all else in half.

    Args:
        names: of a weight's factor and of its input's, which only arithmetic in fp8 needs.

    Returns: what the file holds; float32 of what it means.
    """
    stored, expected = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, {}
    for key, tensor in state.items():
        stored[key], expected[key] = tensor.half(), tensor.half().float()
        if _LINEAR.search(key) and tensor.ndim == 2:
            factor = tensor.abs().max().float() / 448  # the largest e4m3 number
            stored[key] = (tensor / factor).to(torch.float8_e4m3fn)
            expected[key] = stored[key].float() * factor
            module = key.removesuffix("weight")
            stored |= {module + names[0]: factor.reshape(()), module + names[1]: torch.ones(1)}
    return stored, expected


def marked(state: Mapping[str, Tensor], told: object) -> dict[str, Tensor]:
    """Scaled fp8 as ComfyUI writes it since: a mark `comfy_quant`, JSON as bytes, beside each `weight_scale`."""
    layers = [key.removesuffix("weight_scale") for key in state if key.endswith(".weight_scale")]
    left = {key: tensor for key, tensor in state.items() if not key.endswith("scaled_fp8")}
    mark = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    return left | {f"{layer}comfy_quant": mark.clone() for layer in layers}


def original_state(component: str, model: nn.Module) -> dict[str, Tensor]:
    """A component as a single file of the original release holds it."""
    makers = {"transformer": original_mmdit, "vae": original_vae}
    return makers.get(component, plain_state)(model)


def all_in_one(pipe: Any, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """All components under the prefixes of an all-in-one file."""
    return {
        prefix + key: tensor
        for component, prefix in PREFIXES.items()
        if component not in without
        for key, tensor in original_state(component, getattr(pipe, component)).items()
    }


def save(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write a safetensors file. Returns: its path."""
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def small_pipeline(
    qk_norm: str | None = "rms_norm", dual: tuple[int, ...] = (), width: int = 16, seed: int = 0,
    tokenizers: tuple | None = None,
):  # fmt: skip
    """A random pipeline whose every config follows from its weights' shapes, as the published ones' do.

    Args:
        tokenizers: CLIP-L's, CLIP-G's and T5's, in place of tiny ones.
    """
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    clip_l, clip_g, t5 = tokenizers or (
        make_clip_tokenizer(), make_clip_tokenizer(pad_token="!"), make_t5_tokenizer()
    )  # fmt: skip
    head_dim = 8 if qk_norm else 64
    width = width if qk_norm else 128
    transformer = SD3Transformer2DModel(
        sample_size=32, num_layers=3, num_attention_heads=width // head_dim, attention_head_dim=head_dim,
        joint_attention_dim=192, caption_projection_dim=width, pooled_projection_dim=192,
        pos_embed_max_size=16, qk_norm=qk_norm, dual_attention_layers=dual, out_channels=16,
    )  # fmt: skip
    encoders = []
    for tokenizer, hidden, act in ((clip_l, 64, "quick_gelu"), (clip_g, 128, "gelu")):
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=96, projection_dim=hidden,
            num_hidden_layers=2, num_attention_heads=hidden // 64, hidden_act=act,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        encoders.append(CLIPTextModelWithProjection(config).eval())
    t5_config = T5Config(
        vocab_size=32128 if tokenizers else len(t5), d_model=192, d_kv=8, d_ff=64, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=(32, 32, 64, 64), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305,
    )  # fmt: skip
    for model in (transformer, vae):  # zeros and ones would hide a swap
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval(), vae=vae.eval(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=encoders[0], tokenizer=clip_l, text_encoder_2=encoders[1], tokenizer_2=clip_g,
        text_encoder_3=T5EncoderModel(t5_config).eval(), tokenizer_3=t5,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def audit(component: str, shapes: Shapes) -> Part:
    """Plan a published component on the meta device. Returns: it, with the config that its shapes tell.

    Raises:
        ConfigError: a key without a place, a parameter without a key, a wrong shape.
    """
    file = Path("published.safetensors")
    layout = find_layout(component, shapes.keys())
    config = derive_config(layout, shapes, None, file.name)
    entries = {key: Entry(file, "BF16", shape) for key, shape in shapes.items()}
    part = Part(component, file.name, file, (file,), layout, entries, config, True)
    model = build(component, config)
    if not all(parameter.is_meta for parameter in model.parameters()):
        raise AssertionError(f"{component} was built with memory")
    places = plan(part, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    if {place.key for place in places.values()} != shapes.keys():
        raise AssertionError(f"{component}: a key has no place")
    return part


def output(component: str, model: nn.Module) -> Tensor:
    """What a component makes of a fixed input, everything it can tell in one vector."""
    random = torch.Generator().manual_seed(0)
    dtype = next(model.parameters()).dtype

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    with torch.no_grad():
        if component == "transformer":
            config = model.config
            return model(
                hidden_states=noise(2, 16, 8, 12), timestep=torch.tensor([3.0, 900.0]),
                encoder_hidden_states=noise(2, 5, config.joint_attention_dim),
                pooled_projections=noise(2, config.pooled_projection_dim), return_dict=False,
            )[0].flatten()  # fmt: skip
        if component == "vae":
            drawn = model.decode(noise(1, 16, 4, 6), return_dict=False)[0]
            seen = model.encode(noise(1, 3, 32, 48)).latent_dist.mean
            return torch.cat([drawn.flatten(), seen.flatten()])
        words = torch.randint(3, model.config.vocab_size - 2, (2, 12), generator=random)
        if component == "text_encoder_3":
            return model(words)[0].flatten()
        words[:, 7] = model.config.vocab_size - 1  # the end token
        found = model(words, output_hidden_states=True)
        return torch.cat([found[0].flatten(), found.hidden_states[-2].flatten()])
