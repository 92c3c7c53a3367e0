"""Memory that is not enough ends in one sentence with what would fit; sealed samples stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH
from transformers import T5EncoderModel

import capture_cli
from sd35h5 import open_store
from sd35h5.capturing.jobs.out_of_memory import halving
from sd35h5.errors import OutOfMemoryError
from sd35h5.planning.job import make_job
from sd35h5.planning.memory_needs import needs_of, told_as_full
from sd35h5.planning.options import CaptureConfig, Model, Output, Prompts, Sampling
from sd35h5.weights.configs import TRANSFORMERS

GIB = 2**30
FLAGS = f"--height {HEIGHT} --width {WIDTH} --steps 2 --max_sequence_length {T5_TOKENS} --device cpu --maps off".split()
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")
HOST = RuntimeError(
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


def _main(model: Path, out: Path, *more: str) -> int:
    command = ["--model_id", str(model), *FLAGS, "--out", str(out), *more]
    return capture_cli.main([*command, "--prompt", "a cat", "a dog", "a tree", "a red apple"])


def _failing(patch: pytest.MonkeyPatch, of: type, method: str, error: BaseException, at: int = 1) -> None:
    """Let a library's method fail at its n-th call."""
    real, calls = getattr(of, method), []

    def fail(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise error
        return real(self, *args, **kwargs)

    patch.setattr(of, method, fail)


def test_a_decoding_that_does_not_fit_loses_nothing_and_says_what_would(tiny_folder, tmp_path, capsys):
    out = tmp_path / "a.h5"
    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, AutoencoderKL, "decode", CUDA, at=2)
        assert _main(tiny_folder, out, "--batch_size", "2") == 1
    said = capsys.readouterr().err
    assert "2 of 4 samples are sealed" in said and "Traceback" not in said
    assert "error: out of memory (CUDA out of memory): 2 samples a call of 64 × 96 pixels need about" in said
    assert "by a rule of thumb --batch_size 1 into another --out would fit. What is sealed stays" in said
    assert _main(tiny_folder, out, "--batch_size", "2") == 0
    with open_store(out) as store:
        assert store.status == "complete" and len(store) == 4


@pytest.mark.parametrize(
    ("of", "method", "error", "told"),
    [
        (SD3Transformer2DModel, "load_state_dict", MemoryError(), "out of memory (MemoryError): 64 × 96 pixels need"),
        (SD3Transformer2DModel, "forward", HOST, "out of memory ([enforce fail] DefaultCPUAllocator: can't allocate"),
        (T5EncoderModel, "forward", HOST, "out of memory while the text encoders run: a smaller --batch_size"),
        (T5EncoderModel, "load_state_dict", CUDA, "out of memory while the text encoders run"),
    ],
)  # fmt: skip
def test_it_is_told_wherever_it_happens(tiny_folder, tmp_path, capsys, of, method, error, told):
    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, of, method, error)
        assert _main(tiny_folder, tmp_path / "a.h5") == 1
    assert f"error: {told}" in capsys.readouterr().err


def _job(model: str = "stabilityai/stable-diffusion-3.5-large", **sampling: object):
    config = CaptureConfig(Model(model), Prompts(("a cat",) * 8), Sampling(**sampling))
    return make_job(config, offline_guess=True)


@pytest.mark.parametrize("model", TRANSFORMERS)
def test_weights_by_the_rule_are_those_of_the_published_models_within_a_tenth(model):
    with torch.device("meta"):
        published = SD3Transformer2DModel(**TRANSFORMERS[model])
    ruled = needs_of(_job(model), item=2).transformer
    assert 0.87 < ruled / sum(2 * each.numel() for each in published.parameters()) < 1.1


def test_the_rule_gives_what_was_measured_of_sd35_large():
    """On an H100: 18.0 GiB without text encoders, 16.2 with the models in turns; and more with more samples."""
    needs = needs_of(_job(), item=2)
    assert needs.of(1) / GIB == pytest.approx(18.0, abs=0.4)
    assert (
        needs_of(_job(), 2).most(24 * GIB) == 2 and needs.most(80 * GIB) == 16 and needs.most(16 * GIB) == 0
    )
    assert needs.of(3) - needs.of(2) == needs.of(2) - needs.of(1) == needs.decoding


@pytest.mark.parametrize(
    ("sampling", "there", "is_begun", "told"),
    [
        ({"batch_size": 8}, 24, False, "--batch_size 2 would fit"),
        ({"batch_size": 8}, 24, True, "--batch_size 2 into another --out would fit"),
        ({}, 18.5, False, "--offload model or --height 768 --width 768 would fit"),
        ({"height": 512, "width": 768}, 8, False, "--offload sequential would fit"),
        ({}, 1, False, "nothing less is known to fit"),
    ],
)
def test_what_is_proposed_fits_by_the_rule(sampling, there, is_begun, told):
    said = told_as_full(_job(**sampling), 2, int(there * GIB), True, is_begun, "CUDA out of memory")
    assert told in said, said


def test_auto_keeps_to_the_number_of_the_samples_that_are_there(tiny_folder, tmp_path, capsys):
    out = tmp_path / "a.h5"
    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, AutoencoderKL, "decode", KeyboardInterrupt(), at=2)
        assert _main(tiny_folder, out, "--batch_size", "2") == 130
    assert _main(tiny_folder, out, "--batch_size", "auto") == 0
    with open_store(out) as store:
        assert store.config["batch_size"] == 2 and store.status == "complete"
    assert _main(tiny_folder, tmp_path / "b.h5", "--batch_size", "auto") == 0
    assert open_store(tmp_path / "b.h5").config["batch_size"] == 1  # on a CPU
    assert _main(tiny_folder, out, "--batch_size", "auto", "--dry_run") == 0
    assert "as many as fit in a call of the pipeline" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [("--shard", "1/2"), ("--workers", "2")])
def test_auto_is_refused_where_many_processes_draw(tiny_folder, tmp_path, capsys, flags):
    assert _main(tiny_folder, tmp_path / "a.h5", "--batch_size", "auto", *flags) == 1
    assert "--batch_size auto is one process's to choose" in capsys.readouterr().err


def test_a_share_goes_on_after_a_batch_that_did_not_fit_and_tells_what_would(tiny_folder, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, AutoencoderKL, "decode", CUDA)
        assert _main(tiny_folder, tmp_path / "a.h5", "--batch_size", "2", "--shard", "1/1") == 1
    said = capsys.readouterr().err
    assert "2 samples could not be drawn" in said and "2 samples a call of 64 × 96 pixels need about" in said
    assert len(list((tmp_path / "a.h5.parts").glob("0*.h5"))) == 2


def test_too_many_are_halved_until_they_fit_or_one_is_sealed(tiny_folder, tmp_path):
    config = CaptureConfig(
        Model(str(tiny_folder), device="cpu"), Prompts(("a cat",) * 8), Sampling(batch_size=8),
        output=Output(str(tmp_path / "a.h5")),
    )  # fmt: skip
    parts, tried = tmp_path / "a.h5.parts", []

    def draw(job, fitting: int):
        tried.append(job.settings["batch_size"])
        if job.config.sampling.batch_size > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried")
        return job

    assert halving(make_job(config), parts, lambda job: draw(job, 3)).config.sampling.batch_size == 2
    assert tried == [8, 4, 2]
    with pytest.raises(OutOfMemoryError, match="64 × 64 pixels need"):
        halving(make_job(config), parts, lambda job: draw(job, 0))
    parts.mkdir()
    (parts / "000000.h5").touch()
    tried.clear()
    with pytest.raises(OutOfMemoryError, match="8 samples a call"):
        halving(make_job(config), parts, lambda job: draw(job, 3))
    assert tried == [8]
