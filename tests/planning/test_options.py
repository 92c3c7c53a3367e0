"""Options: what is refused by name, steps, prompts, seeds, the pairing key and the plan in bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sd35h5.errors import CaptureError, ConfigError
from sd35h5.gates.decision import Decision
from sd35h5.planning.describing import describe
from sd35h5.planning.job import resolve
from sd35h5.planning.options import CaptureConfig, Model, Output, Prompts, Sampling, Tiers
from sd35h5.planning.pairing_key import PAIRING_FIELDS, pairing_key
from sd35h5.planning.plan import in_bytes, make_plan
from sd35h5.planning.prompts import load_prompts, sample_seed
from sd35h5.planning.selectors import choose_steps
from sd35h5.planning.validation import validate
from sd35h5.weights.model_facts import read_facts

GOOD = CaptureConfig(prompts=Prompts(prompt=("a red apple", "a cat")))
LARGE = read_facts(Model(), offline_guess=True)


def _with(**changes: object) -> CaptureConfig:
    return replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (_with(model=Model(dtype="float8")), ["--dtype", "float8", "bf16"]),
        (_with(model=Model(device="tpu")), ["--device", "tpu"]),
        (_with(model=Model(gates="/nowhere/gates.safetensors")), ["--gates", "no such file"]),
        (_with(sampling=Sampling(steps=0)), ["--steps 0"]),
        (_with(sampling=Sampling(batch_size=0)), ["--batch_size 0"]),
        (_with(sampling=Sampling(height=100)), ["--height 100", "16", "96"]),
        (_with(sampling=Sampling(width=8)), ["--width 8", "16"]),
        (_with(sampling=Sampling(guidance=float("nan"))), ["--guidance"]),
        (_with(sampling=Sampling(max_sequence_length=513)), ["--max_sequence_length 513", "512"]),
        (_with(prompts=Prompts()), ["--prompt", "--demo"]),
        (_with(prompts=Prompts(prompt=("a", " "))), ["prompt 1"]),
        (_with(prompts=Prompts(prompt=("a",), prompts_json="x.json")), ["not both"]),
        (_with(prompts=Prompts(prompts_json="/nowhere.json")), ["/nowhere.json", "no such file"]),
        (_with(prompts=replace(GOOD.prompts, limit=0)), ["--limit 0"]),
        (_with(prompts=replace(GOOD.prompts, num_images=0)), ["--num_images 0"]),
        (_with(prompts=replace(GOOD.prompts, seed=-1)), ["--seed -1"]),
        (_with(tiers=Tiers(words=("zebra",))), ["--words 'zebra'", "no prompt"]),
        (_with(tiers=Tiers(words=("cat",), maps="first")), ["--words", "--maps first"]),
        (_with(tiers=Tiers(map_steps="0,28")), ["--map_steps", "28", "0..27"]),
        (_with(tiers=Tiers(top_steps="every:0")), ["--top_steps", "every:0"]),
        (_with(tiers=Tiers(topk=-1)), ["--topk -1"]),
        (_with(tiers=Tiers(rows=("center",))), ["--rows 'center'", "centre"]),
        (_with(tiers=Tiers(rows=("word:zebra",))), ["--rows 'word:zebra'", "in no prompt"]),
        (_with(tiers=Tiers(raw=("steps=28",))), ["--raw steps", "28", "0..27"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(config, names):
    with pytest.raises(ConfigError) as caught:
        validate(config)
    for name in names:
        assert name in str(caught.value)


def test_good_options_give_the_prompts_in_order():
    assert [(p.id, p.text) for p in validate(GOOD)] == [("p000", "a red apple"), ("p001", "a cat")]


def test_a_prompt_file_may_hold_texts_or_objects(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(["a dog", {"id": "apple", "prompt": "a red apple"}, {"prompt": "a cat"}]))
    prompts = load_prompts(Prompts(prompts_json=str(path)))
    assert [(p.id, p.text) for p in prompts] == [
        ("p000", "a dog"),
        ("apple", "a red apple"),
        ("p002", "a cat"),
    ]
    assert len(load_prompts(Prompts(prompts_json=str(path), limit=2))) == 2


@pytest.mark.parametrize(
    "text",
    ["{", '{"a": 1}', "[]", '[{"id": "x"}]', "[3]", '[{"id":"a","prompt":"b"},{"id":"a","prompt":"c"}]'],
)
def test_a_prompt_file_that_cannot_be_used_is_refused(tmp_path, text):
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_prompts(Prompts(prompts_json=str(path)))


def test_steps_are_written_in_three_ways():
    assert choose_steps("map_steps", "all", 3) == [0, 1, 2]
    assert choose_steps("map_steps", "every:4", 10) == [0, 4, 8]
    assert choose_steps("map_steps", "5,0,5", 10) == [0, 5]


def test_the_seed_of_a_sample_follows_its_prompt_and_image():
    assert sample_seed(7, 3, 0) == 10
    assert sample_seed(7, 3, 2) == 2_000_010


def test_no_unconditional_keeps_the_unconditional_branch_too():
    assert Tiers(no_unconditional=True).kept_branches == ("cond", "uncond")
    assert Tiers(branches=("uncond", "cond")).kept_branches == ("cond", "uncond")
    assert Tiers().kept_branches == ("cond",)


def test_the_pairing_key_depends_on_every_field_and_on_nothing_else():
    fields = dict.fromkeys(PAIRING_FIELDS, 0)
    key = pairing_key(fields)
    assert key == pairing_key(dict(reversed(fields.items())))
    assert (
        len({pairing_key({**fields, name: 1}) for name in PAIRING_FIELDS} | {key}) == len(PAIRING_FIELDS) + 1
    )
    with pytest.raises(ValueError, match="pairing key"):
        pairing_key({"prompt": "a"})


def test_a_missing_folder_and_an_empty_file_are_refused_and_told_from_a_hub_id(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    for name, said in (
        (str(tmp_path / "none" / "there"), "no such folder"),
        (str(file), "is no safetensors file"),
        (str(tmp_path), "model_index.json"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_facts(Model(model_id=name))


def test_a_hub_model_out_of_reach_says_how_to_get_it_or_to_use_the_demo():
    with pytest.raises(CaptureError) as caught:
        read_facts(Model(model_id="nobody-at-all/no-such-model"))
    for word in ("nobody-at-all/no-such-model", "hf auth login", "--demo"):
        assert word in str(caught.value)


def test_the_default_capture_of_the_large_model_stays_below_60_megabytes():
    for length in (256, 512):
        plan = make_plan(_with(sampling=Sampling(max_sequence_length=length)), LARGE)
        assert plan.sizes["token"] == 77 + length
    assert make_plan(GOOD, LARGE).file_bytes < 60e6


def test_the_plan_names_what_is_kept_and_what_it_costs():
    text = describe(resolve(_with(output=Output(out="x.h5")), validate(GOOD), LARGE))
    for word in (
        "38 layers",
        "2 samples",
        "sinks/mass_image",
        "28 × layer 38",
        "maps/image_to_text",
        "images/image",
        "x.h5",
    ):
        assert word in text
    small = _with(tiers=Tiers(maps="off", topk=0, no_images=True), sampling=Sampling(guidance=1.0))
    names = [part.name for part in make_plan(small, LARGE).parts]
    assert not any(name.startswith(("maps/", "topk/", "images/", "gates/")) for name in names)
    assert make_plan(small, LARGE).sizes["branch"] == 1
    gates = Decision("headwise", "sigmoid", ((0, "attn"),))
    assert "gates/mean" in [part.name for part in make_plan(GOOD, LARGE, gates).parts]


def test_the_plan_has_every_tier_that_is_asked_for_and_only_the_layers_with_maps():
    tiers = Tiers(
        rows=("centre", "word:cat"), atlas=True, raw=("steps=0", "heads=0-3", "tokens=0"), map_layers="0,3-4"
    )
    medium = read_facts(Model(model_id="stabilityai/stable-diffusion-3.5-medium"), offline_guess=True)
    plan = make_plan(_with(tiers=tiers), medium)
    shapes = {part.name: part.shape for part in plan.parts}
    assert shapes["maps/image_to_text"]["layer"] == 3 and shapes["rows/to_text"]["row"] == 3
    assert shapes["raw/probability"] == {
        "branch": 1, "raw_step": 1, "raw_layer": 24, "raw_head": 4, "raw_token": 1, "patch_y": 64,
        "patch_x": 64,
    }  # fmt: skip
    assert shapes["attn2/mass_patch"] == {**shapes["atlas/mass_patch"], "layer": 13, "query": 1}
    assert {"sinks/entropy_all", "attn2/entropy_all", "attn2/top_index", "rows/query_index"} <= set(shapes)
    default = [part.name for part in make_plan(GOOD, medium).parts]
    assert not any(name.startswith(("rows/", "raw/", "atlas/", "attn2/mass")) for name in default)


def test_bytes_are_told_for_people():
    assert [in_bytes(n) for n in (12, 53_900_000, 2e12)] == ["12 B", "53.9 MB", "2 TB"]
