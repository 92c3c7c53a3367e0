"""The demo: the bundled models, baseline and gated, draw the same prompts with the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from sd35h5.errors import ConfigError
from sd35h5.gates.gate_options import GateOptions
from sd35h5.planning.job import Job
from sd35h5.planning.options import CaptureConfig, Model, Output

DATA = Path(__file__).resolve().parents[2] / "data"
RUNS = Path("runs")
FREE = ("device", "dtype", "no_t5", "offload")  # options of the model that go with the demo
VARIANTS = {
    "baseline": "transformer",
    "headwise": "transformer_headwise",
    "elementwise": "transformer_elementwise",
}


def demo_configs(
    config: CaptureConfig, model: Path | None = None, prompts: Path | None = None
) -> list[CaptureConfig]:
    """One capture for each bundled transformer, equal in all else. Options given beside --demo are kept.

    Args:
        model: folder with the transformers of VARIANTS; the bundled one if None.
        prompts: JSON file with the prompts; the bundled one if None.

    Raises:
        ConfigError: the bundled models are not here, or an option that the demo decides itself.
    """
    model, prompts = model or DATA / "models" / "emoji", prompts or DATA / "prompts" / "demo.json"
    decided = {"--out": config.output.out != Output().out}
    for field in fields(Model):
        if field.name not in FREE:
            decided[f"--{field.name}"] = getattr(config.model, field.name) != field.default
    for name, is_given in decided.items():
        if is_given:
            raise ConfigError(
                f"--demo brings its own models and writes to {RUNS}/: leave {name} away, or leave --demo away"
            )
    for field in fields(GateOptions):
        if getattr(config.gating, field.name) != field.default:
            raise ConfigError(
                f"--demo draws the baseline, too, which has no gates for --{field.name}: leave it away, or capture one "
                f"model: --model_id {model} --transformer {VARIANTS['headwise']}"
            )
    missing = [name for name in VARIANTS.values() if not (model / name).is_dir()]
    if missing or not prompts.is_file():
        raise ConfigError(
            f"the bundled models are not at {model}: --demo works in a checkout of the repository"
        )
    if not config.prompts.prompt and not config.prompts.prompts_json:
        config = replace(config, prompts=replace(config.prompts, prompts_json=str(prompts)))
    return [
        replace(
            config,
            model=replace(config.model, model_id=str(_told(model)), transformer=transformer),
            output=replace(config.output, out=str(RUNS / f"demo-{name}.h5")),
        )
        for name, transformer in VARIANTS.items()
    ]


def _told(model: Path) -> Path:
    """The folder as the files name it: below here, not where the checkout lies, for they are sent around."""
    return model.relative_to(Path.cwd()) if model.is_relative_to(Path.cwd()) else model


def run_demo(jobs: Sequence[Job], run: Callable[[Job], Path], say: Callable[[str], None]) -> list[Path]:
    """Capture all of them. Returns: the stores, baseline first."""
    made = []
    for job in jobs:
        say(f"{job.config.model.transformer} -> {job.out}")
        job.out.parent.mkdir(parents=True, exist_ok=True)
        made.append(run(job))
    return made
