"""Stages 2 to 5: text encoders with a throw-away transformer that draws small pictures, then the three transformers
against the frozen encoders.

Flow matching: x = (1 - sigma) x0 + sigma noise, the network predicts noise - x0 (Esser et al. 2024, section 3.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from data.recipe import loop
from data.recipe.dataset import Scenes, latents, thumbnails
from data.recipe.models import (
    SHIFT,
    encode_text,
    load_text,
    make_text_encoders,
    make_tokenizers,
    make_transformer,
    save_text,
    tokenize,
)
from data.recipe.optimisers import Ema, Muon, split_parameters
from data.recipe.settings import Settings
from data.recipe.vocabularies import T5_LENGTH
from sd35h5.gates.modules import GATES_FILE, build_gates, install_gates, save_gates

TextOf = Callable[
    [Tensor, Tensor], tuple[Tensor, Tensor]
]  # (scene numbers, which get the empty caption) -> text
VARIANTS = {
    "baseline": "transformer",
    "headwise": "transformer_headwise",
    "elementwise": "transformer_elementwise",
}


def train_text(settings: Settings, made: Scenes) -> bool:
    """Train encoders and a throw-away transformer together; when done, write the encoders and return True."""
    torch.manual_seed(settings.seed)
    tokenizers = make_tokenizers()
    encoders = make_text_encoders(tokenizers).to(settings.device)
    pictures = thumbnails(settings, made)
    transformer = make_transformer(pictures.shape[1]).to(settings.device)
    network = nn.ModuleDict({"transformer": transformer, "encoders": encoders})
    ids = [tokens.to(settings.device) for tokens in tokenize(tokenizers, made.captions)]
    empty = [tokens.to(settings.device) for tokens in tokenize(tokenizers, [""])]

    def text_with(t5_length: int) -> TextOf:
        def text_of(rows: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
            chosen = [torch.where(dropped[:, None], e, i[rows]) for i, e in zip(ids, empty, strict=True)]
            return encode_text(encoders, [*chosen[:2], chosen[2][:, :t5_length]])

        return text_of

    if not _train(settings, "text", settings.text_steps, network, text_with, pictures):
        return False
    save_text(settings.models, tokenizers, encoders)
    return True


def train_variant(settings: Settings, made: Scenes, variant: str) -> bool:
    """Train one transformer from scratch against the frozen encoders; when done, write its folder and return True."""
    torch.manual_seed(settings.seed)  # what the variants share starts equal: gates draw nothing
    transformer = make_transformer().to(settings.device)
    network = nn.ModuleDict({"transformer": transformer})
    gates = None
    if variant != "baseline":
        gates = build_gates(transformer, variant)
        install_gates(transformer, gates)
        network["gates"] = gates.modules
    text_with = _frozen_text(settings, made.captions)
    if not _train(settings, variant, settings.steps, network, text_with, latents(settings, made)):
        return False
    folder = settings.models / VARIANTS[variant]
    transformer.half().save_pretrained(folder)
    if gates is not None:
        save_gates(folder / GATES_FILE, gates)
    return True


def _frozen_text(settings: Settings, captions: list[str]) -> Callable[[int], TextOf]:
    """Return a function that encodes every distinct caption once at a T5 length and gives the look-up."""
    tokenizers, encoders = load_text(settings.models)
    encoders = encoders.to(settings.device).eval()
    distinct = ["", *dict.fromkeys(captions)]
    number = {caption: n for n, caption in enumerate(distinct)}
    caption_of = torch.tensor([number[caption] for caption in captions], device=settings.device)
    ids = [tokens.to(settings.device) for tokens in tokenize(tokenizers, distinct)]

    @torch.no_grad()
    def text_with(t5_length: int) -> TextOf:
        first_states, first_pooled = encode_text(encoders, [ids[0][:1], ids[1][:1], ids[2][:1, :t5_length]])
        states = first_states.new_empty(
            len(distinct), *first_states.shape[1:], dtype=torch.float16
        )  # 25 GB in full
        pooled = first_pooled.new_empty(len(distinct), first_pooled.shape[1], dtype=torch.float16)
        for first in range(0, len(distinct), 512):
            rows = slice(first, first + 512)
            states[rows], pooled[rows] = encode_text(
                encoders, [ids[0][rows], ids[1][rows], ids[2][rows, :t5_length]]
            )

        def text_of(rows: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
            caption = torch.where(dropped, 0, caption_of[rows])
            return states[caption].float(), pooled[caption].float()

        return text_of

    return text_with


def _train(
    settings: Settings,
    name: str,
    steps: int,
    network: nn.ModuleDict,
    text_with: Callable[[int], TextOf],
    clean: Tensor,
) -> bool:
    """Train `network` and leave its moving average in it; False if the time was up before."""
    device = settings.device
    schedule = loop.Schedule(steps, device)
    matrices, rest = split_parameters(network)
    muon = Muon(matrices, torch.zeros((), device=device))
    adam_lr = torch.zeros((), device=device)
    adam = torch.optim.AdamW(
        rest, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True, capturable=device.type == "cuda"
    )
    ema = Ema(network, settings.ema)
    checkpoint = settings.work / f"{name}.pt"
    if (saved := loop.resume(schedule, checkpoint)) is not None:
        network.load_state_dict(saved["network"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        torch._foreach_copy_(ema.mean, saved["ema"])
    torch.manual_seed(
        settings.seed + int(schedule.step)
    )  # rows, timesteps and noise: equal for every variant
    if device.type == "cuda":
        for block in network["transformer"].transformer_blocks:
            block.compile(dynamic=False)
    parameters = list(network.parameters())

    def step(text_of: TextOf) -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        muon.lr.copy_(settings.muon_lr * schedule.factor())
        adam_lr.copy_(settings.adam_lr * schedule.factor())
        rows = torch.randint(len(clean), (settings.batch,), device=device)
        dropped = torch.rand(settings.batch, device=device) < settings.empty_captions
        with settings.autocast():
            loss = flow_loss(network["transformer"], clean[rows].float(), *text_of(rows, dropped))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        muon.step()
        adam.step()
        ema.update()
        return loss

    def state() -> dict:
        return {
            "network": network.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(), "ema": ema.mean
        }  # fmt: skip

    begin = time.monotonic()
    for t5_length, until in ((settings.short_t5, int(steps * settings.short_share)), (T5_LENGTH, steps)):
        if int(schedule.step) >= until:
            continue
        seconds = settings.seconds - (time.monotonic() - begin)
        text_of = text_with(t5_length)
        if not loop.run(
            schedule,
            lambda text_of=text_of: step(text_of),
            state,
            checkpoint,
            settings.log(name),
            seconds,
            until,
        ):
            return False
    ema.put_into_module()
    return True


def flow_loss(transformer: SD3Transformer2DModel, clean: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
    """Return the mean squared error of the predicted velocity at one random sigma a scene."""
    sigma = random_sigmas(len(clean), clean.device)
    noise = torch.randn_like(clean)
    noised = torch.lerp(clean, noise, sigma[:, None, None, None])
    predicted = transformer(noised, states, pooled, timestep=1000 * sigma, return_dict=False)[0]
    return (predicted.float() - (noise - clean)).square().mean()


def random_sigmas(count: int, device: torch.device) -> Tensor:
    """Draw logit-normal sigmas, stratified over the batch, and shift them as the sampler's schedule is shifted."""
    uniform = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    sigma = torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)))
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
