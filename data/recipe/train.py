"""Train the bundled models: `python data/recipe/train.py` runs every stage that is not done yet, on one GPU.

python data/recipe/train.py                       everything (about half an hour on an H100)
python data/recipe/train.py vae text --seconds 540   two stages, each for at most nine minutes; again to go on
python data/recipe/train.py --smoke               every stage for seconds on a CPU, into --models
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from data.recipe.dataset import latents, scenes
from data.recipe.models import save_frame
from data.recipe.settings import Settings, smoke
from data.recipe.stage_transformer import VARIANTS, train_text, train_variant
from data.recipe.stage_vae import train as train_vae

STAGES = {"vae": "vae", "text": "text_encoder_3", **VARIANTS}  # stage -> the folder that says that it is done


def main() -> int:
    """Run the asked stages in order; exit 3 if one ran out of its time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; all by default")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "data/models/emoji", help="where the models are written"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "data/recipe/work", help="checkpoints, scenes and latents"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end each stage after this long")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=NUMBER", help="override a number of settings.py"
    )
    parser.add_argument("--smoke", action="store_true", help="every stage for seconds on a CPU")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"unknown stage {sorted(unknown)[0]!r}: expected {', '.join(STAGES)}")
    settings = _settings(arguments)
    made = scenes(settings)
    asked = arguments.stages or list(STAGES)
    for group in (("vae", "text"), tuple(VARIANTS)):  # what may train at the same time, on several GPUs
        todo = [stage for stage in group if stage in asked and not _is_done(stage, settings)]
        if set(todo) & set(VARIANTS):
            latents(settings, made)  # once, before several processes ask for them
            torch.cuda.empty_cache()
        if len(todo) > 1 and torch.cuda.device_count() > 1:
            if status := _train_side_by_side(todo, settings):
                return status
            continue
        for stage in todo:
            if not _train(stage, settings, made):
                print(f"{stage}: time is up; the same command goes on from step to step")
                return 3
    save_frame(settings.models)
    return 0


def _is_done(stage: str, settings: Settings) -> bool:
    return (settings.models / STAGES[stage] / "config.json").exists()


def _train_side_by_side(stages: list[str], settings: Settings) -> int:
    """Run this command once a stage, each on a GPU of its own as soon as one is free; return the worst status."""
    begin, gpus = time.monotonic(), SimpleQueue()
    for gpu in range(torch.cuda.device_count()):
        gpus.put(str(gpu))

    def train(stage: str) -> int:
        gpu = gpus.get()
        left = settings.seconds - (time.monotonic() - begin)
        command = [arg for arg in sys.argv if arg != "--" and arg not in STAGES] + [
            f"--seconds={left}",
            "--",
            stage,
        ]
        try:
            return subprocess.run(
                [sys.executable, *command], env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
            ).returncode
        finally:
            gpus.put(gpu)

    with ThreadPoolExecutor(len(stages)) as pool:
        return max(pool.map(train, stages))


def _settings(arguments: argparse.Namespace) -> Settings:
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.smoke:
        return smoke(arguments.models, arguments.work, arguments.seconds)
    torch.set_float32_matmul_precision("high")
    changes = {name: float(value) for name, value in (entry.split("=") for entry in arguments.set)}
    changes = {
        name: int(value) if value == int(value) and name not in ("ema",) else value
        for name, value in changes.items()
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Settings(arguments.models, arguments.work, device, seconds=arguments.seconds, **changes)


def _train(stage: str, settings: Settings, made) -> bool:
    if stage == "vae":
        return train_vae(settings, made.packed)
    if stage == "text":
        return train_text(settings, made)
    return train_variant(settings, made, stage)


if __name__ == "__main__":
    sys.exit(main())
