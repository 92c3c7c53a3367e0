"""What a capture of the demo costs: seconds of a captured sample over those of the same pipeline without.

    python benchmarks/demo_cost.py                       the bundled models, 28 steps, five runs of each
    python benchmarks/demo_cost.py --random              the same shape with random weights
    python benchmarks/demo_cost.py --variants baseline headwise elementwise

Runs of both kinds take turns, so that a slow minute of the machine meets both. A captured run is all of
`with sd35h5.capture(…)`: the default tiers, sealing the sample, packing the file. Prints its table and
writes it to benchmarks/results/demo_cost.md and .json. The load before the runs is in it: an idle machine
has about 0.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from parts.machine import RESULTS, machine

import sd35h5
from sd35h5.capturing.pipeline import load
from sd35h5.planning.demo import VARIANTS
from sd35h5.planning.options import Model, Sampling
from sd35h5.weights.model_facts import read_facts

PROMPT = "a red apple left of a cat on a blue background"
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "h5py")


def make_random_models(folder: Path) -> None:
    """Write models of the bundled shape with random weights, all variants, in diffusers' layout."""
    from data.recipe import models as recipe
    from sd35h5.gates.modules import GATES_FILE, build_gates, save_gates

    torch.manual_seed(0)
    tokenizers = recipe.make_tokenizers()
    recipe.save_text(folder, tokenizers, recipe.make_text_encoders(tokenizers))
    recipe.make_vae().save_pretrained(folder / "vae")
    transformer = recipe.make_transformer()
    for parameter in transformer.parameters():  # a fresh one has zeros, which some hardware multiplies faster
        torch.nn.init.normal_(parameter, std=0.02)
    for name, subfolder in VARIANTS.items():
        transformer.save_pretrained(folder / subfolder)
        if name != "baseline":
            gates = build_gates(transformer, name)
            for parameter in gates.modules.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
            save_gates(folder / subfolder / GATES_FILE, gates)
    recipe.save_frame(folder)


def measure(models: Path, variant: str, steps: int, runs: int) -> dict[str, list[float]]:
    """Time plain and captured samples in turns. Returns: seconds of each run."""
    model = Model(model_id=str(models), transformer=VARIANTS[variant], device="cpu")
    pipe = load(model, read_facts(model)).pipe
    pipe.set_progress_bar_config(disable=True)
    guidance = Sampling().guidance
    call = {"num_inference_steps": steps, "guidance_scale": guidance}

    def plain() -> None:
        pipe(PROMPT, generator=torch.Generator("cpu").manual_seed(0), **call)

    def captured() -> None:
        with tempfile.TemporaryDirectory() as folder, sd35h5.capture(pipe, Path(folder) / "a.h5") as generate:
            generate(PROMPT, seed=0, **call)

    kinds: dict[str, Callable[[], None]] = {"plain": plain, "captured": captured}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for run in range(-1, runs):  # the first turn warms up and does not count
        for name, draw in kinds.items():
            begin = time.perf_counter()
            draw()
            if run >= 0:
                seconds[name].append(time.perf_counter() - begin)
                told = f"{variant}, run {run + 1} of {runs}, {name}: {seconds[name][-1]:.2f} s"
                print(told, file=sys.stderr)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, object]:
    """Medians, their ratio, and the spread of the ratios of neighbouring runs."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [captured / plain for plain, captured in zip(*seconds.values(), strict=True)]
    return {
        "median_seconds": medians,
        "ratio": medians["captured"] / medians["plain"],
        "ratio_of_neighbours": [min(ratios), max(ratios)],
        "seconds": seconds,
    }


def table(results: dict[str, dict], facts: dict[str, object]) -> str:
    """The results as Markdown."""
    lines = [
        "# What a capture of the demo costs",
        "",
        "| model | plain, s a sample | captured, s a sample | ratio of medians | neighbouring runs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for variant, result in results.items():
        cells = [
            f"{result['median_seconds'][kind]:.2f} ({min(values):.2f}–{max(values):.2f})"
            for kind, values in result["seconds"].items()
        ]
        low, high = result["ratio_of_neighbours"]
        lines.append(
            f"| {variant} | {' | '.join(cells)} | **{result['ratio']:.3f}** | {low:.3f}–{high:.3f} |"
        )
    told = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    return "\n".join([
        *lines,
        "",
        f"{facts['steps']} steps, guidance {Sampling().guidance:g}, {facts['weights']}; "
        f"median (smallest–largest) of {facts['runs']} runs in turns, default tiers, "
        "sealing and packing counted.",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} torch threads, "
        f"load before the runs {facts['load_before']:.2f}; {facts['system']}, {told}. {facts['date']}.",
        "Made by `python benchmarks/demo_cost.py" + (" --random" if facts["random"] else "") + "`.",
    ]) + "\n"  # fmt: skip


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", type=Path, default=ROOT / "data/models/emoji", help="folder of the models"
    )
    parser.add_argument("--random", action="store_true", help="random weights of the same shape instead")
    parser.add_argument(
        "--variants", nargs="+", default=["baseline"], choices=list(VARIANTS), help="transformers"
    )
    parser.add_argument("--steps", type=int, default=Sampling().steps, help="denoising steps of a sample")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each kind")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for demo_cost.md and demo_cost.json"
    )
    asked = parser.parse_args()
    if asked.steps < 1 or asked.runs < 1:
        parser.error("--steps and --runs are 1 or more")
    if not asked.random and not (asked.models / "model_index.json").is_file():
        parser.error(f"there are no models at {asked.models}: give --models DIR, or --random")
    weights = "random weights of the bundled shape" if asked.random else "bundled models"
    facts = {
        **machine(PACKAGES, torch.get_num_threads()),
        "steps": asked.steps,
        "runs": asked.runs,
        "random": asked.random,
        "weights": weights,
    }
    with tempfile.TemporaryDirectory() as temporary:
        models = Path(temporary) if asked.random else asked.models
        if asked.random:
            make_random_models(models)
        measured = {name: measure(models, name, asked.steps, asked.runs) for name in asked.variants}
    results = {name: summary(seconds) for name, seconds in measured.items()}
    asked.out.mkdir(parents=True, exist_ok=True)
    text = table(results, facts)
    (asked.out / "demo_cost.md").write_text(text, encoding="utf-8")
    (asked.out / "demo_cost.json").write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
