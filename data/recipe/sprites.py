"""The emoji sprites: cut from the Noto Color Emoji font once, kept as one atlas, and composited into scenes.

`python data/recipe/sprites.py` writes sprites.png and sprites.json anew from Debian's fonts-noto-color-emoji (SIL Open
Font License 1.1, see OFL.txt beside this file).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.recipe.scenes import CANVAS, KINDS, SIZES, Placed, Scene

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
FONT_SIZE = 109  # the one size this bitmap font holds
ATLAS = Path(__file__).with_name("sprites.png")
CELL = 128  # px, side of one sprite in the atlas
COLUMNS = 8
FACTS = ATLAS.with_suffix(".json")  # what the dashboard, which knows no recipe, needs to read the atlas
PATCH = max(SIZES.values())  # px, side of a scaled sprite's patch


def make_atlas(path: Path = ATLAS) -> None:
    """Draw every kind with the font, trim it, scale its longer side to CELL and write them all as one RGBA PNG."""
    font = ImageFont.truetype(FONT, FONT_SIZE)
    atlas = Image.new("RGBA", (COLUMNS * CELL, -(-len(KINDS) // COLUMNS) * CELL))
    for number, character in enumerate(KINDS.values()):
        glyph = Image.new("RGBA", (2 * CELL, 2 * CELL))
        ImageDraw.Draw(glyph).text((16, 16), character, font=font, embedded_color=True)
        sprite = _fit(glyph.crop(glyph.getbbox()), CELL)
        atlas.paste(sprite, _cell(number))
    atlas.save(path, optimize=True)


def facts() -> str:
    """Return what is in the atlas, as FACTS holds it."""
    told = {"canvas": CANVAS, "cell": CELL, "sizes": SIZES, "kinds": list(KINDS)}
    return json.dumps(told, indent=1) + "\n"


def _cell(number: int) -> tuple[int, int]:
    return number % COLUMNS * CELL, number // COLUMNS * CELL


def _fit(sprite: Image.Image, side: int) -> Image.Image:
    """Scale the longer side to `side` px and centre the sprite on a transparent square."""
    scale = side / max(sprite.size)
    width, height = (max(1, round(length * scale)) for length in sprite.size)
    square = Image.new("RGBA", (side, side))
    square.paste(
        sprite.resize((width, height), Image.Resampling.LANCZOS), ((side - width) // 2, (side - height) // 2)
    )
    return square


@cache
def sprite(kind: str, size: str) -> np.ndarray:
    """Return the sprite as float32 (px, px, 4), RGB in 0..1 and alpha, px being the size's longer side."""
    x, y = _cell(list(KINDS).index(kind))
    with Image.open(ATLAS) as atlas:
        cell = atlas.convert("RGBA").crop((x, y, x + CELL, y + CELL))
    return np.asarray(_fit(cell.crop(cell.getbbox()), SIZES[size]), np.float32) / 255


def corner(placed: Placed) -> tuple[int, int]:
    """Return (x, y) of the top left pixel of the object's square."""
    return placed.x - SIZES[placed.size] // 2, placed.y - SIZES[placed.size] // 2


def box(placed: Placed) -> tuple[int, int, int, int]:
    """Return the object's tight box (left, top, right, bottom) in px, right and bottom exclusive."""
    rows, columns = np.nonzero(sprite(placed.kind, placed.size)[..., 3] > 0.5)
    x, y = corner(placed)
    return (
        x + int(columns.min()), y + int(rows.min()), x + int(columns.max()) + 1, y + int(rows.max()) + 1
    )  # fmt: skip


class Painter:
    """Composites batches of scenes on a device."""

    def __init__(self, device: torch.device | str):
        patches = np.zeros((len(KINDS), len(SIZES), PATCH, PATCH, 4), np.float32)
        for k, kind in enumerate(KINDS):
            for s, (size, side) in enumerate(SIZES.items()):
                patches[k, s, :side, :side] = sprite(kind, size)
        self.device = torch.device(device)
        self.sides = torch.tensor(list(SIZES.values()), device=self.device)
        self.patches = torch.from_numpy(patches).flatten(0, 1).permute(0, 3, 1, 2).to(self.device)

    @staticmethod
    def pack(scenes: list[Scene]) -> dict[str, Tensor]:
        """Return what `paint` needs: background rgb (N, 3) and objects (N, 3, 3) as patch (-1: none), x, y."""
        objects = torch.full((len(scenes), 3, 3), -1, dtype=torch.int32)
        kinds, sizes = list(KINDS), list(SIZES)
        for n, scene in enumerate(scenes):
            for slot, placed in enumerate(scene.objects):
                patch = kinds.index(placed.kind) * len(sizes) + sizes.index(placed.size)
                objects[n, slot] = torch.tensor([patch, *corner(placed)], dtype=torch.int32)
        return {"rgb": torch.tensor([scene.rgb for scene in scenes], dtype=torch.uint8), "objects": objects}

    def paint(
        self, rgb: Tensor, objects: Tensor, corner: Tensor | None = None, side: int = CANVAS
    ) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, y, x) in -1..1 and the objects' coverage (N, 1, y, x) in 0..1, float32.

        With `corner`, (N, 2) as x, y in px, only the square of `side` px that begins there.
        """
        axis = torch.arange(side, device=self.device)
        left, top = (0, 0) if corner is None else corner.long()[:, :, None].unbind(1)
        image = (rgb.to(self.device).float() / 255)[:, :, None, None].expand(-1, -1, side, side)
        coverage = torch.zeros_like(image[:, :1])
        for slot in range(objects.shape[1]):
            patch, x, y = objects[:, slot].to(self.device).long().unbind(-1)
            column, row = (
                left + axis - x[:, None],
                top + axis - y[:, None],
            )  # (N, px): position inside the patch
            inside = (patch >= 0)[:, None, None] & _within(row)[:, :, None] & _within(column)[:, None, :]
            row, column = row.clamp(0, PATCH - 1), column.clamp(0, PATCH - 1)
            rgba = self.patches[patch.clamp(min=0)[:, None, None], :, row[:, :, None], column[:, None, :]]
            rgba = rgba.permute(0, 3, 1, 2) * inside[:, None]
            image = image + rgba[:, 3:] * (rgba[:, :3] - image)
            coverage = torch.maximum(coverage, rgba[:, 3:])
        return image * 2 - 1, coverage

    def crop_around_object(self, objects: Tensor, side: int, grid: int) -> Tensor:
        """Draw for each scene the corner (N, 2), x and y, of a square around one of its objects.

        Corners lie on `grid` px, so that a sprite keeps its place relative to a VAE's latent cells.
        """
        chance = torch.rand(objects.shape[:2], device=self.device).masked_fill(objects[:, :, 0] < 0, -1.0)
        chosen = objects[torch.arange(len(objects), device=self.device), chance.argmax(1)]
        middle = chosen[:, 1:] + self.sides[chosen[:, :1] % len(SIZES)] / 2
        jitter = (torch.rand(len(objects), 2, device=self.device) - 0.5) * side / 2
        corner = (middle + jitter - side / 2).clamp(0, CANVAS - side)
        return (corner / grid).round().long() * grid


def _within(position: Tensor) -> Tensor:
    return (position >= 0) & (position < PATCH)


if __name__ == "__main__":
    make_atlas()
    FACTS.write_text(facts(), encoding="utf-8")
    print(f"wrote {ATLAS}")
