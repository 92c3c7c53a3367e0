"""A capture goes on where what decides the data is the same, however it is spelled; and only there."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from making.pipelines import T5_TOKENS

import capture_cli
from sd35h5 import open_store
from sd35h5.planning.going_on import deciding
from sd35h5.planning.job import make_job
from sd35h5.planning.options import CaptureConfig, Output, Prompts, Sampling, Tiers
from sd35h5.store.runs import begin_run, check_run, parts_of
from sd35h5.weights.model_options import Model

FLAGS = f"--height 64 --width 96 --steps 2 --max_sequence_length {T5_TOKENS} --maps off --topk 0 --device cpu".split()
PROMPTS = ["a cat", "a dog", "a tree"]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def model(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def _main(model: object, out: Path, *more: str, prompts: list[str] = PROMPTS) -> int:
    return capture_cli.main(
        ["--model_id", str(model), "--out", str(out), "--prompt", *prompts, *FLAGS, *more]
    )


def _hashes(path: Path) -> list[str]:
    with open_store(path) as store:
        return list(store.samples["content_sha256"])


def test_paths_spellings_and_the_model_s_place_do_not_matter(model, tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.h5"
    assert _main(model, out, prompts=PROMPTS[:1]) == 0
    before = out.read_bytes()
    monkeypatch.chdir(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(model, target_is_directory=True)
    copied = shutil.copytree(model, tmp_path / "elsewhere")
    for spelled, more in (
        ("model", ()),
        ("./model", ("--dtype", "fp32")),
        ("../" + tmp_path.name + "/model/", ("--dtype", "float")),
        (link, ("--transformer", str(model / "transformer"))),
        (copied, ("--dit_path", str(model / "transformer"), "--tokenizer_path", str(model))),
        (copied, ("--branches", "cond", "--top_steps", "0", "--map_layers", "0-2")),
    ):
        capsys.readouterr()
        assert _main(spelled, out, *more, prompts=PROMPTS[:1]) == 0, capsys.readouterr().err
        assert "is complete already" in capsys.readouterr().err
        assert out.read_bytes() == before


@pytest.mark.parametrize(
    "more, told",
    [
        (("--guidance", "3"), "guidance: 4.5 there, 3.0 now"),
        (("--steps", "3"), "steps: 2 there, 3 now"),
        (("--no_unconditional",), 'branches: ["cond"] there, ["cond", "uncond"] now'),
        (("--seed", "1"), "sample 0 has seed 0 there, 1 now"),
        (("--negative_prompt", "blue"), 'sample 0 has negative_prompt "" there, "blue" now'),
        (("--dtype", "bfloat16"), 'dtype: "float32" there, "bfloat16" now'),
        (("--gate_type", "headwise", "--gate_init", "identity"), "gating: "),
    ],
)
def test_what_decides_the_data_is_refused_with_both_values(model, tmp_path, capsys, monkeypatch, more, told):
    out = tmp_path / "a.h5"
    assert _main(model, out, prompts=PROMPTS[:1]) == 0
    monkeypatch.setattr("sd35h5.capturing.jobs.drawing.prepared", None)  # and before the model is loaded
    assert _main(model, out, *more, prompts=PROMPTS[:1]) == 1
    said = capsys.readouterr().err
    assert "a.h5 was begun with another configuration (" in said and told in said, said


def test_tokenizers_are_compared_by_content_too(model, tmp_path, capsys):
    out = tmp_path / "a.h5"
    assert _main(model, out, prompts=PROMPTS[:1]) == 0
    file = model / "tokenizer_2" / "tokenizer.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(told, indent=3), encoding="utf-8")  # the same, written anew
    assert _main(model, out, prompts=PROMPTS[:1]) == 0
    assert "is it the same model?" in capsys.readouterr().err
    told["model"]["merges"].pop()
    file.write_text(json.dumps(told), encoding="utf-8")
    assert _main(model, out, prompts=PROMPTS[:1]) == 1
    assert "another model (tokenizer_2 has fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_a_longer_list_goes_on_behind_the_old_one(model, tmp_path, capsys, batch_size):
    out, whole = tmp_path / "a.h5", tmp_path / "whole.h5"
    more = ("--batch_size", batch_size)
    assert _main(model, out, *more, prompts=PROMPTS[:1]) == 0
    first = _hashes(out)
    assert _main(model, out, *more) == 0
    assert "1 of 3 samples are sealed already" in capsys.readouterr().err
    assert _hashes(out)[:1] == first and not parts_of(out).exists()
    with open_store(out) as store:
        assert list(store.samples["prompt"]) == PROMPTS and store.status == "complete"
        assert store.config["prompts"] == PROMPTS
        [event] = store.provenance["events"]
        assert event["event"] == "config differs" and event["value"]["prompts"] == PROMPTS[:1]
    if batch_size == "1":
        assert _main(model, whole) == 0
        assert _hashes(whole) == _hashes(out)
    assert _main(model, out, *more) == 0
    assert "is complete already" in capsys.readouterr().err


def test_another_beginning_or_a_shorter_list_than_what_is_sealed_is_refused(model, tmp_path, capsys):
    out = tmp_path / "a.h5"
    assert _main(model, out, prompts=PROMPTS[:2]) == 0
    assert _main(model, out, prompts=["a dog", *PROMPTS]) == 1
    said = capsys.readouterr().err
    assert 'sample 0 has prompt "a cat" there, "a dog" now' in said and "in front" in said
    assert _main(model, out, prompts=PROMPTS[:1]) == 1
    assert "a.h5 holds sample 1, and these options draw samples 0..0" in capsys.readouterr().err


def test_a_run_without_a_sealed_sample_never_blocks_another_configuration(model, tmp_path, capsys):
    out = tmp_path / "a.h5"
    for wrong in (
        ("--gates", str(model / "transformer" / "config.json")),
        ("--dit_path", str(model / "vae")),
    ):
        assert _main(model, out, *wrong, prompts=PROMPTS[:1]) == 1
        assert not parts_of(out).exists()
    parts = begin_run(out, {"steps": 28, "prompts": ["another"]}, planned=7)  # of a run that was killed
    (parts / "000000.h5.tmp").write_bytes(b"half")
    assert _main(model, out, prompts=PROMPTS[:1]) == 0, capsys.readouterr().err
    assert not parts.exists() and len(_hashes(out)) == 1


@pytest.mark.parametrize("name", ["example-baseline", "example-headwise"])
def test_files_of_earlier_versions_go_on(tmp_path, name):
    """Their configuration lacks options that came later, and has paths of another machine."""
    shutil.copy(ROOT / "data" / f"{name}.h5", tmp_path / "run.h5")
    with open_store(tmp_path / "run.h5") as store:
        config, sealed = store.config, store.samples
    job = _example_job(config, sealed, tmp_path)
    now = {**job.settings, "device": "cpu", "dtype": "float32"}
    for before in (config, {**config, "offload": "model", "device": "cuda:3"}):
        told = {name: deciding(settings, job.facts) for name, settings in (("there", before), ("now", now))}
        told["there"]["device"] = "cpu"
        assert told["there"] == told["now"]
    check_run(tmp_path / "run.h5", now, lambda settings: deciding(settings, job.facts))
    assert "batch_size" not in config and "batch_size" in now


def _example_job(config: dict, sealed, folder: Path):
    prompts = [{"id": row.prompt_id, "prompt": row.prompt} for row in sealed.itertuples()]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return make_job(
        replace(
            CaptureConfig(),
            model=Model(model_id=str(ROOT / config["model_id"]), transformer=config["transformer"]),
            prompts=Prompts(prompts_json=str(folder / "prompts.json")),
            sampling=Sampling(steps=config["steps"]),
            tiers=Tiers(),
            output=Output(out=str(folder / "run.h5")),
        )
    )


def test_another_gpu_and_an_offload_are_the_same_and_a_processor_is_not():
    settings = {"device": "cuda:1", "dtype": "bf16", "offload": "sequential"}
    same = {"device": "cuda", "dtype": "bfloat16", "offload": False}
    assert deciding(settings) == deciding(same) != deciding({**same, "device": "cpu"})


def test_the_name_that_a_run_was_begun_with_stays(model, tmp_path):
    out = tmp_path / "a.h5"
    os.symlink(model, tmp_path / "link", target_is_directory=True)
    assert _main(model, out, prompts=PROMPTS[:1]) == 0
    assert _main(tmp_path / "link", out, prompts=PROMPTS[:2]) == 0
    with open_store(out) as store:
        assert store.attributes["model_id"] == str(model) and len(store) == 2
