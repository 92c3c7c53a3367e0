"""Measure the bundled models on held-out captions with the plain diffusers pipeline, and print the card's table.

    python data/recipe/evaluate.py                          all variants, 200 captions (under an hour on two cores)
    python data/recipe/evaluate.py --variants baseline --count 20 --sheet samples.png

Besides the variants: `ceiling`, the true images through the VAE, and `floor`, the baseline's images judged against
other captions. Intervals are 95 %, by bootstrap over scenes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor

from data.recipe.matching import Judgement, judge
from data.recipe.scenes import Scene, heldout_scene, novelty
from data.recipe.sprites import Painter
from data.recipe.stage_transformer import VARIANTS
from sd35h5.gates.gate_files import load_gates
from sd35h5.gates.modules import GATES_FILE, install_gates

STEPS, GUIDANCE = 28, 4.5
MARKS = "<!-- table: made by python data/recipe/evaluate.py --card -->\n", "<!-- end of table -->"


def load_pipeline(models: Path, variant: str, device: torch.device) -> StableDiffusion3Pipeline:
    """Return the plain pipeline; for a gated variant, with its transformer and gates."""
    pipe = StableDiffusion3Pipeline.from_pretrained(models)
    folder = models / VARIANTS[variant]
    if variant != "baseline":
        pipe.transformer = SD3Transformer2DModel.from_pretrained(folder)
    pipe.to(device)
    if variant != "baseline":
        install_gates(pipe.transformer, load_gates(folder / GATES_FILE, pipe.transformer))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: StableDiffusion3Pipeline, scenes: list[Scene], batch: int) -> Tensor:
    """Return images (N, 3, y, x) in -1..1 on the CPU; scene number i starts from seed i."""
    images, begin = [], time.monotonic()
    for first in range(0, len(scenes), batch):
        part = scenes[first : first + batch]
        images.append(
            pipe(
                [scene.caption for scene in part],
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=[torch.Generator("cpu").manual_seed(first + i) for i in range(len(part))],
                output_type="pt",
            ).images.float().cpu()
        )  # fmt: skip
        done = first + len(part)
        each = (time.monotonic() - begin) / done
        print(
            f"\r{done}/{len(scenes)} images, {each:.1f} s each, {each * (len(scenes) - done):.0f} s left ",
            end="",
            file=sys.stderr,
        )
    print(file=sys.stderr)
    return torch.cat(images) * 2 - 1


@torch.no_grad()
def through_vae(pipe: StableDiffusion3Pipeline, scenes: list[Scene]) -> Tensor:
    """Return the true images after encoding and decoding: what the transformer could reach at best."""
    truth, _ = Painter("cpu").paint(**Painter.pack(scenes))
    parts = truth.to(pipe.device).split(8)
    return torch.cat(
        [
            pipe.vae.decode(pipe.vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1).cpu()
            for part in parts
        ]
    )


def measure(images: Tensor, scenes: list[Scene]) -> dict[str, tuple[float, float, float]]:
    """Return each figure of the table as (value, low, high): shares in %, correlations in -1..1."""
    judged = [judge(image, scene) for image, scene in zip(images, scenes, strict=True)]
    novel = [novelty([p.kind for p in scene.objects], list(scene.relations)) for scene in scenes]
    return {
        "objects": _interval(judged, lambda some: 100 * np.mean([d for j in some for d in j.drawn])),
        "scenes": _interval(judged, lambda some: 100 * np.mean([j.scene for j in some])),
        "background": _interval(judged, lambda some: 100 * np.mean([j.background for j in some])),
        "correlation": _interval(judged, lambda some: np.mean([c for j in some for c in j.correlations])),
        "strict": _interval(
            judged, lambda some: 100 * np.mean([c >= 0.8 for j in some for c in j.correlations])
        ),
        "novel pairs": _objects_where(judged, [kind == "pair" for kind in novel]),
        "novel relations": _objects_where(judged, [kind == "relation" for kind in novel]),
    }


def _objects_where(judged: list[Judgement], chosen: list[bool]) -> tuple[float, float, float]:
    some = [j for j, keep in zip(judged, chosen, strict=True) if keep]
    return (
        _interval(some, lambda part: 100 * np.mean([d for j in part for d in j.drawn]))
        if some
        else (np.nan,) * 3
    )


def _interval(judged: list[Judgement], figure) -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    draws = [figure([judged[i] for i in rng.integers(len(judged), size=len(judged))]) for _ in range(1000)]
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(figure(judged)), float(low), float(high)


def table(results: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """Return the results as a Markdown table."""
    figures = list(next(iter(results.values())))
    lines = ["| | " + " | ".join(figures) + " |", "| --- " * (len(figures) + 1) + "|"]
    for name, row in results.items():
        cells = [
            f"{value:.3f} ({low:.3f}–{high:.3f})"
            if figure == "correlation"
            else f"{value:.1f} % ({low:.1f}–{high:.1f})"
            for figure, (value, low, high) in row.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def renew_card(card: Path, new: str) -> None:
    """Replace the table between the card's marks."""
    before, _, rest = card.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    card.write_text(f"{before}{MARKS[0]}{new}\n{MARKS[1]}{after}", encoding="utf-8")


def sheet(images: Tensor, path: Path, columns: int = 8) -> None:
    """Write a contact sheet of images (N, 3, y, x) in -1..1."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [
        np.hstack(pixels[first : first + columns])
        for first in range(0, len(pixels) // columns * columns, columns)
    ]
    Image.fromarray(np.vstack(rows)).save(path)


def main() -> int:
    """Draw, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=ROOT / "data/models/emoji")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--count", type=int, default=200, help="held-out captions, of 300")
    parser.add_argument("--batch", type=int, default=4, help="captions a call of the pipeline")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--card", action="store_true", help="also renew the table and samples of the models' README.md"
    )
    parser.add_argument(
        "--sheet", type=Path, help="also write a sheet of each variant's first images, NAME-variant.png"
    )
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scenes = [heldout_scene(index) for index in range(arguments.count)]
    results, first = {}, []
    for variant in arguments.variants:
        pipe = load_pipeline(arguments.models, variant, device)
        images = draw(pipe, scenes, arguments.batch)
        results[variant] = measure(images, scenes)
        first.append(F.avg_pool2d(images[:8], 2))
        if arguments.sheet:
            sheet(images[:32], arguments.sheet.with_name(f"{arguments.sheet.stem}-{variant}.png"))
        if variant == arguments.variants[0]:
            others = scenes[1:] + scenes[:1]
            extra = {"ceiling": measure(through_vae(pipe, scenes), scenes), "floor": measure(images, others)}
    results |= extra
    print(table(results))
    text = json.dumps(results, indent=1) + "\n"
    if arguments.json:
        arguments.json.write_text(text)
    if arguments.card:
        (arguments.models / "training/evaluation.json").write_text(text)
        sheet(torch.cat(first), arguments.models / "training/samples.png")
        renew_card(arguments.models / "README.md", table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
