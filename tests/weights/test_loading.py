"""Whole pipelines out of files: all-in-one, five files, one component alone, without T5, off the hub's cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making.pipelines import T5_TOKENS, plain_image
from making.weights import all_in_one, original_mmdit, original_state, output, save, small_pipeline
from safetensors.torch import load_file

from sd35h5.capturing.pipeline import load, offload
from sd35h5.errors import ConfigError
from sd35h5.gates.forms import fuse_gates, separate_gates
from sd35h5.gates.gate_options import GateOptions
from sd35h5.gates.modules import build_gates, save_gates
from sd35h5.planning.describing import describe
from sd35h5.planning.job import resolve
from sd35h5.planning.options import CaptureConfig, Model
from sd35h5.planning.prompts import Prompt
from sd35h5.weights.layouts import COMPONENTS
from sd35h5.weights.loading import load_part, split_gates
from sd35h5.weights.model_facts import read_facts
from sd35h5.weights.sources import OPTIONS, find_part

DIFFUSERS = GateOptions(attn2_layout="diffusers")  # no file here tells who wrote it
CALL = {"height": 64, "width": 96, "num_inference_steps": 2, "max_sequence_length": T5_TOKENS}


@pytest.fixture(scope="module")
def small():
    """A pipeline with a second attention in its first layer, whose configs follow from its shapes."""
    return small_pipeline(dual=(0,))


@pytest.fixture(scope="module")
def other():
    """Of the same shape, with other weights."""
    return small_pipeline(dual=(0,), seed=1)


@pytest.fixture(scope="module")
def small_folder(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loading") / "small"
    small.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizers(small_folder, tmp_path_factory) -> Path:
    """Only the tokenizers."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        (folder / name).symlink_to(small_folder / name)
    return folder


def test_an_all_in_one_file_draws_the_same_picture(small, tokenizers, tmp_path):
    file = save(tmp_path / "all.safetensors", all_in_one(small))
    model = Model(model_id=str(file), tokenizer_path=str(tokenizers), device="cpu")
    facts = read_facts(model)
    assert (facts.layers, facts.heads, facts.head_dim, facts.scale, facts.pixels) == (3, 2, 8, 16, 256)
    assert facts.has_t5 and facts.second_layers == (0,)
    loaded = load(model, facts, DIFFUSERS)
    assert np.array_equal(
        plain_image(loaded.pipe, "a red apple", 3, **CALL), plain_image(small, "a red apple", 3, **CALL)
    )
    assert {name: source["layout"] for name, source in loaded.sources.items() if "layout" in source} == {
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
    loaded = load(model, read_facts(model), DIFFUSERS)
    assert np.array_equal(
        plain_image(loaded.pipe, "a cat", 1, **CALL), plain_image(small, "a cat", 1, **CALL)
    )
    assert loaded.pipe.scheduler.config.shift == 3.0
    with_base = Model(model_id=str(tokenizers), **files, device="cpu")  # a folder with tokenizers alone
    assert load(with_base, read_facts(with_base), DIFFUSERS).pipe.tokenizer_3 is not None


@pytest.mark.parametrize("component", COMPONENTS)
def test_one_component_alone_replaces_that_of_the_base_and_no_other(
    component, small_folder, small, other, tmp_path
):
    file = save(tmp_path / "one.safetensors", original_state(component, getattr(other, component)))
    model = Model(model_id=str(small_folder), **{OPTIONS[component]: str(file)}, device="cpu")
    loaded = load(model, read_facts(model), DIFFUSERS).pipe
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
        loaded = load(model, facts, DIFFUSERS)
        assert not facts.has_t5 and loaded.pipe.text_encoder_3 is None and loaded.pipe.tokenizer_3 is None
        assert "text_encoder_3" not in loaded.sources
        assert loaded.pipe("a cat", **CALL).images[0].size == (96, 64)


def test_offloaded_models_draw_the_same_picture_with_their_gates(small_folder):
    model = Model(model_id=str(small_folder), device="cpu")
    options = GateOptions(gate_type="headwise", gate_init="neutral", gate_target="joint")
    plain, moved = (load(model, read_facts(model), options) for _ in range(2))
    offload(moved.pipe, moved.gates, "cpu", "model")  # the hooks are those of a CUDA device
    assert moved.pipe.transformer._hf_hook is not None
    assert np.array_equal(*(plain_image(each.pipe, "a cat", 2, **CALL) for each in (plain, moved)))
    with pytest.raises(
        ConfigError, match="--offload brings models to a CUDA device in turn, and the device is cpu"
    ):
        load(replace(model, offload="model"), read_facts(model))


def test_sequential_offload_takes_each_layer_to_the_device_alone(small_folder):
    model = Model(model_id=str(small_folder), device="cpu")
    pipe, gates, _ = load(model, read_facts(model), GateOptions(gate_type="headwise", gate_init="neutral"))
    offload(pipe, gates, "cpu", "sequential")  # accelerate cannot draw so on a CPU: test_gpu.py does
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    assert layer.weight.device.type == "meta" and layer._hf_hook is not None
    assert {each.weight.device.type for each in gates.modules["0"].children()} == {"cpu"}


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
    flags += ["--attn2_layout", "diffusers"]
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


@pytest.mark.parametrize(("gate_type", "form"), [("headwise", fuse_gates), ("elementwise", separate_gates)])
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
    config = CaptureConfig(Model(model_id=str(tmp_path / "base"), dit_path=str(file)))
    facts = read_facts(config.model)
    attentions = len({key.rsplit(".", 2)[0] for key in held})
    assert facts.told_gates == f"{gate_type} gates in {attentions} attentions of gated.safetensors"
    planned = describe(resolve(config, [Prompt("p000", "a cat")], facts))  # what --dry_run prints
    assert facts.told_gates in planned and "gates/below_0_1" in planned
    base, source = split_gates(find_part("transformer", Model(dit_path=str(file)), None))
    extra = source.tensors.keys() - held.keys()  # form (a) widens the last text stream too, with zeros
    assert not any(source.tensors[key].any() for key in extra) and not held.keys() - source.tensors.keys()
    assert all(torch.equal(source.tensors[key], held[key]) for key in held)
    model = load_part(base, torch.float32, "cpu")
    assert torch.equal(output("transformer", model), output("transformer", pipe.transformer))
    images = []
    for options in ({"dit_path": str(file)}, {"gates": str(tmp_path / "gates.safetensors")}):
        model = Model(model_id=str(tmp_path / "base"), device="cpu", **options)
        images.append(plain_image(load(model, read_facts(model)).pipe, "a cat", 0, **CALL))
    assert np.array_equal(*images) and not np.array_equal(images[0], plain_image(pipe, "a cat", 0, **CALL))
