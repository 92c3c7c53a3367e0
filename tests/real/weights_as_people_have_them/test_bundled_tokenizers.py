"""Weights in single files draw offline with nothing else: SD3's tokenizers are bundled; a folder's own come first."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from making.pipelines import T5_TOKENS, pixels, plain_image
from making.published import published_tokenizers
from making.weights import all_in_one, original_state, save, small_pipeline

import capture_cli
from sd35h5 import open_store
from sd35h5.capturing.pipeline import load
from sd35h5.errors import ConfigError
from sd35h5.planning.options import Model
from sd35h5.weights import sources
from sd35h5.weights.frame import load_tokenizers
from sd35h5.weights.layouts import COMPONENTS
from sd35h5.weights.model_facts import read_facts
from sd35h5.weights.sources import OPTIONS

CALL = {"height": 64, "width": 96, "num_inference_steps": 2, "max_sequence_length": T5_TOKENS}
PROMPT = "a red apple, 猫 and ﬁne café"


@pytest.fixture(scope="module")
def small():
    """A small pipeline with the published vocabularies."""
    return small_pipeline(tokenizers=published_tokenizers())


@pytest.fixture(scope="module")
def files(small, tmp_path_factory) -> dict[str, Path]:
    """Each component in a file of its own."""
    folder = tmp_path_factory.mktemp("single")
    return {
        component: save(
            folder / f"{component}.safetensors", original_state(component, getattr(small, component))
        )
        for component in COMPONENTS
    }


def test_the_bundled_tokenizers_are_those_of_the_published_models():
    found = load_tokenizers(Model(), None, COMPONENTS)
    clip = [49406, 320, 736, 3055, 49407]
    for name, pad in (("tokenizer", 49407), ("tokenizer_2", 0)):
        ids = found[name]("a red apple", padding="max_length", max_length=77)["input_ids"]
        assert ids == clip + [pad] * 72 and found[name].model_max_length == 77
    assert found["tokenizer_3"]("a red apple")["input_ids"] == [3, 9, 1131, 8947, 1]
    assert found["tokenizer_3"].pad_token_id == 0


def test_one_file_draws_with_nothing_else(small, tmp_path, capsys):
    file = save(tmp_path / "all.safetensors", all_in_one(small))
    flags = ["--model_id", str(file), "--prompt", PROMPT, "--steps", "2", "--height", "64", "--width", "96"]
    flags += ["--max_sequence_length", str(T5_TOKENS), "--out", str(tmp_path / "a.h5"), "--device", "cpu"]
    assert capture_cli.main(flags) == 0, capsys.readouterr().err
    with open_store(tmp_path / "a.h5") as store:
        drawn = store.image(0)
    assert np.array_equal(
        np.asarray(drawn), pixels(plain_image(small, PROMPT, 0, guidance_scale=4.5, **CALL))
    )


def test_five_files_draw_without_the_hub(small, files):
    model = Model(**{OPTIONS[component]: str(file) for component, file in files.items()}, device="cpu")
    loaded = load(model, read_facts(model))
    assert np.array_equal(
        pixels(plain_image(loaded.pipe, PROMPT, 1, **CALL)), pixels(plain_image(small, PROMPT, 1, **CALL))
    )


def test_a_file_that_also_holds_the_vae_gives_it_in_place_of_the_hub(small, files, tmp_path):
    held = all_in_one(small, without=("text_encoder", "text_encoder_2", "text_encoder_3"))
    file = save(tmp_path / "dit.safetensors", held)
    options = {
        OPTIONS[each]: str(files[each]) for each in ("text_encoder", "text_encoder_2", "text_encoder_3")
    }
    model = Model(dit_path=str(file), **options, device="cpu")
    loaded = load(model, read_facts(model))
    assert loaded.sources["vae"]["source"] == str(file)
    assert np.array_equal(
        pixels(plain_image(loaded.pipe, PROMPT, 1, **CALL)), pixels(plain_image(small, PROMPT, 1, **CALL))
    )
    own = Model(dit_path=str(file), vae_path=str(files["vae"]), **options, device="cpu")
    assert load(own, read_facts(own)).sources["vae"]["source"] == str(files["vae"])


def test_what_only_the_hub_could_give_is_named_with_its_flag(files):
    model = Model(dit_path=str(files["transformer"]), vae_path=str(files["vae"]))
    with pytest.raises(
        Exception, match=r"from there would come CLIP-L \(--clip_l_path\), .*--t5xxl_path or --no_t5"
    ):
        read_facts(model)


def test_a_folders_own_tokenizers_come_first_and_missing_ones_are_bundled(small, tmp_path):
    tiny = small_pipeline()
    tiny.save_pretrained(tmp_path / "tiny")
    found = load_tokenizers(Model(model_id=str(tmp_path / "tiny")), tmp_path / "tiny", COMPONENTS)
    assert [len(each) for each in found.values()] == [
        len(each) for each in (tiny.tokenizer, tiny.tokenizer_2, tiny.tokenizer_3)
    ]
    small.save_pretrained(tmp_path / "small")
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        shutil.rmtree(tmp_path / "small" / name)
    model = Model(model_id=str(tmp_path / "small"), device="cpu")
    loaded = load(model, read_facts(model))
    assert np.array_equal(
        pixels(plain_image(loaded.pipe, PROMPT, 2, **CALL)), pixels(plain_image(small, PROMPT, 2, **CALL))
    )


def test_encoders_of_another_vocabulary_are_not_given_the_bundled_tokenizers(tmp_path):
    file = save(tmp_path / "all.safetensors", all_in_one(small_pipeline()))
    model = Model(model_id=str(file), device="cpu")
    with pytest.raises(
        ConfigError, match=r"knows \d+ words, SD3's CLIP-L 49408: .* give it with --tokenizer_path"
    ):
        load(model, read_facts(model))


def test_an_installed_package_without_them_asks_for_tokenizer_path(small, tmp_path, monkeypatch):
    file = save(tmp_path / "all.safetensors", all_in_one(small))
    monkeypatch.setattr(sources, "TOKENIZERS_HERE", tmp_path / "nowhere")
    with pytest.raises(
        ConfigError, match="bundled tokenizers are not here .*: give --tokenizer_path, a folder with"
    ):
        read_facts(Model(model_id=str(file)))
    small.save_pretrained(tmp_path / "small")
    read_facts(Model(model_id=str(file), tokenizer_path=str(tmp_path / "small")))
    read_facts(Model(model_id=str(tmp_path / "small")))  # its own are there
