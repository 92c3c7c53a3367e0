"""Captures of adapted pipelines: the plain picture to the bit, true masses, and adapters by name and scale."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from accelerate.hooks import attach_align_device_hook
from making.adapters import adapter
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH, make_pipeline, torch_generator
from making.weights import original_mmdit, save, small_pipeline
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import nn

import capture_cli
import sd35h5
from sd35h5.comparing.paired_samples import is_free
from sd35h5.errors import CaptureError

CALL = {
    "height": HEIGHT, "width": WIDTH, "num_inference_steps": 2, "max_sequence_length": T5_TOKENS,
    "output_type": "latent",
}  # fmt: skip
TARGETS = ["to_q", "to_k", "to_v", "add_k_proj", "to_out.0", "ff.net.2"]
CONFIGS = {
    "LoRA": LoraConfig(r=4, lora_alpha=3, target_modules=TARGETS, init_lora_weights=False),
    "DoRA": LoraConfig(r=4, lora_alpha=3, target_modules=TARGETS, init_lora_weights=False, use_dora=True),
    "LoKr": LoKrConfig(r=4, alpha=3, target_modules=TARGETS, init_weights=False),
    "LoHa": LoHaConfig(r=4, alpha=3, target_modules=TARGETS, init_weights=False),
}


def adapted(kind: str = "LoRA", name: str = "style"):
    """A tiny pipeline with an adapter on its transformer."""
    pipe = make_pipeline()
    torch.manual_seed(1)
    pipe.transformer.add_adapter(CONFIGS[kind], name)
    return pipe


def drawn(pipe, **more) -> torch.Tensor:
    return pipe("a cat", generator=torch_generator(0), **CALL, **more).images


def captured(pipe, out: Path, **more) -> torch.Tensor:
    with sd35h5.capture(pipe, out) as generate:
        return generate("a cat", seed=0, **CALL, **more).images


def adapters_in(out: Path, component: str = "transformer") -> list[dict]:
    with sd35h5.open_store(out) as store:
        return store.provenance["components"][component].get("adapters")


def check(pipe, out: Path, kind: str, scale: float, state: str, **more) -> torch.Tensor:
    """Capture, compare with the same pipeline without and with what the file tells. Returns: the latents."""
    latents = drawn(pipe, **more)
    assert torch.equal(captured(pipe, out, **more), latents)
    (told,) = adapters_in(out)
    assert told == {
        "name": "style", "kind": kind, "rank": 4, "scale": scale, "state": state, "layers": 18
    }  # fmt: skip
    return latents


@pytest.mark.parametrize("kind", ["DoRA", "LoKr", pytest.param("LoHa", marks=pytest.mark.long)])
def test_adapters_of_every_kind_are_captured_to_the_bit_scaled_by_the_model_and_by_the_call(kind, tmp_path):
    pipe = adapted(kind)
    pipe.set_adapters(["style"], [0.5])
    once = check(pipe, tmp_path / "a.h5", kind, 0.5, "active")
    scaled = check(pipe, tmp_path / "b.h5", kind, 0.5, "active", joint_attention_kwargs={"scale": 0.3})
    assert not torch.equal(once, scaled)


def test_adapters_are_captured_to_the_bit_switched_off_and_fused(tmp_path):
    pipe = adapted()
    active = drawn(pipe)
    pipe.transformer.disable_adapters()
    assert torch.equal(check(pipe, tmp_path / "off.h5", "LoRA", 1.0, "off"), drawn(make_pipeline()))
    pipe.transformer.enable_adapters()
    pipe.fuse_lora()
    fused = check(pipe, tmp_path / "fused.h5", "LoRA", 1.0, "merged")
    assert torch.allclose(fused, active, atol=1e-4) and not torch.equal(fused, active)


def test_a_transformer_in_peft_s_own_wrapper_is_captured_to_the_bit(tmp_path):
    pipe = make_pipeline()
    torch.manual_seed(1)
    pipe.transformer = get_peft_model(pipe.transformer, CONFIGS["LoRA"])
    latents = drawn(pipe)
    assert torch.equal(captured(pipe, tmp_path / "run.h5"), latents)
    assert not torch.equal(latents, drawn(make_pipeline()))
    assert [(told["name"], told["layers"]) for told in adapters_in(tmp_path / "run.h5")] == [("default", 18)]


@pytest.mark.parametrize("kind", ["LoKr", pytest.param("DoRA", marks=pytest.mark.long)])
def test_adapters_whose_weights_an_offload_by_layer_puts_away_are_refused_and_loras_are_not(kind, tmp_path):
    pipe = adapted()
    latents = drawn(pipe)
    attach_align_device_hook(pipe.transformer, execution_device="cpu", offload=True)
    assert torch.equal(captured(pipe, tmp_path / "run.h5"), latents)
    pipe = adapted(kind)
    attach_align_device_hook(pipe.transformer, execution_device="cpu", offload=True)
    with pytest.raises(
        CaptureError, match=rf"transformer: transformer_blocks.0.\S+ has the {kind} adapter style"
    ):
        captured(pipe, tmp_path / "other.h5")


def test_masses_of_an_adapted_pipeline_are_those_of_its_own_queries_and_keys(tmp_path):
    pipe = adapted()
    attention, inputs = pipe.transformer.transformer_blocks[1].attn, []
    hook = attention.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append(kwargs), with_kwargs=True
    )
    drawn(pipe, guidance_scale=1.0)
    hook.remove()
    captured(pipe, tmp_path / "run.h5", guidance_scale=1.0)
    image, text = (inputs[1][name].double() for name in ("hidden_states", "encoder_hidden_states"))

    def weight(layer: nn.Module) -> torch.Tensor:
        if not hasattr(layer, "lora_A"):
            return layer.weight.double()
        matrices = layer.lora_B["style"].weight.double() @ layer.lora_A["style"].weight.double()
        return layer.weight.double() + 0.75 * matrices  # alpha 3 over rank 4

    def heads(states, layer: nn.Module, norm: nn.Module) -> torch.Tensor:
        split = (states @ weight(layer).T + layer.bias.double()).unflatten(-1, (2, 8)).transpose(1, 2)
        norm_weight = norm.weight.double()
        return split * torch.rsqrt(split.square().mean(-1, keepdim=True) + norm.eps) * norm_weight

    query = heads(image, attention.to_q, attention.norm_q)
    keys = [
        heads(image, attention.to_k, attention.norm_k),
        heads(text, attention.add_k_proj, attention.norm_added_k),
    ]
    shares = (query @ torch.cat(keys, 2).transpose(2, 3) / 8**0.5).softmax(-1)[..., image.shape[1] :]
    with sd35h5.open_store(tmp_path / "run.h5") as store:
        mass = store.read("sinks/mass_image", branch="cond", step=1, layer=1)
        there = torch.tensor(mass.isel(sample=0).transpose("head", "token").values, dtype=torch.float64)
    assert torch.allclose(there, shares.mean(2)[0], atol=1e-3, rtol=1e-3)


def test_a_call_s_scale_is_the_call_s_and_an_adapter_s_scale_is_the_model_s(tmp_path):
    """Samples pair over models, not over calls that differ."""
    keys = {}
    for name, scale, more in (
        ("a", 1.0, {}),
        ("b", 0.5, {}),
        ("c", 1.0, {"joint_attention_kwargs": {"scale": 0.5}}),
    ):
        pipe = adapted()
        pipe.set_adapters(["style"], [scale])
        captured(pipe, tmp_path / f"{name}.h5", **more)
        with sd35h5.open_store(tmp_path / f"{name}.h5") as store:
            keys[name] = store.samples["pairing_key"][0]
            events = store.provenance.get("events", [])
            assert [each["scale"] for each in events if "scale" in each] == [0.5] * bool(more)
    assert keys["a"] == keys["b"] != keys["c"]


def test_a_scale_that_changes_between_two_calls_is_another_model_and_a_call_s_scale_is_not(tmp_path):
    pipe = adapted()
    pipe.set_adapters(["style"], [0.55])
    with pytest.raises(CaptureError, match="samples of another model .transformer has fingerprint"):
        with sd35h5.capture(pipe, tmp_path / "run.h5") as generate:
            for seed, scale in enumerate((0.1, 0.9)):  # 0.55 is not quite that after these
                generate("a cat", seed=seed, **CALL, joint_attention_kwargs={"scale": scale})
            pipe.set_adapters(["style"], [0.6])
            generate("a cat", seed=2, **CALL)


class StandIn(nn.Module):
    """A LoRA module as LyCORIS and sd-scripts put one in a layer's place: it holds the layer's forward."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.down, self.up = (
            nn.Linear(layer.in_features, 2, bias=False),
            nn.Linear(2, layer.out_features, bias=False),
        )
        self.multiplier, self.org_forward = 1.0, layer.forward
        layer.forward = self.forward

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.org_forward(states) + self.multiplier * self.up(self.down(states))


def test_modules_in_the_place_of_layers_are_captured_to_the_bit_and_are_part_of_the_fingerprint(tmp_path):
    pipe = make_pipeline()
    plain = drawn(pipe)
    torch.manual_seed(0)
    modules = [StandIn(block.attn.to_k) for block in pipe.transformer.transformer_blocks]
    found = []
    for number in range(3):
        out = tmp_path / f"{number}.h5"
        latents = captured(pipe, out)
        assert torch.equal(latents, drawn(pipe)) and not torch.equal(latents, plain)
        with sd35h5.open_store(out) as store:
            told = store.provenance["components"]["transformer"]
        found.append(told["fingerprint"])
        assert told["adapters"][0] | {"name": ""} == {
            "name": "", "kind": "StandIn", "rank": None, "scale": modules[0].multiplier, "state": "active", "layers": 3,
        }  # fmt: skip
        if number == 0:
            for module in modules:
                module.multiplier = 0.5
        with torch.no_grad():
            modules[1].up.weight[0, 0] += 1
    assert len(set(found)) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapted") / "small"
    small_pipeline(dual=(0,)).save_pretrained(folder)
    return folder


def test_the_command_line_draws_with_adapters_names_them_and_goes_on_with_no_others(folder, tmp_path, capsys):
    state = original_mmdit(small_pipeline(dual=(0,)).transformer)
    layer = "lora_te3_encoder_block_1_layer_0_SelfAttention_q"
    of_t5 = {f"{layer}.lora_down.weight": torch.ones(4, 192), f"{layer}.lora_up.weight": torch.ones(24, 4)}
    one = save(tmp_path / "one.safetensors", adapter("LoRA", "sd-scripts", state)[0] | of_t5)
    two = save(tmp_path / "two.safetensors", adapter("LoKr", "ComfyUI", state)[0])
    out = tmp_path / "run.h5"

    def run(*lora: str, prompts: int = 1) -> tuple[int, str]:
        status = capture_cli.main([
            "--model_id", str(folder), "--prompt", *["a cat", "a dog"][:prompts], "--out", str(out), "--device", "cpu",
            "--steps", "2", "--height", "64", "--width", "96", "--max_sequence_length", "24", "--attn2_layout",
            "diffusers", *lora,
        ])  # fmt: skip
        return status, capsys.readouterr().err

    assert run("--lora", f"{one}:0.7", "--lora", str(two))[0] == 0
    active, merged = adapters_in(out)
    assert active.pop("sha256") == hashlib.file_digest(one.open("rb"), "sha256").hexdigest()
    assert active == {
        "name": "lora_0", "kind": "LoRA", "rank": 4, "scale": 0.7, "state": "active", "layers": 16,
        "file": "one.safetensors",
    }  # fmt: skip
    assert (merged["name"], merged["kind"], merged["scale"], merged["state"]) == (
        "lora_1",
        "LoKr",
        1.0,
        "merged",
    )
    assert [(told["scale"], told["layers"]) for told in adapters_in(out, "text_encoder_3")] == [(0.7, 1)]
    assert adapters_in(out, "text_encoder") is None and is_free("lora")  # models are what is compared
    with sd35h5.open_store(out) as store:
        files = store.provenance["components"]["lora"]["files"]
        assert [file["name"] for file in files] == ["one.safetensors", "two.safetensors"]
    moved = one.rename(tmp_path / "moved.safetensors")
    status, said = run("--lora", f"{moved}:0.70", str(two))
    assert status == 0 and "complete already" in said
    assert run("--lora", f"{moved}:0.7", str(two), prompts=2)[0] == 0  # goes on
    status, said = run("--lora", f"{moved}:0.6", str(two))
    assert status == 1 and "lora" in said and "0.6" in said
    status, said = run("--lora", f"{two}:0.7", str(moved), prompts=2)
    assert status == 1 and "text_encoder_3 has fingerprint" in said
    status, said = run(prompts=2)
    assert status == 1 and "lora" in said


def test_a_plan_names_the_adapters_and_refuses_files_that_are_none(folder, tmp_path, capsys):
    state = original_mmdit(small_pipeline(dual=(0,)).transformer)
    file = save(tmp_path / "style.safetensors", adapter("LoHa", "ComfyUI", state)[0])
    line = [
        "--model_id",
        str(folder),
        "--prompt",
        "a cat",
        "--dry_run",
        "--attn2_layout",
        "diffusers",
        "--lora",
    ]
    assert capture_cli.main([*line, f"{file}:0.5"]) == 0
    assert "style.safetensors, LoHa of rank 4 at 0.5, merged into the weights" in capsys.readouterr().out
    (tmp_path / "style.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    assert capture_cli.main([*line, str(tmp_path / "style.pt")]) == 1
    assert "nothing is unpickled here" in capsys.readouterr().err
    layer, numbers = "transformer.transformer_blocks.0.attn.to_q.lora_", torch.ones(16, 16)
    state = {f"{layer}A.weight": numbers, f"{layer}B.weight": numbers.clone()}
    dora = save(tmp_path / "dora.safetensors", state | {f"{layer}magnitude_vector": torch.ones(16)})
    assert capture_cli.main([*line, str(dora)]) == 0
    assert "dora.safetensors, DoRA of rank 16 at 1, beside the weights" in capsys.readouterr().out
    assert capture_cli.main([*line, str(dora), "--offload", "sequential"]) == 1
    assert "is a DoRA, which reads weights that --offload sequential has put away" in capsys.readouterr().err
