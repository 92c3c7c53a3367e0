"""A job as text: what `--dry_run` prints. Torch-free."""

from __future__ import annotations

from sd35h5.planning.budget import told_as_flags
from sd35h5.planning.cost import told_cost
from sd35h5.planning.interventions import parse_interventions
from sd35h5.planning.job import Job
from sd35h5.planning.options import AUTO, CaptureConfig
from sd35h5.planning.plan import in_bytes


def describe(job: Job) -> str:
    """The job as text: the model, the samples, a line for each array, the sum, and what --budget stands for."""
    config, facts, plan, samples = job.config, job.facts, job.plan, job.samples
    sampling = config.sampling
    pixels = f"{plan.sizes['pixel_y']} × {plan.sizes['pixel_x']} px"
    second = f"\n  {len(facts.second_layers)} layers have a second, image-only attention: group attn2"
    if own := plan.sizes.get("head_attn2"):
        second += f"_regrouped, {own} heads of {facts.heads}"
    images = _count(config.prompts.num_images, "image")
    told = [
        f"{_count(samples, 'sample')}: {_count(len(job.prompts), 'prompt')} × {images}",
        *[f"{_told_batch(sampling.batch_size)} a call of the pipeline"] * (sampling.batch_size != 1),
        *[f"of which this process draws share {job.share}"] * (job.share is not None),
        f"seed {config.prompts.seed}", _count(sampling.steps, "step"), f"guidance {sampling.guidance:g}",
        pixels, f"{plan.sizes['token']} text tokens",
    ]  # fmt: skip
    width = max(len(part.name) for part in plan.parts)
    lines = [
        f"{config.model.model_id}: {facts.layers} layers, {facts.heads} heads of {facts.head_dim}, {_told_gates(job)}"
        + second * bool(facts.second_layers),
        *[f"  adapter: {each.said_in_short}" for each in job.adapters],
        "  " + ", ".join(told),
        *_told_interventions(config),
        "a sample, before compression:",
    ]
    for part in plan.parts:
        axes = " × ".join(f"{dim} {length}" for dim, length in part.shape.items())
        lines.append(f"  {part.name:{width}}  {in_bytes(part.bytes):>9}  {axes}")
    lines.append(
        f"sum: {in_bytes(plan.raw_bytes)} a sample, about {in_bytes(plan.file_bytes)} in the file; "
        f"{_count(samples, 'sample')}: about {in_bytes(samples * plan.file_bytes)} in {config.output.out}"
    )
    lines.append(told_cost(config.tiers, sampling.steps, plan.raw_bytes))
    if config.output.budget:
        lines.append(f"--budget {config.output.budget} stands for: {told_as_flags(config.tiers)}")
    return "\n".join(lines)


def _told_gates(job: Job) -> str:
    """Which gates it draws with: those of a file, made anew, or none."""
    if job.gates.init is not None:
        return f"{job.gates.gate_type} gates made anew ({job.gates.init})"
    return f"{job.facts.told_gates}, left out" if job.gates.dropped else job.facts.told_gates


def _told_interventions(config: CaptureConfig) -> list[str]:
    control = f", control {config.causal.control}: other keys of the same mass" * bool(config.causal.control)
    texts = [each.text for each in parse_interventions(config.causal)]
    return [f"  intervention: {' '.join(texts)}{control}"] * bool(texts)


def _told_batch(size: int | str) -> str:
    return "as many as fit in" if size == AUTO else str(size)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
