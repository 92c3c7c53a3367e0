"""The format as data is whole, and its written form is current."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd35h5.errors import StoreError
from sd35h5.reports import format_tables
from sd35h5.store import schema
from sd35h5.store.schema import SCALES, VARIABLES, variable

ROOT = Path(__file__).parents[2]
SD35_LARGE = {
    "sample": 100, "branch": 2, "query": 2, "group": 9, "step": 28, "top_step": 7, "map_step": 7,
    "layer": 38, "head": 38, "head_attn2": 64, "token": 333, "rank": 16, "map_token": 24, "row": 4, "y": 32, "x": 32,
    "patch_y": 64, "patch_x": 64, "pixel_y": 1024, "pixel_x": 1024, "rgb": 3, "encoder": 3,
    "raw_step": 28, "raw_layer": 38, "raw_head": 38, "raw_token": 333,
}  # fmt: skip


@pytest.mark.parametrize("spec_", VARIABLES.values(), ids=lambda v: v.name)
def test_every_dimension_of_a_variable_is_a_scale_that_names_positions(spec_):
    assert all(SCALES[dim].is_dimension for dim in spec_.dims)
    assert spec_.dims[0] == "sample"
    assert set(spec_.chunk) <= set(spec_.dims)


@pytest.mark.parametrize("spec_", VARIABLES.values(), ids=lambda v: v.name)
def test_chunks_at_sd35_large_are_small_enough_to_select_from(spec_):
    chunks = spec_.chunks(SD35_LARGE)
    size = 1
    for length in chunks:
        size *= length
    assert size * 8 < 16 << 20
    assert all(c <= n for c, n in zip(chunks, spec_.shape(SD35_LARGE), strict=True))


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        ("sinks/mass_image", (1, 1, 1, 38, 38, 32)),
        ("sinks/mass_group", (1, 1, 1, 1, 28, 38, 38)),
        ("maps/image_to_text", (1, 1, 1, 1, 38, 32, 32)),
        ("raw/probability", (1, 1, 1, 1, 1, 32, 64, 64)),
        ("images/image", (1, 256, 256, 3)),
    ],
)
def test_chunks_are_those_of_the_design(name, chunk):
    assert variable(name).chunks(SD35_LARGE) == chunk


def test_flag_words_are_the_labels_of_their_scales():
    assert SCALES["branch"].labels == schema.BRANCHES == ("cond", "uncond", "skip")
    assert SCALES["query"].labels == schema.QUERIES == ("image", "text")
    assert SCALES["group"].labels == schema.GROUPS
    assert SCALES["encoder"].labels == schema.ENCODERS


def test_an_unknown_name_is_answered_with_the_closest():
    with pytest.raises(StoreError, match="did you mean sinks/mass_image"):
        variable("sinks/mass_imag")


def test_a_score_is_any_float_a_sample_but_not_any_name():
    assert variable("scores/clip_score").dims == ("sample",)
    with pytest.raises(StoreError, match="no variable"):
        variable("scores/../sinks")


def test_the_tables_of_the_specification_are_current():
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    assert format_tables.updated(text) == text, "run: python -m sd35h5.reports.format_tables docs/format.md"


def test_the_specification_names_every_root_attribute():
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    for name in (*schema.FILE_ATTRIBUTES, *schema.MODEL_ATTRIBUTES, *schema.PROVENANCE):
        assert f"`{name}`" in text
