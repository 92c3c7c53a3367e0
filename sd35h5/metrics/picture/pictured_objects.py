"""Where the things that a prompt names lie in a picture of the bundled models, by their true sprites; torch-free.

A caption leaves open where exactly its objects stand, so that their true places follow from no text: they are where
their own sprites fit the picture best, as in the models' evaluation (data/recipe/matching.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

MIN_CORRELATION = 0.5  # below it an object counts as not drawn: data/recipe/matching.py
MODEL = "models/emoji"  # how the model_id of the bundled models ends
COLUMNS = ["name", "left", "top", "right", "bottom", "correlation", "drawn"]


@dataclass(frozen=True)
class Sprites:
    """The bundled models' objects: their names, the size words with the longer side in px, a square of pixels each."""

    canvas: int  # px, both sides of a picture
    sizes: dict[str, int]
    kinds: tuple[str, ...]
    atlas: np.ndarray  # uint8 (kind, y, x, RGBA)

    def named(self, prompt: str) -> list[tuple[str, str]]:
        """Return (size word, kind) of every object that the prompt names, in its order, each kind once."""
        words = "|".join(sorted(map(re.escape, self.kinds), key=len, reverse=True))
        sizes = "|".join(re.escape(size) for size in self.sizes if size)
        found: dict[str, str] = {}
        for match in re.finditer(rf"\b(?:({sizes}) )?({words})\b", prompt):
            found[match[2]] = found.get(match[2]) or match[1] or ""
        return [(size, kind) for kind, size in found.items()]

    def scaled(self, size: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the sprite as the scenes have it: colours (3, px, px) in -1..1, alpha (px, px) in 0..1; float64."""
        cell = Image.fromarray(self.atlas[self.kinds.index(kind)])
        cell, side = cell.crop(cell.getbbox()), self.sizes[size]
        times = side / max(cell.size)
        width, height = (max(1, round(length * times)) for length in cell.size)
        square = Image.new("RGBA", (side, side))
        small = cell.resize((width, height), Image.Resampling.LANCZOS)
        square.paste(small, ((side - width) // 2, (side - height) // 2))
        rgba = np.asarray(square, float) / 255
        return rgba[..., :3].transpose(2, 0, 1) * 2 - 1, rgba[..., 3]


def read_sprites(folder: Path) -> Sprites | None:
    """Return the sprites of a recipe's folder, sprites.json and sprites.png; None where they are not."""
    told, atlas = folder / "sprites.json", folder / "sprites.png"
    if not (told.is_file() and atlas.is_file()):
        return None
    facts = json.loads(told.read_text(encoding="utf-8"))
    with Image.open(atlas) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    side, count = facts["cell"], len(facts["kinds"])
    cells = (
        pixels.reshape(-1, side, pixels.shape[1] // side, side, 4).swapaxes(1, 2).reshape(-1, side, side, 4)
    )
    return Sprites(facts["canvas"], facts["sizes"], tuple(facts["kinds"]), cells[:count])


def true_objects(image: np.ndarray, prompt: str, sprites: Sprites) -> pd.DataFrame:
    """Return where each named object's sprite fits the picture best, and how well.

    Formula: the position where the alpha-weighted squared distance between sprite and picture is least; correlation
    over the sprite's square, each colour channel about its own mean, of the picture with the sprite on the
    background (the median colour outside all objects), pixels of other objects left out.
    Units: px, right and bottom exclusive; correlation -1..1.
    Caveat: a place, not a proof: whether another kind would fit better there is not asked. A kind is looked for once.
    Args: image: uint8 (y, x, 3), as large as the model draws; others have no objects.
    Returns: name, left, top, right, bottom, correlation, drawn (correlation of MIN_CORRELATION or more).
    """
    named = sprites.named(prompt)
    if not named or image.shape != (sprites.canvas, sprites.canvas, 3):
        return pd.DataFrame(columns=COLUMNS)
    pixels = image.transpose(2, 0, 1) / 127.5 - 1
    scaled = [sprites.scaled(*one) for one in named]
    corners = [_best_corner(pixels, *sprite) for sprite in scaled]
    covers = [
        _cover(alpha, *corner, pixels.shape[1:]) for (_, alpha), corner in zip(scaled, corners, strict=True)
    ]
    free = np.sum(covers, axis=0) == 0
    ground = np.median(pixels[:, free], axis=1) if free.any() else np.zeros(3)
    rows = []
    for place, ((size, kind), (colours, alpha), (y, x)) in enumerate(
        zip(named, scaled, corners, strict=True)
    ):
        visible = np.sum([cover for at, cover in enumerate(covers) if at != place], axis=0) == 0
        fit = _correlation(pixels, colours, alpha, (y, x), ground, np.broadcast_to(visible, free.shape))
        opaque = alpha > 0.5
        down, across = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
        box = (x + across[0], y + down[0], x + across[-1] + 1, y + down[-1] + 1)
        rows.append((f"{size} {kind}".strip(), *map(int, box), fit, fit >= MIN_CORRELATION))
    return pd.DataFrame(rows, columns=COLUMNS)


def mass_within(values: xr.DataArray, box: tuple[int, int, int, int], canvas: int) -> tuple[float, float]:
    """Return which share of a map lies in a box of the picture, and which share of the picture the box is.

    Formula: Σ map × (part of the cell within the box) ÷ Σ map; box area ÷ picture area.
    Units: 1 (0..1): equal for a map that is the same everywhere.
    Args: values (y, x), cells that tile the picture; box: left, top, right, bottom in px of the canvas.
    """
    left, top, right, bottom = box
    rows = _within(top, bottom, values.sizes["y"], canvas)
    columns = _within(left, right, values.sizes["x"], canvas)
    cells = np.asarray(values.transpose("y", "x"), float)
    return float(rows @ cells @ columns / cells.sum()), float(rows.mean() * columns.mean())


def _within(low: int, high: int, count: int, canvas: int) -> np.ndarray:
    """Return which part of each of `count` equal cells lies between low and high, 0..1."""
    edges = np.linspace(0, canvas, count + 1)
    overlap = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.clip(overlap, 0, None) / (canvas / count)


def _best_corner(pixels: np.ndarray, colours: np.ndarray, alpha: np.ndarray) -> tuple[int, int]:
    """Return the top left corner (y, x) where the alpha-weighted squared distance is least."""
    shape, side = pixels.shape[1:], len(alpha)

    def correlated(signal: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft2(signal) * np.fft.rfft2(kernel, s=shape).conj()
        return np.fft.irfft2(spectrum, s=shape).sum(0)[: shape[0] - side + 1, : shape[1] - side + 1]

    weights = np.broadcast_to(alpha, colours.shape)
    misfit = correlated(pixels**2, weights) - 2 * correlated(pixels, weights * colours)
    y, x = divmod(int(misfit.argmin()), misfit.shape[1])
    return y, x


def _cover(alpha: np.ndarray, y: int, x: int, shape: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(shape)
    canvas[y : y + len(alpha), x : x + len(alpha)] = alpha
    return canvas


def _correlation(
    pixels: np.ndarray,
    colours: np.ndarray,
    alpha: np.ndarray,
    corner: tuple[int, int],
    ground: np.ndarray,
    visible: np.ndarray,
) -> float:
    (y, x), side = corner, len(alpha)
    seen = visible[y : y + side, x : x + side]
    if not seen.any():
        return 0.0
    expected = ground[:, None, None] + alpha * (colours - ground[:, None, None])
    both = [one[:, seen] for one in (pixels[:, y : y + side, x : x + side], expected)]
    a, b = (one - one.mean(axis=1, keepdims=True) for one in both)
    return float((a * b).sum() / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-9))
