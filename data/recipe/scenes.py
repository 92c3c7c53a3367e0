"""Scenes of one to three emoji objects: what is where, how big, on which background, and a caption that says so.

A scene follows from one seed. Training seeds are 0, 1, 2, …; held-out scenes use their own range, and some pairs of
kinds and some (kind, relation, kind) triples never occur in training, so that drawing them shows composition.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import combinations

CANVAS = 256  # px, both sides
KINDS = {
    "red apple": "🍎", "green apple": "🍏", "banana": "🍌", "strawberry": "🍓", "grapes": "🍇", "pineapple": "🍍",
    "carrot": "🥕", "mushroom": "🍄", "pizza": "🍕", "hamburger": "🍔", "donut": "🍩", "cake": "🎂",
    "cat": "🐱", "dog": "🐶", "rabbit": "🐰", "panda": "🐼", "lion": "🦁", "pig": "🐷", "frog": "🐸", "penguin": "🐧",
    "owl": "🦉", "fish": "🐠", "turtle": "🐢", "octopus": "🐙", "butterfly": "🦋", "ladybug": "🐞",
    "car": "🚗", "bus": "🚌", "rocket": "🚀", "sailboat": "⛵", "house": "🏠", "tree": "🌳", "cactus": "🌵",
    "sunflower": "🌻", "star": "⭐", "moon": "🌙", "snowman": "⛄", "umbrella": "☂️", "guitar": "🎸", "balloon": "🎈",
}  # fmt: skip
SIZES = {"small": 48, "": 72, "big": 100}  # word -> longer side of the sprite, px
BACKGROUNDS = {
    "white": (244, 244, 244), "gray": (150, 152, 156), "black": (28, 28, 34), "red": (212, 66, 66),
    "orange": (238, 148, 60), "yellow": (246, 220, 92), "green": (92, 176, 96), "blue": (78, 130, 222),
    "purple": (146, 96, 190), "pink": (246, 172, 202),
}  # fmt: skip
DIRECTIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}  # (x, y), y grows downwards
PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
GRID = 4  # px: centres lie on this grid
MIN_GAP = 0.42  # centres are at least this share of the summed sizes apart: boxes overlap a little
EXTRA_GAP = 44  # px more than that, at most, between related objects
MAX_SLANT = 0.45  # and at most this much off the relation's axis
DRIFT = {
    1: 56,
    2: 32,
    3: 24,
}  # number of objects -> px that their common centre may lie off the canvas's, each way
HELDOUT_SEED = 10**9


@dataclass(frozen=True)
class Placed:
    """One object: its kind, size word, and centre in px (x to the right, y downwards)."""

    kind: str
    size: str
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """What is to be drawn. `relations` holds (object index, relation, object index)."""

    seed: int
    caption: str
    background: str
    rgb: tuple[int, int, int]
    objects: tuple[Placed, ...]
    relations: tuple[tuple[int, str, int], ...]


def _heldout_combinations() -> tuple[frozenset, frozenset]:
    """Return the unordered kind pairs and the (kind, relation, kind) triples that training never sees."""
    rng = random.Random("held-out combinations")
    pairs = list(combinations(KINDS, 2))
    rng.shuffle(pairs)
    triples = set()
    for first, second in pairs[40:140]:
        relation = rng.choice(list(DIRECTIONS))
        triples |= {(first, relation, second), (second, _opposite(relation), first)}
    return frozenset(frozenset(pair) for pair in pairs[:40]), frozenset(triples)


def _opposite(relation: str) -> str:
    dx, dy = DIRECTIONS[relation]
    return next(name for name, direction in DIRECTIONS.items() if direction == (-dx, -dy))


HELDOUT_PAIRS, HELDOUT_TRIPLES = _heldout_combinations()


def novelty(kinds: list[str], relations: list[tuple[int, str, int]]) -> str | None:
    """Return "pair" or "relation" if the scene holds a combination kept out of training, else None."""
    if any(frozenset(pair) in HELDOUT_PAIRS for pair in combinations(kinds, 2)):
        return "pair"
    if any((kinds[i], relation, kinds[j]) in HELDOUT_TRIPLES for i, relation, j in relations):
        return "relation"
    return None


def training_scene(seed: int) -> Scene:
    """Return the training scene of this seed; it holds no combination that is kept out."""
    return _scene(seed, lambda found: found is None)


def heldout_scene(index: int) -> Scene:
    """Return held-out scene number `index`: every second one holds a pair or a relation never trained on."""
    wanted = ("pair", None, "relation", None)[index % 4]
    return _scene(HELDOUT_SEED + index, lambda found: found == wanted, least=1 if wanted is None else 2)


def _scene(seed: int, accept, least: int = 1) -> Scene:
    rng = random.Random(seed)
    while True:
        count = max(least, rng.choices((1, 2, 3), weights=(24, 40, 50))[0])
        kinds = rng.sample(list(KINDS), count)
        relations = _relations(rng, count)
        if not accept(novelty(kinds, relations)):
            continue
        sizes = rng.choices(list(SIZES), weights=(1, 2, 1), k=count)
        centres = _place(rng, [SIZES[size] for size in sizes], relations)
        if centres is None:
            continue
        objects = tuple(
            Placed(kind, size, *centre) for kind, size, centre in zip(kinds, sizes, centres, strict=True)
        )
        background = rng.choice(list(BACKGROUNDS))
        rgb = tuple(min(255, max(0, channel + rng.randint(-6, 6))) for channel in BACKGROUNDS[background])
        scene = Scene(seed, "", background, rgb, objects, tuple(relations))
        return replace(scene, caption=_caption(rng, scene))


def _relations(rng: random.Random, count: int) -> list[tuple[int, str, int]]:
    """First and third object are each related to the second, in different directions."""
    directions = rng.sample(list(DIRECTIONS), 2)
    return [(0, directions[0], 1), (2, directions[1], 1)][: count - 1]


def _place(
    rng: random.Random, sizes: list[int], relations: list[tuple[int, str, int]]
) -> list[tuple[int, int]] | None:
    """Place the objects freely within their relations and the canvas; None if that does not come quickly."""
    for _ in range(20):
        centres = {1 if relations else 0: (0.0, 0.0)}  # the second object is what the others are related to
        for i, relation, j in relations:
            dx, dy = DIRECTIONS[relation]
            along = MIN_GAP * (sizes[i] + sizes[j]) + rng.uniform(0, EXTRA_GAP)
            across = rng.uniform(-MAX_SLANT, MAX_SLANT) * along
            centres[i] = (dx * along + dy * across, dy * along + dx * across)
        centres = _centred(rng, [centres[i] for i in range(len(sizes))])
        if _fits(centres, sizes):
            return centres
    return None


def _centred(rng: random.Random, centres: list[tuple[float, float]]) -> list[tuple[int, int]]:
    """Move all centres so that the middle of their bounding box lies near the canvas's, and round to the grid."""
    moved = []
    for axis in zip(*centres, strict=True):
        drift = DRIFT[len(centres)]
        shift = CANVAS / 2 + rng.uniform(-drift, drift) - (min(axis) + max(axis)) / 2
        moved.append([GRID * round((value + shift) / GRID) for value in axis])
    return list(zip(*moved, strict=True))


def _fits(centres: list[tuple[int, int]], sizes: list[int]) -> bool:
    """True if every object is inside the canvas and no two are nearer than MIN_GAP allows."""
    inside = all(
        size / 2 <= value <= CANVAS - size / 2
        for centre, size in zip(centres, sizes, strict=True)
        for value in centre
    )
    return inside and all(
        max(abs(centres[i][0] - centres[j][0]), abs(centres[i][1] - centres[j][1]))
        >= MIN_GAP * (sizes[i] + sizes[j]) - GRID
        for i, j in combinations(range(len(sizes)), 2)
    )


def holds(
    first: tuple[float, float], relation: str, second: tuple[float, float], gap: float, slant: float
) -> bool:
    """True if `first` (x, y) lies at least `gap` px from `second` in the relation's direction, within the slant."""
    dx, dy = DIRECTIONS[relation]
    x, y = first[0] - second[0], first[1] - second[1]
    along, across = x * dx + y * dy, abs(x * dy) + abs(y * dx)
    return along >= gap and across <= slant * along


def _caption(rng: random.Random, scene: Scene) -> str:
    """Say the scene in one of several ways."""
    names = [f"{placed.size} {placed.kind}".strip() for placed in scene.objects]
    some = [f"{_article(name)} {name}" for name in names]
    the = [f"the {placed.kind}" for placed in scene.objects]
    said = [(i, rng.choice(PHRASES[relation]), j) for i, relation, j in scene.relations]
    if not said:
        core = some[0]
    elif len(said) == 1:
        core = rng.choice(
            (f"{some[0]} {said[0][1]} {some[1]}", f"{some[0]} and {some[1]}, {the[0]} {said[0][1]} {the[1]}")
        )
    else:
        core = rng.choice(
            (
                f"{some[0]} {said[0][1]} {some[1]} and {some[2]} {said[1][1]} {the[1]}",
                f"{some[0]} {said[0][1]} {some[1]}, with {some[2]} {said[1][1]} {the[1]}",
                f"{some[0]}, {some[1]} and {some[2]}, {the[0]} {said[0][1]} {the[1]}, {the[2]} {said[1][1]} {the[1]}",
            )
        )
    background = f"{_article(scene.background)} {scene.background} background"
    opening = rng.choice(("", "", "a picture of ", "an image of ", "a drawing of "))
    return rng.choice(
        (
            f"{opening}{core} on {background}",
            f"{opening}{core} on {background}",
            f"{opening}{core} against {background}",
            f"{opening}{core} with {background}",
            f"{opening}{core}, {scene.background} background",
            f"on {background}, {core}",
        )
    )


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else ("some" if name == "grapes" else "a")
