"""The Tokens page shows the masses of `metrics.token_mass`, folds padding, tells truncation, shares one token."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
from making.pages import frame_with, open_page, text_of
from making.stores import make_store

from dashboard.choosing import choose_samples, clicks
from sd35h5 import metrics, open_store
from sd35h5.figures import token_charts
from sd35h5.metrics import prompt_chips, targets

PROMPT = "a red apple left of a cat"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("tokens") / "run.h5", layers=3, heads=2, steps=4)


@pytest.fixture
def app(monkeypatch):
    return partial(open_page, monkeypatch, page="tokens")


def test_runs_of_padding_are_one_chip_with_their_count_and_sum(store):
    with open_store(store) as opened:
        masses = metrics.token_mass(opened, 0)
    found = prompt_chips.token_chips(masses)
    pads = found[found["group"] == "clip_pad"].iloc[0]
    own = masses[masses["group"] == "clip_pad"]
    assert (pads["count"], pads["token"], pads["last"]) == (len(own), own["token"].min(), own["token"].max())
    assert pads["total"] == pytest.approx(own["mass"].sum()) and pads["mass"] == pytest.approx(
        own["mass"].mean()
    )
    assert found["total"].sum() == pytest.approx(masses["mass"].sum())
    words = found[found["group"] == "clip_word"]
    assert words["text"].tolist() == PROMPT.split() and (words["count"] == 1).all()


def test_the_page_shows_the_clicked_cell_s_masses_of_the_chosen_steps(app, store):
    test = app(store, url={"cell": "2.1", "steps": "1-2"})
    with open_store(store) as opened:
        expected = prompt_chips.token_chips(
            metrics.token_mass(opened, 0, steps=[1, 2], layers=[2], heads=[1])
        )
    found = frame_with(test, "left", "count").sort_values("token")
    np.testing.assert_allclose(found["mass"], expected["mass"])
    groups = frame_with(test, "group", "each")
    assert groups["mass"].is_monotonic_decreasing
    assert groups["mass"].sum() == pytest.approx(expected["total"].sum())


def test_masses_follow_the_steps_and_heads_however_they_were_chosen_before(app, tmp_path):
    path = make_store(
        tmp_path / "run.h5", layers=3, heads=2, steps=8, nan="some"
    )  # its own: nothing is kept of it
    test = app(path)
    chosen = [((0, 7), (0, 1)), ((1, 7), (0, 1)), ((1, 4), (1, 1)), ((6, 7), (1, 1)), ((0, 6), (0, 0))]
    for steps, heads in chosen:  # fewer, fewer, others, more
        test.sidebar.slider(key="steps-8").set_value(steps)
        test.sidebar.slider(key="heads-2").set_value(heads)
        test.run()
        with open_store(path) as opened:
            places = [list(range(low, high + 1)) for low, high in (steps, heads)]
            values = opened.read("sinks/mass_image", sample=0, branch="cond", step=places[0], head=places[1])
            expected = values.astype(float).mean(["step", "layer", "head"], skipna=True).values
        found = prompt_chips.token_chips(opened_tokens(path).assign(mass=expected))
        shown = frame_with(test, "left", "count").sort_values("token")
        np.testing.assert_allclose(shown["mass"], found["mass"], rtol=1e-9, err_msg=str((steps, heads)))


def opened_tokens(path) -> pd.DataFrame:
    with open_store(path) as opened:
        return opened.tokens(0)


def test_chips_do_not_overlap_and_stay_within_the_width():
    frame = pd.DataFrame(
        [
            (i, i, 1, "clip" if i < 40 else "t5", "clip_word", "w" * (i % 70 + 1), 0.01, 0.01)
            for i in range(80)
        ],
        columns=["token", "last", "count", "encoder", "group", "text", "mass", "total"],
    )
    spec = token_charts.token_chips(frame, width=600).to_dict()
    data = pd.DataFrame(spec["datasets"][spec["layer"][0]["data"]["name"]])
    assert (data["right"] <= 600 / token_charts.LETTER).all()
    for _, line in data.groupby("top"):
        assert line["encoder"].nunique() == 1
        assert (line["left"].to_numpy()[1:] > line["right"].to_numpy()[:-1]).all()


@pytest.mark.parametrize("log", [True, False])
def test_chips_without_a_value_are_grey(log):
    frame = pd.DataFrame({
        "token": [0, 1], "last": [0, 1], "count": [1, 1], "encoder": ["clip"] * 2, "group": ["clip_bos", "clip_word"],
        "text": ["<start>", "cat"], "mass": [np.nan, np.nan], "total": [np.nan, np.nan],
    })  # fmt: skip
    fill = token_charts.token_chips(frame, log=log).to_dict()["layer"][0]["encoding"]["fill"]
    assert fill["condition"] == {"test": "!isValid(datum.mass)", "value": "#b0b0b0"}


def test_truncation_is_shown_with_what_was_cut_off(app, tmp_path):
    path = make_store(tmp_path / "run.h5", samples=1, kept_chars=np.array([[5, 5, 25]] * 2))
    with open_store(path) as opened:
        assert prompt_chips.truncation(opened, 0) == {
            "clip_l": "apple left of a cat"[0:],
            "clip_g": "apple left of a cat",
        }
    words = text_of(app(path))
    assert (
        "CLIP-L did not see the end of this text, “apple left of a cat”" in words
        and "T5 did not" not in words
    )


def test_a_clicked_token_means_itself_in_one_sample_and_its_word_or_group_in_several(store):
    with open_store(store) as opened:
        table = metrics.with_words(opened.tokens(0), opened.samples["prompt"][0]).set_index(
            "token", drop=False
        )
    rows = {name: table.loc[place].to_dict() for name, place in (("start", 0), ("apple", 3), ("pad", 40))}
    end = table[table["group"] == "clip_eos"].iloc[0].to_dict()
    assert (
        clicks.target_of(rows["start"], False) == metrics.FIRST_TOKEN == clicks.target_of(rows["start"], True)
    )
    assert clicks.target_of(rows["apple"], False) == metrics.Target("token", 3)
    assert clicks.target_of(rows["apple"], True) == metrics.Target("word", "apple")
    assert clicks.target_of(rows["pad"], False) == metrics.Target("group", "clip_pad")
    assert clicks.target_of(end, True) == metrics.Target("group", "clip_eos")


def test_a_word_is_compared_across_prompts_where_it_stands(app, store):
    test = app(store, url={"target": "word:apple"})
    with open_store(store) as opened:
        expected = metrics.first_token_mean(opened, metrics.Target("word", "apple"))[0].mean()
    found = frame_with(test, "prompt", "value")
    assert found["value"].tolist() == pytest.approx([float(expected)])
    assert "1 of 2 chosen samples do not have it" in text_of(test)


def test_the_chosen_token_is_outlined(app, store):
    test = app(store, url={"target": "word:cat"})
    found = frame_with(test, "left", "count")
    assert (
        set(found.loc[found["chosen"], "text"]) == {"cat"} and found["chosen"].sum() == 2
    )  # CLIP's and T5's


def test_each_word_is_one_chip_with_all_its_tokens():
    rows = [
        ("clip", 0, "<|startoftext|>", "clip_bos", ""), ("clip", 1, "red", "clip_word", "red"),
        ("clip", 2, "ber", "clip_word", "berry"), ("clip", 3, "ry", "clip_word", "berry"),
        ("clip", 4, "red", "clip_word", "red"), ("clip", 5, "<|endoftext|>", "clip_pad", ""),
        ("clip", 6, "<|endoftext|>", "clip_pad", ""), ("t5", 7, "red", "t5_word", "red"),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["encoder", "token", "text", "group", "word_text"])
    table["mass"] = [0.5, 0.01, 0.02, 0.04, 0.03, 0.1, 0.2, 0.06]
    chips = prompt_chips.word_chips(table)
    found = list(zip(chips["token"], chips["text"], chips["count"], chips["total"].round(9), strict=True))
    assert found[1:] == [
        (1, "red", 2, 0.04),
        (2, "berry", 2, 0.06),
        (5, "2 × <pad>", 2, 0.3),
        (7, "red", 1, 0.06),
    ]
    assert chips["total"].sum() == pytest.approx(table["mass"].sum())
    assert chips.loc[1, "mass"] == pytest.approx(0.02)


def test_samples_are_found_by_all_tags_and_by_the_text_of_their_prompts():
    table = pd.DataFrame(
        {
            "sample": [0, 1, 2], "prompt_id": ["fox", "hen", "owl"], "tags": ["animal,night", "animal", ""],
            "prompt": ["A fox\n in the snow", "a hen", "an owl in THE Snow"],
        }
    )  # fmt: skip
    assert choose_samples.tags_of(table) == {"animal": 2, "night": 1}
    assert choose_samples.matching(table, [], "") == [0, 1, 2]
    assert choose_samples.matching(table, ["animal", "night"], "") == [0]
    assert choose_samples.matching(table, [], "in the  snow") == [0, 2]
    assert choose_samples.matching(table, ["animal"], "hen") == [1]


def test_the_page_shows_words_once_when_asked(app, store):
    page = app(store)
    next(toggle for toggle in page.toggle if toggle.label == "Words").set_value(True).run()
    assert not page.exception
    with open_store(store) as opened:
        told = targets.with_words(metrics.token_mass(opened, 0), opened.samples["prompt"].iloc[0])
        chips = prompt_chips.word_chips(told)
    shown = frame_with(page, "left")
    assert list(shown["text"]) == list(chips["text"]) and len(chips) < len(prompt_chips.token_chips(told))
