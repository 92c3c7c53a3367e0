"""ComfyUI's present fp8 files: a mark `comfy_quant` beside each weight, and `weight_scale`; other formats by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from making.weights import (
    DIT,
    T5,
    marked,
    original_mmdit,
    output,
    plain_state,
    save,
    scaled_fp8,
    small_pipeline,
)
from safetensors.torch import save_file
from torch import Tensor

from sd35h5.errors import ConfigError
from sd35h5.planning.options import Model
from sd35h5.weights.loading import load_part
from sd35h5.weights.sources import OPTIONS, find_part

NAMES = ("weight_scale", "input_scale")


@pytest.fixture(scope="module")
def small():
    return small_pipeline()


def _drawn(component: str, file: Path) -> Tensor:
    part = find_part(component, Model(**{OPTIONS[component]: str(file)}), None)
    if part.derived and "eos_token_id" in part.config:
        part.config["eos_token_id"] = part.config["vocab_size"] - 1
    return output(component, load_part(part, torch.float32, "cpu"))


@pytest.mark.parametrize("component", ["transformer", "text_encoder_3"])
def test_marked_fp8_means_its_numbers_times_their_factor(component, small, tmp_path):
    model = getattr(small, component)
    state = original_mmdit(model) if component == "transformer" else plain_state(model)
    prefix = DIT if component == "transformer" else T5
    held, meant = scaled_fp8(state, NAMES)
    told = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    stored = {prefix + key: tensor for key, tensor in marked(held, told).items()}
    expected = _drawn(component, save(tmp_path / "meant.safetensors", meant))
    assert torch.equal(_drawn(component, save(tmp_path / "fp8.safetensors", stored)), expected)
    unscaled = {key: each.float() for key, each in held.items() if not key.endswith(("scale", "fp8"))}
    assert not torch.equal(_drawn(component, save(tmp_path / "unscaled.safetensors", unscaled)), expected)


@pytest.mark.parametrize("stored", ["nvfp4", "mxfp8", "int8_blockwise", "float8_e4m3fn_rowwise"])
def test_another_format_is_refused_by_its_name(stored, small, tmp_path):
    held, _ = scaled_fp8(plain_state(small.text_encoder_3), NAMES)
    file = save(tmp_path / "t5.safetensors", marked(held, {"format": stored, "group_size": 16}))
    with pytest.raises(
        ConfigError, match=rf"t5.safetensors holds encoder.* in ComfyUI's format {stored}, which is not"
    ):
        _drawn("text_encoder_3", file)
    layers = {"encoder.block.0.layer.0.SelfAttention.q": {"format": stored}}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(plain_state(small.text_encoder_3), tmp_path / "header.safetensors", metadata)
    with pytest.raises(ConfigError, match=f"SelfAttention.q in ComfyUI's format {stored}"):
        _drawn("text_encoder_3", tmp_path / "header.safetensors")


def test_formats_of_other_programs_are_named(small, tmp_path):
    state = plain_state(small.text_encoder_3)
    layer = "encoder.block.0.layer.0.SelfAttention.q"
    for key, told in (
        ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes nf4"),
        ("qzeros", "GPTQ or AWQ"), ("SCB", "bitsandbytes int8"),
    ):  # fmt: skip
        file = save(
            tmp_path / "t5.safetensors", state | {f"{layer}.{key}": torch.zeros(3, dtype=torch.uint8)}
        )
        with pytest.raises(
            ConfigError, match=rf"is quantized \({told}, as {layer}.{key} tells\), which is not read"
        ):
            _drawn("text_encoder_3", file)


def test_a_mark_that_is_no_json_is_told(small, tmp_path):
    state = plain_state(small.text_encoder_3)
    state["encoder.block.0.layer.0.SelfAttention.q.comfy_quant"] = torch.tensor([123, 1], dtype=torch.uint8)
    with pytest.raises(
        ConfigError, match="SelfAttention.q.comfy_quant does not tell the format of its weights"
    ):
        _drawn("text_encoder_3", save(tmp_path / "t5.safetensors", state))
