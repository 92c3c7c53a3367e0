"""Several samples in one call of the pipeline: each is measured as if it were drawn alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH, make_pipeline, pixels, torch_generator

import capture_cli
import sd35h5
from sd35h5 import open_store
from sd35h5.capturing.encoder_masks import masked_encoders
from sd35h5.errors import CaptureError, ConfigError, StoreError
from sd35h5.gates.attention import JointQKV
from sd35h5.gates.modules import build_gates, install_gates
from sd35h5.measuring.batch_probe import rows_of
from sd35h5.planning.interventions import CausalOptions
from sd35h5.planning.options import CaptureConfig, Prompts, Sampling
from sd35h5.planning.validation import validate

PROMPTS = ["a red apple", "a cat left of a dog on blue", "a tree"]
SEED, STEPS = 5, 3
EVERYTHING = {
    "precision": "exact", "no_unconditional": True, "text_queries": True, "atlas": True, "map_heads": "all",
    "map_pool": 1, "map_steps": "0,2", "top_steps": "0,2", "rows": ("centre", "word:red"),
    "raw": ("steps=1", "layers=0,2"),
}  # fmt: skip
CASES = {
    "gated, with attn2, every tier": ({}, EVERYTHING),
    "skip layers, encoders masked": (
        {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.9},
        {"precision": "exact", "encoder_masks": ("clip", "t5")},
    ),
    "not guided": ({"guidance_scale": 1.0}, {"precision": "exact"}),
}


@pytest.fixture(scope="module")
def pipe():
    """The tiny pipeline with attn2 in two of three layers, and gates on both attentions."""
    pipe = make_pipeline(dual_attention_layers=(0, 2))
    gates = build_gates(pipe.transformer, "elementwise", target="all")
    for _, _, gate in gates.all():
        for parameter in gate.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    install_gates(pipe.transformer, gates)
    return pipe


@pytest.fixture(scope="module", params=CASES, ids=str)
def both(request, pipe, call, tmp_path_factory):
    """(arguments, options, images of the batch, its store, the store of the same samples one by one)."""
    arguments, options = CASES[request.param]
    arguments = {**call, "num_inference_steps": STEPS, "negative_prompt": "green", **arguments}
    folder = tmp_path_factory.mktemp("batch")
    with sd35h5.capture(pipe, folder / "batch.h5", **options) as generate:
        images = generate(PROMPTS, seed=SEED, **arguments).images
    with sd35h5.capture(pipe, folder / "single.h5", **options) as generate:
        for place, prompt in enumerate(PROMPTS):
            generate(prompt, seed=SEED + place, **arguments)
    with open_store(folder / "batch.h5") as batch, open_store(folder / "single.h5") as single:
        yield arguments, options, images, batch, single


def test_a_batch_draws_what_the_plain_pipeline_draws_to_the_bit(both, pipe):
    arguments, options, images, batch, _ = both
    generators = [torch_generator(SEED + place) for place in range(len(PROMPTS))]
    with masked_encoders(pipe, options.get("encoder_masks", ())):
        plain = pipe(PROMPTS, generator=generators, **arguments).images
    for place, image in enumerate(plain):
        assert np.array_equal(pixels(image), pixels(images[place]))
        assert np.array_equal(pixels(image), batch.image(place))


def test_each_sample_of_a_batch_is_measured_as_if_it_were_drawn_alone(both):
    *_, batch, single = both
    assert batch.variables == single.variables
    told = ["prompt", "negative_prompt", "seed", "prompt_id", "prompt_index", "image_index", "sample_id"]
    assert batch.samples[told].equals(single.samples[told])
    compared = set()
    with h5py.File(batch.path) as first, h5py.File(single.path) as second:
        for name in batch.variables:
            if name.startswith(("images/", "samples/")):
                continue
            values, alone = first[name][:], second[name][:]
            if values.dtype.kind != "f":
                same = values == alone
                if "/top_" in name:  # keys of nearly equal mass may change places
                    tied = _is_near_a_tie(second[name.rpartition("/")[0] + "/top_mass"][:])
                    assert tied.mean() < 0.3
                    same |= tied
                assert same.all(), name
            else:
                assert np.isfinite(values).any() and not np.array_equal(values[0], values[1]), name
                np.testing.assert_allclose(values, alone, rtol=1e-3, atol=1e-6, err_msg=name)
            compared.add(name)
    assert {"sinks/mass_image", "sinks/mass_group", "topk/top_index", "tokens/token_text"} <= compared


def _is_near_a_tie(mass: np.ndarray) -> np.ndarray:
    """True where the key before or behind has the same mass, about; the last rank's successor is not known."""
    near = mass[..., 1:] > mass[..., :-1] * (1 - 1e-3)
    edge = np.ones_like(near[..., :1])
    return np.concatenate([near, edge], -1) | np.concatenate([~edge, near], -1)


def test_the_rows_of_all_samples_are_the_batch_and_views_of_it():
    batch = JointQKV(*(torch.randn(6, 2, 5, 4) for _ in range(3)), image_tokens=3)
    gates = torch.randn(6, 3, 2), None
    for sample in range(3):
        assert rows_of(None, sample, 3) is None
        own = rows_of(batch, sample, 3)
        assert own.image_tokens == 3 and own.key.data_ptr() == batch.key[sample].data_ptr()
        assert torch.equal(own.query, batch.query[[sample, 3 + sample]])
        assert torch.equal(rows_of(gates, sample, 3)[0], gates[0][[sample, 3 + sample]])
        assert rows_of(gates, sample, 3)[1] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": [1, 2, 3]}, "there are 3 seeds for 2 prompts"),
        ({"seed": None, "generator": torch.Generator("cpu")}, "there are 1 generators for 2 prompts"),
        ({"negative_prompt": ["a", "b", "c"]}, "there are 3 texts in negative_prompt for 2 prompts"),
        ({"prompt_2": "a tree"}, "prompt_2 is one text for 2 prompts: give a list of 2"),
        ({"prompt": ["a cat", 3]}, "prompt is a int, not a text"),
        ({"prompt": []}, "needs a prompt"),
    ],
)
def test_a_list_whose_samples_cannot_be_told_apart_is_refused(tiny_pipeline, call, tmp_path, changes, said):
    with (
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate,
        pytest.raises(CaptureError, match=said),
    ):
        generate(**{"prompt": ["a cat", "a dog"], "seed": 0, **call, **changes})


def test_a_list_may_have_its_own_seeds_generators_latents_and_texts(tiny_pipeline, call, tmp_path):
    call = {**call, "num_inference_steps": 2}
    latents = torch.randn(2, 16, HEIGHT // 8, WIDTH // 8, generator=torch_generator(0))
    ways = [
        {"seed": [7, 3]},
        {"generator": [torch_generator(7), torch_generator(3)]},
        {"seed": 7, "latents": latents},
        {"seed": [7, 3], "negative_prompt": ["green", "blue"], "prompt_3": ["a tree", "a dog"]},
    ]
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", maps="off", topk=0, no_images=True) as generate:
        for way in ways:
            generate(["a cat", "a cat"], **way, **call)
    with open_store(tmp_path / "a.h5") as store:
        samples = store.samples
        words = [set(store.tokens(sample)["text"][77:]) for sample in (6, 7)]
    assert list(samples["seed"]) == [7, 3, 7, 3, -1, -1, 7, 3]
    assert list(samples["negative_prompt"]) == [""] * 6 + ["green", "blue"]
    assert "tree" in words[0] - words[1] and "dog" in words[1] - words[0]
    assert list(samples["image_index"]) == list(range(8)) and set(samples["prompt_index"]) == {0}
    keys = list(samples["pairing_key"])
    assert keys[:2] == keys[2:4] and len(set(keys)) == 6


def test_interventions_on_several_samples_at_once_are_refused(tiny_pipeline, call, tmp_path):
    asked = CaptureConfig(
        prompts=Prompts(prompt=("a cat",)), sampling=Sampling(batch_size=2),
        causal=CausalOptions(intervene=("mask:clip_bos",)),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="--intervene alters one sample at a time: leave out --batch_size"):
        validate(asked)
    with (
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", intervene="mask:clip_bos") as generate,
        pytest.raises(CaptureError, match="one sample at a time, and this call has 2 prompts"),
    ):
        generate(["a cat", "a dog"], seed=0, **call)


def test_after_an_error_nothing_is_left_of_a_batch_and_the_same_calls_go_on(tiny_pipeline, call, tmp_path):
    def stop(pipe, step, timestep, kwargs):
        raise ZeroDivisionError

    parts = tmp_path / "a.h5.parts"
    with (
        pytest.raises(RuntimeError, match="mine"),
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate,
    ):
        first = generate(["a cat", "a dog"], seed=0, **call).images
        with pytest.raises(ZeroDivisionError):
            generate(["a tree", "a red apple"], seed=2, callback_on_step_end=stop, **call)
        assert sorted(path.name for path in parts.iterdir()) == [
                "000000.h5", "000001.h5", "run.json", "run.lock",
            ]  # fmt: skip
        raise RuntimeError("mine")
    kept = (parts / "000001.h5").read_bytes()
    (parts / "000000.h5").unlink()
    with pytest.raises(RuntimeError), sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate:
        again = generate(["a cat", "a dog"], seed=0, **call).images
        raise RuntimeError("mine")
    assert (parts / "000001.h5").read_bytes() == kept
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(first, again, strict=True))
    with (
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate,
        pytest.raises(CaptureError, match="sample 0 is sealed already with pairing_key"),
    ):
        generate("a cat", seed=0, **call)


def test_of_a_batch_that_cannot_be_sealed_whole_the_sealed_samples_stay_alone(tiny_pipeline, call, tmp_path):
    parts = tmp_path / "a.h5.parts"

    def block(pipe, step, timestep, kwargs):
        (parts / "000001.h5").mkdir(exist_ok=True)
        return kwargs

    with (
        pytest.raises(StoreError, match=r"000001|sample 1"),
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate,
    ):
        generate(PROMPTS, seed=0, callback_on_step_end=block, **{**call, "num_inference_steps": 2})
    (parts / "000001.h5").rmdir()
    assert sorted(path.name for path in parts.iterdir()) == ["000000.h5", "run.json"]
    assert sd35h5.verify(parts / "000000.h5").ok


FLAGS = [
    "--height",
    str(HEIGHT),
    "--width",
    str(WIDTH),
    "--steps",
    "3",
    "--max_sequence_length",
    str(T5_TOKENS),
]
FLAGS += ["--seed", "7", "--num_images", "2", "--prompt", *PROMPTS[:2], "a blue tree"]


@contextmanager
def _interrupted_at(decode: int) -> Iterator[None]:
    """Ctrl-C in this call of the VAE's decoder."""
    real, calls = AutoencoderKL.decode, []

    def decoding(vae, *args, **kwargs):
        calls.append(args)
        if len(calls) == decode:
            raise KeyboardInterrupt
        return real(vae, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderKL, "decode", decoding)
        yield
    assert len(calls) >= decode


def test_the_command_line_draws_in_batches_the_last_one_smaller_and_goes_on_in_the_same_ones(
    tiny_folder, tiny_pipeline, capsys, tmp_path
):
    def command(name: str, *more: str) -> list[str]:
        return ["--model_id", str(tiny_folder), *FLAGS, "--out", str(tmp_path / name), *more]

    assert capture_cli.main(command("whole.h5", "--batch_size", "4")) == 0
    told = capsys.readouterr().err
    assert "samples 5-6/6, step 3/3" in told and "18/18" in told
    with _interrupted_at(2):
        assert capture_cli.main(command("stopped.h5", "--batch_size", "4")) == 130
    parts = tmp_path / "stopped.h5.parts"
    assert "4 of 6 samples are sealed" in capsys.readouterr().err
    assert sorted(path.name for path in parts.iterdir()) == [
        *(f"00000{i}.h5" for i in range(4)), "run.json", "texts",
    ]  # fmt: skip
    (parts / "000002.h5").unlink()
    assert capture_cli.main(command("stopped.h5", "--batch_size", "2")) == 1
    assert "batch_size: 4 there, 2 now" in capsys.readouterr().err
    assert capture_cli.main(command("stopped.h5", "--batch_size", "4")) == 0
    told = capsys.readouterr().err
    assert "3 of the sealed samples are drawn again" in told and "drawing 6 samples" in told
    with open_store(tmp_path / "whole.h5") as whole, open_store(tmp_path / "stopped.h5") as stopped:
        assert list(whole.samples["content_sha256"]) == list(stopped.samples["content_sha256"])
        assert list(whole.samples["seed"]) == [7, 1_000_007, 8, 1_000_008, 9, 1_000_009]
        for batch in (slice(0, 4), slice(4, 6)):
            rows = whole.samples[batch]
            plain = tiny_pipeline(
                list(rows["prompt"]), generator=[torch_generator(int(seed)) for seed in rows["seed"]],
                height=HEIGHT, width=WIDTH, num_inference_steps=3, guidance_scale=4.5, max_sequence_length=T5_TOKENS,
            ).images  # fmt: skip
            for sample, image in zip(rows.index, plain, strict=True):
                assert np.array_equal(pixels(image), whole.image(sample))


def test_a_last_batch_of_one_pairs_with_a_sample_drawn_alone(tiny_pipeline, call, tmp_path):
    call, keys = {**call, "num_inference_steps": 2}, []
    for name, calls in (("a", [["a cat", "a dog"], ["a tree"]]), ("b", ["a cat", "a dog", "a tree"])):
        with sd35h5.capture(tiny_pipeline, tmp_path / f"{name}.h5", maps="off", topk=0) as generate:
            for place, prompt in enumerate(calls):
                generate(prompt, seed=2 if name == "a" and place else place, **call)
        with open_store(tmp_path / f"{name}.h5") as store:
            keys.append(list(store.samples["pairing_key"]))
    assert [a == b for a, b in zip(*keys, strict=True)] == [False, False, True]


def test_the_plan_tells_the_batch(tiny_folder, capsys):
    flags = ["--model_id", str(tiny_folder), *FLAGS, "--dry_run"]
    told = []
    for more in ([], ["--batch_size", "4"]):
        assert capture_cli.main([*flags, *more]) == 0
        told.append(capsys.readouterr().out)
    assert "6 samples: 3 prompts × 2 images, 4 a call of the pipeline" in told[1]
    assert told[1].replace(", 4 a call of the pipeline", "") == told[0]
