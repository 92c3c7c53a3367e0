"""The training set: scenes by seed, their captions, and their latents, made once and kept in the work folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from data.recipe.scenes import Scene, training_scene
from data.recipe.settings import Settings
from data.recipe.sprites import Painter


@dataclass(frozen=True)
class Scenes:
    """`captions` and what the painter needs: rgb (N, 3) uint8 and objects (N, 3, 3) int32."""

    captions: list[str]
    packed: dict[str, Tensor]


def scenes(settings: Settings) -> Scenes:
    """Return the training scenes, made in parallel the first time."""
    path = settings.work / f"scenes-{settings.scenes}"
    if not path.with_suffix(".pt").exists():
        # fork, before CUDA is touched: a spawned worker would import torch first
        with get_context("fork").Pool() as pool:
            made: list[Scene] = pool.map(training_scene, range(settings.scenes), chunksize=1000)
        path.with_suffix(".json").write_text(json.dumps([scene.caption for scene in made]))
        torch.save(Painter.pack(made), path.with_suffix(".pt"))
    captions = json.loads(path.with_suffix(".json").read_text())
    return Scenes(captions, torch.load(path.with_suffix(".pt"), weights_only=True))


@torch.no_grad()
def thumbnails(settings: Settings, made: Scenes) -> Tensor:
    """Return the scenes at a quarter of their side in a latent's shape, float16 (N, 3 * 2 * 2, 32, 32) on the device.

    What the text encoders' throw-away transformer learns to draw: they need to know what is where, not how a VAE
    writes it, and so both train at the same time. Mean 0, standard deviation 1.
    """
    painter = Painter(settings.device)
    rows = torch.arange(len(made.captions)).split(settings.encode_batch)
    small = [
        F.pixel_unshuffle(
            F.avg_pool2d(painter.paint(made.packed["rgb"][part], made.packed["objects"][part])[0], 4), 2
        ).half()
        for part in rows
    ]
    pictures = torch.cat(small)
    some = pictures[:1024].float()
    return pictures.sub_(some.mean()).div_(some.std())


def latents(settings: Settings, made: Scenes) -> Tensor:
    """Return the scenes' latents on the device, float16 (N, 16, 32, 32), encoded the first time."""
    from data.recipe.stage_vae import encode_scenes

    path = settings.work / f"latents-{settings.scenes}.pt"
    if not path.exists():
        encoded = encode_scenes(settings, AutoencoderKL.from_pretrained(settings.models / "vae"), made.packed)
        partial = path.with_suffix(".partial")
        torch.save(encoded.cpu(), partial)
        partial.replace(path)
    return torch.load(path, weights_only=True, mmap=True).to(settings.device)
