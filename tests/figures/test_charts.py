"""Charts hold the numbers they are given, on scales that mean what they say; pictures have the right
pixels."""

from __future__ import annotations

import io

import altair as alt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sd35h5.figures import curves, heatmaps, overlays, printing, scales, sink_charts, token_charts
from sd35h5.store.schema import GROUPS


def cells(layers: int = 3, heads: int = 2) -> pd.DataFrame:
    values = np.arange(layers * heads, dtype=float).reshape(layers, heads)
    return pd.DataFrame(
        [(i, j, values[i, j]) for i in range(layers) for j in range(heads)],
        columns=["layer", "head", "value"],
    )


def rows_of(chart) -> list[dict]:
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def test_heatmap_has_layer_on_x_head_on_y_and_the_frames_values():
    chart = heatmaps.layer_head_heatmap(cells(), "mass", select="cell")
    encoding = chart.to_dict()["encoding"]
    assert (encoding["x"]["field"], encoding["y"]["field"]) == ("layer", "head")
    assert {encoding[axis]["type"] for axis in "xy"} == {"ordinal"}
    found = {(row["layer"], row["head"]): row["value"] for row in rows_of(chart)}
    assert found == {(row.layer, row.head): row.value for row in cells().itertuples()}
    assert chart.to_dict()["params"][0]["name"] == "cell"


def test_heatmap_outlines_the_chosen_cell_last():
    rows = rows_of(heatmaps.layer_head_heatmap(cells(), "mass", chosen=(1, 0)))
    assert [row["chosen"] for row in rows] == [False] * 5 + [True]
    assert (rows[-1]["layer"], rows[-1]["head"]) == (1, 0)


def test_missing_cells_are_grey_and_not_zero():
    frame = cells()
    frame.loc[2, "value"] = np.nan
    color = heatmaps.layer_head_heatmap(frame, "mass").to_dict()["encoding"]["color"]
    assert color["condition"]["test"] == "!isValid(datum.value)"
    assert color["scale"]["domain"] == [0.0, 5.0]


@pytest.mark.parametrize("values", [[-1.0, 3.0], [0.0, 0.0], [2.0, np.nan]])
def test_difference_scale_is_symmetric_about_zero(values):
    frame = pd.DataFrame({"layer": [0, 1], "head": [0, 0], "value": values})
    scale = heatmaps.difference_heatmap(frame, "difference").to_dict()["encoding"]["color"]["scale"]
    assert scale["domain"][0] == -scale["domain"][1] < 0
    assert scale["domainMid"] == 0


def test_a_magnitude_begins_at_zero_and_small_numbers_are_short():
    color = heatmaps.layer_head_heatmap(
        cells().assign(value=[2.3e-6, 1.16e-8, 1e-6, 2e-6, 1e-7, 5e-7]), "mass"
    )
    color = color.to_dict()["encoding"]["color"]
    assert color["scale"]["domain"] == [0.0, 2.3e-6]
    assert "'.2~e'" in color["legend"]["labelExpr"]


def test_marked_cells_have_a_dot():
    chart = heatmaps.difference_heatmap(cells().assign(marked=[True] + [False] * 5), "difference").to_dict()
    assert [layer["mark"]["type"] for layer in chart["layer"]] == ["rect", "circle"]
    dots = chart["datasets"][chart["layer"][1]["data"]["name"]]
    assert dots == [{"layer": 0, "head": 0}]
    assert "layer" not in heatmaps.difference_heatmap(cells().assign(marked=False), "difference").to_dict()


@pytest.mark.parametrize(
    ("names", "columns"),
    [(["demo-baseline", "demo-headwise", "demo-elementwise"], 2), (["a", "b"], 2), (["x" * 80], 1)],
)
def test_a_legend_has_as_many_columns_as_fit(names, columns):
    assert scales.legend_columns(names) == columns


def test_the_figures_of_sinks_hold_their_frames(tmp_path):
    kinds = pd.DataFrame(
        {"kind": ["clip_bos", "inner", "corner"], "layer": 0, "share": [0.5, 0.5, 0.0], "chance": 0.1}
    )
    assert [row["kind"] for row in rows_of(sink_charts.key_kinds(kinds, "layer"))] == [
        "clip_bos",
        "inner patch",
    ]
    patches = pd.DataFrame({"y": [0, 0, 1, 1], "x": [0, 1, 0, 1], "share": [0.1, 0, 0, 0.2]})
    figure = sink_charts.patch_heatmap(patches)
    assert [row["share"] for row in rows_of(figure)] == [0.1, 0.2]  # what is 0 is the ground
    axes = figure.to_dict()["encoding"]
    assert [axes[name]["scale"]["domain"] for name in "yx"] == [{"expr": "sequence(2)"}] * 2
    rates = pd.DataFrame({"series": "a", "epsilon": [0.01, 0.1], "times_uniform": np.nan, "mean": [1, 0.5],
                          "low": np.nan, "high": np.nan})  # fmt: skip
    notes = [
        row["note"]
        for row in rows_of(sink_charts.sink_curve(rates, epsilon=0.3, uniform=0.002))
        if "note" in row
    ]
    assert set(notes) == {"uniform: 0.002", "ε of causal models: 0.3"}


def curve(low=0.1) -> pd.DataFrame:
    return pd.DataFrame({
        "series": ["a", "a", "b", "b"], "step": [0, 1, 0, 1],
        "timestep": [1000.0, 500, 1000, 500], "sigma": [1, 0.5, 1, 0.5],
        "mean": [0.2, 0.3, 0.4, 0.5], "low": low, "high": 0.9,
    })  # fmt: skip


def test_step_curve_draws_the_band_only_where_there_is_one():
    assert len(curves.step_curve(curve(), "mass").to_dict()["layer"]) == 2
    assert len(curves.step_curve(curve(low=np.nan), "mass").to_dict()["layer"]) == 1


@pytest.mark.parametrize(("x", "reverse"), [("step", False), ("timestep", True), ("sigma", True)])
def test_time_goes_to_the_right_on_every_axis(x, reverse):
    axis = curves.step_curve(curve(), "mass", x=x).to_dict()["layer"][0]["encoding"]["x"]
    assert axis["field"] == x
    assert axis["scale"]["reverse"] is reverse


def tokens() -> pd.DataFrame:
    return pd.DataFrame({
        "token": range(4), "text": ["<|startoftext|>", "cat</w>", "<|endoftext|>", "▁cat"],
        "encoder": ["clip", "clip", "clip", "t5"], "group": ["clip_bos", "clip_word", "clip_pad", "t5_word"],
        "mass": [0.4, 0.05, 0.1, 0.02],
    })  # fmt: skip


@pytest.mark.parametrize("ends", [(0.114, 0.116), (0.0, 0.6), (1e-5, 3e-5), (26.41, 26.42)])
def test_the_ends_of_a_colour_scale_are_told_apart(ends):
    form = scales.digits(alt.Scale(domain=list(ends))).replace("~", "")
    names = {format(value, form) for value in np.linspace(*ends, 5)}
    assert len(names) >= 4


def test_token_bars_are_ranked_and_named_by_string_encoder_and_position():
    rows = [row for row in rows_of(token_charts.token_bars(tokens(), top=3, uniform=0.01)) if "token" in row]
    assert [row["name"] for row in rows] == ["<start> · clip 0", "<pad> · clip 2", "cat · clip 1"]
    assert [row["mass"] for row in rows] == [0.4, 0.1, 0.05]


def test_group_colors_cover_every_group_and_are_distinct():
    assert set(scales.GROUP_COLORS) == set(GROUPS)
    assert len(set(scales.GROUP_COLORS.values())) == len(GROUPS)


def test_group_mass_stacks_what_is_there():
    frame = pd.DataFrame({"group": ["clip_bos", "image", "t5_absent"], "layer": 0, "value": [0.4, 0.6, 0.0]})
    rows = [row for row in rows_of(token_charts.group_mass(frame, layer=0)) if "group" in row]
    assert {row["group"]: row["value"] for row in rows} == {"clip_bos": 0.4, "image": 0.6}


@pytest.mark.parametrize("shape", [(8, 5), (38, 38), (1, 1)])
def test_charts_render_to_png(shape):
    picture = Image.open(
        io.BytesIO(printing.png(heatmaps.layer_head_heatmap(cells(*shape), "mass"), scale=1))
    )
    assert picture.format == "PNG"
    assert picture.width > 400


def test_the_colour_map_gets_lighter_all_the_way():
    red, green, blue = overlays.colored(np.linspace(0, 1, 256)).astype(float).T
    assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) > -0.6).all()


def test_overlay_is_the_image_at_opacity_0_and_the_map_at_1():
    rng = np.random.default_rng(0)
    image, values = rng.integers(0, 256, (32, 48, 3), np.uint8), rng.random((4, 6))
    np.testing.assert_array_equal(overlays.overlay(image, values, opacity=0), image)
    alone = overlays.map_picture(values, (32, 48), smooth=True)
    assert np.abs(overlays.overlay(image, values, opacity=1).astype(int) - alone).max() <= 1


def test_overlay_leaves_the_picture_as_it_is_where_attention_is_low():
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    values = np.full((4, 6), 0.01)
    values[3, 0] = 1
    change = np.abs(overlays.overlay(image, values, opacity=0.6, smooth=False).astype(int) - image)
    assert change[:24].max() <= 12 and change[24:, :8].mean() > 30


def test_overlay_keeps_places_of_a_rectangular_map():
    values = np.zeros((4, 6))
    values[3, 0] = 1  # bottom left
    picture = overlays.map_picture(values, (32, 48))
    bright = picture.astype(int).sum(axis=2)
    assert (bright[24:, :8] == bright.max()).all()
    assert (bright[:24] == bright.min()).all()


def test_maps_share_a_scale_when_told_to():
    np.testing.assert_allclose(overlays.scaled(np.array([[0.1, 0.2]]), high=0.4), [[0.25, 0.5]])
    np.testing.assert_array_equal(overlays.scaled(np.array([[np.nan, 0.2]])), [[0, 1]])


def test_gif_holds_every_frame_and_loops():
    frames = [np.full((8, 12, 3), shade, np.uint8) for shade in (0, 100, 200)]
    moving = Image.open(io.BytesIO(overlays.gif(frames)))
    assert (moving.size, moving.n_frames, moving.info["loop"]) == ((12, 8), 3, 0)


def test_long_labels_are_shortened_to_their_width():
    short = overlays.fitted("a very long caption that cannot fit", 80, 12)
    assert short.endswith("…")
    assert overlays.font(12).getlength(short) <= 80


def test_letters_of_bars_and_sheets_lie_within_their_picture():
    """On a picture that is made taller, the same letters would have no more ink."""
    bar = np.asarray(overlays.color_bar(0.0, 0.198, 320))
    assert (bar[12:] < 128).any() and (bar[-3:] == 255).all()
    tiles, labels = [np.full((40, 90, 3), 255, np.uint8)] * 2, ["step 24", "猫 gjy"]
    sheet = np.asarray(overlays.sheet(tiles, labels, columns=1, size=(40, 90), title="a title, gj"))
    assert (sheet < 128).any() and (sheet[-4:] == 255).all() and (sheet[:8] == 255).all()
