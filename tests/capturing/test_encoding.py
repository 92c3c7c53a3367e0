"""Text encoders run first and are let go: pictures stay the plain pipeline's, and going on needs no encoder."""

from __future__ import annotations

import gc
import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH, pixels, torch_generator
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, T5EncoderModel

import capture_cli
from sd35h5 import open_store
from sd35h5.capturing.call import Drawing
from sd35h5.capturing.encoder_masks import masked_encoders
from sd35h5.capturing.encoding import Encoding, encode_texts
from sd35h5.capturing.pipeline import Prepared, prepared
from sd35h5.weights.in_memory.fingerprint import fingerprints
from sd35h5.weights.model_facts import read_facts
from sd35h5.weights.model_options import Model

PROMPTS = ["a red apple", "a cat left of a dog on blue", "a tree", "a red apple"]
SEED, STEPS = 5, 2
FLAGS = (
    f"--height {HEIGHT} --width {WIDTH} --steps {STEPS} --max_sequence_length {T5_TOKENS} --seed {SEED} --device cpu "
    "--maps off --topk 0"
).split()
CASES = {
    "alone": ([], {}),
    "in batches, against another text": (
        ["--batch_size", "3", "--negative_prompt", "green"], {"negative_prompt": "green"},
    ),
    "masked": (["--apply_lg_attn_mask", "--apply_t5_attn_mask", "--batch_size", "2"], {}),
    "without T5": (["--no_t5", "--batch_size", "2"], {}),
    "without guidance": (["--guidance", "1", "--batch_size", "4"], {"guidance_scale": 1.0}),
}  # fmt: skip


def _command(model: Path, out: Path, *more: str) -> list[str]:
    return ["--model_id", str(model), *FLAGS, "--out", str(out), "--prompt", *PROMPTS, *more]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.long] if case in ("alone", "without guidance") else [])
        for case in CASES
    ],
)
def test_pictures_are_the_plain_pipelines_to_the_bit(tiny_folder, tiny_pipeline, tmp_path, case):
    flags, arguments = CASES[case]
    out = tmp_path / "a.h5"
    assert capture_cli.main(_command(tiny_folder, out, *flags)) == 0
    size = int(flags[flags.index("--batch_size") + 1]) if "--batch_size" in flags else 1
    pipe = type(tiny_pipeline)(
        **tiny_pipeline.components | ({"text_encoder_3": None} if "--no_t5" in flags else {})
    )
    pipe.set_progress_bar_config(disable=True)
    masks = ("clip", "t5") if "--apply_t5_attn_mask" in flags else ()
    with open_store(out) as store, masked_encoders(pipe, masks):
        for first in range(0, len(PROMPTS), size):
            prompts = PROMPTS[first : first + size]
            generators = [torch_generator(SEED + first + place) for place in range(len(prompts))]
            plain = pipe(
                prompts, generator=generators, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS,
                max_sequence_length=T5_TOKENS, **{"guidance_scale": 4.5, **arguments},
            ).images  # fmt: skip
            for place, image in enumerate(plain):
                assert np.array_equal(pixels(image), store.image(first + place)), (case, first + place)
        told = store.provenance["components"]
        assert store.samples["sealed"].all()
    expected = fingerprints(pipe)
    assert {name: told[name]["fingerprint"] for name in expected} == expected
    encoder = told["text_encoder_2"]
    assert encoder["class"] == "CLIPTextModelWithProjection" and encoder["dtype"] == "float32"
    assert encoder["parameters"] == sum(each.numel() for each in pipe.text_encoder_2.parameters())
    assert ("text_encoder_3" in told) == ("--no_t5" not in flags)


@contextmanager
def _counted(of: type, method: str, stopping_at: int = 0) -> Iterator[list]:
    """Count the calls of a library's method; Ctrl-C in one of them."""
    real, calls = getattr(of, method), []

    def counting(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == stopping_at:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, method, counting)
        yield calls


def _encoders_in_memory() -> int:
    """Text encoders that have weights, anywhere in this process."""
    gc.collect()
    kinds = (CLIPTextModelWithProjection, T5EncoderModel)
    models = [each for each in gc.get_objects() if type(each) in kinds]
    return sum(not next(model.parameters()).is_meta for model in models)


def test_no_text_encoder_is_in_memory_while_the_transformer_is_read_and_draws(tiny_folder, tmp_path):
    before, real, seen = _encoders_in_memory(), AutoencoderKL.decode, []
    read, reading = Prepared.pipeline, []

    def pipeline(ready, **kwargs):
        reading.append(_encoders_in_memory())
        return read(ready, **kwargs)

    def decode(vae, *args, **kwargs):
        seen.append(_encoders_in_memory())
        return real(vae, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, _counted(T5EncoderModel, "forward") as calls:
        patch.setattr(AutoencoderKL, "decode", decode)
        patch.setattr(Prepared, "pipeline", pipeline)
        assert capture_cli.main(_command(tiny_folder, tmp_path / "a.h5")) == 0
    assert reading == [before] and seen == [before] * len(PROMPTS)
    assert (
        len(calls) == 4
    )  # equal texts once: three prompts, and the empty one that all are steered away from


def test_going_on_reads_what_is_kept_and_forgets_it_with_the_pack(tiny_folder, tmp_path):
    whole, out = tmp_path / "whole.h5", tmp_path / "a.h5"
    assert capture_cli.main(_command(tiny_folder, whole)) == 0
    with _counted(AutoencoderKL, "decode", stopping_at=3):
        assert capture_cli.main(_command(tiny_folder, out)) == 130
    texts = tmp_path / "a.h5.parts" / "texts"
    kept = sorted(texts.iterdir())
    assert len(kept) == 4 and {path.suffix for path in kept} == {".safetensors"}
    with (
        _counted(T5EncoderModel, "forward") as calls,
        _counted(CLIPTextModelWithProjection, "forward") as others,
    ):
        assert capture_cli.main(_command(tiny_folder, out)) == 0
    assert not calls and not others and not texts.parent.exists()
    with open_store(whole) as first, open_store(out) as second:
        assert list(first.samples["content_sha256"]) == list(second.samples["content_sha256"])
        assert first.provenance["components"] == second.provenance["components"]


def test_stopped_while_it_reads_the_prompts_it_goes_on_with_the_others(tiny_folder, tmp_path, capsys):
    out = tmp_path / "a.h5"
    with _counted(T5EncoderModel, "forward", stopping_at=3):
        assert capture_cli.main(_command(tiny_folder, out)) == 130
    texts = tmp_path / "a.h5.parts" / "texts"
    kept = sorted(texts.iterdir())
    assert len(kept) == 2 and "2 of 4 batches of texts are encoded; the same" in capsys.readouterr().err
    kept[0].write_bytes(kept[0].read_bytes()[:-9])  # a disk that was full
    with _counted(T5EncoderModel, "forward") as calls:
        assert capture_cli.main(_command(tiny_folder, out)) == 0
    assert len(calls) == 3 and open_store(out).status == "complete"


def test_other_text_encoders_are_refused_before_the_transformer_is_read(tiny_folder, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "a.h5"
    shutil.copytree(tiny_folder, model)
    with _counted(AutoencoderKL, "decode", stopping_at=3):
        assert capture_cli.main(_command(model, out)) == 130
    weights = model / "text_encoder_3" / "model.safetensors"
    changed = load_file(weights)
    changed["shared.weight"] = changed["shared.weight"] + 0.5
    save_file(changed, weights, {"format": "pt"})
    sealed = {path: path.read_bytes() for path in (tmp_path / "a.h5.parts").glob("*.h5")}
    capsys.readouterr()
    assert capture_cli.main(_command(model, out)) == 1
    said = capsys.readouterr().err
    assert "a.h5 holds samples of another model (text_encoder_3 has fingerprint" in said
    assert {path: path.read_bytes() for path in sealed} == sealed
    assert capture_cli.main(_command(model, out, "--overwrite")) == 0
    with open_store(out) as store:
        assert len(store) == len(PROMPTS) and store.status == "complete"


def test_text_encoders_that_give_nan_are_told_with_the_weight_and_nothing_is_drawn(
    tiny_folder, tmp_path, capsys
):
    model, out = tmp_path / "model", tmp_path / "a.h5"
    shutil.copytree(tiny_folder, model)
    weights = model / "text_encoder_3" / "model.safetensors"
    broken = load_file(weights)
    broken["encoder.final_layer_norm.weight"][1] = torch.nan
    save_file(broken, weights, {"format": "pt"})
    assert capture_cli.main(_command(model, out)) == 1
    said = capsys.readouterr().err
    assert "what the text encoders give is not finite" in said
    assert "encoder.final_layer_norm.weight of its weights holds such numbers" in said
    assert not out.exists() and not (tmp_path / "a.h5.parts").exists()


def test_skip_layer_guidance_reads_embeddings_as_it_reads_texts(tiny_pipeline, tiny_folder, tmp_path):
    """The command line has no flag for it; a call that has it keeps it when its texts are replaced."""
    arguments = {
        "height": HEIGHT, "width": WIDTH, "num_inference_steps": 4, "max_sequence_length": T5_TOKENS,
        "skip_guidance_layers": [1], "skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.9,
        "negative_prompt": ["green", "blue"],
    }  # fmt: skip
    prompts = PROMPTS[:2]
    model = Model(model_id=str(tiny_folder), device="cpu")
    with prepared(model, read_facts(model)) as ready:
        texts = [tuple(prompts), tuple(arguments["negative_prompt"])]
        encoded = encode_texts(ready, texts, Encoding(T5_TOKENS), tmp_path / "a.h5.parts", [])
        pipe, _, _ = ready.pipeline(with_encoders=False)
    pipe.set_progress_bar_config(disable=True)
    drawing = Drawing.bind(inspect.signature(pipe.__call__), (prompts,), arguments, 3)
    drawn = pipe(**encoded.instead_of_texts(drawing, pipe._execution_device).arguments).images
    generators = [torch_generator(3), torch_generator(4)]
    plain = tiny_pipeline(prompts, generator=generators, **arguments).images
    assert pipe.text_encoder_3 is None
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(drawn, plain, strict=True))
