"""A fingerprint changes with any bit, place, name, dtype or setting, and with nothing else."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from making.pipelines import make_pipeline
from peft import LoraConfig
from torch import nn

from sd35h5.errors import CaptureError
from sd35h5.gates.modules import build_gates, install_gates
from sd35h5.weights.in_memory.bits import SIDE, bit_sums
from sd35h5.weights.in_memory.fingerprint import (
    fingerprint,
    fingerprints,
    glimpse,
    is_alike,
    tokenizer_fingerprints,
)
from sd35h5.weights.in_memory.held_tensors import held_tensors, plain_tensors


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def _large(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model with a weight of several rows of the sums, and small ones."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 7)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_any_bit_of_any_weight_changes_it(dtype):
    model = _large(dtype)
    seen = {fingerprint(model)}
    random = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        for _ in range(4):
            bits = parameter.detach().reshape(-1).view(torch.uint8)
            place, bit = int(random.integers(bits.numel())), 1 << int(random.integers(8))
            bits[place] ^= bit
            seen.add(fingerprint(model))
            bits[place] ^= bit
        assert fingerprint(model) in seen, name
    assert len(seen) == 1 + 4 * len(list(model.parameters()))


def test_permuted_negated_and_exchanged_weights_change_it():
    model = _large()
    changed = [fingerprint(model)]
    for change in (
        lambda w: w[:, torch.randperm(w.shape[1])],
        lambda w: w[torch.randperm(w.shape[0])],
        lambda w: -w,
        lambda w: w.flip(0, 1),
        lambda w: w.reshape(-1)[torch.randperm(w.numel())].view_as(w),
    ):
        other = copy.deepcopy(model)
        other[0].weight.data = change(other[0].weight.data)
        changed.append(fingerprint(other))
    other = copy.deepcopy(model)
    with torch.no_grad():  # two signs in the top bits of two words of eight bytes
        other[0].weight[0, 1] *= -1
        other[0].weight[0, 3] *= -1
    changed.append(fingerprint(other))
    assert len(set(changed)) == len(changed)


def test_equal_weights_have_it_wherever_they_lie():
    model = _large()
    other = copy.deepcopy(model)
    other[0].weight.data = other[0].weight.data.T.contiguous().T  # another order in memory
    padded = torch.zeros(200 * 300 + 1)
    padded[1:] = model[0].weight.detach().reshape(-1)
    third = copy.deepcopy(model)
    third[0].weight.data = padded[1:].view(200, 300)
    assert fingerprint(model) == fingerprint(other) == fingerprint(third)


def test_names_shapes_and_dtypes_are_part_of_it():
    weight = torch.arange(12, dtype=torch.float32)
    seen = set()
    for name, shape in (("a", (3, 4)), ("a", (4, 3)), ("b", (3, 4))):
        module = nn.Module()
        module.register_parameter(name, nn.Parameter(weight.view(shape)))
        seen.add(fingerprint(module))
    module = nn.Module()
    module.register_buffer("a", weight.view(torch.int32).view(3, 4))
    assert len(seen | {fingerprint(module)}) == 4


def test_the_sums_are_those_of_exact_integers():
    random = np.random.default_rng(1)
    words = random.integers(-(2**31), 2**31, (70, SIDE), np.int32)
    weights = [_odd(i) for i in range(1, 2 * SIDE + 1)]
    columns, rows = words.sum(0, dtype=object), words.sum(1, dtype=object)
    exact = sum(int(s) * w for s, w in zip(columns, weights[:SIDE], strict=True))
    exact += sum(int(s) * w for s, w in zip(rows, weights[SIDE:], strict=False))
    wrapped = (exact + 2**63) % 2**64 - 2**63
    assert bit_sums([torch.from_numpy(words)])() == [wrapped]


def _odd(index: int) -> int:
    """splitmix64 in Python's own integers."""
    mask = (1 << 64) - 1
    z = index * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31 | 1


def test_gates_and_how_they_are_forced_have_one_of_their_own(pipe):
    transformer = copy.deepcopy(pipe.transformer)
    plain = fingerprints(pipe)
    assert set(plain) == {"transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"}
    gated = copy.copy(pipe)
    gated.transformer = transformer
    gates = build_gates(transformer, "headwise")
    install_gates(transformer, gates)
    first = fingerprints(gated)
    assert first["transformer"] == plain["transformer"] and "gates" in first
    next(gates.all())[2].forced = 1.0
    forced = fingerprints(gated)["gates"]
    next(gates.all())[2].forced = None
    with torch.no_grad():
        next(gates.modules.parameters()).add_(1)
    assert len({first["gates"], forced, fingerprints(gated)["gates"]}) == 3


def test_settings_by_which_equal_weights_compute_something_else_change_it(pipe):
    encoder = copy.deepcopy(pipe.text_encoder)
    before = fingerprint(encoder)
    encoder.config.hidden_act = "gelu"
    assert fingerprint(encoder) != before == fingerprint(pipe.text_encoder)


def test_adapters_count_as_they_are_active_scaled_and_merged_and_a_call_s_scale_does_not(pipe):
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "add_k_proj"], init_lora_weights=False)
    adapted = copy.copy(pipe)
    adapted.transformer = transformer = copy.deepcopy(pipe.transformer)
    transformer.add_adapter(config, "style")
    seen, looks = [fingerprint(pipe.transformer), fingerprint(transformer)], [glimpse(adapted)]

    def look() -> None:
        seen.append(fingerprint(transformer))
        looks.append(glimpse(adapted))

    adapted.set_adapters(["style"], [0.55])
    look()
    call = {"height": 64, "width": 96, "num_inference_steps": 1, "max_sequence_length": 24}
    for scale in (0.1, 0.9):  # multiplied in and divided out, which leaves another last bit
        adapted("a cat", joint_attention_kwargs={"scale": scale}, **call)
    assert transformer.transformer_blocks[0].attn.to_q.scaling["style"] != 0.55 * 3 / 2
    assert fingerprint(transformer) == seen[-1] and is_alike(looks[-1], glimpse(adapted))
    transformer.disable_adapters()
    look()
    transformer.enable_adapters()
    transformer.fuse_lora()
    look()
    with torch.no_grad():
        transformer.transformer_blocks[2].attn.to_q.lora_A["style"].weight[0, 0] += 1
    look()
    assert len(set(seen)) == len(seen)
    assert not any(is_alike(one, other) for one, other in pairwise(looks))


def test_a_tokenizer_is_told_by_what_it_makes_of_texts_and_not_by_its_last_call(pipe):
    before = tokenizer_fingerprints(pipe.components)
    pipe.tokenizer(["a cat"], padding="max_length", max_length=12, truncation=True)
    assert tokenizer_fingerprints(pipe.components) == before and set(before) == {
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    }
    other = copy.copy(pipe)
    other.tokenizer = copy.deepcopy(pipe.tokenizer)
    other.tokenizer.add_tokens(["<cat-toy>"])
    assert tokenizer_fingerprints(other.components)["tokenizer"] != before["tokenizer"]


def test_weights_that_an_offload_keeps_elsewhere_are_found(pipe):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook

    expected = fingerprint(pipe.transformer)
    apart = copy.deepcopy(pipe.transformer)
    attach_align_device_hook(apart, execution_device="cpu", offload=True)
    assert any(parameter.is_meta for parameter in apart.parameters())
    assert fingerprint(apart) == expected
    together = copy.deepcopy(pipe.transformer)
    hook = AlignDevicesHook(execution_device="cpu", offload=True, place_submodules=True)
    for block in together.transformer_blocks:
        add_hook_to_module(block, copy.deepcopy(hook))
    assert all(parameter.is_meta for parameter in together.transformer_blocks.parameters())
    assert fingerprint(together) == expected


def test_weights_that_are_nowhere_are_refused_by_name(pipe):
    lost = copy.deepcopy(pipe.vae).to("meta")
    with pytest.raises(CaptureError, match=r"vae: decoder\.\S+ is on the meta device"):
        fingerprint(lost, "vae")


def test_a_compiled_model_has_that_of_its_weights(pipe):
    assert fingerprint(torch.compile(pipe.transformer)) == fingerprint(pipe.transformer)


def test_a_glimpse_sees_what_is_done_to_a_model_and_nothing_else(pipe):
    first = glimpse(pipe)
    pipe("a cat", height=64, width=96, num_inference_steps=1, max_sequence_length=24)
    assert is_alike(first, glimpse(pipe))
    weight = pipe.transformer.transformer_blocks[1].attn.to_q.weight
    kept = weight.detach().clone()
    for change in (
        lambda: weight.data.mul_(1.01),
        lambda: weight.data.neg_(),
        lambda: weight.data[8:].zero_(),
    ):
        change()
        assert not is_alike(first, glimpse(pipe))
        weight.data.copy_(kept)
        assert is_alike(first, glimpse(pipe))
    with torch.no_grad():
        weight[0, 0] += 1
        weight[0, 0] -= 1  # PyTorch counts it, and the fingerprint then tells that nothing came of it
    assert not is_alike(first, glimpse(pipe))


def test_a_quick_look_at_a_model_holds_every_tensor_of_the_whole_one_or_leaves_it_to_that(pipe):
    model = pipe.transformer
    model.transformer_blocks[0].register_module("left_out", None)  # as some encoders have children
    by_name = sorted(each.data_ptr() for _, each in held_tensors(model, "transformer"))
    plain = sorted(each.data_ptr() for each in plain_tensors(model))
    del model.transformer_blocks[0].left_out
    assert plain == by_name and len(plain) > 100
    hung = copy.deepcopy(model)
    hung.transformer_blocks[1].forward = hung.transformer_blocks[1].forward
    assert plain_tensors(hung) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_same_on_a_gpu_and_partly_there(dtype):
    model = nn.Sequential(nn.Linear(5000, 5000), *(nn.Linear(n, 9) for n in range(1, 40))).to(dtype)
    expected = fingerprint(model)
    model[0].cuda()
    assert fingerprint(model) == expected
    assert fingerprint(model.cuda()) == expected
