"""Which maps a store holds, and that a word's map is the sum of its tokens' maps."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from making.pages import frame_with, frames_of, open_page, text_of
from making.pipelines import HEADS, HEIGHT, T5_TOKENS, WIDTH, make_pipeline
from making.stores import make_store

import sd35h5
from sd35h5 import open_store
from sd35h5.errors import StoreError
from sd35h5.figures import map_charts
from sd35h5.metrics import attention_maps

STEPS = 3
SMALL_CALL = {
    "height": HEIGHT,
    "width": WIDTH,
    "num_inference_steps": STEPS,
    "max_sequence_length": T5_TOKENS,
}
WORD = (2, 78)  # “red” of “a red apple left of a cat”: CLIP position 2, T5 position 77 + 1


@pytest.fixture
def store(tmp_path):
    """A store whose fourth map is of the T5 token of a word that its third map shows for CLIP."""
    path = make_store(tmp_path / "run.h5", samples=1)
    with h5py.File(path, "r+") as file:
        file["maps/map_token_index"][0, 0, 3] = WORD[1]
    with open_store(path) as store:
        yield store


def test_mapped_tokens_name_what_each_map_is_of(store):
    table = attention_maps.mapped_tokens(store, 0)
    assert list(table["token"]) == [0, 1, 2, 78]
    assert list(table["text"]) == ["<start>", "a", "red", "red"]
    assert list(table["encoder"]) == ["clip", "clip", "clip", "t5"]


def test_a_word_is_offered_as_the_sum_of_its_clip_and_t5_tokens(store):
    table = attention_maps.map_choices(store, 0)
    assert table.iloc[0]["label"] == "red · clip 2 + t5 78"
    assert table.iloc[0]["tokens"] == WORD
    assert list(table["kind"]) == ["word", "token", "token", "piece", "piece"]


def test_the_map_of_a_word_is_the_sum_of_its_tokens_maps(store):
    stored = store.read(
        "maps/image_to_text", sample=0, branch="cond"
    ).values  # (map_step, map_token, layer, y, x)
    word = attention_maps.token_maps(store, 0, attention_maps.map_choices(store, 0).iloc[0]["map_tokens"])
    assert word.dims == ("map_step", "layer", "y", "x")
    np.testing.assert_allclose(word.values, stored[:, 2] + stored[:, 3], rtol=1e-6)
    np.testing.assert_array_equal(attention_maps.token_maps(store, 0, 1).values, stored[:, 1])
    assert list(word["map_step"].values) == [0, 2]


def test_a_branch_without_maps_is_told(store):
    with pytest.raises(StoreError, match="uncond"):
        attention_maps.token_maps(store, 0, 0, "uncond")
    with pytest.raises(StoreError, match="of the cond branch"):
        attention_maps.map_choices(store, 0, "uncond")


@pytest.mark.parametrize(("shape", "longest", "fits"), [((256, 128), 100, (100, 50)), ((6, 4), 1, (1, 1))])
def test_fit_keeps_the_proportion(shape, longest, fits):
    assert attention_maps.fit(shape, longest) == fits


@pytest.mark.parametrize(
    ("prompt", "word"),
    [("a red apple left of a cat", "apple"), ("a blue car", "car"), ("the old photo of a", "the")],
)
def test_maps_open_on_the_first_thing_else_on_the_first_word(tmp_path, prompt, word):
    with open_store(make_store(tmp_path / "run.h5", samples=1, prompts=(prompt,))) as store:
        choices = attention_maps.map_choices(store, 0)
    assert choices.loc[attention_maps.first_thing(choices), "word_text"] == word


def test_the_cells_under_the_pointer_are_the_maps_values(monkeypatch, store, tmp_path):
    test = open_page(
        monkeypatch, tmp_path / "run.h5", page="maps", url={"word": "2.78", "layer": "1", "at": "0"}
    )
    cells = frame_with(test, "y", "x", "value").set_index(["y", "x"])["value"]
    stored = store.read("maps/image_to_text", sample=0, branch="cond", map_step=0, layer=1).values
    assert len(cells) == stored[2].size
    for (y, x), value in cells.items():
        assert value == pytest.approx(stored[2, int(y), int(x)] + stored[3, int(y), int(x)], rel=1e-6)


@pytest.mark.parametrize(
    ("y", "x", "cell", "patches"),
    [
        ([0.5, 2.5, 4.5], [0.5], 2, (6, 2)),
        ([0], [0, 1], 1, (1, 2)),
        ([1.5], [1.5], 4, (4, 4)),
        ([0.5, 2.5, 4], [0.5, 2.5], 2, (5, 4)),  # five patches, pooled two by two
    ],
)
def test_a_cell_is_as_wide_as_the_patches_that_were_pooled(y, x, cell, patches):
    values = xr.DataArray(np.zeros((len(y), len(x))), coords={"y": y, "x": x}, dims=("y", "x"))
    assert map_charts.cell_size(values) == cell
    assert tuple(map_charts.patch_count(values, axis) for axis in "yx") == patches


def test_boxes_of_pixels_lie_on_the_patches_that_they_cover():
    values = xr.DataArray(np.ones((4, 2)), coords={"y": range(4), "x": range(2)}, dims=("y", "x"))
    columns = ["name", "left", "top", "right", "bottom", "chosen"]
    boxes = pd.DataFrame([("cat", 16, 32, 32, 64, True)], columns=columns)
    drawn = map_charts.map_heatmap(values, "value", domain=(0, 1), boxes=boxes, width=100).to_dict()
    outline = drawn["datasets"][drawn["layer"][1]["data"]["name"]]
    assert outline == [{"name": "cat", "chosen": True, "x0": 0.5, "y0": 1.5, "x1": 1.5, "y1": 3.5}]
    told = [one["title"] for one in drawn["layer"][0]["encoding"]["tooltip"]]
    assert told == ["patch y", "patch x", "value"]
    assert drawn["height"] - map_charts.BELOW == 2 * (drawn["width"] - map_charts.LEFT)


def test_runs_whose_maps_are_of_different_steps_are_shown_at_those_they_share(monkeypatch, tmp_path):
    shape = {"samples": 1, "steps": 7}
    for name, every in (("a-baseline", 2), ("b", 3)):  # 0, 2, 4, 6 and 0, 3, 6
        make_store(tmp_path / f"{name}.h5", every=every, **shape)
    test = open_page(monkeypatch, tmp_path, page="maps", url={"with": "b"})
    steps = next(slider for slider in test.main.select_slider if slider.label == "Step")
    assert steps.options == ["0", "6"]
    assert len([frame for frame in frames_of(test) if list(frame.columns) == ["y", "x", "value"]]) == 2


@pytest.mark.parametrize(
    ("sheet", "said"),
    [
        ("over steps", "colours from 0"),
        ("over layers", "step 0 · colours from"),
        ("all words", "each word on its own"),
    ],
)
def test_the_url_says_which_small_maps_are_shown(monkeypatch, store, tmp_path, sheet, said):
    test = open_page(monkeypatch, tmp_path / "run.h5", page="maps", url={"sheet": sheet, "at": "0"})
    assert said in text_of(test)
    assert sum("colours from" in line or "own scale" in line for line in text_of(test).splitlines()) == 1


def test_the_heads_of_a_layer_are_small_maps_where_they_were_captured(monkeypatch, tmp_path, store):
    with sd35h5.capture(make_pipeline(), tmp_path / "heads.h5", map_heads="all", map_steps="all") as generate:
        generate("a red apple left of a cat", seed=0, **SMALL_CALL)
    with open_store(tmp_path / "heads.h5") as opened:
        tokens = attention_maps.map_choices(opened, 0).loc[0, "map_tokens"]
        each = attention_maps.head_maps(opened, 0, tokens, 1)
        assert each.dims == ("map_step", "head", "y", "x") and each.sizes["head"] == HEADS
        mean = attention_maps.token_maps(opened, 0, tokens).sel(layer=1)
        np.testing.assert_allclose(each.mean("head"), mean, rtol=2e-3)
        one, of_head = attention_maps.cell_maps(opened, 0, tokens, 1, 0)
        assert of_head
        np.testing.assert_array_equal(one, each.sel(head=0))
    url = {"sheet": "over heads", "layer": "1"}
    said = text_of(open_page(monkeypatch, tmp_path / "heads.h5", page="maps", url=url))
    assert f"step {STEPS - 1} · layer 1 · colours from" in said
    url = {"sheet": "over heads"}
    said = text_of(open_page(monkeypatch, tmp_path / "heads.h5", page="maps", url=url))
    assert "choose a layer to see its heads" in said
    without = open_page(monkeypatch, tmp_path / "run.h5", page="maps", url=url | {"layer": "1"})
    assert (
        "over heads"
        not in next(one for one in without.get("button_group") if one.label == "Small maps").options
    )
