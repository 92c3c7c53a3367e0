"""GGUF files: read as diffusers reads them, in both layouts and T5's, and hostile headers refused in sentences."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
import torch
from diffusers import GGUFQuantizationConfig, SD3Transformer2DModel
from making.ggufs import UNPACKED, llama_t5, write_gguf
from making.weights import original_mmdit, output, plain_state, save, small_pipeline

from capture_cli import main
from sd35h5 import open_store
from sd35h5.errors import ConfigError
from sd35h5.planning.options import CaptureConfig, Model
from sd35h5.planning.validation import validate
from sd35h5.weights.adapters.activating import activate
from sd35h5.weights.adapters.adapter_files import read_adapters
from sd35h5.weights.adapters.merging import check_adapters
from sd35h5.weights.checkpoints import read_entries
from sd35h5.weights.held_gates import gates_in_part
from sd35h5.weights.in_memory.fingerprint import fingerprint
from sd35h5.weights.loading import fill, load_part, plan_part, provenance
from sd35h5.weights.quantised_files.gguf_header import _TYPES, BLOCKS
from sd35h5.weights.quantised_files.gguf_tensors import dense
from sd35h5.weights.sources import OPTIONS, find_part


@pytest.fixture(scope="module")
def small():
    return small_pipeline(width=256, dual=(0,))


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    """Both layouts of the transformer, with every type in some layer, and what they mean."""
    folder = tmp_path_factory.mktemp("gguf")
    states = {"original": original_mmdit(small.transformer), "diffusers": plain_state(small.transformer)}
    return {
        name: (folder / f"{name}.gguf", write_gguf(folder / f"{name}.gguf", state))
        for name, state in states.items()
    }


def _part(component, file):
    return find_part(component, Model(**{OPTIONS[component]: str(file)}), None)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_transformer_computes_what_diffusers_computes_with_the_file(layout, dtype, files, tmp_path):
    part = _part("transformer", files[layout][0])
    model = load_part(part, dtype, "cpu")
    SD3Transformer2DModel.from_config(part.config).save_config(tmp_path)
    theirs = SD3Transformer2DModel.from_single_file(
        str(files[layout][0]), config=str(tmp_path), torch_dtype=dtype,
        quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
    )  # fmt: skip
    assert torch.equal(output("transformer", model), output("transformer", theirs.eval()))


def test_every_type_means_what_the_package_gguf_says(files):
    file, meant = files["diffusers"]
    model = load_part(_part("transformer", file), torch.float32, "cpu")
    kinds = {each.tensor_type.name for each in gguf.GGUFReader(file).tensors}
    assert kinds >= {*BLOCKS, *UNPACKED}
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(dense(tensor), meant[name], rtol=1e-6, atol=1e-7)


def test_a_t5_under_llama_cpps_names_is_what_its_blocks_mean(small, tmp_path):
    meant = write_gguf(tmp_path / "t5.gguf", llama_t5(small.text_encoder_3), arch="t5encoder")
    part = _part("text_encoder_3", tmp_path / "t5.gguf")
    assert part.layout.name == "llama.cpp" and part.config["num_heads"] == 3
    model, expected = load_part(part, torch.float32, "cpu"), small_pipeline(width=256).text_encoder_3
    names = dict(zip(llama_t5(expected), plain_state(expected), strict=True))
    expected.load_state_dict({names[key]: each for key, each in meant.items()}, strict=False)
    torch.testing.assert_close(output("text_encoder_3", model), output("text_encoder_3", expected))
    assert "GGUF Q8_0" in provenance(part)["stored_dtype"]


def test_the_command_line_draws_with_it_and_tells_how_it_is_stored(small, files, tmp_path, call):
    small.save_pretrained(tmp_path / "model")
    flags = f"--model_id {tmp_path / 'model'} --dit_path {files['original'][0]} --attn2_layout diffusers --prompt cat"
    flags += " --steps 1 --height 64 --width 96 --max_sequence_length 24 --dtype bf16"
    assert main([*flags.split(), "--out", str(tmp_path / "a.h5")]) == 0
    with open_store(tmp_path / "a.h5") as store:
        told = store.provenance["components"]["transformer"]
        assert store.samples["row_sum_error"].max() < 1e-3
    assert (told["dtype"], told["layout"]) == ("bfloat16", "original") and "GGUF Q6_K" in told["stored_dtype"]
    assert told["parameters"] == sum(each.numel() for each in small.transformer.parameters())
    model = load_part(_part("transformer", files["original"][0]), torch.bfloat16, "cpu")
    assert told["fingerprint"] == fingerprint(model)


class _Written:
    """A header by its parts: tensors as (name, sides, type, offset), values as (name, type, bytes)."""

    def __init__(self, tensors=(), values=(), version=3, data=bytes(64), counts=None):
        many, few = counts or (len(tensors), len(values))
        self.bytes = b"GGUF" + struct.pack("<IQQ", version, many, few)
        for name, kind, value in values:
            self.bytes += _text(name) + struct.pack("<I", kind) + value
        for name, sides, kind, offset in tensors:
            shape = struct.pack(f"<{len(sides)}Q", *sides)
            self.bytes += (
                _text(name) + struct.pack("<I", len(sides)) + shape + struct.pack("<IQ", kind, offset)
            )
        self.bytes += bytes(-len(self.bytes) % 32) + data


def _text(text):
    return struct.pack("<Q", len(text)) + text.encode()


HUGE = 1 << 62
NUMBER = {name: number for number, name in _TYPES.items()}
HOSTILE = {
    "is damaged or no GGUF file: its header asks for": [
        _Written(counts=(HUGE, 0)), _Written(counts=(0, HUGE)), _Written([("a", (4,), 0, 0)], counts=(9, 0)),
        *(_Written(values=[("a", 9, struct.pack("<IQ", kind, HUGE))]) for kind in (4, 8)),
        _Written(values=[("a", 9, struct.pack("<IQQ", 8, 1, HUGE))]),
    ],
    "a text of": [_Written(values=[("a", 8, struct.pack("<Q", HUGE))])],
    "of the unknown type 77": [_Written(values=[("a", 77, b"")])],
    "an array of 3 values of type 9": [_Written(values=[("a", 9, struct.pack("<IQ", 9, 3) + bytes(64))])],
    "a has 0 dimensions": [_Written([("a", (), 0, 0)])],
    "a has 5 dimensions": [_Written([("a", (1,) * 5, 0, 0)])],
    "a of shape (0,) cannot be F32": [_Written([("a", (0,), 0, 0)])],
    "a of shape (2, 100) cannot be Q4_K": [_Written([("a", (100, 2), 12, 0)])],
    "its alignment is 0": [_Written([("a", (4,), 0, 0)], [("general.alignment", 4, struct.pack("<I", 0))])],
    "where there is another": [
        _Written([("a", (9,), 0, 0), ("b", (9,), 0, 32)]), _Written([("a", (4,), 0, 4)]),
    ],
    "it holds a twice": [_Written([("a", (4,), 0, 0), ("a", (4,), 0, 32)])],
    "is truncated: its header tells of": [
        _Written([("a", (4,), 0, HUGE)]), _Written([("a", (1 << 31, 1 << 31), 0, 0)]),
    ],
    "holds no tensors": [_Written()],
    "of version 1, which": [_Written([("a", (4,), 0, 0)], version=1)],
    "of big-endian numbers": [_Written([("a", (4,), 0, 0)], version=3 << 24)],
    "one of 3 parts": [_Written([("a", (4,), 0, 0)], [("split.count", 2, struct.pack("<H", 3))])],
    "in GGUF's type IQ2_XS, which is not read": [_Written([("a", (256,), NUMBER["IQ2_XS"], 0)])],
    "in GGUF's type number 99": [_Written([("a", (256,), 99, 0)])],
}  # fmt: skip


@pytest.mark.parametrize("sentence", HOSTILE)
def test_a_hostile_header_is_refused_in_a_sentence(sentence, tmp_path):
    file = tmp_path / "x.gguf"
    for written in HOSTILE[sentence]:
        file.write_bytes(written.bytes)
        with pytest.raises(ConfigError) as refused:
            read_entries((file,))
        assert sentence in str(refused.value) and str(file) in str(refused.value)


def test_whatever_bytes_a_header_has_it_is_read_or_refused(files, tmp_path):
    whole, random = files["original"][0].read_bytes(), np.random.default_rng(0)
    file = tmp_path / "x.gguf"
    for _ in range(300):
        broken = bytearray(whole[: int(random.integers(4, 1 << 15))])
        for place in random.integers(4, len(broken), 3):
            broken[place] = random.integers(256)
        file.write_bytes(broken)
        with pytest.raises(ConfigError):
            read_entries((file,))


def test_what_gguf_cannot_do_is_refused_before_anything_is_read():
    config = CaptureConfig(model=Model(dit_path="x.gguf", offload="sequential"))
    with pytest.raises(
        ConfigError, match="--offload sequential cannot take GGUF weights apart.*--offload model"
    ):
        validate(config)


def test_a_lora_is_drawn_beside_packed_weights_and_what_changes_them_is_refused(small, files, tmp_path):
    file, meant = files["diffusers"]
    down, up = torch.randn(4, 256), torch.randn(256, 4)
    module = "transformer_blocks.1.attn.to_v"
    names = {"LoRA": ("lora_down", "lora_up"), "LoHa": ("hada_w1_b", "hada_w1_a")}
    for kind, (first, second) in names.items():
        state = {
            f"lora_unet_{module.replace('.', '_')}.{first}": down,
            f"lora_unet_{module.replace('.', '_')}.{second}": up,
        }
        if kind == "LoRA":
            state = {f"{key}.weight": each for key, each in state.items()}
        else:
            state |= {key.replace("w1", "w2"): each.clone() for key, each in state.items()}
        save(tmp_path / f"{kind}.safetensors", state)
    planned = plan_part(_part("transformer", file))
    given = read_adapters([f"{tmp_path / 'LoRA.safetensors'}:0.5"], 3)
    check_adapters(given, {"transformer": planned})
    model = fill(planned, torch.float32, "cpu")
    states = torch.randn(1, 5, 256)
    before = model.get_submodule(module)(states)
    activate({"transformer": model}, given)
    torch.testing.assert_close(model.get_submodule(module)(states), before + 0.5 * states @ down.T @ up.T)
    with pytest.raises(
        ConfigError, match="LoHa.safetensors is LoHa, which changes the weights themselves.*GGUF"
    ):
        check_adapters(read_adapters([str(tmp_path / "LoHa.safetensors")], 3), {"transformer": planned})


def test_gates_within_quantised_weights_are_refused(small, tmp_path):
    state = original_mmdit(small.transformer)
    key = "joint_blocks.0.x_block.attn.qkv.weight"
    state[key] = torch.cat([state[key], torch.ones(32, 256)])  # a row for each head
    state[key.replace("weight", "bias")] = torch.ones(3 * 256 + 32)
    write_gguf(tmp_path / "gated.gguf", state)
    with pytest.raises(ConfigError, match="holds gates within quantised weights.*gates extract.*--gates"):
        gates_in_part(_part("transformer", tmp_path / "gated.gguf"))
