"""What people hang into a transformer is captured to the bit, or refused by its name before anything is drawn."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention_processor import (
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersJointAttnProcessor,
)
from making.pipelines import make_pipeline, torch_generator

import sd35h5
from sd35h5 import open_store
from sd35h5.capturing import session
from sd35h5.errors import CaptureError
from sd35h5.weights.in_memory.fingerprint import fingerprints

CPU = torch.device("cpu")


@pytest.fixture
def short(call):
    return call | {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def pipe():
    return make_pipeline(dual_attention_layers=(0,))


def _drawn(pipe, short):
    return pipe("a red cat", generator=torch_generator(0), **short).images


def _captured(pipe, out, short, calls=1):
    with sd35h5.capture(pipe, out) as generate:
        latents = [generate("a red cat", seed=seed, **short).images for seed in range(calls)]
    with open_store(out) as store:
        masses = store.read("sinks/mass_group", query="image").sum("group", skipna=False)
        np.testing.assert_allclose(masses, 1, atol=1e-5)
    return latents[0]


def _halved(module, args, output):
    return tuple(each / 2 if each is not None else None for each in output)


class _Louder(ModelHook):
    def post_forward(self, module, output):
        return _halved(module, (), output)


def _hook_block(pipe):
    pipe.transformer.transformer_blocks[1].register_forward_hook(_halved)


def _hook_attention(pipe):
    pipe.transformer.transformer_blocks[1].attn.register_forward_hook(_halved)


def _hook_projection(pipe):
    pipe.transformer.transformer_blocks[1].attn.to_q.register_forward_hook(lambda m, args, out: out * 2)


def _change_what_enters(pipe):
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"hidden_states": kwargs["hidden_states"] * 0.9}),
        with_kwargs=True,
    )


def _registered(pipe):
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer.transformer_blocks[1])
    registry.register_hook(_Louder(), "louder")


def _replace_block(pipe):
    block = pipe.transformer.transformer_blocks[1]
    plain = block.forward
    block.forward = lambda *args, **kwargs: _halved(block, args, plain(*args, **kwargs))


@pytest.mark.parametrize(
    "change",
    [
        _hook_attention,
        _registered,
        _replace_block,
        *(
            pytest.param(one, marks=pytest.mark.long)
            for one in (_hook_block, _hook_projection, _change_what_enters)
        ),
    ],
)
def test_hooks_that_change_the_picture_change_the_captured_one_alike(change, pipe, short, tmp_path):
    untouched = _drawn(pipe, short)
    change(pipe)
    plain = _drawn(pipe, short)
    assert not torch.equal(plain, untouched)
    assert torch.equal(_captured(pipe, tmp_path / "a.h5", short), plain)


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_backends_of_diffusers_draw_what_the_plain_pipeline_draws(backend, pipe, short, tmp_path):
    pipe.transformer.set_attention_backend(backend)
    try:
        plain = _drawn(pipe, short)
        assert torch.equal(_captured(pipe, tmp_path / "a.h5", short), plain)
    finally:
        pipe.transformer.reset_attention_backend()


def _own_attention(self, hidden_states, encoder_hidden_states=None, **kwargs):
    return hidden_states, encoder_hidden_states


def _replace_attention(pipe):
    attn = pipe.transformer.transformer_blocks[1].attn
    attn.forward = types.MethodType(_own_attention, attn)


def _replace_second_under_a_hook(pipe):
    attn = pipe.transformer.transformer_blocks[0].attn2
    attn.forward = types.MethodType(_own_attention, attn)
    HookRegistry.check_if_exists_or_initialize(attn).register_hook(ModelHook(), "looks on")


class _Mine(JointAttnProcessor2_0):
    pass


def _processor(of):
    return lambda pipe: pipe.transformer.transformer_blocks[1].attn.set_processor(of())


@pytest.mark.parametrize(
    "change, sentence",
    [
        (_replace_attention, r"transformer_blocks\.1\.attn\.forward was replaced by .*_own_attention, past"),
        (_replace_second_under_a_hook, r"blocks\.0\.attn2\.forward was replaced by .*_own_attention, past"),
        (_processor(XFormersJointAttnProcessor), "XFormersJointAttn.*disable_xformers_memory_efficient"),
        (_processor(FusedJointAttnProcessor2_0), r"FusedJointAttn.*unfuse_qkv_projections\(\)"),
        (_processor(_Mine), r"1\.attn\.processor is a _Mine.*set_attn_processor\(JointAttnProcessor2_0"),
    ],
)
def test_attention_that_is_not_diffusers_own_is_refused_by_name(change, sentence, pipe, tmp_path):
    change(pipe)
    with pytest.raises(CaptureError, match=sentence), sd35h5.capture(pipe, tmp_path / "a.h5"):
        pass


def test_a_call_that_was_replaced_in_its_class_is_refused_by_name(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(JointAttnProcessor2_0, "__call__", _own_attention)
    with (
        pytest.raises(CaptureError, match=r"2_0\.__call__ was replaced by .*_own_attention"),
        sd35h5.capture(pipe, tmp_path / "a.h5"),
    ):
        pass


def test_blocks_that_run_twice_in_a_call_are_refused(pipe, short, tmp_path):
    block = pipe.transformer.transformer_blocks[1]
    plain = block.forward
    block.forward = lambda *args, **kwargs: plain(*args, **kwargs) and plain(*args, **kwargs)
    with (
        pytest.raises(CaptureError, match="layer 1 attends twice in one call of the transformer"),
        sd35h5.capture(pipe, tmp_path / "a.h5") as generate,
    ):
        generate("a red cat", seed=0, **short)


def _group_offload(**how):
    return lambda pipe, folder: pipe.enable_group_offload(CPU, CPU, **how)


def _group_offload_to_disk(pipe, folder):
    # of one model alone: two text encoders in one folder overwrite each other, in diffusers itself
    pipe.transformer.enable_group_offload(CPU, CPU, "leaf_level", offload_to_disk_path=str(folder))


def _dispatched(pipe, folder):
    """Half of the blocks on the disk, as accelerate's device maps lay them."""
    transformer = pipe.transformer
    names = [name for name, _ in transformer.named_children() if name != "transformer_blocks"]
    places = dict.fromkeys((*names, "transformer_blocks.0"), "cpu")
    places |= {f"transformer_blocks.{layer}": "disk" for layer in (1, 2)}
    pipe.transformer = dispatch_model(transformer, places, main_device="cpu", offload_dir=folder)


@pytest.mark.parametrize(
    "offload",
    [
        pytest.param(_group_offload(offload_type="block_level", num_blocks_per_group=2), marks=pytest.mark.long),
        _group_offload(offload_type="leaf_level"), _group_offload_to_disk, _dispatched,
    ],
    ids=["blocks", "leaves", "disk", "device map"],
)  # fmt: skip
def test_an_offloaded_pipeline_is_captured_and_is_the_same_model(offload, pipe, short, tmp_path, monkeypatch):
    plain, before = _drawn(pipe, short), fingerprints(pipe)
    offload(pipe, tmp_path)
    assert torch.equal(_drawn(pipe, short), plain)
    assert fingerprints(pipe) == before
    looked = []
    monkeypatch.setattr(session, "fingerprints", lambda pipe: looked.append(1) or fingerprints(pipe))
    assert torch.equal(_captured(pipe, tmp_path / "a.h5", short, calls=2), plain)
    assert (
        len(looked) == 1
    )  # the second call is seen to have the same model without a look at all its weights
