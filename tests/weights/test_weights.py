"""Components in every layout give the diffusers model's own output; the four published models' keys all fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from making.pipelines import T5_TOKENS, make_pipeline
from making.weights import (
    FACTORS,
    PREFIXES,
    REAL_OTHERS,
    REAL_TRANSFORMERS,
    VAE,
    all_in_one,
    audit,
    mmdit_shapes,
    openclip,
    original_mmdit,
    original_state,
    original_vae,
    output,
    plain_state,
    save,
    scaled_fp8,
    small_pipeline,
    vae_shapes,
)

from sd35h5.errors import ConfigError
from sd35h5.gates.forms import find_gates
from sd35h5.planning.options import Model
from sd35h5.weights.configs import COMPONENT_CONFIGS, TRANSFORMERS, published_name
from sd35h5.weights.layouts import COMPONENTS
from sd35h5.weights.loading import build, load_part
from sd35h5.weights.sources import OPTIONS, Part, find_part

CALL = {"height": 64, "width": 96, "num_inference_steps": 2, "max_sequence_length": T5_TOKENS}


@pytest.fixture(scope="module")
def small():
    """A pipeline with a second attention in its first layer, whose configs follow from its shapes."""
    return small_pipeline(dual=(0,))


@pytest.fixture(scope="module")
def small_folder(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "small"
    small.save_pretrained(folder)
    return folder


def _part(component: str, path: Path, base: Path | None = None) -> Part:
    return find_part(component, Model(**{OPTIONS[component]: str(path)}), base)


def _same_output(component: str, model, part: Part) -> bool:
    loaded = load_part(part, torch.float32, "cpu")
    return torch.equal(output(component, loaded), output(component, model))


def _layouts(component: str, model, folder: Path, tmp: Path) -> dict[str, Path]:
    """The component in each layout it comes in: name -> file or folder."""
    state = original_state(component, model)
    files = {
        "alone": save(tmp / "alone.safetensors", state),
        "prefixed": save(
            tmp / "prefixed.safetensors", {PREFIXES[component] + key: t for key, t in state.items()}
        ),
        "own names": save(tmp / "own.safetensors", plain_state(model)),
        "folder": folder / component,
    }
    model.save_pretrained(tmp / "sharded", max_shard_size="60KB")
    assert len(list((tmp / "sharded").glob("*-of-*.safetensors"))) > 1
    return {**files, "sharded folder": tmp / "sharded"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_layout_gives_the_output_of_the_diffusers_model(component, small, small_folder, tmp_path):
    model = getattr(small, component)
    # clip needs the end token, which a config from shapes takes from the tokenizer
    for name, path in _layouts(component, model, small_folder, tmp_path).items():
        part = _part(component, path)
        if part.derived and "eos_token_id" in part.config:
            part.config["eos_token_id"] = model.config.eos_token_id
        assert part.derived == ("folder" not in name)
        assert _same_output(component, model, part), name


def test_a_transformer_without_norms_of_q_and_k_has_heads_of_64_or_its_bases(tmp_path):
    model = small_pipeline(qk_norm=None).transformer
    assert _same_output(
        "transformer", model, _part("transformer", save(tmp_path / "a.safetensors", original_mmdit(model)))
    )
    tiny = make_pipeline(qk_norm=None)
    tiny.save_pretrained(tmp_path / "tiny")
    part = _part(
        "transformer", save(tmp_path / "b.safetensors", original_mmdit(tiny.transformer)), tmp_path / "tiny"
    )
    assert part.config["attention_head_dim"] == 8 and part.config["sample_size"] == 8  # those of the base
    assert _same_output("transformer", tiny.transformer, part)


def test_the_heads_come_from_the_norms_and_not_from_the_depth(tmp_path, small):
    config = _part("transformer", save(tmp_path / "a.safetensors", original_mmdit(small.transformer))).config
    assert (config["num_layers"], config["num_attention_heads"], config["attention_head_dim"]) == (3, 2, 8)
    assert config["dual_attention_layers"] == (0,) and config["pos_embed_max_size"] == 16


def test_diffusers_own_converters_agree(tmp_path, small):
    state = original_mmdit(small.transformer)
    theirs = convert_sd3_transformer_checkpoint_to_diffusers(dict(state))
    ours = load_part(
        _part("transformer", save(tmp_path / "a.safetensors", state)), torch.float32, "cpu"
    ).state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)
    state = original_vae(small.vae)
    theirs = convert_ldm_vae_checkpoint(dict(state), small.vae.config)
    ours = load_part(_part("vae", save(tmp_path / "b.safetensors", state)), torch.float32, "cpu").state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)


@pytest.mark.parametrize(
    "changes", [{"mid_block_add_attention": False}, {"use_quant_conv": True, "layers_per_block": 2}]
)
def test_other_vaes_are_told_by_their_keys(changes, tmp_path):
    torch.manual_seed(0)
    model = AutoencoderKL(
        **{
            "latent_channels": 16, "block_out_channels": (32, 32, 64), "layers_per_block": 1,
            "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
            "use_quant_conv": False, "use_post_quant_conv": False, **changes,
        }
    ).eval()  # fmt: skip
    assert _same_output("vae", model, _part("vae", save(tmp_path / "a.safetensors", original_vae(model))))


@pytest.mark.parametrize(
    "kept",
    [("shared.weight",), ("encoder.embed_tokens.weight",), ("shared.weight", "encoder.embed_tokens.weight")],
)
def test_t5_keeps_its_embedding_under_either_name_and_holds_it_once(kept, tmp_path, small):
    state = plain_state(small.text_encoder_3)
    shared = state.pop("shared.weight")
    part = _part(
        "text_encoder_3",
        save(tmp_path / "t5.safetensors", {**state, **{name: shared.clone() for name in kept}}),
    )
    assert _same_output("text_encoder_3", small.text_encoder_3, part)
    loaded = load_part(part, torch.float32, "cpu")
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight


def test_harmless_extras_and_gaps_of_clip_are_noted(tmp_path, small, caplog):
    state = plain_state(small.text_encoder)
    extras = {"text_model.embeddings.position_ids": torch.arange(77)[None], "logit_scale": torch.tensor(4.6)}
    del state["text_projection.weight"]
    part = _part("text_encoder", save(tmp_path / "clip_l.safetensors", {**state, **extras}))
    with caplog.at_level("INFO", "sd35h5"):
        loaded = load_part(part, torch.float32, "cpu")
    assert torch.equal(loaded.text_projection.weight, torch.eye(64))
    assert "clip_l.safetensors has no text_projection.weight: the identity is used" in caplog.text
    assert "position_ids" in caplog.text and "logit_scale" in caplog.text and "left aside" in caplog.text


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_cast_with_a_note(stored, tmp_path, small, caplog):
    state = {key: tensor.to(stored) for key, tensor in plain_state(small.text_encoder_3).items()}
    loaded = load_part(
        _part("text_encoder_3", save(tmp_path / "t5.safetensors", state)), torch.bfloat16, "cpu"
    )
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.shared.weight, state["shared.weight"].to(torch.bfloat16))
    assert (
        f"t5.safetensors is stored as {str(stored).removeprefix('torch.')}: cast to bfloat16" in caplog.text
    )


@pytest.mark.parametrize("prefix", ["", "text_encoders.clip_g."])
def test_clip_g_in_openclips_layout_gives_the_output_of_transformers(prefix, tmp_path, small, small_folder):
    model = small.text_encoder_2
    state = openclip(model, prefix)
    part = _part("text_encoder_2", save(tmp_path / "g.safetensors", state), small_folder)
    assert part.layout.name == "openclip" and part.derived
    assert _same_output("text_encoder_2", model, part)
    del state[f"{prefix}transformer.resblocks.1.attn.in_proj_bias"]
    with pytest.raises(ConfigError, match=r"lacks .*1\.attn.in_proj_bias, text_model.*_proj.bias"):
        load_part(_part("text_encoder_2", save(tmp_path / "h.safetensors", state)), torch.float32, "cpu")


@pytest.mark.parametrize("names", FACTORS)
def test_scaled_fp8_weights_are_multiplied_by_their_factors(names, tmp_path, small, caplog):
    """As ComfyUI stores them: linear layers in fp8 with a factor, all else plain; q, k and v share one factor."""
    stored, expected = scaled_fp8(original_mmdit(small.transformer), names)
    stored = {f"model.diffusion_model.{key}": tensor for key, tensor in stored.items()}
    loaded = load_part(
        _part("transformer", save(tmp_path / "scaled.safetensors", stored)), torch.float32, "cpu"
    )
    assert "float8_e4m3fn (scaled): cast to float32" in caplog.text
    plain = load_part(
        _part("transformer", save(tmp_path / "plain.safetensors", expected)), torch.float32, "cpu"
    )
    for name, tensor in plain.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    difference = output("transformer", loaded) - output("transformer", small.transformer)
    assert difference.abs().max() < 0.1 * output("transformer", small.transformer).abs().max()


def test_gates_in_scaled_fp8_are_refused_since_their_rows_would_be_read_unscaled():
    shapes = {
        "joint_blocks.0.x_block.attn.qkv.weight": (3 * 16 + 2, 16), "joint_blocks.0.x_block.attn.qkv.bias": (50,),
        "joint_blocks.0.x_block.attn.ln_q.weight": (8,), "joint_blocks.0.x_block.attn.qkv.scale_weight": (),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="qkv.scale_weight: gates are not read from scaled fp8"):
        find_gates(shapes)


def test_t5_in_float16_keeps_the_parts_that_transformers_keeps_in_float32(small, small_folder):
    from transformers import T5EncoderModel

    theirs = T5EncoderModel.from_pretrained(small_folder / "text_encoder_3", dtype=torch.float16)
    ours = load_part(_part("text_encoder_3", small_folder / "text_encoder_3"), torch.float16, "cpu")
    dtypes = {name: parameter.dtype for name, parameter in theirs.named_parameters()}
    assert {name: parameter.dtype for name, parameter in ours.named_parameters()} == dtypes
    assert torch.equal(output("text_encoder_3", ours), output("text_encoder_3", theirs))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_key_of_the_published_transformers_finds_its_place(name):
    shapes = {f"model.diffusion_model.{key}": shape for key, shape in REAL_TRANSFORMERS[name].items()}
    part = audit("transformer", shapes)
    wanted = {
        key: list(value) if isinstance(value, tuple) else value for key, value in TRANSFORMERS[name].items()
    }
    found = {key: part.config[key] for key in wanted}
    assert json.loads(json.dumps(found)) == wanted
    assert name.rpartition("/")[2].removesuffix("-diffusers") in published_name(part.config)
    theirs = convert_sd3_transformer_checkpoint_to_diffusers(
        {key: torch.empty(shape, device="meta") for key, shape in REAL_TRANSFORMERS[name].items()}
    )
    model = build("transformer", part.config)
    assert {k: t.shape for k, t in theirs.items()} == {k: t.shape for k, t in model.state_dict().items()}


@pytest.mark.parametrize("component", REAL_OTHERS)
def test_every_key_of_the_published_encoders_and_vae_finds_its_place(component):
    shapes = {PREFIXES[component] + key: shape for key, shape in REAL_OTHERS[component].items()}
    part = audit(component, shapes)
    assert part.config == {**COMPONENT_CONFIGS[component], **part.config}


def test_the_architecture_lists_agree_with_the_weights_that_the_tests_make(small):
    config = small.transformer.config
    listed = mmdit_shapes(3, 16, 16, 8, 1, context=config.joint_attention_dim, pooled=192)
    assert {key: tuple(t.shape) for key, t in original_mmdit(small.transformer).items()} == listed
    assert {key: tuple(t.shape) for key, t in original_vae(small.vae).items()} == vae_shapes(
        (32, 32, 64, 64), 1
    )
    assert VAE + "decoder.up.3.block.0.norm1.weight" in all_in_one(small)
