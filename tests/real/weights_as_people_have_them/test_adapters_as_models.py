"""A LoRA, a LoKr, a ControlNet given as a model is called so, in every spelling, whatever else its keys look like."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import SD3ControlNetModel
from making.weights import original_mmdit, save, small_pipeline
from safetensors.torch import save_file

from sd35h5.errors import ConfigError
from sd35h5.planning.options import Model
from sd35h5.weights.model_facts import read_facts
from sd35h5.weights.sources import find_part

SPELLINGS = {
    "a LoRA": (
        "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight",  # sd-scripts
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.alpha",
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",  # diffusers and PEFT
        "transformer_blocks.0.attn.to_q.lora_B.default.weight",
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight",
        "transformer_blocks.0.attn.processor.to_q_lora.down.weight",  # diffusers' older
        "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight",  # ComfyUI
        "joint_blocks.0.x_block.attn.qkv.lora.up.weight",
        "diffusion_model.joint_blocks.0.x_block.attn.qkv.diff",
        "joint_blocks.0.x_block.attn.qkv.lora_magnitude_vector",
        "joint_blocks.0.x_block.attn.qkv.dora_scale",
        "lycoris_joint_blocks_0_x_block_attn_qkv.alpha",
    ),
    "a LoKr": (
        "lora_unet_joint_blocks_0_x_block_attn_qkv.lokr_w1",
        "lycoris_joint_blocks_0_x_block_attn_qkv.lokr_w2_a",
        "transformer_blocks.0.attn.to_q.lokr_w2",
        "joint_blocks.0.x_block.attn.qkv.lokr_t2",
    ),
    "a LoHa": (
        "lycoris_joint_blocks_0_x_block_attn_qkv.hada_w1_a",
        "transformer_blocks.0.attn.to_q.hada_w2_b",
    ),
    "an OFT": (
        "lycoris_joint_blocks_0_x_block_attn_qkv.oft_blocks",
        "transformer_blocks.0.attn.to_q.oft_R.weight",
    ),
    "a ControlNet": (
        "controlnet_blocks.0.weight",
        "control_model.joint_blocks.0.x_block.attn.qkv.weight",
        "controlnet.transformer_blocks.0.attn.to_q.weight",
        "pos_embed_input.proj.weight",
        "input_hint_block.0.weight",
    ),
    "an IP-Adapter": ("image_proj.proj.weight", "transformer_blocks.0.attn.processor.to_k_ip.weight"),
}
EVERY = [(what, key) for what, keys in SPELLINGS.items() for key in keys]


@pytest.mark.parametrize(("what", "key"), EVERY, ids=[key for _, key in EVERY])
def test_it_is_called_what_it_is(what, key, tmp_path):
    file = save(tmp_path / "a.safetensors", {key: torch.ones(2, 2)})
    with pytest.raises(ConfigError, match=f"--dit_path .*a.safetensors holds {what}"):
        find_part("transformer", Model(dit_path=str(file)), None)
    with pytest.raises(ConfigError, match=f"--model_id .*a.safetensors holds {what}"):
        read_facts(Model(model_id=str(file)))


def test_metadata_tells_where_keys_do_not(tmp_path):
    for metadata, what in (
        ({"ss_network_module": "networks.something"}, "a LoRA"),
        ({"modelspec.architecture": "stable-diffusion-v3.5-large/lora"}, "a LoRA"),
        ({"modelspec.architecture": "stable-diffusion-v3.5-large/controlnet"}, "a ControlNet"),
    ):
        save_file({"something.weight": torch.ones(2)}, tmp_path / "a.safetensors", metadata)
        with pytest.raises(ConfigError, match=f"holds {what}"):
            find_part("transformer", Model(dit_path=str(tmp_path / "a.safetensors")), None)


def test_a_real_controlnet_is_not_taken_for_a_transformer_that_lacks_something(tmp_path):
    """Its keys are those of a transformer, and some more."""
    transformer = small_pipeline().transformer
    control = SD3ControlNetModel.from_transformer(transformer, num_layers=2)
    control.save_pretrained(tmp_path / "control")
    with pytest.raises(ConfigError, match="holds a ControlNet, which steers a model and is none"):
        find_part("transformer", Model(dit_path=str(tmp_path / "control")), None)


def test_a_model_with_a_lora_beside_it_is_not_drawn_without_it(tmp_path):
    state = original_mmdit(small_pipeline().transformer)
    state["joint_blocks.0.x_block.attn.qkv.lora_A.weight"] = torch.ones(2, 16)
    file: Path = save(tmp_path / "a.safetensors", state)
    with pytest.raises(ConfigError, match="holds a LoRA"):
        find_part("transformer", Model(dit_path=str(file)), None)


def test_fluxs_transformer_is_not_taken_for_one_that_lacks_something(tmp_path):
    keys = ("transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.0.attn.to_q.weight")
    file = save(tmp_path / "a.safetensors", {key: torch.ones(2, 2) for key in keys})
    with pytest.raises(ConfigError, match="holds a FLUX transformer, expected an SD3 transformer"):
        find_part("transformer", Model(dit_path=str(file)), None)
