"""Captures with the tiers that are off by default: what the file holds, and how it hangs together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making.pipelines import HEAD_DIM, HEADS, LAYERS, T5_TOKENS, make_pipeline, pixels, plain_image

import sd35h5
from sd35h5 import open_store, verify
from sd35h5.capturing import recorder
from sd35h5.errors import ConfigError
from sd35h5.gates.modules import install_gates

PROMPTS = ("a red apple", "a cat left of a dog")
TOKENS = 77 + T5_TOKENS


@pytest.fixture(scope="module")
def captured(tiny_pipeline, call, tmp_path_factory):
    """Two samples with rows, atlas, raw and per-head maps of every token; (store path, images)."""
    path = tmp_path_factory.mktemp("run") / "run.h5"
    tiers = {
        "precision": "exact", "maps": "all", "map_heads": "all", "map_pool": 1, "map_layers": "0,2",
        "rows": ("centre", "word:cat", "token:0", "1,3"), "atlas": True, "text_queries": True,
        "raw": ("steps=4", "layers=1-2", "heads=1", "tokens=0,5,90"),
    }  # fmt: skip
    with sd35h5.capture(tiny_pipeline, path, **tiers) as generate:
        images = [generate(prompt, seed=5 + i, **call).images[0] for i, prompt in enumerate(PROMPTS)]
    return path, images


def test_the_image_is_that_of_the_plain_pipeline_and_the_file_is_sound(captured, tiny_pipeline, call):
    path, images = captured
    for index, prompt in enumerate(PROMPTS):
        assert np.array_equal(
            pixels(images[index]), pixels(plain_image(tiny_pipeline, prompt, 5 + index, **call))
        )
    assert verify(path, deep=True).problems == ()


def test_maps_of_chosen_layers_average_to_the_mass_of_every_token_and_head(captured):
    with open_store(captured[0]) as store:
        maps = store.read("maps/image_to_text_per_head", sample=0, branch="cond")
        mass = store.read("sinks/mass_image", sample=0, branch="cond", step=[0, 4])
        mean = store.read("maps/image_to_text", sample=0, branch="cond")
    assert maps.sizes["map_token"] == TOKENS and np.isnan(maps.isel(layer=1)).all()
    np.testing.assert_allclose(mean, maps.mean("head"), rtol=1e-6)
    chosen = maps.isel(layer=[0, 2]).mean(("y", "x")).transpose("map_step", "layer", "head", "map_token")
    np.testing.assert_allclose(chosen, mass.isel(layer=[0, 2]).values, rtol=1e-5)


def test_what_is_sent_in_pieces_is_what_is_sent_whole(tiny_pipeline, call, tmp_path, monkeypatch):
    tiers = {
        "maps": "all",
        "map_heads": "all",
        "topk": 0,
        "raw": ("steps=1", "tokens=0-10"),
        "map_steps": "0",
    }
    hashes = []
    for name, size in (("whole", 1 << 30), ("pieces", 700)):  # one head of raw values, two tokens of maps
        monkeypatch.setattr(recorder, "_PIECE_BYTES", size)
        with sd35h5.capture(tiny_pipeline, tmp_path / f"{name}.h5", **tiers) as generate:
            generate(PROMPTS[1], seed=5, **call)
        with open_store(tmp_path / f"{name}.h5") as store:
            hashes.append(store.samples["content_sha256"].item())
            assert store.read("maps/image_to_text_per_head", sample=0, branch="cond").notnull().all()
    assert hashes[0] == hashes[1]


def test_maps_of_every_head_are_whole_where_chunks_of_layers_are_cut(call, tmp_path):
    """Six layers are a chunk of four and one of two, each sent when the last of its wanted layers is there."""
    tiers = {"maps": "words", "map_heads": "all", "map_steps": "all", "precision": "exact"}
    for chosen in ("all", "1,2", "0,5"):
        with sd35h5.capture(make_pipeline(num_layers=6), tmp_path / "a.h5", overwrite=True,
                            map_layers=chosen, **tiers) as generate:  # fmt: skip
            generate(PROMPTS[1], seed=5, **call)
        with open_store(tmp_path / "a.h5") as store:
            each = store.read("maps/image_to_text_per_head", sample=0, branch="cond")
            mean = store.read("maps/image_to_text", sample=0, branch="cond")
        np.testing.assert_allclose(each.mean("head"), mean, rtol=1e-5)
        held = each.notnull().any([dim for dim in each.dims if dim != "layer"]).values.nonzero()[0].tolist()
        assert held == {"all": list(range(6)), "1,2": [1, 2], "0,5": [0, 5]}[chosen]
        assert verify(tmp_path / "a.h5", deep=True).problems == ()


def test_raw_probabilities_are_the_unpooled_maps(captured):
    with open_store(captured[0]) as store:
        raw = store.read("raw/probability", sample=1, branch="cond")
        assert raw.dims[:4] == ("raw_step", "raw_layer", "raw_head", "raw_token")
        assert [raw[name].values.tolist() for name in raw.dims[:4]] == [[4], [1, 2], [1], [0, 5, 90]]
        maps = store.read("maps/image_to_text_per_head", sample=1, branch="cond", layer=2, head=1)
        mass = store.read("sinks/mass_image", sample=1, branch="cond", step=4)
    np.testing.assert_allclose(raw.values[0, 1, 0], maps.values[1, [0, 5, 90]], rtol=1e-6)
    np.testing.assert_allclose(
        raw.mean(("patch_y", "patch_x")).values[0, :, 0], mass.values[1:, 1][:, [0, 5, 90]], rtol=1e-5
    )


def test_rows_sum_to_one_and_an_absent_word_stays_empty(captured):
    with open_store(captured[0]) as store:
        position = store.read("rows/query_index", branch="cond").values
        stream = store.read("rows/query_stream", branch="cond").values
        image, text = (store.read(f"rows/{name}", branch="cond") for name in ("to_image", "to_text"))
        tokens = store.tokens(1)
    assert position[0].tolist() == [2 * 6 + 3, -1, -1, 0, 3 * 6 + 1]
    assert stream[0].tolist() == [0, 1, 1, 1, 0]
    assert [tokens["text"][row].strip("▁</w>") for row in position[1, 1:3]] == ["cat", "cat"]
    sums = image.sum(("y", "x"), skipna=False) + text.sum("token", skipna=False)
    assert np.isnan(sums[0].isel(row=[1, 2])).all()
    np.testing.assert_allclose(sums[0].isel(row=[0, 3, 4]), 1, atol=1e-5)
    np.testing.assert_allclose(sums[1], 1, atol=1e-5)


def test_the_row_of_a_patch_is_the_pixel_of_the_maps(captured):
    with open_store(captured[0]) as store:
        maps = store.read("maps/image_to_text_per_head", sample=0, branch="cond", layer=2).mean("head")
        row = store.read("rows/to_text", sample=0, branch="cond", layer=2, row=4)
    np.testing.assert_allclose(row.values, maps.values[:, :, 3, 1], rtol=1e-5)


def test_the_atlas_sums_to_the_mass_of_the_image_and_its_entropy_is_that_of_whole_rows(captured):
    with open_store(captured[0]) as store:
        patches = store.read("atlas/mass_patch", sample=0, branch="cond")
        assert patches["top_step"].values.tolist() == [0, 4]
        group = store.read("sinks/mass_group", sample=0, branch="cond", group="image")
        entropy = store.read("sinks/entropy_all", sample=0, branch="cond")
        of_text = store.read("sinks/entropy_text", sample=0, branch="cond")
    np.testing.assert_allclose(patches.sum(("patch_y", "patch_x")), group.isel(step=[0, 4]).values, rtol=1e-4)
    assert np.isnan(entropy.isel(step=[1, 2, 3])).all()
    measured = entropy.isel(step=[0, 4]).values
    assert (measured > 0).all() and (measured < np.log(TOKENS + 24) + 1e-5).all()
    assert (measured != of_text.isel(step=[0, 4]).values).all()


def test_pooled_rows_and_atlas_need_no_maps_and_no_heaviest_keys(tiny_pipeline, call, tmp_path):
    tiers = {
        "maps": "off",
        "topk": 0,
        "atlas": True,
        "rows": ("sample:3",),
        "top_steps": "1",
        "map_steps": "2",
    }
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", **tiers) as generate:
        generate("a cat", seed=0, **call)
    with open_store(tmp_path / "a.h5") as store:
        assert not [name for name in store.variables if name.startswith(("maps/", "topk/"))]
        assert store.read("rows/to_image", branch="cond").shape == (1, 1, 3, LAYERS, 2, 3)
        assert store.read("atlas/mass_patch", branch="cond").shape == (1, 2, 1, LAYERS, HEADS, 4, 6)
        assert np.isfinite(store.read("rows/to_image", branch="cond")).all()
    assert verify(tmp_path / "a.h5", deep=True).ok


def test_skip_layer_guidance_leaves_the_tiers_of_cond_alone(tiny_pipeline, call, tmp_path):
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 0.9}
    tiers = {"atlas": True, "rows": ("centre",), "top_steps": "all", "map_steps": "all", "raw": ("tokens=0",)}
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", **tiers) as generate:
        generate("a cat", seed=0, **call, **skip)
    with open_store(tmp_path / "a.h5") as store:
        for name in ("atlas/mass_patch", "rows/to_text", "raw/probability"):
            assert np.isfinite(store.read(name, branch="cond")).all()
            assert np.isnan(store.read(name, branch="skip")).all()


@pytest.mark.parametrize(
    ("tiers", "said"),
    [
        ({"rows": ("9,9",)}, "--rows 9,9: patches are numbered 0,0 to 5,3"),
        ({"raw": ("layers=7",)}, "--raw layers names layer 7, but 3 layers"),
        ({"map_layers": "3"}, "--map_layers names layer 3, but 3 layers"),
    ],
)
def test_a_selector_beyond_the_model_is_refused_before_a_file_is_begun(
    tiny_pipeline, call, tmp_path, tiers, said
):
    with (
        pytest.raises(ConfigError, match=said),
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", **tiers) as generate,
    ):
        generate("a cat", seed=0, **call)
    assert not list(tmp_path.iterdir())  # nothing was sealed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_too(dtype, call, tmp_path):
    pipe = make_pipeline().to(dtype=dtype)
    plain = pixels(plain_image(pipe, "a cat", 0, **call))
    with sd35h5.capture(pipe, tmp_path / "a.h5", atlas=True, rows=("centre",), raw=("tokens=0",)) as generate:
        assert np.array_equal(pixels(generate("a cat", seed=0, **call).images[0]), plain)
    with open_store(tmp_path / "a.h5") as store:
        rows = [store.read(f"rows/{name}", sample=0, branch="cond") for name in ("to_image", "to_text")]
        image = rows[0].sum(("y", "x")) * 4  # 2 x 2 patches are averaged
        np.testing.assert_allclose(image + rows[1].sum("token"), 1, atol=4e-3)


@pytest.mark.parametrize("group", ["attn2", "attn2_regrouped"])
def test_second_attentions_are_kept_in_a_group_of_their_own(group, call, tmp_path):
    pipe = make_pipeline(dual_attention_layers=(0, 1))
    if group == "attn2_regrouped":
        install_gates(pipe.transformer, None, "sd-scripts")
    plain = pixels(plain_image(pipe, "a cat", 0, **call))
    with sd35h5.capture(pipe, tmp_path / "a.h5", atlas=True, topk=4, precision="exact") as generate:
        assert np.array_equal(pixels(generate("a cat", seed=0, **call).images[0]), plain)
    with open_store(tmp_path / "a.h5") as store:
        patches = store.read(f"{group}/mass_patch", sample=0, branch="cond", query="image")
        heads = ("head", HEADS) if group == "attn2" else ("head_attn2", HEAD_DIM)
        assert patches.sizes[heads[0]] == heads[1] and f"{group}/top_mass" in store
        assert not any(
            name.startswith("attn2") and not name.startswith(f"{group}/") for name in store.variables
        )
        assert store.attributes["min_reader"] == ("1.0" if group == "attn2" else "1.1")
        np.testing.assert_allclose(patches[:, :2].sum(("patch_y", "patch_x")), 1, atol=1e-5)
        assert np.isnan(patches[:, 2]).all()
        top = {name: store.read(f"{group}/top_{name}", sample=0, branch="cond") for name in ("index", "mass")}
        index = top["index"].sel(query="image").values[:, :2]
        flat = patches.values.reshape(*patches.shape[:3], -1)[:, :2]
        found = np.take_along_axis(flat, index, -1)
        np.testing.assert_allclose(found, top["mass"].sel(query="image").values[:, :2], rtol=1e-6)
        np.testing.assert_allclose(found[..., 0], flat.max(-1), rtol=1e-6)
        assert (top["index"].sel(query="text") == -1).all()
        entropy = store.read(f"{group}/entropy_all", sample=0, branch="cond", query="image")
        assert np.isfinite(entropy[[0, 4], :2]).all() and np.isnan(entropy[[1, 2, 3]]).all()
    assert verify(tmp_path / "a.h5", deep=True).problems == ()
