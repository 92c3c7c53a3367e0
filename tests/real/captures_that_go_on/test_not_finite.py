"""NaN and inf end a sample with the step, the layer and the likely cause; nothing of it is sealed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making.pipelines import make_pipeline

import sd35h5
from sd35h5 import open_store
from sd35h5.errors import CaptureError
from sd35h5.gates.modules import build_gates, install_gates


@pytest.fixture
def pipe():
    return make_pipeline()


def _refused(pipe, tmp_path, call: dict, match: str, **more) -> None:
    with sd35h5.capture(pipe, tmp_path / "a.h5") as generate:
        with pytest.raises(CaptureError, match=match):
            generate("a cat", seed=0, **call, **more)
        assert not list((tmp_path / "a.h5.parts").glob("0*"))
    assert not (tmp_path / "a.h5.parts").exists() and not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_weight_is_named_with_the_layer_that_it_breaks(pipe, call, tmp_path, value):
    with torch.no_grad():
        pipe.transformer.transformer_blocks[1].attn.to_k.weight[0, 0] = value
    named = r"step 0, layer 1: its attention is not finite \(NaN or inf\), so this sample is not sealed: "
    _refused(pipe, tmp_path, call, named + r"transformer_blocks\.1\.attn\.to_k\.weight of its weights")


def test_a_layer_that_overflows_at_a_later_step_is_told_with_that_step(pipe, call, tmp_path):
    seen = []

    def overflow(module, args, output):
        seen.append(1)
        return output * torch.inf if len(seen) > 3 else output

    pipe.transformer.transformer_blocks[2].attn.to_q.register_forward_hook(overflow)
    _refused(pipe, tmp_path, call, "step 3, layer 2: its attention is not finite .*: numbers grow too large")


def test_values_that_overflow_are_of_their_own_layer(pipe, call, tmp_path):
    """Attention itself stays finite where only the values are not: the heaviest keys' value norms tell."""
    hook = pipe.transformer.transformer_blocks[1].attn.to_v.register_forward_hook(
        lambda module, args, output: output * torch.inf
    )
    _refused(pipe, tmp_path, call, "step 0, layer 1: its attention is not finite")
    hook.remove()


def test_what_comes_out_is_looked_at_too(pipe, call, tmp_path):
    pipe.transformer.proj_out.register_forward_hook(lambda module, args, output: output * torch.nan)
    _refused(pipe, tmp_path, call, "step 0: the transformer's output is not finite")


def test_text_states_are_told_before_the_layers_that_read_them(pipe, call, tmp_path):
    pipe.text_encoder_3.register_forward_hook(
        lambda module, args, output: (torch.full_like(output[0], torch.nan),)
    )
    _refused(pipe, tmp_path, call, "step 0: what the text encoders give is not finite")


def test_latents_that_a_callback_breaks_are_told_with_the_step_that_reads_them(pipe, call, tmp_path):
    def breaks(pipe, step, timestep, kwargs):
        return {"latents": kwargs["latents"] * (torch.inf if step == 1 else 1)}

    _refused(pipe, tmp_path, call, "step 2: the latents are not finite", callback_on_step_end=breaks)


@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_latents_of_the_last_step_are_looked_at(pipe, call, tmp_path, output_type):
    def breaks(pipe, step, timestep, kwargs):
        return {"latents": kwargs["latents"] * (torch.nan if step == call["num_inference_steps"] - 1 else 1)}

    match, more = "after step 4: the latents are not finite", {"callback_on_step_end": breaks}
    _refused(pipe, tmp_path, call, match, output_type=output_type, **more)


def test_a_picture_that_the_vae_breaks_is_no_black_one(pipe, call, tmp_path):
    pipe.vae.to(torch.float16)
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight.fill_(60000)
    pipe.vae.decode = lambda z, **kwargs: type(pipe.vae).decode(pipe.vae, z.half(), **kwargs)
    _refused(pipe, tmp_path, call, "the picture that the VAE decodes is not finite .*: float16 overflows")


def test_half_precision_is_named_as_the_cause(pipe, call, tmp_path):
    pipe.transformer.to(torch.float16)
    pipe.to(torch.float16)
    with torch.no_grad():
        pipe.transformer.transformer_blocks[0].attn.to_v.weight.fill_(6e4)
    _refused(pipe, tmp_path, call, r"float16 overflows beyond 65504, use bfloat16 \(--dtype bfloat16\)")


def test_what_is_nan_by_intention_is_none(pipe, call, tmp_path):
    """Layers that skip-layer guidance leaves out, and layers without a gate."""
    gates = build_gates(pipe.transformer, "headwise", places=((1, "attn"),))
    install_gates(pipe.transformer, gates)
    with sd35h5.capture(pipe, tmp_path / "a.h5") as generate:
        generate("a cat", seed=0, skip_guidance_layers=[1], skip_layer_guidance_stop=0.9, **call)
    with open_store(tmp_path / "a.h5") as store:
        mass = store.read("sinks/mass_group", sample=0, branch="skip").values
        assert np.isnan(mass[..., 1, :]).all() and np.isfinite(mass[:, :, 1, 0]).all()
        assert np.isnan(store.read("gates/mean", sample=0, branch="cond").values[..., 0, :]).all()
