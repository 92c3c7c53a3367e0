"""What is known of a sample when its file is begun: the axes that all samples of a file share, and its own facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sd35h5.measuring.reductions import pooled_centres
from sd35h5.store import schema


@dataclass(frozen=True)
class Layout:
    """The axes that all samples of one file share.

    Args:
        patches: (y, x) of the image tokens.
        pixels: (height, width) of the stored images, or None if none are stored.
        ranks: number of heaviest keys, 0 for none. maps: number of places for maps, 0 for none.
        rows: number of places for chosen queries, 0 for none.
        map_layers: layers with maps.
        raw: true indices of raw probabilities along raw_step, raw_layer, raw_head and raw_token, or None.
    """

    branches: tuple[str, ...]
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    layers: int
    heads: int
    token_encoders: tuple[int, ...]
    patches: tuple[int, int]
    pixels: tuple[int, int] | None
    ranks: int
    top_steps: tuple[int, ...]
    maps: int
    map_steps: tuple[int, ...]
    pool: int
    map_layers: tuple[int, ...]
    rows: int
    atlas: bool
    raw: Mapping[str, tuple[int, ...]] | None

    def scales(self) -> dict[str, np.ndarray]:
        """Values of the file's scales; those of an absent tier are left out."""
        count = {
            "step": len(self.timesteps),
            "layer": self.layers,
            "head": self.heads,
            "token": len(self.token_encoders),
        }
        scales = {name: np.arange(length) for name, length in count.items()}
        scales["branch"] = np.array([schema.BRANCHES.index(branch) for branch in self.branches])
        scales["timestep"], scales["sigma"] = np.array(self.timesteps), np.array(self.sigmas)
        scales["token_encoder"] = np.array(self.token_encoders)
        for name, length in (("rank", self.ranks), ("map_token", self.maps), ("row", self.rows)):
            if length:
                scales[name] = np.arange(length)
        if self.ranks or self.atlas:
            scales["top_step"] = np.array(self.top_steps)
        if self.maps or self.rows:
            scales["map_step"] = np.array(self.map_steps)
            scales |= {
                d: np.array(pooled_centres(n, self.pool)) for d, n in zip("yx", self.patches, strict=True)
            }
        if self.atlas or self.raw:
            scales |= {f"patch_{d}": np.arange(n) for d, n in zip("yx", self.patches, strict=True)}
        if self.raw:
            scales |= {name: np.array(indices) for name, indices in self.raw.items()}
        if self.pixels is not None:
            scales["pixel_y"], scales["pixel_x"] = np.arange(self.pixels[0]), np.arange(self.pixels[1])
        return scales

    def differences(self, other: Layout) -> list[str]:
        """Names of the axes in which another sample's layout differs."""
        return [name for name, value in vars(self).items() if value != getattr(other, name)]


@dataclass(frozen=True)
class SampleFacts:
    """What is written of a sample besides its measurements."""

    index: int
    sample_id: str
    prompt_id: str
    prompt: str
    negative_prompt: str
    prompt_index: int
    image_index: int
    tags: str
    seed: int
    pairing_key: str
