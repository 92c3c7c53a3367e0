"""Never another model's numbers: weights that changed are told by their fingerprints, through the API and the CLI."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import h5py
import pytest
import torch
from making.pipelines import T5_TOKENS, make_pipeline
from safetensors.torch import load_file, save_file

import capture_cli
import sd35h5
from sd35h5 import open_store
from sd35h5.errors import CaptureError
from sd35h5.gates.modules import build_gates, install_gates
from sd35h5.weights.in_memory.fingerprint import fingerprint, fingerprints

FLAGS = f"--height 64 --width 96 --steps 2 --max_sequence_length {T5_TOKENS} --maps off --topk 0 --device cpu".split()


@pytest.fixture
def pipe():
    return make_pipeline()


@pytest.fixture
def short(call) -> dict:
    return {**call, "num_inference_steps": 2}


def _change(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] += 0.5


def _capture(pipe, out: Path, short: dict, seeds: range, **options):
    with sd35h5.capture(pipe, out, maps="off", topk=0, **options) as generate:
        for seed in seeds:
            generate("a cat", seed=seed, **short)


@pytest.mark.parametrize("component", ["transformer", "text_encoder_3", "vae"])
def test_the_same_calls_with_other_weights_do_not_get_the_old_numbers(pipe, short, tmp_path, component):
    out = tmp_path / "a.h5"
    _capture(pipe, out, short, range(1))
    there = fingerprint(getattr(pipe, component))[:8]
    _change(getattr(pipe, component))
    before, now = out.read_bytes(), fingerprint(getattr(pipe, component))[:8]
    sentence = (
        f"a.h5 holds samples of another model \\({component} has fingerprint {there} there, {now} now\\)"
    )
    with pytest.raises(CaptureError, match=sentence):
        _capture(pipe, out, short, range(1))
    assert out.read_bytes() == before and not (tmp_path / "a.h5.parts").exists()
    _capture(pipe, out, short, range(1), overwrite=True)
    with open_store(out) as store:
        assert store.provenance["components"][component]["fingerprint"][:8] == now


def test_weights_that_change_while_it_captures_are_noticed_before_the_next_sample_is_sealed(
    pipe, short, tmp_path
):
    out = tmp_path / "a.h5"
    with sd35h5.capture(pipe, out, maps="off", topk=0) as generate:
        _change(pipe.transformer)  # before the first sample it is just the model
        generate("a cat", seed=0, **short)
        kept = copy.deepcopy(pipe.transformer.state_dict())
        for parameter in pipe.transformer.parameters():
            parameter.data *= 1.001  # past the versions that autograd counts
        with pytest.raises(CaptureError, match="transformer has fingerprint"):
            generate("a cat", seed=1, **short)
        pipe.transformer.load_state_dict(kept)
        generate("a cat", seed=1, **short)
    with open_store(out) as store:
        assert len(store) == 2 and store.status == "complete"


def test_weights_that_change_after_a_call_that_failed_are_looked_at_anew(pipe, short, tmp_path):
    def fails(pipe, step, at, tensors):
        raise RuntimeError("on the way")

    out = tmp_path / "a.h5"
    with pytest.raises(RuntimeError), sd35h5.capture(pipe, out, maps="off", topk=0) as generate:
        with pytest.raises(RuntimeError):
            generate("a cat", seed=0, **short, callback_on_step_end=fails)
        _change(pipe.transformer)
        generate("a cat", seed=0, **short)
        generate("a cat", seed=1, **short, callback_on_step_end=fails)
    with open_store(tmp_path / "a.h5.parts") as store:  # told of as it was when it drew
        told = store.provenance["components"]["transformer"]["fingerprint"]
    assert told == fingerprint(pipe.transformer)
    with pytest.raises(CaptureError), sd35h5.capture(pipe, out, maps="off", topk=0) as generate:
        with pytest.raises(RuntimeError):
            generate("a cat", seed=0, **short, callback_on_step_end=fails)
        _change(pipe.transformer)
        generate("a cat", seed=0, **short)


def test_gates_put_on_forced_or_taken_off_are_another_model(pipe, short, tmp_path):
    out = tmp_path / "a.h5"
    _capture(pipe, out, short, range(1))
    gates = build_gates(pipe.transformer, "headwise")
    install_gates(pipe.transformer, gates)
    with pytest.raises(CaptureError, match="gate_type is none there, headwise now"):
        _capture(pipe, out, short, range(1))
    for again in range(2):
        with torch.no_grad():
            next(gates.modules.parameters()).add_(0.25)
        if not again:
            _capture(pipe, tmp_path / "b.h5", short, range(1))
    with pytest.raises(CaptureError, match="gates has fingerprint .* there"):
        _capture(pipe, tmp_path / "b.h5", short, range(1))


def test_every_sealed_sample_tells_its_model_and_so_does_the_packed_file(pipe, short, tmp_path):
    parts = tmp_path / "a.h5.parts"
    with pytest.raises(RuntimeError), sd35h5.capture(pipe, tmp_path / "a.h5", maps="off", topk=0) as generate:
        generate("a cat", seed=0, **short)
        raise RuntimeError
    expected = fingerprints(pipe)
    _capture(pipe, tmp_path / "b.h5", short, range(1))
    for path in (parts / "000000.h5", tmp_path / "b.h5"):
        with h5py.File(path) as file:
            told = json.loads(file["provenance/components"][()])
        assert {name: told[name]["fingerprint"] for name in expected} == expected
        assert set(told) - set(expected) == {"tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"}


def test_samples_of_an_earlier_version_have_no_fingerprint_and_go_on(pipe, short, tmp_path):
    out = tmp_path / "a.h5"
    _capture(pipe, out, short, range(1))
    _forget_fingerprints(out)
    _capture(pipe, out, short, range(1))


def _forget_fingerprints(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        told = json.loads(file["provenance/components"][()])
        for each in told.values():
            each.pop("fingerprint", None)
        del file["provenance/components"]
        file["provenance/components"] = json.dumps({k: v for k, v in told.items() if "tokenizer" not in k})


@pytest.fixture
def model(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def _main(model: Path, out: Path, *more: str) -> int:
    return capture_cli.main(["--model_id", str(model), "--out", str(out), "--prompt", "a cat", *FLAGS, *more])


def _change_file(model: Path, component: str = "transformer", scale: float = 1.5) -> None:
    [file] = (model / component).glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] * scale}, file, {"format": "pt"})


@pytest.mark.parametrize("is_old", [False, True])
def test_a_weight_file_changed_in_place_is_not_complete_already(model, tmp_path, capsys, is_old):
    out = tmp_path / "a.h5"
    assert _main(model, out) == 0
    if is_old:
        _forget_fingerprints(out)
    _change_file(model, "text_encoder")
    before = out.read_bytes()
    assert _main(model, out) == 1
    said = capsys.readouterr().err
    what = "sha256" if is_old else "fingerprint"
    assert f"another model (text_encoder has {what} " in said and "--overwrite" in said
    assert "complete already" not in said and out.read_bytes() == before
    assert not (tmp_path / "a.h5.parts").exists()
    assert _main(model, out, "--overwrite") == 0


def test_a_run_that_is_complete_loads_no_model(model, tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.h5"
    assert _main(model, out) == 0
    monkeypatch.setattr("sd35h5.capturing.jobs.drawing.prepared", None)
    assert _main(model, out) == 0
    assert "is complete already" in capsys.readouterr().err


def test_files_that_only_look_other_are_the_same_model(model, tmp_path, capsys):
    """The same tensors in a file with other metadata: no hash of the file tells, the model in memory does."""
    out = tmp_path / "a.h5"
    assert _main(model, out) == 0
    [file] = (model / "transformer").glob("*.safetensors")
    save_file(load_file(file), file, {"format": "pt", "note": "saved again"})
    assert _main(model, out) == 0
    said = capsys.readouterr().err
    assert "is it the same model?" in said and "is complete already" in said


def test_a_model_of_another_shape_is_refused_before_it_is_loaded(model, tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.h5"
    assert _main(model, out) == 0
    make_pipeline(num_layers=2).save_pretrained(tmp_path / "other")
    monkeypatch.setattr("sd35h5.capturing.jobs.drawing.prepared", None)
    assert _main(tmp_path / "other", out) == 1
    assert (
        "another model (3 layers, 2 heads of 8 there, 2 layers, 2 heads of 8 now)" in capsys.readouterr().err
    )


def test_a_gates_file_that_was_exchanged_or_removed_is_noticed(model, tmp_path, capsys):
    out = tmp_path / "a.h5"
    gated = ("--transformer", "transformer_headwise")
    assert _main(model, out, *gated) == 0
    gates = model / "transformer_headwise" / "gates.safetensors"
    tensors = load_file(gates)
    with open(gates, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))["__metadata__"]
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, gates, header)
    assert _main(model, out, *gated) == 1
    assert "gates has fingerprint" in capsys.readouterr().err
    gates.unlink()
    assert _main(model, out, *gated) == 1
    assert "gate_type is headwise there, none now" in capsys.readouterr().err


def test_a_sample_id_names_one_sample_and_stays(pipe, short, tmp_path):
    out = tmp_path / "a.h5"
    names = ["p000-seed0", "p000-seed0-2", "p000-seed0-3", "p001-seed0"]

    def draw(count: int) -> None:
        with sd35h5.capture(pipe, out, maps="off", topk=0) as generate:
            for scale in (2.0, 4.0, 8.0)[:count]:
                generate("a cat", seed=0, **{**short, "guidance_scale": scale})
            if count == 3:
                generate("a dog", seed=0, **short)
                return
            raise RuntimeError

    with pytest.raises(RuntimeError):
        draw(2)
    with open_store(out) as store:
        assert list(store.samples["sample_id"]) == names[:2]
    draw(3)
    with open_store(out) as store:
        assert list(store.samples["sample_id"]) == names
