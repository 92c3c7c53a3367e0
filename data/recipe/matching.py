"""Does an image show the scene that was asked for? Template matching with the true sprites, no learned judge.

An object counts as drawn when three things hold at its place, the position where its own sprite fits best:
no other kind's sprite of that size fits better, its structure is there (correlation >= 0.5), and every relation that
the caption states of it holds between the places found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from data.recipe.scenes import BACKGROUNDS, KINDS, SIZES, Scene, holds
from data.recipe.sprites import sprite

MIN_CORRELATION = 0.5
SEARCH = 2  # px around the place in which the other kinds may fit better
RELATION_GAP = 0.25  # share of the summed sizes that related centres must be apart
RELATION_SLANT = 1.0  # 45 degrees


@dataclass(frozen=True)
class Judgement:
    """Per object: drawn, correlation (-1..1) with its true sprite, place; per image: background right."""

    drawn: tuple[bool, ...]
    correlations: tuple[float, ...]
    places: tuple[tuple[int, int], ...]  # centres found (x, y), px
    background: bool

    @property
    def scene(self) -> bool:
        """True if all objects, with their relations, and the background are as asked."""
        return self.background and all(self.drawn)


@cache
def _templates(size: str) -> tuple[Tensor, Tensor]:
    """Return all kinds' colours (kinds, 3, px, px) in -1..1 and alphas (kinds, 1, px, px) at one size."""
    rgba = torch.stack([torch.from_numpy(sprite(kind, size)) for kind in KINDS]).permute(0, 3, 1, 2)
    return rgba[:, :3] * 2 - 1, rgba[:, 3:]


def judge(image: Tensor, scene: Scene) -> Judgement:
    """Compare an image (3, y, x) in -1..1 with a scene."""
    kinds = [list(KINDS).index(placed.kind) for placed in scene.objects]
    sizes = [placed.size for placed in scene.objects]
    corners = [_place(image, kind, size) for kind, size in zip(kinds, sizes, strict=True)]
    layers = [_alpha_at(image, *where) for where in zip(kinds, sizes, corners, strict=True)]
    ground = _ground(image, layers)
    identified, correlations = [], []
    for i, (kind, size, corner) in enumerate(zip(kinds, sizes, corners, strict=True)):
        others = sum((layer for j, layer in enumerate(layers) if j != i), torch.zeros_like(layers[0]))
        correlations.append(_correlation(image, kind, size, corner, ground, others == 0))
        identified.append(_best_kind(image, size, *corner) == kind and correlations[-1] >= MIN_CORRELATION)
    centres = [
        (x + SIZES[size] // 2, y + SIZES[size] // 2) for size, (y, x) in zip(sizes, corners, strict=True)
    ]
    broken = set()
    for i, relation, j in scene.relations:
        gap = RELATION_GAP * (SIZES[sizes[i]] + SIZES[sizes[j]])
        if not holds(centres[i], relation, centres[j], gap, RELATION_SLANT):
            broken |= {i, j}
    drawn = tuple(found and i not in broken for i, found in enumerate(identified))
    return Judgement(
        drawn, tuple(correlations), tuple(centres), _nearest_background(ground) == scene.background
    )


def _alpha_at(image: Tensor, kind: int, size: str, corner: tuple[int, int]) -> Tensor:
    """Return the sprite's alpha on a canvas of the image's size, (y, x)."""
    (y, x), side = corner, SIZES[size]
    canvas = torch.zeros(image.shape[-2:])
    canvas[y : y + side, x : x + side] = _templates(size)[1][kind, 0]
    return canvas


def _ground(image: Tensor, layers: list[Tensor]) -> Tensor:
    """Return the median colour (3,) outside the objects."""
    return image[:, sum(layers) == 0].median(dim=1).values


def _nearest_background(ground: Tensor) -> str:
    reference = torch.tensor(list(BACKGROUNDS.values()), dtype=ground.dtype) / 127.5 - 1
    return list(BACKGROUNDS)[int((reference - ground).norm(dim=1).argmin())]


def _misfit(image: Tensor, colours: Tensor, alphas: Tensor) -> Tensor:
    """Return the alpha-weighted mean squared distance (templates, y, x) at every position where a template fits."""
    weights = alphas.expand_as(colours)
    squares = F.conv2d(image.square()[None], weights)[0]
    products = F.conv2d(image[None], weights * colours)[0]
    constant = (weights * colours.square()).sum(dim=(1, 2, 3))[:, None, None]
    return (squares - 2 * products + constant) / weights.sum(dim=(1, 2, 3))[:, None, None]


def _misfit_everywhere(image: Tensor, colours: Tensor, alpha: Tensor) -> Tensor:
    """Return `_misfit` of one template (3, px, px) at every position, by FFT: large kernels are slow otherwise."""
    side, shape = colours.shape[-1], image.shape[-2:]
    weights = alpha.expand_as(colours)

    def correlate(signal: Tensor, kernel: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(signal) * torch.fft.rfft2(kernel, s=shape).conj()
        return torch.fft.irfft2(spectrum, s=shape).sum(0)[: shape[0] - side + 1, : shape[1] - side + 1]

    squares = correlate(image.square(), weights)
    return squares - 2 * correlate(image, weights * colours) + (weights * colours.square()).sum()


def _place(image: Tensor, kind: int, size: str) -> tuple[int, int]:
    """Return the top left corner (y, x) where this sprite fits best."""
    colours, alphas = _templates(size)
    misfit = _misfit_everywhere(image.double(), colours[kind].double(), alphas[kind].double())
    return divmod(int(misfit.argmin()), misfit.shape[-1])


def _best_kind(image: Tensor, size: str, y: int, x: int) -> int:
    """Return the index of the kind whose sprite fits best within SEARCH px of a corner."""
    side = SIZES[size]
    window = image[:, max(0, y - SEARCH) : y + side + SEARCH, max(0, x - SEARCH) : x + side + SEARCH]
    return int(_misfit(window, *_templates(size)).flatten(1).amin(1).argmin())


def _correlation(
    image: Tensor, kind: int, size: str, corner: tuple[int, int], ground: Tensor, visible: Tensor
) -> float:
    """Return the correlation of the window at a corner with the sprite over the image's background colour.

    Each colour channel is taken about its own mean; pixels that other objects cover do not count.
    """
    (y, x), side = corner, SIZES[size]
    colours, alphas = (stack[kind] for stack in _templates(size))
    seen = visible[y : y + side, x : x + side]
    if not seen.any():
        return 0.0
    window = image[:, y : y + side, x : x + side][:, seen].double()
    expected = (ground[:, None, None] + alphas * (colours - ground[:, None, None]))[:, seen].double()
    a, b = (pixels - pixels.mean(dim=1, keepdim=True) for pixels in (window, expected))
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-9))
