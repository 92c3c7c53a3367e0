"""Stage 1: the VAE, trained on squares around objects, painted on the fly."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from data.recipe import loop
from data.recipe.models import make_vae
from data.recipe.optimisers import Ema
from data.recipe.settings import Settings
from data.recipe.sprites import Painter

OBJECT_WEIGHT = 4.0  # pixels of objects count this much more than the background's
KL_WEIGHT = 1e-3
CROP = 128  # px: most of a whole scene is flat background, of which there is little to learn
LATENT_CELL = 8  # px
MIN_STD = 0.1  # of the posterior: keeps the latents smooth


def train(settings: Settings, scenes: dict[str, Tensor]) -> bool:
    """Train or go on training; when the steps are done, write `vae/` and return True."""
    device = settings.device
    torch.manual_seed(settings.seed)
    vae = make_vae().to(device, memory_format=torch.channels_last)
    painter, schedule = Painter(device), loop.Schedule(settings.vae_steps, device)
    lr = torch.zeros((), device=device)
    optimiser = torch.optim.AdamW(
        vae.parameters(), lr=lr, weight_decay=0.0, fused=True, capturable=device.type == "cuda"
    )
    ema = Ema(vae, 0.998)
    checkpoint = settings.work / "vae.pt"
    if (saved := loop.resume(schedule, checkpoint)) is not None:
        vae.load_state_dict(saved["vae"])
        optimiser.load_state_dict(saved["optimiser"])
        torch._foreach_copy_(ema.mean, saved["ema"])
    objective = settings.compiled(lambda images, coverage: _loss(vae, images, coverage))
    scenes = {name: tensor.to(device) for name, tensor in scenes.items()}
    count = len(scenes["rgb"])

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        lr.copy_(settings.vae_lr * schedule.factor())
        rows = torch.randint(count, (settings.vae_batch,), device=device)
        rgb, objects = scenes["rgb"][rows], scenes["objects"][rows]
        corner = painter.crop_around_object(objects, CROP, LATENT_CELL)
        images, coverage = painter.paint(rgb, objects, corner, CROP)
        with settings.autocast():
            loss = objective(images.contiguous(memory_format=torch.channels_last), coverage)
        loss.backward()
        optimiser.step()
        ema.update()
        return loss

    def state() -> dict:
        return {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "ema": ema.mean}

    if not loop.run(schedule, step, state, checkpoint, settings.log("vae"), settings.seconds):
        return False
    ema.put_into_module()
    _normalise(vae, painter, scenes)
    vae.half().save_pretrained(settings.models / "vae")
    return True


def _loss(vae: AutoencoderKL, images: Tensor, coverage: Tensor) -> Tensor:
    moments = vae.encoder(images).float()
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(2 * math.log(MIN_STD), 10.0)
    latents = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    drawn = vae.decoder(latents).float()
    weight = 1 + OBJECT_WEIGHT * coverage
    pixel = ((drawn - images).abs() * weight).mean()
    edges = _edge_loss(drawn, images) + _edge_loss(F.avg_pool2d(drawn, 2), F.avg_pool2d(images, 2))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return pixel + edges + KL_WEIGHT * kl


def _edge_loss(drawn: Tensor, images: Tensor) -> Tensor:
    """L1 distance of the horizontal and vertical differences: soft edges cost."""
    return sum((drawn.diff(dim=dim) - images.diff(dim=dim)).abs().mean() for dim in (-1, -2))


@torch.no_grad()
def _normalise(vae: AutoencoderKL, painter: Painter, scenes: dict[str, Tensor]) -> None:
    """Set shift and scaling so that latents have mean 0 and standard deviation 1, as diffusers applies them."""
    vae.eval()
    latents = [
        vae.encoder(painter.paint(scenes["rgb"][rows], scenes["objects"][rows])[0]).chunk(2, dim=1)[0]
        for rows in torch.arange(min(1024, len(scenes["rgb"]))).split(64)
    ]
    latents = torch.cat(latents)
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


@torch.no_grad()
def encode_scenes(settings: Settings, vae: AutoencoderKL, scenes: dict[str, Tensor]) -> Tensor:
    """Return the normalised latents of all scenes, float16 (N, 16, 32, 32) on the device."""
    device = settings.device
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    painter, encoder = Painter(device), settings.compiled(vae.encoder)
    count, batch = len(scenes["rgb"]), min(settings.encode_batch, len(scenes["rgb"]))
    latents = torch.empty(
        count,
        vae.config.latent_channels,
        *[vae.config.sample_size // 8] * 2,
        dtype=torch.float16,
        device=device,
    )
    for first in range(0, count, batch):
        first = min(first, count - batch)  # the last batch overlaps, so that one shape is compiled
        rows = slice(first, first + batch)
        images, _ = painter.paint(scenes["rgb"][rows].to(device), scenes["objects"][rows].to(device))
        with settings.autocast():
            mean = encoder(images.contiguous(memory_format=torch.channels_last)).chunk(2, dim=1)[0]
        latents[rows] = ((mean.float() - vae.config.shift_factor) * vae.config.scaling_factor).half()
    return latents
