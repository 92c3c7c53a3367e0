"""Weights that are wrong end in one sentence: which file, which key, what was expected; nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from making.weights import (
    PREFIXES,
    all_in_one,
    clip_shapes,
    original_mmdit,
    original_state,
    plain_state,
    save,
    small_pipeline,
)

import capture_cli
from sd35h5.capturing.pipeline import load
from sd35h5.errors import ConfigError
from sd35h5.planning.options import Model
from sd35h5.planning.validation import validate
from sd35h5.weights.checkpoints import read_entries, sha256_of
from sd35h5.weights.loading import load_part
from sd35h5.weights.model_facts import read_facts
from sd35h5.weights.sources import OPTIONS, find_part
from sd35h5.weights.weight_sets import weight_files


class _Bomb:
    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


@pytest.fixture(scope="module")
def small():
    return small_pipeline()


@pytest.fixture(scope="module")
def small_folder(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("refusals") / "small"
    small.save_pretrained(folder)
    return folder


def _refusal(component: str, path: Path) -> str:
    """The sentence that a file ends in."""
    with pytest.raises(ConfigError) as caught:
        load_part(find_part(component, Model(**{OPTIONS[component]: str(path)}), None), torch.float32, "cpu")
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["model.ckpt", "model.bin", "model.pt", "renamed.safetensors", "zip.safetensors"]
)
def test_pickled_weights_are_refused_and_not_unpickled(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / name
    if name == "zip.safetensors":
        torch.save({"joint_blocks.0": torch.zeros(2)}, file)
    else:
        file.write_bytes(pickle.dumps(_Bomb()))
    said = _refusal("transformer", file)
    assert f"{file} is a pickled PyTorch file" in said and "nothing is unpickled" in said
    assert not (tmp_path / "unpickled").exists()


def test_a_folder_of_pickled_weights_is_refused_too(tmp_path):
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    assert "diffusion_pytorch_model.bin is a pickled PyTorch file" in _refusal("vae", tmp_path)


@pytest.mark.parametrize("left", [5, 40, -10])
def test_a_truncated_file_is_refused_by_name(left, tmp_path, small):
    file = save(tmp_path / "dit.safetensors", original_mmdit(small.transformer))
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    said = _refusal("transformer", file)
    assert str(file) in said and ("truncated" in said or "does not begin with a header" in said)
    if left == -10:
        assert f"its header tells of {len(whole)} bytes, it has {len(whole) - 10}" in said


def test_damaged_headers_and_files_of_another_kind_are_refused(tmp_path):
    for content, said in (
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "no GGUF file"),
        (b"<!DOCTYPE html><html>", "no safetensors file"),
        (struct.pack("<Q", 4) + b"[1, ", "not a table of tensors"),
        (struct.pack("<Q", 2) + b"{}", "holds no tensors"),
    ):
        (tmp_path / "a.safetensors").write_bytes(content)
        assert said in _refusal("vae", tmp_path / "a.safetensors"), content
    header = json.dumps(
        {"decoder.up.0.x.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}
    ).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    assert "decoder.up.0.x.weight of shape (4,) does not fill 8 bytes" in _refusal(
        "vae", tmp_path / "a.safetensors"
    )


@pytest.mark.parametrize("prefix", ["", PREFIXES["transformer"]])
@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("joint_blocks.2.x_block.mlp.fc1.weight", "(64, 16)"),
        ("joint_blocks.1.context_block.attn.ln_k.weight", "(8,)"),
        ("final_layer.linear.bias", "(64,)"),
    ],
)
def test_a_missing_key_is_named_as_the_file_would_call_it(key, shape, prefix, tmp_path, small):
    state = {
        prefix + name: tensor for name, tensor in original_mmdit(small.transformer).items() if name != key
    }
    said = _refusal("transformer", save(tmp_path / "dit.safetensors", state))
    assert (
        f"dit.safetensors lacks {prefix}{key}, " in said
        and f"of shape {shape}" in said
        and "3 blocks" in said
    )


def test_a_wrong_shape_names_file_key_and_what_was_expected(tmp_path, small):
    state = original_mmdit(small.transformer)
    state["joint_blocks.1.x_block.attn.proj.weight"] = torch.zeros(16, 17)
    file = save(tmp_path / "dit.safetensors", state)
    key = "joint_blocks.1.x_block.attn.proj.weight"
    assert f"{file}: {key} has shape (16, 17), expected (16, 16)" in _refusal("transformer", file)


def test_surplus_keys_are_refused_in_one_component_and_in_an_all_in_one_file(tmp_path, small, small_folder):
    state = original_mmdit(small.transformer)
    said = _refusal(
        "transformer", save(tmp_path / "a.safetensors", {**state, "extra.weight": torch.zeros(3)})
    )
    assert "a.safetensors has the unknown key extra.weight of shape (3,)" in said
    file = save(
        tmp_path / "b.safetensors", {**all_in_one(small), "text_encoders.other.weight": torch.zeros(3)}
    )
    with pytest.raises(ConfigError, match=r"b.safetensors has the unknown key text_encoders.other.weight"):
        read_facts(Model(model_id=str(file), tokenizer_path=str(small_folder)))


def test_a_block_that_is_missing_is_told(tmp_path, small):
    state = {key: t for key, t in original_mmdit(small.transformer).items() if "joint_blocks.1." not in key}
    assert "lacks block 1: its keys tell of 3 blocks" in _refusal(
        "transformer", save(tmp_path / "a.safetensors", state)
    )


def test_other_models_are_called_by_what_they_are(tmp_path, small):
    for component, keys, said in (
        ("transformer", ["double_blocks.0.img_attn.qkv.weight"], "FLUX transformer, expected an SD3 transformer"),
        ("transformer", ["model.diffusion_model.input_blocks.0.0.weight"], "holds a UNet"),
        ("transformer", ["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"],
         "not the model: draw with it by --lora"),
        ("text_encoder", ["transformer.resblocks.0.ln_1.weight"], "holds an OpenCLIP model, expected CLIP-L"),
        ("vae", ["something.weight"], "holds nothing known (its first key is something.weight)"),
    ):  # fmt: skip
        assert said in _refusal(
            component, save(tmp_path / "x.safetensors", {key: torch.zeros(2) for key in keys})
        )
    file = save(tmp_path / "t5.safetensors", plain_state(small.text_encoder_3))
    assert "--vae_path" in _refusal("vae", file) and "holds a T5 encoder, expected a VAE" in _refusal(
        "vae", file
    )
    assert "holds a T5 encoder, expected CLIP-L" in _refusal("text_encoder", file)


def test_clip_l_and_clip_g_exchanged_are_told_apart(tmp_path):
    state = {
        key: torch.zeros(shape, dtype=torch.float8_e5m2)
        for key, shape in clip_shapes(1280, 1, words=99).items()
    }
    said = _refusal("text_encoder", save(tmp_path / "g.safetensors", state))
    assert "holds CLIP-G (1280 channels), expected CLIP-L: give it with --clip_g_path" in said


def test_components_that_do_not_fit_each_other_are_refused_before_anything_is_drawn(
    tmp_path, small, small_folder
):
    other = small_pipeline(qk_norm=None)
    file = save(tmp_path / "clip_g.safetensors", plain_state(other.text_encoder_2))
    with pytest.raises(ConfigError, match=r"give 128 \+ 128 pooled channels, but .* expects 192"):
        model = Model(model_id=str(small_folder), clip_l_path=str(file), device="cpu")
        load(model, read_facts(model))
    state = plain_state(small.text_encoder_3)
    state["shared.weight"] = state["shared.weight"][:30]
    model = Model(
        model_id=str(small_folder), t5xxl_path=str(save(tmp_path / "t5.safetensors", state)), device="cpu"
    )
    with pytest.raises(ConfigError, match=r"t5.safetensors knows 30 words, but its tokenizer has \d+"):
        load(model, read_facts(model))


def test_factors_of_scaled_fp8_must_be_one_for_a_weight_that_is_there(tmp_path, small):
    weight = "encoder.block.0.layer.0.SelfAttention.q.weight"
    stray = plain_state(small.text_encoder_3) | {"encoder.final.scale_weight": torch.ones(())}
    said = _refusal("text_encoder_3", save(tmp_path / "a.safetensors", stray))
    assert "has encoder.final.scale_weight, and no encoder.final.weight which it could scale" in said
    blocks = plain_state(small.text_encoder_3) | {weight.replace("weight", "weight_scale"): torch.ones(4)}
    said = _refusal("text_encoder_3", save(tmp_path / "b.safetensors", blocks))
    assert f"of shape (4,) scales parts of {weight} apart: only one factor" in said


def test_integers_are_no_weights(tmp_path, small):
    state = original_state("vae", small.vae)
    state["decoder.conv_out.bias"] = torch.zeros(3, dtype=torch.uint8)
    assert "holds decoder.conv_out.bias as U8" in _refusal("vae", save(tmp_path / "a.safetensors", state))


def test_folders_are_asked_for_one_set_of_weights(tmp_path, small):
    assert "there is no such file or folder" in _refusal("vae", tmp_path / "nowhere")
    assert "holds no weights" in _refusal("vae", tmp_path)
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors", original_state("vae", small.vae))
    assert "holds several weight files (a.safetensors, b.safetensors)" in _refusal("vae", tmp_path)
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00001.safetensors, named in model.safetensors.index.json, is missing" in _refusal(
        "vae", tmp_path
    )
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../a.safetensors"}})
    )
    assert "names no files of its own folder" in _refusal("vae", tmp_path)


def test_a_variant_beside_the_weights_is_not_taken(tmp_path, small):
    state = original_state("vae", small.vae)
    save(tmp_path / "model.fp16.safetensors", {key: tensor.half() for key, tensor in state.items()})
    assert [file.name for file in weight_files(tmp_path, "")] == ["model.fp16.safetensors"]
    plain = save(tmp_path / "model.safetensors", state)
    assert weight_files(tmp_path, "") == (plain,)
    assert all(entry.dtype == "F32" for entry in read_entries([plain]).values())


def test_a_single_file_says_what_else_it_needs(tmp_path, small, small_folder):
    file = save(tmp_path / "all.safetensors", all_in_one(small, without=("text_encoder_3",)))
    with pytest.raises(ConfigError, match="is a single file, in which there are no folders; .* --dit_path"):
        read_facts(Model(model_id=str(file), tokenizer_path=str(small_folder), transformer="other"))
    with pytest.raises(
        ConfigError, match="does not hold a T5 encoder: give it with --t5xxl_path, or .* --no_t5"
    ):
        read_facts(Model(model_id=str(file), tokenizer_path=str(small_folder)))
    model = Model(model_id=str(small_folder), tokenizer_path=str(tmp_path), device="cpu")
    with pytest.raises(
        ConfigError, match="lacks tokenizer: expected a folder with tokenizer, tokenizer_2, tokenizer_3"
    ):
        load(model, read_facts(model))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Model(no_t5=True, t5xxl_path="t5.safetensors"), "--no_t5 leaves T5 out"),
        (Model(dit_path="a.safetensors", transformer="transformer_headwise"), "both name the transformer"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(model, said):
    from dataclasses import replace

    from sd35h5.planning.options import CaptureConfig, Prompts

    with pytest.raises(ConfigError, match=said):
        validate(replace(CaptureConfig(prompts=Prompts(prompt=("a cat",))), model=model))


def test_the_command_line_tells_a_broken_file_in_one_line_before_torch_is_imported(
    tmp_path, small_folder, capsys
):
    file = tmp_path / "clip_l.safetensors"
    file.write_bytes(b"\0" * 100)
    flags = [
        "--model_id",
        str(small_folder),
        "--clip_l",
        str(file),
        "--prompt",
        "a cat",
        "--out",
        str(tmp_path / "a.h5"),
    ]
    assert capture_cli.main(flags) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{file} is no safetensors file" in err
    assert not (tmp_path / "a.h5").exists() and not (tmp_path / "a.h5.parts").exists()


def test_hashes_are_kept_beside_large_files_until_these_change(tmp_path):
    import hashlib
    import os

    file, beside = tmp_path / "a.safetensors", tmp_path / "a.safetensors.sha256.json"
    file.write_bytes(b"one")
    assert sha256_of(file) == hashlib.sha256(b"one").hexdigest() and not beside.exists()
    assert sha256_of(file, quick=0) == hashlib.sha256(b"one").hexdigest() and beside.is_file()
    kept = json.loads(beside.read_text())
    beside.write_text(json.dumps({**kept, "sha256": "0" * 64}))
    assert sha256_of(file) == "0" * 64  # it is read, and not made anew
    file.write_bytes(b"two")
    os.utime(file, ns=(kept["mtime_ns"] + 1, kept["mtime_ns"] + 1))
    assert sha256_of(file) == hashlib.sha256(b"two").hexdigest()
    blob = tmp_path / ("ab" * 32)  # the hub's cache: a large file is a link to one named by its sha256
    blob.write_bytes(b"weights")
    (tmp_path / "hub.safetensors").symlink_to(blob)
    assert sha256_of(tmp_path / "hub.safetensors", quick=0) == "ab" * 32
    beside.write_text("broken")
    assert sha256_of(file) == hashlib.sha256(b"two").hexdigest()
