"""Whether a case of `coverage.py` is as it must be, and the table of all."""

from __future__ import annotations

from collections.abc import Iterable

from parts.coverage_cases import CASES, Case

MARKS = {  # group -> what it holds whenever it is there
    "attn2": "attn2/entropy_all", "attn2_regrouped": "attn2_regrouped/entropy_all", "gates": "gates/mean",
}  # fmt: skip
REACH = {
    "cuda": (1e-5, 2**-11),  # half a unit in the last of 10 bits, where one patch has all the mass
    "cpu": (1e-3, 1e-3),
}  # row sums, and sums of masses that are rounded to 10 bits


def is_met(case: Case, told: dict[str, object], device: str) -> bool:
    """Whether all is as it must be."""
    if "left_out" in told:
        return True
    if case.refused or "error" in told:
        return bool(case.refused) and case.refused in told.get("refused", "")
    row_sum, image = REACH[device]
    second = "attn2_regrouped" if case.attn2 == "sd-scripts" else "attn2"
    holds = {name: name == second and case.shape == "medium" for name in MARKS} | {"gates": bool(case.gates)}
    return (
        told["latents"] == "equal" and told["sound"]
        and told["row_sum_error"] <= row_sum and told["image_error"] <= image
        and set(told["branches"]) == set(case.branches) and told["samples"] == case.prompts * case.images
        and holds == {name: name in told["holds"] for name in MARKS}
    )  # fmt: skip


def line(case: Case, told: dict[str, object], device: str) -> str:
    """One row of the table."""
    if "left_out" in told:
        return f"| {case.name} | {case.dtype} | | | | | | | left out: {told['left_out']} |"
    told_well = "yes" if is_met(case, told, device) else "**no**"
    if words := told.get("refused", told.get("error")):
        return f"| {case.name} | {case.dtype} | | | | | | | {told_well}: {words} |"
    rows, columns = told["patches"]
    holds = "".join(f", {name}" for name in told["holds"])
    return (
        f"| {case.name} | {case.dtype} | {rows} × {columns} | {told['text_tokens']} | {', '.join(told['branches'])} "
        f"| {told['samples']} | {told['latents']} | {told['row_sum_error']:.1e}, {told['image_error']:.1e} "
        f"| {told_well}: {told['file_mb']:.1f} MB, {'sound' if told['sound'] else told['problems']}{holds} |"
    )


def table(results: dict[str, dict], facts: dict[str, object], tiers: Iterable[str]) -> str:
    """What is measured so far as Markdown."""
    lines = [
        f"# What a capture works with: {facts['size']} shapes on {facts['device']}", "",
        "| case | dtype | patches | text tokens | branches | samples | latents with and without "
        "| errors: row sums, image's mass | as it must be |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *[line(case, results[case.name], facts["device"]) for case in CASES if case.name in results],
    ]  # fmt: skip
    row_sum, image = REACH[facts["device"]]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return "\n".join([
        *lines, "",
        f"Reach: latents equal to the bit and finite, row sums within {row_sum:g} of 1, the masses of all patches "
        f"within {image:.1e} of what the text leaves, the file sound.",
        f"Random weights, {facts['steps']} steps; tiers: {', '.join(tiers)}.",
        f"{facts['gpu'] or 'no GPU'}; {facts['cpu']}, {facts['cores']} cores; "
        f"{facts['system']}, {versions}. {', '.join(sorted({told['date'] for told in results.values()}))}.",
        f"Made by `python benchmarks/coverage.py --size {facts['size']} --device {facts['device']}`.",
    ]) + "\n"  # fmt: skip
