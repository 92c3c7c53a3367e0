"""A file of gates that was taken out of a checkpoint works on that very checkpoint, and answers what it asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from making.weights import original_mmdit, output, save, small_pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sd35h5.__main__ import main
from sd35h5.capturing.pipeline import load
from sd35h5.errors import ConfigError
from sd35h5.gates.forms import fuse_gates, separate_gates
from sd35h5.gates.gate_options import GateOptions
from sd35h5.gates.modules import build_gates, gate_tensors, gates_of
from sd35h5.gates.texts import parse_layers
from sd35h5.planning.job import resolve
from sd35h5.planning.options import CaptureConfig, Model
from sd35h5.planning.prompts import Prompt
from sd35h5.weights.model_facts import read_facts

FORMS = {"fused": fuse_gates, "gate_proj": separate_gates}
ANSWERS = GateOptions(attn2_layout="sd-scripts", gate_zero_rows="off")


@pytest.fixture(scope="module")
def small():
    return small_pipeline(dual=(0,))


@pytest.fixture(scope="module")
def small_folder(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extracted") / "small"
    small.save_pretrained(folder)
    return folder


def _gates(small, gate_type: str) -> dict[str, torch.Tensor]:
    gates = build_gates(small.transformer, gate_type, target="all")
    random = torch.Generator().manual_seed(3)
    tensors = {key: torch.randn(each.shape, generator=random) for key, each in gate_tensors(gates).items()}
    return {
        key: each for key, each in tensors.items() if ".1." not in key
    }  # layer 1 is without, its rows zero


def _checkpoint(small, folder: Path, form: str, gate_type: str) -> Path:
    state = FORMS[form](original_mmdit(small.transformer), _gates(small, gate_type))
    return save(folder / "gated.safetensors", state)


def _extract(checkpoint: Path, out: Path, *flags: str) -> Path:
    assert main(["gates", "extract", str(checkpoint), "--out", str(out), *flags]) == 0
    return out


@pytest.mark.parametrize("gate_type", ["headwise", "elementwise"])
@pytest.mark.parametrize("form", FORMS)
def test_extracted_gates_draw_on_their_own_checkpoint_what_it_draws(
    form, gate_type, small, small_folder, tmp_path
):
    checkpoint = _checkpoint(small, tmp_path, form, gate_type)
    flags = ["--attn2_layout", "sd-scripts", *(["--gate_zero_rows", "off"] if form == "fused" else [])]
    file = _extract(checkpoint, tmp_path / "gates.safetensors", *flags)
    answers = ANSWERS if form == "fused" else GateOptions(attn2_layout="sd-scripts")
    own = Model(model_id=str(small_folder), dit_path=str(checkpoint), device="cpu")
    taken = Model(model_id=str(small_folder), dit_path=str(checkpoint), gates=str(file), device="cpu")
    first = load(own, read_facts(own), answers).pipe.transformer
    facts = read_facts(taken)
    assert resolve(CaptureConfig(taken), [Prompt("a", "a cat")], facts).gates.attn2_layout == "sd-scripts"
    again = load(taken, facts).pipe.transformer  # the file answers: nothing is asked
    assert gates_of(again).layers == gates_of(first).layers == (0, 2)
    assert torch.equal(output("transformer", again), output("transformer", first))
    assert not torch.equal(output("transformer", again), output("transformer", small.transformer))


@pytest.mark.parametrize("change", ["a value", "a layer fewer", "another dtype"])
def test_other_gates_on_a_gated_checkpoint_are_refused(change, small, small_folder, tmp_path):
    checkpoint = _checkpoint(small, tmp_path, "fused", "headwise")
    flags = ["--attn2_layout", "diffusers", "--gate_zero_rows", "off"]
    file = _extract(checkpoint, tmp_path / "gates.safetensors", *flags)
    held = load_file(file)
    if change == "a value":
        held["transformer_blocks.0.attn.to_gate.bias"][1] += 1e-3
    elif change == "a layer fewer":
        held = {key: each for key, each in held.items() if ".0.attn2." not in key}
    else:
        held = {key: each.half() for key, each in held.items()}
    other = tmp_path / "other.safetensors"
    save_file(held, other, {"gate_type": "headwise", "activation": "sigmoid", "attn2_layout": "diffusers"})
    model = Model(model_id=str(small_folder), dit_path=str(checkpoint), gates=str(other), device="cpu")
    with pytest.raises(
        ConfigError, match="gated.safetensors holds gates of its own, and .*other.safetensors others"
    ):
        read_facts(model)


def test_layout_and_zero_rows_are_asked_together_by_extract_too(small, tmp_path, capsys):
    checkpoint = _checkpoint(small, tmp_path, "fused", "headwise")
    assert main(["gates", "extract", str(checkpoint), "--out", str(tmp_path / "g.safetensors")]) == 1
    said = capsys.readouterr().err
    assert "say --attn2_layout sd-scripts if" in said and "say --gate_zero_rows off or" in said
    assert not (tmp_path / "g.safetensors").exists()


def test_layout_and_zero_rows_are_asked_together_by_a_capture(small, small_folder, tmp_path):
    checkpoint = _checkpoint(small, tmp_path, "fused", "headwise")
    model = Model(model_id=str(small_folder), dit_path=str(checkpoint))
    with pytest.raises(
        ConfigError, match="--attn2_layout sd-scripts if .*; and .* --gate_zero_rows off or --gate_z"
    ):
        resolve(CaptureConfig(model), [Prompt("a", "a cat")], read_facts(model))


def test_a_gates_file_that_does_not_tell_the_layout_leaves_the_question_to_the_model(
    small, small_folder, tmp_path
):
    file = tmp_path / "gates.safetensors"
    save_file(_gates(small, "headwise"), file, {"gate_type": "headwise", "activation": "sigmoid"})
    bare = save(tmp_path / "dit.safetensors", original_mmdit(small.transformer))
    model = Model(model_id=str(small_folder), dit_path=str(bare), gates=str(file))
    with pytest.raises(
        ConfigError, match="dit.safetensors is an MMDiT-X in the original layout, .* --attn2_layout"
    ):
        resolve(CaptureConfig(model), [Prompt("a", "a cat")], read_facts(model))
    folder = Model(model_id=str(small_folder), gates=str(file))
    job = resolve(CaptureConfig(folder), [Prompt("a", "a cat")], read_facts(folder))
    assert job.gates.attn2_layout == "diffusers"


def test_what_tells_who_trained_a_gated_checkpoint_is_heeded_everywhere(
    small, small_folder, tmp_path, capsys
):
    """By a capture of it, by one that takes its gates alone, by inspect and by extract."""
    state = separate_gates(original_mmdit(small.transformer), _gates(small, "headwise"))
    checkpoint, out = tmp_path / "gated.safetensors", tmp_path / "gates.safetensors"
    told = {"modelspec.architecture": "stable-diffusion-3-3-5-medium"}  # as sd-scripts writes it
    save_file({key: each.contiguous() for key, each in state.items()}, checkpoint, told)
    models = (
        Model(model_id=str(small_folder), dit_path=str(checkpoint)),
        Model(model_id=str(small_folder), gates=str(checkpoint)),
    )
    for model in models:
        facts = read_facts(model)
        job = resolve(CaptureConfig(model), [Prompt("a", "a cat")], facts)
        assert job.gates.attn2_layout == "sd-scripts"
        said = CaptureConfig(model, gating=GateOptions(attn2_layout="diffusers"))
        assert resolve(said, [Prompt("a", "a cat")], facts).gates.attn2_layout == "diffusers"
    assert main(["gates", "inspect", str(checkpoint), "--json"]) == 0
    assert '"attn2_layout": "sd-scripts"' in capsys.readouterr().out
    _extract(checkpoint, out)
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["attn2_layout"] == "sd-scripts"


@pytest.mark.parametrize(
    ("text", "layers"),
    [("all", ()), (" all ", ()), ("1 2", (1, 2)), ("0  3-5, 9", (0, 3, 4, 5, 9)), ("0,1", (0, 1)), ("", ())],
)
def test_layers_are_read_as_trainers_write_them(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["all,1", "one", "1 -2", "1;2", "3-1"])
def test_layers_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="is not understood: write layers such as 0-11,24, or all"):
        parse_layers(text)
