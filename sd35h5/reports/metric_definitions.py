"""docs/metrics.md, made from docstrings: `python -m sd35h5.reports.metric_definitions docs/metrics.md` renews it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from sd35h5 import comparing as compare
from sd35h5 import metrics
from sd35h5.metrics.catalogue import MEASURES

#: heading -> the functions under it, in reading order
SECTIONS: dict[str, tuple[Callable, ...]] = {
    "First token, groups and words": (
        metrics.first_token_mean, metrics.first_token_share, metrics.text_mass_fraction, metrics.text_mass,
        metrics.group_mass, metrics.encoder_mass, metrics.image_self_mass, metrics.token_mass, metrics.entropy,
        metrics.branch_contrast,
    ),
    "Sinks": (metrics.uniform_mass, metrics.sink_rate, metrics.sink_curve, metrics.top_mass, metrics.gini),
    "Which key is the sink": (
        metrics.top_keys, metrics.kind_shares, metrics.patch_shares, metrics.stability, metrics.value_norm_ratio,
    ),
    "Over image patches": (
        metrics.entropy_all, metrics.patch_top, metrics.patch_gini, metrics.border_share,
    ),
    "What acts in a region of the picture": (
        metrics.region_words, metrics.region_steps, metrics.region_layers, metrics.region_heads,
    ),
    "Gates": (
        metrics.gate_statistic, metrics.gate_heads, metrics.group_gates, metrics.contribution,
        metrics.contribution_shares,
    ),
    "Causal runs": (compare.altered_mass, compare.image_rms, compare.ssim, compare.image_differences),
    "Over samples": (metrics.mean_over_samples, metrics.sample_values, metrics.correlations),
    "Paired comparison": (
        compare.paired_effects, compare.layer_effects, compare.overall_effect, compare.bootstrap_interval,
        compare.sign_flip_p, compare.false_discovery,
    ),
}  # fmt: skip
PARTS = ("Formula", "Units", "Source", "Caveat", "Args", "Returns")
HEAD = """# The numbers

Made from the docstrings by `python -m sd35h5.reports.metric_definitions docs/metrics.md`: edit those, not this page.

A[q,k] = softmax(q·kᵀ/√d) over the whole joint key axis, image and text together. The *mass* of key k is the mean of
A[q,k] over the queries of one stream, image queries unless said otherwise. Everything is computed from the file alone,
in float64, without torch; `benchmarks/metrics_truth.py` compares it with full attention matrices.
"""


def document() -> str:
    """Return the page."""
    parts = [HEAD]
    for heading, functions in SECTIONS.items():
        parts.append(f"## {heading}\n")
        parts += [_entry(function) for function in functions]
    rows = "\n".join(
        f"| `{n}` | {one.title} | {one.unit} | `{one.variable}` |" for n, one in MEASURES.items()
    )
    parts.append(
        "## Names for `python -m sd35h5 compare --metric`\n\n"
        "| name | the … | unit | needs |\n| --- | --- | --- | --- |\n" + rows + "\n"
    )
    return "\n".join(parts)


def described(function: Callable) -> dict[str, str]:
    """Return the parts of a docstring: "" for its first sentences, then those of PARTS that it has."""
    text = " ".join((inspect.getdoc(function) or "").split())
    found = re.split(rf"(?:^| )({'|'.join(PARTS)}): ", text)
    return {"": found[0]} | dict(zip(found[1::2], (part.strip() for part in found[2::2]), strict=True))


def _entry(function: Callable) -> str:
    module = "metrics" if hasattr(metrics, function.__name__) else "compare"  # the name that readers use
    told = described(function)
    lines = [f"### {module}.{function.__name__}\n", f"{told.pop('')}\n"]
    lines += [f"- **{part}**: {told[part]}" for part in PARTS if part in told]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("say where the page goes: python -m sd35h5.reports.metric_definitions docs/metrics.md")
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
