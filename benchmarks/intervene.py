"""What sinks do: how far pictures move when their keys are masked, beside masking other keys of the same mass.

    python benchmarks/intervene.py                       the bundled baseline, 20 held-out captions, 8 steps
    python benchmarks/intervene.py --prompts 6 --steps 2

Each caption is drawn plainly, then with `--intervene mask:KEYS` for the start token, the T5 pads and each head's
heaviest key, in every layer, head and step, then each of these again with `--control random:0`, which masks other keys
of equal mass. Intervals are bootstrapped over prompts. Prints its table and writes it to
benchmarks/results/intervene.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import torch
from parts.machine import RESULTS, machine

import sd35h5
from sd35h5 import compare
from sd35h5.capturing.pipeline import load
from sd35h5.comparing import effects
from sd35h5.comparing.picture_distance import image_differences
from sd35h5.planning.options import Model, Sampling
from sd35h5.weights.model_facts import read_facts

KEYS = {"clip_bos": "the start token", "t5_pad": "the T5 pads", "top:1": "each head's heaviest key"}
CONTROL = "random:0"
NUMBERS = ("altered_mass", "rms", "ssim")
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "h5py")


def draw(pipe, path: Path, captions: list[str], steps: int, keys: str = "", control: str = "") -> None:
    """Capture all captions under one intervention; the i-th has seed i."""
    options = {"intervene": f"mask:{keys}", "control": control} if keys else {}
    with sd35h5.capture(pipe, path, maps="off", topk=0, **options) as generate:
        for seed, caption in enumerate(captions):
            generate(caption, seed=seed, num_inference_steps=steps, guidance_scale=Sampling().guidance)
            print(f"{path.stem}: {seed + 1} of {len(captions)}", file=sys.stderr)


def differences(folder: Path, models: Path, captions: list[str], steps: int) -> pd.DataFrame:
    """Return a row a prompt and intervention: keys, control, and the columns of `image_differences`."""
    model = Model(model_id=str(models), device="cpu")
    pipe = load(model, read_facts(model)).pipe
    pipe.set_progress_bar_config(disable=True)
    draw(pipe, folder / "plain.h5", captions, steps)
    tables = []
    with sd35h5.open_store(folder / "plain.h5") as plain:
        for number, keys in enumerate(KEYS):
            for control in ("", CONTROL):
                path = folder / f"{number}{'control' * bool(control)}.h5"
                draw(pipe, path, captions, steps, keys, control)
                with sd35h5.open_store(path) as altered:
                    table = image_differences(plain, altered, compare.pair(plain, altered))
                tables.append(table.assign(keys=keys, control=control))
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame) -> list[dict[str, object]]:
    """Return, for each kind of keys, means with their intervals: masked, control, and masked − control."""
    found = []
    for keys in KEYS:
        sides = [
            table[(table["keys"] == keys) & (table["control"] == control)].set_index("reference_sample")[
                list(NUMBERS)
            ]
            for control in ("", CONTROL)
        ]
        rows = {"masked": sides[0], "control": sides[1], "masked − control": sides[0] - sides[1]}
        for what, values in rows.items():
            units = values.to_numpy(float)
            low, high = effects.bootstrap_interval(units)
            means = dict(zip(NUMBERS, units.mean(0).tolist(), strict=True))
            intervals = dict(zip(NUMBERS, np.stack([low, high], 1).tolist(), strict=True))
            found.append({"keys": keys, "what": what, "mean": means, "interval": intervals})
    return found


def report(results: list[dict[str, object]], facts: dict[str, object]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# What sinks do: pictures drawn without them",
        "",
        "| keys | | altered mass | image difference, RMS | SSIM |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in results:
        cells = []
        for name in NUMBERS:
            low, high = row["interval"][name]
            cells.append(f"{row['mean'][name]:.3f} ({low:.3f} to {high:.3f})")
        title = f"`{row['keys']}`: {KEYS[row['keys']]}" if row["what"] == "masked" else ""
        lines.append(f"| {title} | {row['what']} | {' | '.join(cells)} |")
    told = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    return "\n".join([
        *lines,
        "",
        "Mean over prompts (95 % bootstrap interval over prompts). Each row against the same prompt and seed drawn "
        "plainly: RMS over 0..1 (0: the same picture), SSIM (1: the same picture). *masked*: the keys are taken "
        "out of the softmax in every layer, head, step and branch. *control*: in each of these other keys, drawn "
        "by lot, up to the same mass, are. Altered mass: what the masked keys had before, mean over layers, heads "
        "and steps, image queries; a run's own attention, which earlier steps have changed. Above half of all "
        "mass no control can have as much.",
        f"Bundled baseline model, {facts['prompts']} held-out captions, seeds 0 to {facts['prompts'] - 1}, "
        f"{facts['steps']} steps, guidance {Sampling().guidance:g}, control {CONTROL}.",
        f"{facts['system']}, {told}. {facts['date']}. Made by `python benchmarks/intervene.py "
        f"--prompts {facts['prompts']} --steps {facts['steps']}`.",
    ]) + "\n"  # fmt: skip


def main() -> int:
    """Draw, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", type=Path, default=ROOT / "data/models/emoji", help="folder of the models"
    )
    parser.add_argument("--prompts", type=int, default=20, help="held-out captions, 6 or more")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of a sample")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for intervene.md and intervene.json"
    )
    asked = parser.parse_args()
    scenes = json.loads((ROOT / "data/scenes_heldout.json").read_text(encoding="utf-8"))
    if not effects.MIN_PROMPTS <= asked.prompts <= len(scenes) or asked.steps < 1:
        parser.error(f"--prompts is {effects.MIN_PROMPTS} to {len(scenes)}, --steps 1 or more")
    if not (asked.models / "model_index.json").is_file():
        parser.error(f"there are no models at {asked.models}: give --models DIR")
    captions = [scene["caption"] for scene in scenes[: asked.prompts]]
    facts = {**machine(PACKAGES, torch.get_num_threads()), "prompts": asked.prompts, "steps": asked.steps}
    with tempfile.TemporaryDirectory() as folder:
        table = differences(Path(folder), asked.models, captions, asked.steps)
    results = summary(table)
    asked.out.mkdir(parents=True, exist_ok=True)
    text = report(results, facts)
    (asked.out / "intervene.md").write_text(text, encoding="utf-8")
    told = {**facts, "results": results, "pairs": table.to_dict("records")}
    (asked.out / "intervene.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
