"""Merges and trainers' leavings: what is known to be harmless is left out with a note, what is unknown refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from making.weights import (
    all_in_one,
    original_mmdit,
    original_state,
    output,
    plain_state,
    save,
    small_pipeline,
)
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, T5ForConditionalGeneration

from sd35h5.capturing.pipeline import load
from sd35h5.errors import ConfigError
from sd35h5.planning.options import Model
from sd35h5.weights.layouts import COMPONENTS
from sd35h5.weights.loading import load_part
from sd35h5.weights.model_facts import read_facts
from sd35h5.weights.sources import OPTIONS, Part, find_part

WRAPPED = {
    "DataParallel": lambda key: f"module.{key}",
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "both": lambda key: f"module._orig_mod.{key}",
    "blocks compiled": lambda key: key.replace("joint_blocks.1.", "joint_blocks.1._orig_mod."),
    "FSDP": lambda key: f"_fsdp_wrapped_module.{key}",
}
LEFT = {  # what is beside a transformer -> how the note calls it
    "model_ema.decay": "an average of the weights (EMA)",
    "model_ema.diffusion_modeljoint_blocks0x_blockattnqkvweight": "an average of the weights (EMA)",
    "ema.joint_blocks.0.x_block.attn.qkv.weight": "an average of the weights (EMA)",
    "ema_model.module.joint_blocks.0.x_block.attn.qkv.weight": "an average of the weights (EMA)",
    "optimizer.state.0.exp_avg": "an optimiser's state",
    "optimizer_states.0.step": "an optimiser's state",
    "joint_blocks.0.x_block.attn.qkv.weight.exp_avg_sq": "an optimiser's state",
    "lr_schedulers.0.last_epoch": "an optimiser's state",
    "global_step": "a trainer's counters",
    "betas": "a sampler's tables",
    "alphas_cumprod_prev": "a sampler's tables",
    "model_sampling.sigmas": "a sampler's tables",
    "log_sigmas": "a sampler's tables",
    "loss.discriminator.main.0.weight": "a training loss",
}


@pytest.fixture(scope="module")
def small():
    return small_pipeline()


def _part(component: str, file: Path) -> Part:
    return find_part(component, Model(**{OPTIONS[component]: str(file)}), None)


def _loaded(component: str, file: Path) -> Tensor:
    part = _part(component, file)
    if part.derived and "eos_token_id" in part.config:
        part.config["eos_token_id"] = part.config["vocab_size"] - 1
    return output(component, load_part(part, torch.float32, "cpu"))


@pytest.mark.parametrize("wrapper", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_prefixes_of_wrappers_are_read_through(component, wrapper, small, tmp_path):
    model = getattr(small, component)
    state = {wrapper(key): tensor for key, tensor in original_state(component, model).items()}
    file = save(tmp_path / "wrapped.safetensors", state)
    assert torch.equal(_loaded(component, file), output(component, model))
    if any("module" in key or "_orig_mod" in key for key in state):
        (note,) = _part(component, file).notes
        assert note.startswith("wrapped.safetensors was saved through a wrapper (") and note.endswith(
            "without it"
        )


def test_a_tensor_with_and_without_a_wrapper_is_refused(small, tmp_path):
    state = original_mmdit(small.transformer)
    both = save(tmp_path / "a.safetensors", state | {"module.pos_embed": state["pos_embed"].clone()})
    with pytest.raises(ConfigError, match="pos_embed is in .*a.safetensors twice, as .* and as "):
        _part("transformer", both)


@pytest.mark.parametrize("key", LEFT)
def test_what_is_known_to_be_harmless_is_left_out_with_a_note(key, small, tmp_path):
    state = original_mmdit(small.transformer) | {key: torch.ones(2)}
    file = save(tmp_path / "a.safetensors", state)
    assert torch.equal(_loaded("transformer", file), output("transformer", small.transformer))
    assert _part("transformer", file).notes == (f"a.safetensors also holds {LEFT[key]} (1 tensor): left out",)


@pytest.mark.parametrize(
    "key", ["extra.weight", "joint_blocks.0.x_block.attn.extra.weight", "emancipation.weight"]
)
def test_what_is_unknown_is_refused(key, small, tmp_path):
    file = save(tmp_path / "a.safetensors", original_mmdit(small.transformer) | {key: torch.ones(2)})
    with pytest.raises(ConfigError, match=f"has the unknown key {key}"):
        _loaded("transformer", file)


def test_a_whole_clip_gives_its_text_encoder(small, tmp_path):
    text = small.text_encoder
    config = CLIPConfig(
        text_config=text.config.to_dict(), projection_dim=text.config.projection_dim,
        vision_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    )  # fmt: skip
    whole = CLIPModel(config)
    state = {key: tensor.detach().clone() for key, tensor in whole.state_dict().items()} | plain_state(text)
    assert any("vision_model" in key for key in state) and "visual_projection.weight" in state
    for number, prefix in enumerate(("", "module.")):
        file = save(tmp_path / f"{number}.safetensors", {prefix + key: each for key, each in state.items()})
        assert torch.equal(_loaded("text_encoder", file), output("text_encoder", text))
        assert any("CLIP's vision tower (" in note for note in _part("text_encoder", file).notes)


def test_a_whole_t5_gives_its_encoder(small, tmp_path):
    whole = T5ForConditionalGeneration(small.text_encoder_3.config)
    state = {key: tensor.detach().clone() for key, tensor in whole.state_dict().items()}
    shared = plain_state(small.text_encoder_3)
    state = {key: tensor for key, tensor in state.items() if "embed_tokens" not in key} | shared
    assert any(key.startswith("decoder.block.") for key in state) and "lm_head.weight" in state
    state["decoder.embed_tokens.weight"] = shared["shared.weight"].clone()
    file = save(tmp_path / "t5.safetensors", state)
    assert torch.equal(_loaded("text_encoder_3", file), output("text_encoder_3", small.text_encoder_3))
    (note,) = _part("text_encoder_3", file).notes
    assert "T5's decoder (" in note
    held = {f"text_encoders.t5xxl.transformer.{key}": each for key, each in state.items()}
    file = save(tmp_path / "all.safetensors", all_in_one(small, without=("text_encoder_3",)) | held)
    for component in COMPONENTS:  # the VAE's decoder stays
        assert torch.equal(_loaded(component, file), output(component, getattr(small, component))), component


def test_the_note_is_told_once_for_a_file_of_all(small, tmp_path, caplog):
    small.save_pretrained(tmp_path / "small")
    state = all_in_one(small) | {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones(())}
    file = save(tmp_path / "merge.safetensors", state)
    model = Model(model_id=str(file), tokenizer_path=str(tmp_path / "small"), device="cpu")
    with caplog.at_level(logging.INFO):
        load(model, read_facts(model))
    told = [record.message for record in caplog.records if "left out" in record.message]
    assert told == ["merge.safetensors also holds an average of the weights (EMA) (2 tensors): left out"]


def test_a_file_of_leavings_alone_is_no_model(tmp_path):
    file = save(
        tmp_path / "ema.safetensors", {"ema.joint_blocks.0.x_block.attn.qkv.weight": torch.ones(3, 1)}
    )
    with pytest.raises(
        ConfigError, match="holds an average of the weights .EMA. alone, expected an SD3 transformer"
    ):
        _part("transformer", file)


def test_an_unknown_key_of_the_last_component_is_refused_before_the_first_is_read(small, tmp_path, caplog):
    small.save_pretrained(tmp_path / "small")
    state = all_in_one(small)
    state = {
        key: each.to(torch.float8_e4m3fn) if key.startswith("model.diffusion_model.") else each
        for key, each in state.items()
    }  # reading fp8 leaves a note
    good = save(tmp_path / "good.safetensors", state)
    state["first_stage_model.decoder.extra.weight"] = torch.ones(2)
    bad = save(tmp_path / "bad.safetensors", state)
    tokenizers = str(tmp_path / "small")
    for file in (bad, good):
        model, read = (
            Model(model_id=str(file), tokenizer_path=tokenizers, device="cpu"),
            "is stored as float8",
        )
        if file == bad:
            with pytest.raises(
                ConfigError, match="has the unknown key first_stage_model.decoder.extra.weight"
            ):
                load(model, read_facts(model))
            assert read not in caplog.text
        else:
            load(model, read_facts(model))
            assert read in caplog.text
