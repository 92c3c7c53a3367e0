"""Weights in every layout give the diffusers model's own output; the four published models' keys all fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import T5_TOKENS, make_pipeline, plain_image
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file
from weights import (
    PREFIXES,
    REAL_OTHERS,
    REAL_TRANSFORMERS,
    VAE,
    all_in_one,
    audit,
    mmdit_shapes,
    original_mmdit,
    original_state,
    original_vae,
    output,
    plain_state,
    save,
    small_pipeline,
    vae_shapes,
)

from sd35h5.config import Model
from sd35h5.errors import ConfigError
from sd35h5.facts import read_facts
from sd35h5.gate_forms import fuse_gates, separate_gates
from sd35h5.gate_options import GateOptions
from sd35h5.gates import build_gates, save_gates
from sd35h5.loading import build, load_part, split_gates
from sd35h5.model_configs import COMPONENT_CONFIGS, TRANSFORMERS, published_name
from sd35h5.pipelines import load, offload
from sd35h5.sources import OPTIONS, Part, find_part
from sd35h5.weight_layouts import COMPONENTS

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


@pytest.fixture(scope="module")
def tokenizers(small_folder, tmp_path_factory) -> Path:
    """Only the tokenizers."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        (folder / name).symlink_to(small_folder / name)
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


def test_t5_in_float16_keeps_the_parts_that_transformers_keeps_in_float32(small, small_folder):
    from transformers import T5EncoderModel

    theirs = T5EncoderModel.from_pretrained(small_folder / "text_encoder_3", dtype=torch.float16)
    ours = load_part(_part("text_encoder_3", small_folder / "text_encoder_3"), torch.float16, "cpu")
    dtypes = {name: parameter.dtype for name, parameter in theirs.named_parameters()}
    assert {name: parameter.dtype for name, parameter in ours.named_parameters()} == dtypes
    assert torch.equal(output("text_encoder_3", ours), output("text_encoder_3", theirs))


def test_an_all_in_one_file_draws_the_same_picture(small, tokenizers, tmp_path):
    file = save(tmp_path / "all.safetensors", all_in_one(small))
    model = Model(model_id=str(file), tokenizer_path=str(tokenizers), device="cpu")
    facts = read_facts(model)
    assert (facts.layers, facts.heads, facts.head_dim, facts.scale, facts.pixels) == (3, 2, 8, 16, 256)
    assert facts.has_t5 and facts.second_attentions == 1
    loaded = load(model, facts)
    assert np.array_equal(
        plain_image(loaded.pipe, "a red apple", 3, **CALL), plain_image(small, "a red apple", 3, **CALL)
    )
    assert {name: source["layout"] for name, source in loaded.sources.items()} == {
        "transformer": "original", "text_encoder": "transformers", "text_encoder_2": "transformers",
        "text_encoder_3": "transformers", "vae": "original",
    }  # fmt: skip


def test_five_files_and_tokenizers_need_no_base_and_no_hub(small, tokenizers, tmp_path):
    files = {
        option: str(
            save(tmp_path / f"{option}.safetensors", original_state(component, getattr(small, component)))
        )
        for component, option in OPTIONS.items()
    }
    model = Model(**files, tokenizer_path=str(tokenizers), device="cpu")  # --model_id stays the hub's Large
    loaded = load(model, read_facts(model))
    assert np.array_equal(
        plain_image(loaded.pipe, "a cat", 1, **CALL), plain_image(small, "a cat", 1, **CALL)
    )
    assert loaded.pipe.scheduler.config.shift == 3.0
    with_base = Model(model_id=str(tokenizers), **files, device="cpu")  # a folder with tokenizers alone
    assert load(with_base, read_facts(with_base)).pipe.tokenizer_3 is not None


@pytest.mark.parametrize("component", COMPONENTS)
def test_one_component_alone_replaces_that_of_the_base_and_no_other(component, small_folder, small, tmp_path):
    other = small_pipeline(dual=(0,), seed=1)
    file = save(tmp_path / "one.safetensors", original_state(component, getattr(other, component)))
    model = Model(model_id=str(small_folder), **{OPTIONS[component]: str(file)}, device="cpu")
    loaded = load(model, read_facts(model)).pipe
    for each in COMPONENTS:
        expected = getattr(other if each == component else small, each)
        assert torch.equal(output(each, getattr(loaded, each)), output(each, expected)), each


def test_without_t5_there_are_77_empty_positions_and_no_weights_of_it(
    small, small_folder, tokenizers, tmp_path
):
    file = save(tmp_path / "no_t5.safetensors", all_in_one(small, without=("text_encoder_3",)))
    for model in (
        Model(model_id=str(small_folder), no_t5=True, device="cpu"),
        Model(model_id=str(file), tokenizer_path=str(tokenizers), no_t5=True, device="cpu"),
    ):
        facts = read_facts(model)
        loaded = load(model, facts)
        assert not facts.has_t5 and loaded.pipe.text_encoder_3 is None and loaded.pipe.tokenizer_3 is None
        assert "text_encoder_3" not in loaded.sources
        assert loaded.pipe("a cat", **CALL).images[0].size == (96, 64)


def test_offloaded_models_draw_the_same_picture_with_their_gates(small_folder):
    model = Model(model_id=str(small_folder), device="cpu")
    options = GateOptions(gate_type="headwise", gate_init="neutral", gate_target="joint")
    plain, moved = (load(model, read_facts(model), options) for _ in range(2))
    offload(moved.pipe, moved.gates, "cpu")  # the hooks are those of a CUDA device
    assert moved.pipe.transformer._hf_hook is not None
    assert np.array_equal(*(plain_image(each.pipe, "a cat", 2, **CALL) for each in (plain, moved)))
    with pytest.raises(
        ConfigError, match="--offload brings models to a CUDA device in turn, and the device is cpu"
    ):
        load(replace(model, offload=True), read_facts(model))


def test_a_hub_repository_is_read_from_its_cache_without_a_network(
    small_folder, small, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    repository = tmp_path / "models--someone--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "0123abc").symlink_to(small_folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = Model(model_id="someone/small", device="cpu")
    facts = read_facts(model)
    assert (facts.layers, facts.has_t5, facts.revision) == (3, True, "0123abc")
    loaded = load(model, facts)
    assert torch.equal(
        output("transformer", loaded.pipe.transformer), output("transformer", small.transformer)
    )


def test_the_store_keeps_source_size_sha256_and_dtype_of_every_component(
    small, small_folder, tmp_path, capsys
):
    import capture_cli
    from sd35h5 import open_store

    file = save(
        tmp_path / "dit.safetensors", {k: t.half() for k, t in original_mmdit(small.transformer).items()}
    )
    flags = ["--model_id", str(small_folder), "--ckpt_path", str(file), "--no_t5", "--prompt", "a cat"]
    flags += ["--height", "64", "--width", "96", "--steps", "2", "--out", str(tmp_path / "a.h5")]
    assert capture_cli.main(flags) == 0, capsys.readouterr().err
    with open_store(tmp_path / "a.h5") as store:
        components = store.provenance["components"]
        assert store.config["dit_path"] == str(file) and store.config["t5"] is False
    dit = components["transformer"]
    assert (dit["source"], dit["layout"], dit["stored_dtype"], dit["dtype"]) == (
        str(file),
        "original",
        "float16",
        "float32",
    )
    assert dit["files"][0]["size"] == file.stat().st_size and len(dit["files"][0]["sha256"]) == 64
    assert components["vae"]["source"] == str(small_folder / "vae") and "text_encoder_3" not in components


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


@pytest.mark.parametrize("gate_type", ["headwise", "elementwise"])
@pytest.mark.parametrize("form", [fuse_gates, separate_gates])
def test_gates_in_the_transformers_own_file_are_handed_on_and_drawn_with(form, gate_type, tmp_path):
    pipe = small_pipeline()
    pipe.save_pretrained(tmp_path / "base")
    gates = build_gates(pipe.transformer, gate_type)
    torch.manual_seed(1)
    for parameter in gates.modules.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    save_gates(tmp_path / "gates.safetensors", gates, torch.float32)
    plain = original_mmdit(pipe.transformer)
    held = load_file(tmp_path / "gates.safetensors")
    file = save(
        tmp_path / "gated.safetensors",
        form({f"model.diffusion_model.{k}": t for k, t in plain.items()}, held),
    )
    base, source = split_gates(_part("transformer", file))
    extra = source.tensors.keys() - held.keys()  # form (a) widens the last text stream too, with zeros
    assert not any(source.tensors[key].any() for key in extra) and not held.keys() - source.tensors.keys()
    assert all(torch.equal(source.tensors[key], held[key]) for key in held)
    assert _same_output("transformer", pipe.transformer, base)
    images = []
    for options in ({"dit_path": str(file)}, {"gates": str(tmp_path / "gates.safetensors")}):
        model = Model(model_id=str(tmp_path / "base"), device="cpu", **options)
        images.append(plain_image(load(model, read_facts(model)).pipe, "a cat", 0, **CALL))
    assert np.array_equal(*images) and not np.array_equal(images[0], plain_image(pipe, "a cat", 0, **CALL))
