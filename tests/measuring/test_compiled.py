"""Compiled transformers: their own picture to the bit, the numbers of an eager capture, refusals by name."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from making.pipelines import HEADS, LAYERS, make_pipeline, torch_generator

import sd35h5
from sd35h5 import open_store
from sd35h5.errors import CaptureError
from sd35h5.gates.modules import build_gates, install_gates
from sd35h5.measuring.compiled import _LOOKING

TIERS = {
    "maps": "words", "map_heads": "all", "map_steps": "all", "top_steps": "all", "atlas": True, "rows": ("centre",),
    "text_queries": True, "raw": ("steps=0", "layers=1"),
}  # fmt: skip
# blocks alone are compiled in the tests below too, and a wrapped model is a whole one under another class
WAYS = (
    pytest.param("blocks", marks=pytest.mark.long),
    "whole",
    pytest.param("wrapped", marks=pytest.mark.long),
)


@pytest.fixture
def short(call):
    """A short run, whose graphs are compiled anew."""
    torch._dynamo.reset()
    return call | {"num_inference_steps": 2, "output_type": "latent"}


def compile_as(pipe, way: str, **more: object):
    """The graph with eager's kernels: no C++ compiler, and equal sums each time."""
    asked = {"backend": "aot_eager", "fullgraph": True, **more}
    if way == "wrapped":
        pipe.transformer = torch.compile(pipe.transformer, **asked)
    for part in {"blocks": pipe.transformer.transformer_blocks, "whole": [pipe.transformer]}.get(way, ()):
        part.compile(**asked)
    return pipe


def gated(layout: str = "diffusers"):
    """With attn2 in this layout in one layer, and a gate on every attention that differs from token to token."""
    pipe = make_pipeline(dual_attention_layers=(0,))
    gates = build_gates(pipe.transformer, "headwise", target="all")
    torch.manual_seed(1)
    for _, _, gate in gates.all():
        for parameter in gate.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    install_gates(pipe.transformer, gates, layout)
    return pipe


@pytest.mark.parametrize("way", WAYS)
def test_latents_are_the_compiled_pipelines_and_numbers_those_of_an_eager_capture(tmp_path, short, way):
    layout, group = ("sd-scripts", "attn2_regrouped") if way == "whole" else ("diffusers", "attn2")
    pipe = compile_as(gated(layout), way)
    plain = pipe("a red cat", generator=torch_generator(0), **short).images
    with sd35h5.capture(pipe, tmp_path / "compiled.h5", **TIERS) as generate:
        assert torch.equal(generate("a red cat", seed=0, **short).images, plain)
    assert torch.equal(pipe("a red cat", generator=torch_generator(0), **short).images, plain)
    with sd35h5.capture(gated(layout), tmp_path / "eager.h5", **TIERS) as generate:
        generate("a red cat", seed=0, **short)
    with open_store(tmp_path / "compiled.h5") as found, open_store(tmp_path / "eager.h5") as expected:
        assert found.variables == expected.variables
        of_second = {"attn2/mean", f"{group}/mass_patch", f"{group}/contribution"}
        assert of_second | {"gates/contribution", "raw/probability"} <= set(found.variables)
        for name in found.variables:
            if name.startswith("samples/"):
                continue
            one, other = found.read(name).values, expected.read(name).values
            if one.dtype.kind == "f":
                np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-6, err_msg=name)
        assert found.samples["row_sum_error"].max() < 1e-5
        assert found.samples["pairing_key"][0] != expected.samples["pairing_key"][0]
        told = found.provenance["components"]["transformer"]
        assert told["class"] == "SD3Transformer2DModel"
        assert told["compiled"] == {
            "compiled": "blocks" if way == "blocks" else "whole",
            "backend": "aot_eager",
        }
        assert "compiled" not in expected.provenance["components"]["transformer"]


def test_skip_layer_guidance_and_batches_compile_a_few_times_and_then_no_more(tmp_path, short):
    pipe = compile_as(make_pipeline(), "blocks")
    skips = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    graphs = torch._dynamo.utils.counters["stats"]
    with sd35h5.capture(pipe, tmp_path / "a.h5", **TIERS) as generate:
        generate("a cat", seed=0, **short, **skips)
        first = graphs["unique_graphs"]
        generate("a cat", seed=1, **short, **skips)
        generate("a cat", seed=2, **short | {"num_inference_steps": 2}, **skips)
        assert graphs["unique_graphs"] == first > LAYERS - 1
    with open_store(tmp_path / "a.h5") as store:
        masses = store.read("sinks/mass_group", branch="skip", query="image", sample=1)
        skip = masses.sum("group", skipna=False).isel(step=-1)  # the pipeline skips after its first step
        assert skip.isel(layer=1).isnull().all()
        np.testing.assert_allclose(skip.isel(layer=[0, 2]), 1, atol=1e-5)


def test_interventions_run_eager_and_are_said_once(tmp_path, short, caplog):
    pictures = []
    for name in ("compiled", "eager"):
        pipe = make_pipeline()
        if name == "compiled":
            compile_as(pipe, "blocks")
        with (
            caplog.at_level(logging.WARNING, "sd35h5"),
            sd35h5.capture(pipe, tmp_path / f"{name}.h5", intervene="mask:clip_bos") as generate,
        ):
            pictures.append(generate("a red cat", seed=0, **short).images)
    assert torch.equal(*pictures)
    assert [record.message for record in caplog.records].count(
        "the transformer is compiled: interventions are drawn without what torch.compile made of it"
    ) == 1


def test_other_parts_that_are_compiled_alone_are_named(tmp_path):
    pipe = make_pipeline()
    pipe.transformer.transformer_blocks[1].attn.compile(backend="aot_eager")
    with pytest.raises(CaptureError, match="transformer_blocks.1.attn alone is compiled"):
        with sd35h5.capture(pipe, tmp_path / "a.h5"):
            pass


def test_graphs_that_break_are_told_and_measured(tmp_path, short, caplog):
    pipe = make_pipeline()
    inner = pipe.transformer.transformer_blocks[1].norm1.forward

    def broken(*args, **kwargs):
        torch._dynamo.graph_break()
        return inner(*args, **kwargs)

    pipe.transformer.transformer_blocks[1].norm1.forward = broken
    compile_as(pipe, "blocks", fullgraph=False)
    with (
        caplog.at_level(logging.WARNING, "sd35h5"),
        sd35h5.capture(pipe, tmp_path / "a.h5") as generate,
    ):
        generate("a cat", seed=0, **short)
    assert "torch.compile broke its graphs in" in caplog.text
    with open_store(tmp_path / "a.h5") as store:
        masses = store.read("sinks/mass_group", query="image").sum("group", skipna=False)
        assert masses.sizes["layer"] == LAYERS and masses.sizes["head"] == HEADS
        np.testing.assert_allclose(masses, 1, atol=1e-5)


def test_nobody_looks_on_after_a_capture(tmp_path, short):
    pipe = compile_as(make_pipeline(), "blocks")
    with pytest.raises(RuntimeError, match="stop"):
        with sd35h5.capture(pipe, tmp_path / "a.h5"):
            assert len(_LOOKING) == LAYERS
            raise RuntimeError("stop")
    assert not _LOOKING


# the last: dynamo's reset trips over the backend of CUDA graphs
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_are_refused_by_name(tmp_path, mode):
    pipe = compile_as(make_pipeline(), "wrapped", backend="inductor", mode=mode)
    with pytest.raises(CaptureError, match='mode="reduce-overhead" or "max-autotune"'):
        with sd35h5.capture(pipe, tmp_path / "a.h5"):
            pass
    assert not list(tmp_path.iterdir())
