"""Where chosen queries look: the rows of a store are those of the full attention, and Maps draws them or says how to
have them."""

from __future__ import annotations

import json
import shlex

import h5py
import numpy as np
import pytest
from making.pages import frames_of, open_page, text_of
from making.stores import make_store

from sd35h5 import open_store
from sd35h5.errors import StoreError
from sd35h5.metrics import query_rows

PATCH, WORD, ABSENT = (0, 9), (1, 78), (1, -1)  # patch 9 of 6 x 4 is x 1, y 2; T5 token 1 is “red”


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A store with the rows of a patch, of a word's T5 token, and of a word that the prompt does not have."""
    folder = tmp_path_factory.mktemp("rows")
    return make_store(folder / "run.h5", samples=2, rows=(PATCH, WORD, ABSENT), precision="exact")


def test_rows_are_named_by_their_patch_or_token(path):
    with open_store(path) as store:
        table = query_rows.row_choices(store, 0)
    assert list(table["label"]) == ["patch x 1, y 2", "red · t5 78"]
    assert list(table["row"]) == [0, 1]
    assert table.iloc[0][["y", "x"]].tolist() == [2, 1]


def test_a_row_sums_to_1_over_image_and_text_in_every_layer(path):
    with open_store(path) as store:
        for row in (0, 1):
            image = query_rows.row_maps(store, 1, row)
            for layer in range(3):
                text = query_rows.row_tokens(store, 1, row, 2, layer)["mass"].sum()
                assert image.sel(map_step=2, layer=layer).sum() + text == pytest.approx(1, abs=1e-5)
            mean = query_rows.row_tokens(store, 1, row, 2)["mass"]
            each = [query_rows.row_tokens(store, 1, row, 2, layer)["mass"] for layer in range(3)]
            np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-6)


def test_what_was_not_captured_is_told(path, tmp_path):
    with open_store(path) as store:
        with pytest.raises(StoreError, match="cond branch"):
            query_rows.row_choices(store, 0, "uncond")
        with pytest.raises(StoreError, match="no rows of step 1, of 0, 2 only"):
            query_rows.row_tokens(store, 0, 0, 1)
    with open_store(make_store(tmp_path / "bare.h5", samples=1)) as store:
        with pytest.raises(StoreError, match="holds no rows"):
            query_rows.row_choices(store, 0)


def test_maps_draws_the_chosen_row_at_the_step_of_the_maps(monkeypatch, path):
    test = open_page(monkeypatch, path, page="maps", url={"row": "1", "at": "0", "layer": "2"})
    box = next(box for box in test.main.selectbox if box.label == "Patch or word")
    assert box.options == ["patch x 1, y 2", "red · t5 78"] and box.value == 1
    with open_store(path) as store:
        expected = store.read("rows/to_image", sample=0, branch="cond", row=1, map_step=0, layer=2).values
        text = store.read("rows/to_text", sample=0, branch="cond", row=1, map_step=0, layer=2).values
    cells = [frame for frame in frames_of(test) if list(frame.columns) == ["y", "x", "value"]]
    found = cells[1].set_index(["y", "x"])["value"]
    assert all(found[y, x] == pytest.approx(expected[y, x]) for y, x in np.ndindex(expected.shape))
    bars = next(frame for frame in frames_of(test) if "mass" in frame.columns)
    assert bars["mass"].max() == pytest.approx(text.max())
    assert "at step 0, layer 2" in text_of(test)


def test_maps_without_rows_gives_the_command_that_captures_them(monkeypatch, tmp_path):
    path = make_store(tmp_path / "run.h5", samples=1)
    assert 'give `rows=["centre"]` to `sd35h5.capture`' in text_of(open_page(monkeypatch, path, page="maps"))
    path = make_store(tmp_path / "more" / "run.h5", samples=1)
    with h5py.File(path, "r+") as file:
        del file["provenance/config"]
        config = {"model_id": "m", "prompts": ["a cat"], "steps": 4, "rows": []}
        file["provenance/config"] = json.dumps(config)
    test = open_page(monkeypatch, path, page="maps")
    words = shlex.split(next(code.value for code in test.main.code if "capture_cli" in code.value))
    assert words[words.index("--rows") + 1] == "centre"
    assert "was captured without rows" in text_of(test)
