"""Words, heads, layers and steps are ranked by the part of their map in a region, as a loop over patches counts it."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from making.pages import frame_with, text_of
from making.stores import make_store

from sd35h5 import metrics, open_store
from sd35h5.errors import StoreError
from sd35h5.metrics.attention_maps import HEAD_MAPS, MAPS
from sd35h5.metrics.picture import map_regions

ROWS, COLUMNS = 6, 4  # patches of a picture of 96 × 64
REGION = metrics.Region(1, 3, 0, 2)
WORD = (2, 78)  # “red” of “a red apple left of a cat”: CLIP position 2, T5 position 77 + 1


def with_head_maps(path, layers: int, heads: int, seed: int = 0) -> None:
    """Give a store maps of single heads, drawn at random."""
    with h5py.File(path, "r+") as file:
        mean = file[MAPS]
        shape = (*mean.shape[:5], heads, *mean.shape[5:])
        values = np.random.default_rng(seed).random(shape).astype(np.float32)
        values[:, 1] = np.nan
        data = file.create_dataset(HEAD_MAPS, data=values)
        for axis, dim in enumerate("sample branch map_step map_token layer head y x".split()):
            data.dims[axis].attach_scale(file[dim])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A store whose third and fourth map are one word, with maps of single heads; layer 1 has no maps of step 2."""
    path = make_store(tmp_path_factory.mktemp("regions") / "run.h5", samples=2, layers=3, heads=2)
    with_head_maps(path, 3, 2)
    with h5py.File(path, "r+") as file:
        file["maps/map_token_index"][0, 0, 3] = WORD[1]
        for name in (MAPS, HEAD_MAPS):
            file[name][0, 0, 1, :, 1] = np.nan
    return path


@pytest.fixture
def store(path):
    with open_store(path) as store:
        yield store


def counted(values: np.ndarray, region: metrics.Region, pool: int = 1) -> tuple[float, float, float]:
    """Return mass, share and times_uniform of maps (…, token, y, x), patch by patch."""
    inside, whole, maps = 0.0, 0.0, 0
    for one in values.reshape(-1, *values.shape[-3:]):
        if not np.isfinite(one).all():
            continue
        maps += 1
        for y in range(ROWS):
            for x in range(COLUMNS):
                mass = float(one[:, y // pool, x // pool].astype(np.float64).sum())
                whole += mass
                inside += mass * (region.y0 <= y <= region.y1 and region.x0 <= x <= region.x1)
    patches = (region.y1 - region.y0 + 1) * (region.x1 - region.x0 + 1)
    share = inside / whole
    return inside / patches / maps, share, share * ROWS * COLUMNS / patches


def as_stored(store, name: str) -> np.ndarray:
    """Return all maps of the first sample, (step, layer[, head], token, y, x)."""
    values = store.read(name, sample=0, branch="cond")
    return values.transpose("map_step", "layer", ..., "map_token", "y", "x").values


NUMBERS = ["mass", "share", "times_uniform"]


@pytest.mark.parametrize("chosen", [{}, {"steps": [2]}, {"layers": [2]}, {"steps": [0], "layers": [0, 2]}])
def test_words_are_ranked_by_the_part_of_their_map_in_the_region(store, chosen):
    table = metrics.region_words(store, 0, REGION, **chosen)
    maps = as_stored(store, MAPS)
    maps = maps[[step // 2 for step in chosen.get("steps", (0, 2))]][:, chosen.get("layers", slice(None))]
    assert set(table["text"]) == {"red", "<start>", "a"} and list(table["kind"]).count("word") == 1
    for row in table.itertuples():
        assert (row.mass, row.share, row.times_uniform) == pytest.approx(
            counted(maps[..., list(row.map_tokens), :, :], REGION), rel=1e-9
        )
    assert table["share"].is_monotonic_decreasing


def test_steps_layers_and_heads_are_ranked_alike(store):
    maps, of_heads = as_stored(store, MAPS)[..., [2, 3], :, :], as_stored(store, HEAD_MAPS)[..., [2, 3], :, :]
    steps = metrics.region_steps(store, 0, (2, 3), REGION).set_index("step")
    layers = metrics.region_layers(store, 0, (2, 3), REGION).set_index("layer")
    heads = metrics.region_heads(store, 0, (2, 3), REGION).set_index(["layer", "head"])
    assert set(steps.index) == {0, 2} and set(layers.index) == {0, 1, 2} and len(heads) == 6
    for step in (0, 2):
        np.testing.assert_allclose(steps.loc[step, NUMBERS], counted(maps[step // 2], REGION), rtol=1e-9)
    for layer in range(3):
        np.testing.assert_allclose(layers.loc[layer, NUMBERS], counted(maps[:, layer], REGION), rtol=1e-9)
        for head in range(2):
            expected = counted(of_heads[:, layer, head], REGION)
            np.testing.assert_allclose(heads.loc[(layer, head), NUMBERS].astype(float), expected, rtol=1e-9)
    one = metrics.region_heads(store, 0, (2, 3), REGION, steps=[2])
    assert set(one["layer"]) == {0, 2}  # layer 1 has none of step 2
    assert all(table["share"].is_monotonic_decreasing for table in (steps, layers, heads, one))


def test_a_planted_word_head_and_step_come_first(path, tmp_path):
    planted = tmp_path / "planted.h5"
    planted.write_bytes(path.read_bytes())
    with h5py.File(planted, "r+") as file:
        file[MAPS][0, 0, :, 1, :, 4:6, 3:4] += 5.0  # the map of “a”, in the lower right
        file[MAPS][0, 0, 1, 1, 2, 4:6, 3:4] += 5.0
        file[HEAD_MAPS][0, 0, :, 1, 2, 1, 4:6, 3:4] += 5.0
    corner = metrics.Region(4, 5, 3, 3)
    with open_store(planted) as store:
        assert metrics.region_words(store, 0, corner).iloc[0]["map_tokens"] == (1,)
        assert metrics.region_steps(store, 0, (1,), corner).iloc[0]["step"] == 2
        assert metrics.region_layers(store, 0, (1,), corner).iloc[0]["layer"] == 2
        first = metrics.region_heads(store, 0, (1,), corner).iloc[0]
        assert (first["layer"], first["head"]) == (2, 1) and first["times_uniform"] > 3


def test_the_whole_picture_and_a_flat_map_are_uniform(path, tmp_path):
    flat = tmp_path / "flat.h5"
    flat.write_bytes(path.read_bytes())
    with h5py.File(flat, "r+") as file:
        file[MAPS][0, 0] = 0.25
    with open_store(flat) as store:
        for region in (REGION, metrics.Region(0, ROWS - 1, 0, COLUMNS - 1)):
            table = metrics.region_words(store, 0, region)
            np.testing.assert_allclose(table["times_uniform"], 1.0)
            assert table.set_index("text").loc["a", "mass"] == pytest.approx(0.25)
            assert table.set_index("text").loc["red", "mass"] == pytest.approx(0.5)  # of two tokens


@pytest.mark.parametrize("region", [REGION, metrics.Region(5, 5, 3, 3)])
def test_cells_of_several_patches_count_with_those_in_the_region(tmp_path, region):
    path = make_store(tmp_path / "pooled.h5", samples=1, pool=2)
    with open_store(path) as store:
        maps = as_stored(store, MAPS)
        assert maps.shape[-2:] == (3, 2)
        for row in metrics.region_words(store, 0, region).itertuples():
            expected = counted(maps[..., list(row.map_tokens), :, :], region, pool=2)
            assert (row.mass, row.share, row.times_uniform) == pytest.approx(expected, rel=1e-9)


def test_a_last_cell_with_fewer_patches_counts_them_alone():
    every, inside = map_regions._patches(np.array([0.5, 2.5, 4.0]), 3, 4)  # 5 patches in cells of 2
    assert list(every) == [2, 2, 1] and list(inside) == [0, 1, 1]


def test_what_is_not_there_is_a_sentence(store, tmp_path):
    with pytest.raises(
        StoreError, match="rows 0–6, columns 0–0 is not within the picture of run, of 6 × 4 patches"
    ):
        metrics.region_words(store, 0, metrics.Region(0, 6, 0, 0))
    with pytest.raises(StoreError, match="must not lie after its last"):
        metrics.Region(3, 2, 0, 0)
    with open_store(make_store(tmp_path / "plain.h5", samples=1)) as plain:
        with pytest.raises(StoreError, match="--map_heads all"):
            metrics.region_heads(plain, 0, (0,), REGION)
    with open_store(make_store(tmp_path / "none.h5", samples=1, without=("maps/",))) as none:
        with pytest.raises(StoreError, match="no attention maps"):
            metrics.region_words(none, 0, REGION)


def test_no_more_is_read_at_once_than_a_block_and_its_size_does_not_matter(store, monkeypatch):
    whole = metrics.region_heads(store, 0, (2, 3), REGION)
    a_layer = 4 * 2 * 2 * ROWS * COLUMNS  # bytes: two heads, two tokens
    read, sizes = store.read, []

    def measured(*name, **where):
        sizes.append((values := read(*name, **where)).nbytes)
        return values

    monkeypatch.setattr(store, "read", measured)
    for block, layers in ((1, 1), (2 * a_layer, 2)):
        monkeypatch.setattr(map_regions, "BLOCK_BYTES", block)
        sizes.clear()
        assert metrics.region_heads(store, 0, (2, 3), REGION).equals(whole)
        assert max(sizes) == layers * a_layer and sum(sizes) == 2 * 3 * a_layer


URL = {"region_y": "1-3", "region_x": "0-2", "word": "2.78", "at": "0"}


def test_maps_ranks_what_acts_in_the_region_of_the_url(app, path, store):
    test = app(path, page="maps", url=URL)
    said = text_of(test).replace("\\", "")
    assert "rows 1–3, columns 0–2: 9 patches, 38% of the picture" in said and "are of “red”" in said
    kept = {one.name.partition(": ")[2]: one for one in test.session_state["shown"]}
    for name, expected in {
        "words": metrics.region_words(store, 0, REGION, steps=[0]),
        "heads": metrics.region_heads(store, 0, (2, 3), REGION, steps=[0]),
        "steps": metrics.region_steps(store, 0, (2, 3), REGION),
    }.items():
        table = kept[f"{name} that act in the region"].table
        assert table.reset_index(drop=True).equals(expected[list(table)]), name
    bars = frame_with(test, "times_uniform", "place")
    assert list(bars["text"][bars["chosen"]]) == ["red"]
    np.testing.assert_allclose(bars["share"], metrics.region_words(store, 0, REGION, steps=[0])["share"])


def test_the_python_of_the_rankings_gives_their_numbers(app, path, monkeypatch):
    shown = app(path, page="maps", url=URL | {"layer": "2"}).session_state["shown"]
    monkeypatch.chdir(path.parent)
    ranked = [one for one in shown if "act in the region" in one.name]
    assert len(ranked) == 3
    for one in ranked:
        names: dict[str, object] = {}
        exec(one.code, names)
        assert names["table"][list(one.table)].equals(one.table), one.name


def test_a_region_that_is_the_whole_picture_ranks_nothing_and_a_bad_one_is_told(app, path):
    for url in ({"region_y": "0-5"}, {"region_y": "4-9", "region_x": "<b>"}):
        test = app(path, page="maps", url=url)
        assert "Drag over the picture" in text_of(test)
        assert not any("act in the region" in one.name for one in test.session_state["shown"])
    assert test.session_state["address_refused"] == ["region_y", "region_x"]
