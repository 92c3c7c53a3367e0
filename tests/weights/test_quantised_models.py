"""A quantised model is captured to the bit, told by its real bits, and pairs by the dtype in which it computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making.pipelines import make_pipeline, torch_generator
from parts.quantising import WAYS, quantised, why_not

import sd35h5
from sd35h5 import open_store
from sd35h5.weights.in_memory.fingerprint import fingerprint, glimpse, is_alike
from sd35h5.weights.in_memory.held_tensors import computing_dtype, held_tensors, stored_dtypes_of

CPU = torch.device("cpu")
STORED = {
    "torchao int8": "torchao int8", "torchao float8": "torchao float8_e4m3fn",
    "optimum-quanto int8": "optimum-quanto qint8", "optimum-quanto float8": "optimum-quanto qfloat8_e4m3fn",
    "GGUF Q8_0": "GGUF Q8_0", "GGUF Q4_0": "GGUF Q4_0", "GGUF Q4_K": "GGUF Q4_K", "layerwise float8": "float8_e4m3fn",
}  # fmt: skip
DTYPE = torch.bfloat16


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A pipeline whose layers are as wide as a block of K-quants, and its transformer in a folder."""
    pipe = make_pipeline(attention_head_dim=128, caption_projection_dim=256).to(dtype=DTYPE)
    folder = tmp_path_factory.mktemp("wide")
    pipe.transformer.save_pretrained(folder)
    return pipe, folder


def _of_each_library_one() -> list:
    """The first way of each library; the others are long."""
    libraries = [way.split()[0] for way in STORED]
    return [
        pytest.param(way, marks=[pytest.mark.long] if way.split()[0] in libraries[:place] else [])
        for place, way in enumerate(STORED)
    ]


@pytest.fixture(params=_of_each_library_one())
def way(request):
    if reason := why_not(request.param, CPU):
        pytest.skip(reason)
    return request.param


def _drawn(pipe, call):
    return pipe("a red cat", generator=torch_generator(0), **call).images


def _captured(pipe, out, call):
    """The latents, and what the file tells: the transformer's component, the pairing key, the masses of all groups."""
    with sd35h5.capture(pipe, out) as generate:
        latents = generate("a red cat", seed=0, **call).images
    with open_store(out) as store:
        told = store.provenance["components"]["transformer"]
        masses = store.read("sinks/mass_group", query="image").sum("group", skipna=False)
        return latents, told, store.samples["pairing_key"][0], masses


def test_latents_are_those_of_the_plain_pipeline_and_the_file_tells_both_dtypes(
    wide, way, tmp_path, call, monkeypatch
):
    pipe, folder = wide
    short = call | {"num_inference_steps": 2, "output_type": "latent"}
    _, unquantised, key, _ = _captured(pipe, tmp_path / "plain.h5", short)
    monkeypatch.setattr(pipe, "transformer", quantised(way, folder, DTYPE, CPU))
    before = fingerprint(pipe.transformer)
    plain = _drawn(pipe, short)
    latents, told, key_now, masses = _captured(pipe, tmp_path / "a.h5", short)
    assert torch.equal(latents, plain) and latents.isfinite().all()
    np.testing.assert_allclose(masses, 1, atol=1e-3)
    assert told["dtype"] == "bfloat16" and told["stored_dtype"].split(", ")[0] == STORED[way]
    assert unquantised["stored_dtype"] == "bfloat16" and unquantised["parameters"] == told["parameters"]
    assert key_now == key
    assert told["fingerprint"] == before == fingerprint(pipe.transformer) != unquantised["fingerprint"]


def test_any_bit_of_what_is_held_changes_the_fingerprint(wide, way, monkeypatch):
    pipe, folder = wide
    model = quantised(way, folder, DTYPE, CPU)
    monkeypatch.setattr(pipe, "transformer", model)
    first, seen = fingerprint(model), glimpse(pipe)
    ours = {name: each for name, each in held_tensors(model, "it") if "blocks.1.attn.to_q" in name}
    assert len(ours) >= 2  # what is packed, or packed and scales, and the bias
    for name, tensor in ours.items():
        bits = tensor.reshape(-1).view(torch.uint8)
        bits[3 % len(bits)] ^= 64
        assert fingerprint(model) != first, name
        assert not is_alike(seen, glimpse(pipe)), name
        bits[3 % len(bits)] ^= 64
    assert fingerprint(model) == first


def test_equal_weights_that_compute_otherwise_are_another_model(wide):
    pytest.importorskip("optimum.quanto")
    from optimum.quanto import freeze, qint8, quantize

    found = set()
    for activations in (None, qint8):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        torch.nn.init.ones_(model[0].weight)
        torch.nn.init.zeros_(model[0].bias)
        quantize(model, weights=qint8, activations=activations)
        freeze(model)
        found.add(fingerprint(model))
    assert len(found) == 2


def _bitsandbytes(model, bits):
    """Replace linear layers as diffusers does, which itself asks for a GPU."""
    bnb = pytest.importorskip("bitsandbytes")
    for name, layer in list(model.named_modules()):
        if type(layer) is torch.nn.Linear and "blocks" in name:
            sizes = (layer.in_features, layer.out_features)
            if bits == 4:
                new = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
            else:
                new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            new.load_state_dict(layer.state_dict())
            parent, _, last = name.rpartition(".")
            setattr(
                model.get_submodule(parent), last, new.to("cpu").requires_grad_(False).to(layer.bias.dtype)
            )
    return model


@pytest.mark.parametrize("bits, stored", [(4, "bitsandbytes nf4"), (8, "bitsandbytes int8")])
def test_bitsandbytes_is_captured_and_its_first_call_changes_no_fingerprint(
    bits, stored, wide, tmp_path, call, monkeypatch
):
    from diffusers import SD3Transformer2DModel

    pipe, folder = wide
    model = _bitsandbytes(SD3Transformer2DModel.from_pretrained(folder, torch_dtype=DTYPE), bits).eval()
    monkeypatch.setattr(pipe, "transformer", model)
    short = call | {"num_inference_steps": 2, "output_type": "latent"}
    before, count = fingerprint(model), stored_dtypes_of(model)[1]
    plain = _drawn(pipe, short)
    after = fingerprint(model)
    latents, told, _, masses = _captured(pipe, tmp_path / "a.h5", short)
    assert torch.equal(latents, plain) and latents.isfinite().all()
    np.testing.assert_allclose(masses, 1, atol=1e-3)
    assert told["dtype"] == "bfloat16" and told["stored_dtype"].startswith(f"{stored}, ")
    assert stored_dtypes_of(model)[1] == count and told["fingerprint"] == after
    packed = getattr(model.transformer_blocks[0].attn.to_q.weight, "quant_state", None)
    assert after == before or packed.packing_format_for_cpu  # rounds its scales, on some processors


@pytest.mark.parametrize("by", ["optimum-quanto", "bitsandbytes"])
def test_a_quantised_text_encoder_is_captured_and_told(by, tmp_path, call, monkeypatch):
    pipe = make_pipeline()
    t5 = pipe.text_encoder_3
    if by == "optimum-quanto":
        quanto = pytest.importorskip("optimum.quanto")
        quanto.quantize(t5, weights=quanto.qint8)
        quanto.freeze(t5)
    else:
        pytest.importorskip("bitsandbytes")
        from transformers import BitsAndBytesConfig

        t5.save_pretrained(tmp_path / "t5")
        config = BitsAndBytesConfig(load_in_8bit=True)
        monkeypatch.setattr(
            pipe, "text_encoder_3", type(t5).from_pretrained(tmp_path / "t5", quantization_config=config)
        )
    short = call | {"num_inference_steps": 1, "output_type": "latent"}
    pipe.to(dtype=torch.float32)
    plain = _drawn(pipe, short)
    latents, *_ = _captured(pipe, tmp_path / "a.h5", short)
    assert torch.equal(latents, plain)
    with open_store(tmp_path / "a.h5") as store:
        told = store.provenance["components"]["text_encoder_3"]
    assert told["dtype"] == "float32" and by in told["stored_dtype"]


def test_every_way_that_runs_on_a_cpu_is_tried_here():
    on_gpus = {way for way in WAYS if why_not(way, CPU) == "diffusers loads it on a GPU only"}
    missing = {way for way in WAYS if why_not(way, CPU)}
    assert WAYS.keys() - missing - on_gpus <= STORED.keys()
    assert computing_dtype(make_pipeline().to(dtype=torch.float16).transformer) is torch.float16


def test_autocast_pairs_by_the_dtype_that_it_computes_in(tmp_path, call):
    pipe, short = make_pipeline(), call | {"num_inference_steps": 1, "output_type": "latent"}
    _, _, key, _ = _captured(pipe, tmp_path / "plain.h5", short)
    with torch.autocast("cpu", torch.bfloat16):
        plain = _drawn(pipe, short)
        latents, _, cast, _ = _captured(pipe, tmp_path / "cast.h5", short)
    assert torch.equal(latents, plain) and cast != key
    halved, *_, bfloat16, _ = _captured(pipe.to(dtype=torch.bfloat16), tmp_path / "halved.h5", short)
    assert bfloat16 == cast and not torch.equal(halved, plain)
