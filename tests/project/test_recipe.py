"""The recipe of the bundled models: scenes from a seed, true boxes, a fair judge, and training end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from data.recipe import heldout
from data.recipe.evaluate import draw, load_pipeline, table
from data.recipe.matching import judge
from data.recipe.scenes import (
    BACKGROUNDS,
    CANVAS,
    HELDOUT_PAIRS,
    HELDOUT_TRIPLES,
    KINDS,
    PHRASES,
    SIZES,
    Scene,
    heldout_scene,
    training_scene,
)
from data.recipe.sprites import Painter, box
from data.recipe.stage_transformer import VARIANTS

ROOT = Path(__file__).resolve().parents[2]
TRAINING, HELDOUT, JUDGED = 5_000, 100, 24


@pytest.fixture(scope="module")
def training() -> list[Scene]:
    return [training_scene(seed) for seed in range(TRAINING)]


@pytest.fixture(scope="module")
def unseen() -> list[Scene]:
    return [heldout_scene(index) for index in range(HELDOUT)]


def _paint(scenes: list[Scene]) -> torch.Tensor:
    """The scenes as images, (N, 3, y, x) in -1..1."""
    return Painter("cpu").paint(**Painter.pack(scenes))[0]


def test_a_scene_follows_from_its_seed_alone(training):
    code = "from data.recipe.scenes import *; print([training_scene(n) for n in range(50)], heldout_scene(3))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert printed == {f"{training[:50]} {heldout_scene(3)}\n"}
    assert training_scene(7) == training[7] != training[8]


def test_scenes_hold_the_relations_that_their_captions_say(training, unseen):
    ahead = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
    said = 0
    for scene in training + unseen:
        for first, relation, second in scene.relations:
            a, b = scene.objects[first], scene.objects[second]
            x, y = a.x - b.x, a.y - b.y
            dx, dy = ahead[relation]
            assert x * dx + y * dy > 2 * abs(x * dy + y * dx) - 8, scene  # that way, and more than aside
            assert any(f" {phrase} " in scene.caption for phrase in PHRASES[relation]), scene
            said += 1
    assert said > TRAINING / 2


def test_captions_name_every_object_its_size_and_the_background(training, unseen):
    for scene in training + unseen:
        for placed in scene.objects:
            assert f" {placed.size} {placed.kind}".replace("  ", " ") in f" {scene.caption}", scene
        assert f"{scene.background} background" in scene.caption


def test_training_shows_all_kinds_sizes_backgrounds_and_relations(training):
    assert {placed.kind for scene in training for placed in scene.objects} == set(KINDS)
    assert {placed.size for scene in training for placed in scene.objects} == set(SIZES)
    assert {scene.background for scene in training} == set(BACKGROUNDS)
    assert {relation for scene in training for _, relation, _ in scene.relations} == set(PHRASES)
    assert {len(scene.objects) for scene in training} == {1, 2, 3}


def _is_kept_out(scene: Scene) -> bool:
    kinds = [placed.kind for placed in scene.objects]
    pairs = {frozenset(pair) for pair in combinations(kinds, 2)}
    triples = {(kinds[first], relation, kinds[second]) for first, relation, second in scene.relations}
    return bool(pairs & HELDOUT_PAIRS or triples & HELDOUT_TRIPLES)


def test_held_out_combinations_never_occur_in_training(training):
    assert len(HELDOUT_PAIRS) > 20 and len(HELDOUT_TRIPLES) > 20
    assert not [scene for scene in training if _is_kept_out(scene)]


def test_every_second_held_out_scene_is_a_combination_that_training_never_saw(training, unseen):
    assert [_is_kept_out(scene) for scene in unseen[:40]] == [True, False] * 20
    assert not {scene.caption for scene in unseen if len(scene.objects) > 1} & {s.caption for s in training}


def test_a_relation_that_is_kept_out_is_kept_out_told_from_the_other_side_too():
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {(b, opposite[relation], a) for a, relation, b in HELDOUT_TRIPLES} == HELDOUT_TRIPLES


def test_boxes_are_tight(training):
    alone = [
        replace(scene, objects=(placed,), relations=()) for scene in training[:20] for placed in scene.objects
    ]
    dark, light = (_paint([replace(scene, rgb=(grey,) * 3) for scene in alone]) for grey in (0, 255))
    opaque = (
        (light - dark).mean(1) < 1
    ).numpy()  # the background shines through by less than half: (N, y, x)
    for scene, covered in zip(alone, opaque, strict=True):
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        left, top, right, bottom = box(scene.objects[0])
        assert (left, top, right, bottom) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), scene
        assert 0 <= left < right <= CANVAS and 0 <= top < bottom <= CANVAS


def test_the_judge_accepts_the_true_image_and_refuses_another_scenes(unseen):
    some = unseen[:JUDGED]
    images = _paint(some)
    for image, scene in zip(images, some, strict=True):
        judged = judge(image, scene)
        assert judged.scene and all(judged.drawn) and judged.background, scene
        assert min(judged.correlations) > 0.9
        for found, placed in zip(judged.places, scene.objects, strict=True):
            assert max(abs(found[0] - placed.x), abs(found[1] - placed.y)) <= 2
    others = [judge(image, scene) for image, scene in zip(images, some[1:] + some[:1], strict=True)]
    assert not any(judged.scene for judged in others)
    drawn = [found for judged in others for found in judged.drawn]
    assert sum(drawn) < len(drawn) / 10  # the same kind may stand in the other scene by chance


def test_the_judge_refuses_noise_and_an_empty_background(unseen):
    torch.manual_seed(0)
    for scene in unseen[:4]:
        flat = _paint([replace(scene, objects=(), relations=())])[0]
        judged = judge(flat, scene)
        assert judged.background and not any(judged.drawn)
        assert not judge(torch.randn_like(flat).clamp(-1, 1), scene).scene


def test_the_held_out_scenes_in_the_repository_are_the_recipes():
    assert heldout.HELDOUT.read_text(encoding="utf-8") == heldout.document()
    scenes = json.loads(heldout.HELDOUT.read_text(encoding="utf-8"))
    assert len(scenes) == heldout.COUNT and scenes[0]["caption"] == heldout_scene(0).caption


@pytest.mark.slow
@pytest.mark.long
def test_training_makes_a_folder_that_the_plain_pipeline_loads_and_draws_with(tmp_path):
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    from sd35h5.gates.gate_files import load_gates
    from sd35h5.gates.modules import GATES_FILE

    models, work = tmp_path / "models", tmp_path / "work"
    command = [
        sys.executable,
        "data/recipe/train.py",
        "--smoke",
        "--models",
        str(models),
        "--work",
        str(work),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pipe = StableDiffusion3Pipeline.from_pretrained(models)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(0)
    image = pipe("a red apple left of a cat", num_inference_steps=2, generator=generator).images[0]
    assert image.size == (CANVAS, CANVAS)
    for gate_type in ("headwise", "elementwise"):
        folder = models / f"transformer_{gate_type}"
        transformer = SD3Transformer2DModel.from_pretrained(folder)
        gates = load_gates(folder / GATES_FILE, transformer)
        assert gates.gate_type == gate_type and len(gates.layers) == 8
    written = {path: path.stat().st_mtime_ns for path in models.rglob("*.safetensors")}
    assert len(written) == 9  # vae, three encoders, three transformers, two files of gates
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert written == {path: path.stat().st_mtime_ns for path in models.rglob("*.safetensors")}


def test_the_cards_table_is_the_evaluations():
    models = ROOT / "data/models/emoji"
    figures = json.loads((models / "training/evaluation.json").read_text(encoding="utf-8"))
    card = (models / "README.md").read_text(encoding="utf-8")
    assert table(figures) in card and set(VARIANTS) <= set(figures)
    assert all(len(row) == 7 for row in figures.values())


@pytest.mark.slow
@pytest.mark.long
def test_the_bundled_baseline_draws_what_it_is_asked_for_with_the_plain_pipeline():
    pipe = load_pipeline(ROOT / "data/models/emoji", "baseline", torch.device("cpu"))
    scenes = [heldout_scene(index) for index in range(4)]
    judged = [judge(image, scene) for image, scene in zip(draw(pipe, scenes, 2), scenes, strict=True)]
    assert all(each.background for each in judged)
    assert np.mean([drawn for each in judged for drawn in each.drawn]) > 0.8
