"""Adapters in files: every spelling and kind changes the weights as its formula says; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from making.adapters import CONVOLUTION, KINDS, LAYERS, adapter
from making.pipelines import T5_TOKENS, torch_generator
from making.weights import original_mmdit, save, small_pipeline
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from sd35h5.capturing.pipeline import load
from sd35h5.errors import ConfigError
from sd35h5.planning.options import Model
from sd35h5.weights.adapters.activating import activate
from sd35h5.weights.adapters.adapter_files import read_adapters, split_scale
from sd35h5.weights.adapters.merging import check_adapters, merge
from sd35h5.weights.loading import fill, plan_part
from sd35h5.weights.model_facts import read_facts
from sd35h5.weights.sources import find_part

CALL = {
    "height": 64,
    "width": 96,
    "num_inference_steps": 2,
    "max_sequence_length": T5_TOKENS,
    "output_type": "latent",
}
CLIP, T5 = "text_model.encoder.layers.0.self_attn.q_proj", "encoder.block.1.layer.0.SelfAttention.q"


@pytest.fixture(scope="module")
def small():
    """A pipeline with a second attention in its first layer."""
    return small_pipeline(dual=(0,))


@pytest.fixture(scope="module")
def small_folder(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "small"
    small.save_pretrained(folder)
    return folder


def effective(model: nn.Module) -> dict[str, Tensor]:
    """The weights with which a model computes, those of peft's layers with what these add."""
    found = {key: tensor for key, tensor in model.state_dict().items() if ".lora_" not in key}
    for path, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            weight = found[f"{path}.base_layer.weight"]
            found[f"{path}.base_layer.weight"] = weight + sum(
                map(layer.get_delta_weight, layer.active_adapters)
            )
    return {key.replace(".base_layer", ""): tensor for key, tensor in found.items()}


def adapted(folder: Path, given: list[str], component: str = "transformer", dtype=torch.float32) -> nn.Module:
    """One component of a folder with adapters."""
    part = find_part(component, Model(model_id=str(folder)), folder)
    planned = plan_part(part)
    adapters = read_adapters(given, 3)
    check_adapters(adapters, {component: planned})
    model = fill(planned, dtype, "cpu")
    merge(model, planned, [each for each in adapters if not each.stays_apart])
    activate({component: model}, adapters)
    return model


def expected(changed: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Weights in the original layout as diffusers names them, float32, read as the transformer of a file."""
    file = save(folder / "changed.safetensors", {key: tensor.float() for key, tensor in changed.items()})
    model = Model(dit_path=str(file))
    return fill(plan_part(find_part("transformer", model, None)), torch.float32, "cpu").state_dict()


def assert_close(there: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert there.keys() == wanted.keys()
    for key, tensor in there.items():
        assert torch.allclose(tensor, wanted[key], rtol=1e-5, atol=2e-6), key


@pytest.mark.parametrize(
    ("kind", "spelling"),
    [*((kind, "sd-scripts") for kind in KINDS), ("LoRA", "ComfyUI"), ("LoKr", "ComfyUI")],
)
def test_the_original_layout_s_adapters_change_the_weights_as_their_formula_says(
    kind, spelling, small, small_folder, tmp_path
):
    state, layers = original_mmdit(small.transformer), LAYERS
    if kind == "LoRA":  # every layer there is, and with ComfyUI's the convolution, with which all is merged
        layers = tuple(key.removesuffix(".weight") for key, weight in state.items() if weight.ndim == 2)
        layers += (CONVOLUTION,) * (spelling == "ComfyUI")
    file, changed = adapter(kind, spelling, state, layers, scale=0.7)
    saved = save(tmp_path / "style.safetensors", file)
    there = effective(adapted(small_folder, [f"{saved}:0.7"]))
    assert_close(there, expected(changed, tmp_path))


def test_merged_weights_are_those_of_float64_rounded_once(small, small_folder, tmp_path):
    file, changed = adapter("LoHa", "sd-scripts", original_mmdit(small.transformer))
    saved = save(tmp_path / "style.safetensors", file)
    there = adapted(small_folder, [str(saved)], dtype=torch.bfloat16).transformer_blocks[0].attn.to_k.weight
    wanted = changed["joint_blocks.0.x_block.attn.qkv.weight"].chunk(3)[1]
    assert torch.equal(there, wanted.to(torch.bfloat16))


def test_several_adapters_of_one_layer_add_up_in_order(small, small_folder, tmp_path):
    state = original_mmdit(small.transformer)
    first, changed = adapter("LoRA", "sd-scripts", state)
    second, changed = adapter("LoKr", "ComfyUI", changed, scale=-0.5)
    given = [str(save(tmp_path / "a.safetensors", first)), f"{save(tmp_path / 'b.safetensors', second)}:-0.5"]
    assert_close(effective(adapted(small_folder, given)), expected(changed, tmp_path))


@pytest.mark.parametrize(
    "prefix", ["transformer.", "base_model.model.", "lora_transformer_", "lycoris_", "lora_unet_", ""]
)
def test_diffusers_names_are_read_with_every_prefix(prefix, small, small_folder, tmp_path):
    modules = ("transformer_blocks.1.attn.add_v_proj", "transformer_blocks.0.attn2.to_out.0")
    random = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 16, generator=random), torch.randn(16, 4, generator=random)
    ends = (("lora_A.weight", "lora_B.weight"), ("lora.down.weight", "lora.up.weight"))
    state = {}
    for module, end in zip(modules, ends, strict=True):
        name = prefix + (module.replace(".", "_") if prefix.endswith("_") else module)
        state |= {f"{name}.{end[0]}": down.clone(), f"{name}.{end[1]}": up.clone()}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 4}))
    weights = effective(adapted(small_folder, [str(save(tmp_path / "style.safetensors", state))]))
    for module in modules:
        wanted = small.transformer.get_parameter(f"{module}.weight").double() + up.double() @ down.double()
        assert torch.allclose(weights[f"{module}.weight"].double(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("component", "name", "module"),
    [
        ("text_encoder", f"lora_te1_{CLIP.replace('.', '_')}", CLIP),
        ("text_encoder", f"text_encoder.{CLIP}", CLIP),
        ("text_encoder_2", f"lora_te2_{CLIP.replace('.', '_')}", CLIP),
        ("text_encoder_3", f"lora_te3_{T5.replace('.', '_')}", T5),
    ],
)
def test_adapters_of_text_encoders_change_their_own(component, name, module, small, small_folder, tmp_path):
    plain = getattr(small, component).get_parameter(f"{module}.weight").double()
    random = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, plain.shape[1], generator=random), torch.randn(len(plain), 4, generator=random)
    state = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(2.0),
    }
    file = save(tmp_path / "style.safetensors", state)
    there = effective(adapted(small_folder, [str(file)], component))[f"{module}.weight"]
    assert torch.allclose(there.double(), plain + up.double() @ down.double() / 2, atol=1e-5)


def _trained(pipe, folder: Path, **config: object) -> Path:
    """A LoRA of transformer and CLIP-L as diffusers' `save_lora_weights` leaves it, with peft's config as metadata."""
    torch.manual_seed(3)
    layers, told = {}, {}
    for name, targets in (
        ("transformer", ["to_q", "add_k_proj", "ff.net.2"]),
        ("text_encoder", ["q_proj", "fc1"]),
    ):
        model = getattr(pipe, name)
        options = {
            "r": 4,
            "lora_alpha": 6,
            "init_lora_weights": False,
            **(config if name == "transformer" else {}),
        }
        inject_adapter_in_model(LoraConfig(target_modules=targets, **options), model, "default")
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(model, adapter_name="default")
        told[f"{name}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    pipe.save_lora_weights(folder, **layers, **told)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"use_dora": True}, torch.float32),
        ({"use_rslora": True, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 5}}, torch.bfloat16),
    ],
    ids=("DoRA", "other ranks"),
)
def test_what_diffusers_reads_itself_draws_its_very_latents(config, dtype, small_folder, tmp_path):
    file = _trained(small_pipeline(dual=(0,)), tmp_path, **config)
    plain = small_pipeline(dual=(0,)).to(dtype)
    plain.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="style")
    plain.set_adapters(["style"], [0.6])
    model = Model(model_id=str(small_folder), lora=((f"{file}:0.6",),), device="cpu", dtype=str(dtype)[6:])
    facts = read_facts(model)
    ours = load(model, facts, adapters=read_adapters(model.adapters, facts.layers)).pipe
    pair = [pipe("a cat", generator=torch_generator(0), **CALL).images for pipe in (plain, ours)]
    assert torch.equal(*pair)
    base = small_pipeline(dual=(0,)).to(dtype)("a cat", generator=torch_generator(0), **CALL).images
    assert not torch.equal(pair[0], base)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.7", ("a.safetensors", 0.7)),
        ("a.safetensors:-1e-1", ("a.safetensors", -0.1)),
        ("C:a.safetensors", ("C:a.safetensors", 1.0)),
        ("a:b:2", ("a:b", 2.0)),
    ],
)
def test_a_scale_stands_behind_the_last_colon(given, parts):
    assert split_scale(given) == parts


def test_a_file_whose_name_ends_like_a_scale_is_that_file(tmp_path):
    (tmp_path / "style:2").touch()
    assert split_scale(f"{tmp_path}/style:2") == (f"{tmp_path}/style:2", 1.0)


LAYER = "lora_unet_joint_blocks_0_x_block_attn_proj"
PAIR = {"lora_down.weight": (4, 16), "lora_up.weight": (16, 4)}
REFUSED = {
    "there is no such file or folder": None,
    "was made for FLUX": {f"lora_unet_double_blocks_0_img_attn_qkv.{end}": shape for end, shape in PAIR.items()},
    "was made for Stable Diffusion 1, 2 or XL": {
        f"lora_unet_down_blocks_0_attentions_0_proj_in.{end}": shape for end, shape in PAIR.items()
    },
    "transformer of 3 blocks does not have": {
        f"diffusion_model.joint_blocks.9.x_block.attn.proj.{end}": shape for end, shape in PAIR.items()
    },
    "do not fit each other: down (4, 16), up (16, 8)": {
        f"{LAYER}.lora_down.weight": (4, 16), f"{LAYER}.lora_up.weight": (16, 8)
    },
    f"has of {LAYER} only down: the file is incomplete": {f"{LAYER}.lora_down.weight": (4, 16)},
    "which is not applied: the matrices of LoRA, DoRA, LoHa and LoKr are, and the file looks like an OFT adapter": {
        f"{LAYER}.oft_blocks": (2, 8, 8)
    },
    "holds an SD3 transformer, expected a LoRA, DoRA, LoHa or LoKr": {
        "joint_blocks.0.x_block.attn.proj.weight": (16, 16)
    },
    "twice, under names of two layouts": {
        f"{name}.{end}": shape
        for name in (LAYER, "transformer.transformer_blocks.0.attn.to_out.0")
        for end, shape in PAIR.items()
    },
    "keeps alpha in adapter_config.json": {
        f"base_model.model.transformer_blocks.0.attn.to_q.{end}": shape for end, shape in PAIR.items()
    },
    "adds a matrix of shape (16, 8) to": {f"{LAYER}.lora_down.weight": (4, 8), f"{LAYER}.lora_up.weight": (16, 4)},
    "which an SD3 transformer of this shape does not have": {  # only the first layer has a second attention
        f"diffusion_model.joint_blocks.2.x_block.attn2.proj.{end}": shape for end, shape in PAIR.items()
    },
    "changes a T5 encoder, which this model is drawn without": {
        f"lora_te3_encoder_block_0_layer_0_SelfAttention_q.{end}": shape for end, shape in PAIR.items()
    },
    "nan is no scale": "nan",
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_applied_is_refused_by_the_header_alone(sentence, small_folder, tmp_path, monkeypatch):
    shapes, file = REFUSED[sentence], tmp_path / "style.safetensors"
    given = f"{file}:{shapes}" if isinstance(shapes, str) else str(file)
    if isinstance(shapes, dict):
        save(file, {key: torch.zeros(shape) for key, shape in shapes.items()})
    monkeypatch.setattr("sd35h5.capturing.pipeline.fill", lambda *_: pytest.fail("weights were read"))
    model = Model(model_id=str(small_folder), lora=((given,),), device="cpu", no_t5=True)
    facts = read_facts(model)
    with pytest.raises(ConfigError) as refusal:
        load(model, facts, adapters=read_adapters(model.adapters, facts.layers))
    assert sentence in str(refusal.value) and given.partition(":")[0] in str(refusal.value)
