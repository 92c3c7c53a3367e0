"""Variants of weights, whole and in shards, in every spelling that diffusers and transformers have had."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from making.weights import original_state, output, save, small_pipeline

from sd35h5.capturing.pipeline import load
from sd35h5.errors import ConfigError
from sd35h5.planning.options import Model
from sd35h5.weights.loading import load_part
from sd35h5.weights.model_facts import read_facts
from sd35h5.weights.sources import find_part
from sd35h5.weights.weight_sets import files_to_fetch, weight_files

SPELLINGS = {  # of the shards, and of their index
    "shards and index of transformers": ("model.fp16-0000{}-of-00002", "model.safetensors.index.fp16.json"),
    "index of transformers, variant first": ("model.fp16-0000{}-of-00002", "model.fp16.safetensors.index.json"),
    "variant last": ("model-0000{}-of-00002.fp16", "model.safetensors.index.fp16.json"),
    "variant between": ("model-0000{}-of-00002.fp16", "model.safetensors.fp16.index.json"),
    "no index": ("model.fp16-0000{}-of-00002", ""),
    "of diffusers": (
        "diffusion_pytorch_model.fp16-0000{}-of-00002", "diffusion_pytorch_model.safetensors.index.fp16.json"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    return small_pipeline()


@pytest.fixture(scope="module")
def small_folder(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("variants") / "small"
    small.save_pretrained(folder)
    return folder


def _write_shards(folder: Path, spelling: tuple[str, str], state: dict) -> list[str]:
    """Write a state dict in two shards. Returns: their names."""
    shard, index = spelling
    names, keys = [f"{shard.format(number)}.safetensors" for number in (1, 2)], sorted(state)
    halves = (keys[::2], keys[1::2])
    for name, half in zip(names, halves, strict=True):
        save(folder / name, {key: state[key] for key in half})
    if index:
        weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return names


def _vae(folder: Path, variant: str = "") -> torch.Tensor:
    part = find_part("vae", Model(vae_path=str(folder), variant=variant), None)
    return output("vae", load_part(part, torch.float32, "cpu"))


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_sharded_variant_is_read_alone_and_by_its_name(spelling, small, tmp_path):
    half = {key: tensor.half() for key, tensor in original_state("vae", small.vae).items()}
    names = _write_shards(tmp_path, spelling, half)
    whole = save(tmp_path.parent / f"{tmp_path.name}.safetensors", half)
    expected = _vae(whole)
    assert torch.equal(_vae(tmp_path), expected) and torch.equal(_vae(tmp_path, "fp16"), expected)
    prefix = spelling[0].split(".")[0].split("-")[0]
    plain = save(tmp_path / f"{prefix}.safetensors", original_state("vae", small.vae))
    assert torch.equal(_vae(tmp_path), _vae(plain)) and torch.equal(_vae(tmp_path, "fp16"), expected)
    assert not torch.equal(_vae(plain), expected)
    (tmp_path / names[1]).unlink()
    with pytest.raises(ConfigError, match=f"is incomplete: {names[1]}, named in .*, is missing"):
        weight_files(tmp_path, "", "fp16")


def test_several_variants_are_asked_for_by_name(small, tmp_path):
    state = original_state("vae", small.vae)
    for variant, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        save(tmp_path / f"model.{variant}.safetensors", {key: each.to(dtype) for key, each in state.items()})
    with pytest.raises(
        ConfigError, match=r"several variants of its weights \(bf16, fp16\): ask .* --variant bf16"
    ):
        weight_files(tmp_path, "it")
    assert [file.name for file in weight_files(tmp_path, "it", "fp16")] == ["model.fp16.safetensors"]
    with pytest.raises(ConfigError, match="it holds no --variant fp8: it has bf16 and fp16"):
        weight_files(tmp_path, "it", "fp8")


def test_the_variant_of_a_whole_folder_is_taken_where_there_is_one(small, small_folder, tmp_path):
    folder = tmp_path / "both"
    folder.mkdir()
    for each in small_folder.iterdir():
        (folder / each.name).symlink_to(each)
    (folder / "text_encoder_3").unlink()
    (folder / "text_encoder_3").mkdir()
    for file in (small_folder / "text_encoder_3").iterdir():
        os.link(file, folder / "text_encoder_3" / file.name)
    half = {key: each.half() for key, each in original_state("text_encoder_3", small.text_encoder_3).items()}
    names = _write_shards(folder / "text_encoder_3", SPELLINGS["shards and index of transformers"], half)
    model = Model(model_id=str(folder), variant="fp16", device="cpu")
    told = load(model, read_facts(model)).sources
    assert [file["name"] for file in told["text_encoder_3"]["files"]] == names
    assert told["text_encoder_3"]["stored_dtype"] == "float16" and told["vae"]["stored_dtype"] == "float32"
    model = Model(model_id=str(folder), variant="fp61", device="cpu")
    with pytest.raises(ConfigError, match="--variant fp61: no component of .* has this variant"):
        load(model, read_facts(model))


def test_of_a_repository_only_one_set_of_weights_is_fetched():
    """The files of stabilityai/stable-diffusion-3.5-large, as the hub lists them."""
    listed = [
        "model_index.json", "README.md", "sd3.5_large.safetensors", "scheduler/scheduler_config.json",
        "text_encoder/config.json", "text_encoder/model.fp16.safetensors", "text_encoder/model.safetensors",
        "text_encoder_3/config.json", "text_encoder_3/model-00001-of-00002.safetensors",
        "text_encoder_3/model-00002-of-00002.safetensors", "text_encoder_3/model.safetensors.index.json",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors", "text_encoder_3/pytorch_model.bin",
        "text_encoder_3/model.fp16-00002-of-00002.safetensors", "text_encoder_3/model.safetensors.index.fp16.json",
        "transformer/config.json", "transformer/diffusion_pytorch_model-00001-of-00001.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json", "transformer/gates.safetensors",
    ]  # fmt: skip
    folders = {"text_encoder", "text_encoder_3", "transformer"}
    always = {
        "model_index.json", "text_encoder/config.json", "text_encoder_3/config.json", "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00001.safetensors", "transformer/gates.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    }  # fmt: skip
    plain = {
        "text_encoder/model.safetensors", "text_encoder_3/model-00001-of-00002.safetensors",
        "text_encoder_3/model-00002-of-00002.safetensors", "text_encoder_3/model.safetensors.index.json",
    }  # fmt: skip
    half = {each for each in listed if "fp16" in each}
    assert set(files_to_fetch(listed, folders, "")) == always | plain
    assert set(files_to_fetch(listed, folders, "fp16")) == always | half
