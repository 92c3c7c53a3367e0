"""The true objects of the bundled models' pictures: found where the scene has them, and as the recipe's judge finds
them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from making.pages import open_page, text_of
from making.stores import make_store

from sd35h5 import open_store
from sd35h5.metrics.picture import pictured_objects

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "data" / "recipe"
EXAMPLE = ROOT / "data" / "example-baseline.h5"


@pytest.fixture(scope="module")
def sprites() -> pictured_objects.Sprites:
    return pictured_objects.read_sprites(RECIPE)


def test_the_facts_of_the_atlas_are_those_of_the_recipe(sprites):
    from data.recipe import scenes
    from data.recipe.sprites import FACTS, facts, sprite

    assert FACTS.read_text(encoding="utf-8") == facts()
    assert (sprites.canvas, sprites.sizes, sprites.kinds) == (256, scenes.SIZES, tuple(scenes.KINDS))
    for kind, size in (("red apple", "small"), ("balloon", ""), ("umbrella", "big")):
        colours, alpha = sprites.scaled(size, kind)
        np.testing.assert_allclose(
            np.dstack([(colours.transpose(1, 2, 0) + 1) / 2, alpha]), sprite(kind, size), atol=1e-6
        )


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a red apple left of a cat on a blue background", [("", "red apple"), ("", "cat")]),
        ("a house and a small tree, the tree right of the house", [("", "house"), ("small", "tree")]),
        ("a carrot, two cats and a caravan", [("", "carrot")]),  # neither cat nor car
        ("the fish above a big fish", [("big", "fish")]),
        ("an empty room", []),
    ],
)
def test_a_prompt_names_kinds_with_their_size(sprites, prompt, named):
    assert sprites.named(prompt) == named


def test_in_painted_scenes_the_boxes_are_those_that_the_scenes_have(sprites):
    from data.recipe.scenes import heldout_scene
    from data.recipe.sprites import Painter, box

    scenes = [heldout_scene(index) for index in range(6)]
    images = Painter("cpu").paint(**Painter.pack(scenes))[0]
    for image, scene in zip(images, scenes, strict=True):
        pixels = ((image.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        found = pictured_objects.true_objects(pixels, scene.caption, sprites)
        names = [f"{one.size} {one.kind}".strip() for one in scene.objects]
        found = found.set_index("name").loc[names]
        assert found["drawn"].all() and found["correlation"].min() > 0.9
        boxes = found[["left", "top", "right", "bottom"]].to_numpy(int)
        assert np.abs(boxes - [box(one) for one in scene.objects]).max() <= 1, scene.caption


def test_in_a_drawn_picture_places_and_correlations_are_the_judges(sprites):
    import torch

    from data.recipe.matching import judge
    from data.recipe.scenes import Placed, Scene
    from data.recipe.sprites import box

    with open_store(EXAMPLE) as store:
        for sample, prompt in store.samples["prompt"].items():
            pixels = store.image(sample)
            found = pictured_objects.true_objects(pixels, prompt, sprites)
            named = tuple(Placed(kind, size, 0, 0) for size, kind in sprites.named(prompt))
            image = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).float()
            judged = judge(image, Scene(0, prompt, "blue", (0, 0, 0), named, ()))
            np.testing.assert_allclose(found["correlation"], judged.correlations, atol=1e-3)
            places = [Placed(one.kind, one.size, *at) for one, at in zip(named, judged.places, strict=True)]
            assert found[["left", "top", "right", "bottom"]].to_numpy(int).tolist() == [
                list(box(one)) for one in places
            ]


def test_a_thing_that_is_not_in_the_picture_is_not_drawn(sprites):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    assert not pictured_objects.true_objects(noise, "a cat above a dog", sprites)["drawn"].any()


@pytest.mark.parametrize("shape", [(128, 256, 3), (512, 512, 3)])
def test_a_picture_of_another_size_has_no_known_objects(sprites, shape):
    found = pictured_objects.true_objects(np.zeros(shape, np.uint8), "a cat", sprites)
    assert found.empty and list(found.columns) == pictured_objects.COLUMNS


def test_without_a_checkout_there_are_no_sprites(tmp_path):
    assert pictured_objects.read_sprites(tmp_path) is None


def test_the_mass_in_a_box_is_the_sum_over_its_pixels():
    rng = np.random.default_rng(3)
    values = xr.DataArray(rng.random((4, 8)), dims=("y", "x"))
    mass, area = pictured_objects.mass_within(values, (10, 5, 90, 61), 128)
    pixels = np.kron(values.values, np.ones((32, 16)))
    assert mass == pytest.approx(pixels[5:61, 10:90].sum() / pixels.sum())
    assert area == pytest.approx(56 * 80 / 128**2)


def test_maps_draws_the_boxes_and_says_how_much_of_the_map_is_in_them(monkeypatch):
    test = open_page(monkeypatch, EXAMPLE, page="maps", url={"objects": "1"})
    assert next(box for box in test.main.checkbox if box.label == "True objects").value
    with open_store(EXAMPLE) as store:
        found = pictured_objects.true_objects(
            store.image(0), store.samples["prompt"][0], pictured_objects.read_sprites(RECIPE)
        )
        maps = store.read("maps/image_to_text", sample=0, branch="cond", map_step=-1)
        index = store.read("maps/map_token_index", sample=0, branch="cond").values
        texts = store.tokens(0).set_index("token")["text"].str.strip("▁").str.replace("</w>", "")
        words = np.array([texts[token] if token >= 0 else "" for token in index])
        values = maps.isel(map_token=np.flatnonzero(words == "apple")).sum("map_token").mean("layer")
    pixels = np.kron(values.values, np.ones((32, 32)))
    apple = found.iloc[0]
    inside = pixels[apple.top : apple.bottom, apple.left : apple.right].sum() / pixels.sum()
    assert f"{inside:.0%} of the map in the box of red apple" in text_of(test)


def test_other_models_are_not_asked_for_true_objects(monkeypatch, tmp_path):
    path = make_store(tmp_path / "run.h5", samples=1)
    assert not open_page(monkeypatch, path, page="maps", url={"objects": "1"}).main.checkbox


def test_boxes_come_and_go_with_their_switch_also_over_a_token_without_a_word(monkeypatch):
    def pictures(objects: str) -> list[str]:
        url = {"objects": objects, "word": "0", "with": "-"}
        test = open_page(monkeypatch, EXAMPLE, page="maps", url=url)
        assert next(box for box in test.main.selectbox if box.label == "Word or token").value is not None
        return [image.url for shown in test.get("image") for image in shown.proto.imgs]

    plain, boxed = pictures("0"), pictures("1")
    changed = [before != after for before, after in zip(plain, boxed, strict=True)]
    assert changed[:2] == [True, True] and not any(changed[2:])  # overlay and image; not the small ones
    assert pictures("0") == plain
