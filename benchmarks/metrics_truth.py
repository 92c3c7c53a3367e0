"""Every number of a store against brute force in float64 from full attention matrices, on random small models.

    python benchmarks/metrics_truth.py                 three random models, plain and gated, two prompts each
    python benchmarks/metrics_truth.py --models 1

Each model draws its samples twice: once captured into a store (exact, then rounded), once with every query, key, value
and gate kept (keeping.py), from which the whole matrix A is made in float64 and every number by its definition, without
the library (brute_force.py). Two of the three have MMDiT-X's second, image-only attention in some layers. The error of
a number is max |store − truth| ÷ |truth| over all samples, steps, layers and heads; of a difference (the contrast),
relative to the larger side; a value that only one of them has is an infinite error. Prints its table and writes it to
benchmarks/results/metrics_truth.md. Exits with 1 if an error is above 1e-5 (1e-3 through rounded arrays).
Needs the development packages: the small models are those of the tests.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH
from parts.truth.brute_force import BRANCHES, TOP, WORD, Sample, kinds_there, truths
from parts.truth.keeping import Kept, keep, stacked
from parts.truth.random_models import models

import sd35h5
from sd35h5 import metrics, open_store
from sd35h5.metrics import gate_statistics, heaviest_keys, patch_masses, sink_rates
from sd35h5.metrics.targets import Target

PROMPTS = ("a red apple left of a cat", "a dog on a green background")
CALL = {
    "height": HEIGHT, "width": WIDTH, "num_inference_steps": 3, "guidance_scale": 4.5, "max_sequence_length": T5_TOKENS,
}  # fmt: skip
LIMITS = {"exact": 1e-5, "rounded": 1e-3}


# ---- the numbers as the library gives them ------------------------------------------------------------------


def of_text(store, one: list[int]) -> dict:
    """Return the numbers of the first token, groups, words and encoders, as brute_force.about_text names them."""
    apple = Target("word", WORD)
    mass = metrics.first_token_mean(store, samples=one)
    found = {
        "first_token_mean": mass,
        "first_token_share": metrics.first_token_share(store, samples=one),
        "text_mass_fraction": metrics.text_mass_fraction(store, samples=one),
        "first_token_mean, one token": metrics.first_token_mean(store, Target("token", 3), samples=one),
        "first_token_share, group clip_pad": metrics.first_token_share(
            store, Target("group", "clip_pad"), samples=one
        ),
        "text_mass": metrics.text_mass(store, samples=one),
        "encoder_mass, t5": metrics.encoder_mass(store, "t5", samples=one),
        "image_self_mass": metrics.image_self_mass(store, samples=one),
        "group_mass, text queries": metrics.group_mass(store, "cond", "text", one).sel(group="t5_pad"),
        "entropy": metrics.entropy(store, samples=one),
        "entropy, uncond, text queries": metrics.entropy(store, "uncond", "text", one),
        "branch_contrast": metrics.branch_contrast(store, samples=one),
        "is_sink at 1.5 × uniform": sink_rates.is_sink(store, samples=one, times_uniform=1.5),
        "sink_curve": sink_rates.sink_curve(mass, ["one"])["mean"].to_numpy(),
        "gini": sink_rates.gini(store, samples=one),
    }
    if metrics.target_positions(store, apple, "cond", one[0]).size:
        found[f"first_token_mean, word “{WORD}”"] = metrics.first_token_mean(store, apple, samples=one)
    return found


def of_heaviest(store, one: list[int], kinds: list[str]) -> dict:
    """Return the numbers of the heaviest keys, and of patches in the joint attention."""
    keys = heaviest_keys.top_keys(store, samples=one)
    return {
        "top_mass, 1": sink_rates.top_mass(store, 1, samples=one),
        "top_mass, 5": sink_rates.top_mass(store, 5, samples=one),
        "top_keys, mass of those named": keys["mass"],
        "value_norm_ratio": heaviest_keys.value_norm_ratio(keys),
        "contribution": gate_statistics.contribution(keys),
        "kind_shares": heaviest_keys.kind_shares(keys, TOP).set_index("kind")["share"][kinds].to_numpy(),
        "patch_shares": heaviest_keys.patch_shares(keys, TOP)["share"].to_numpy(),
        "stability over steps": heaviest_keys.stability(keys, "top_step", 5),
        **of_patches(store, one, "joint"),
    }


def of_patches(store, one: list[int], attention: str) -> dict:
    """Return the numbers over image keys of either attention."""
    functions = (
        patch_masses.entropy_all,
        patch_masses.patch_top,
        patch_masses.patch_gini,
        patch_masses.border_share,
    )
    return {each.__name__: each(store, samples=one, attention=attention) for each in functions}


def second_group(store) -> str:
    """Return the group of a store that holds the second attention, whose heads are its own in sd-scripts' layout."""
    return "attn2_regrouped" if "head_attn2" in store.sizes else "attn2"


def of_second(store, one: list[int]) -> dict:
    """Return the numbers of the second attention; what no function of the library gives, as the store has it."""
    read, group = {"sample": one, "branch": "cond", "query": "image"}, second_group(store)
    found = of_patches(store, one, "attn2") | {
        "top_mass, 1": sink_rates.top_mass(store, 1, samples=one, attention="attn2"),
        "top_mass, 5": sink_rates.top_mass(store, 5, samples=one, attention="attn2"),
        "mass of the keys named": store.read(f"{group}/top_mass", **read),
        "value norm of the keys named": store.read(f"{group}/top_value_norm", **read),
    }
    if "attn2" in gate_statistics.gated_streams(store):
        found["contribution after the gate"] = store.read(f"{group}/contribution", **read)
    return {f"attn2: {name}": values for name, values in found.items()}


def of_gates(store, one: list[int], kinds: list[str]) -> dict:
    """Return the numbers of the gates; branches and statistics side by side."""
    keys = heaviest_keys.top_keys(store, samples=one)
    added = store.read("gates/contribution", sample=one, branch="cond", query="image")
    shares = gate_statistics.contribution_shares(keys, added).set_index("kind").reindex(kinds, fill_value=0)
    by_branch = [gate_statistics.group_gates(store, branch, one).values[0] for branch in BRANCHES]
    found = {
        "group_gates": np.stack(by_branch, 3),
        "contribution after the gate": gate_statistics.contribution(
            keys, gate_statistics.gate_statistic(store, samples=one)
        ),
        "contribution after the gate, as stored": added,
        "contribution_shares": shares[["mass", "added"]].to_numpy(),
    }
    for query in gate_statistics.gated_streams(store):
        each = [
            [gate_statistics.gate_statistic(store, name, branch, query, one).values[0] for branch in BRANCHES]
            for name in gate_statistics.GATE_STATISTICS
        ]
        found[f"gate_statistic, {query}"] = np.moveaxis(np.array(each), (0, 1), (-1, 2))
        heads = gate_statistics.gate_heads(store, "cond", query, one)[
            [*gate_statistics.GATE_STATISTICS]
        ].to_numpy()
        found[f"gate_heads, {query}"] = heads.reshape(store.sizes["layer"], store.sizes["head"], -1)
    return found


def stored(store, index: int, kinds: list[str]) -> dict[str, np.ndarray]:
    """Return the numbers of a sample as the library gives them: name -> array, as brute_force.truths."""
    found = of_text(store, [index]) | of_heaviest(store, [index], kinds)
    if f"{second_group(store)}/top_mass" in store:
        found |= of_second(store, [index])
    if gate_statistics.gated_streams(store):
        found |= of_gates(store, [index], kinds)
    of_sample = {name: values.values[0] for name, values in found.items() if hasattr(values, "dims")}
    return {name: np.asarray(values, float) for name, values in (found | of_sample).items()}


# ---- comparing ---------------------------------------------------------------------------------------------


def named_keys(store, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the heaviest keys as the store names them, text keys first, and those of attn2: int (step, layer, head,
    rank)."""
    keys = heaviest_keys.top_keys(store, samples=[index]).isel(sample=0)
    named = (keys["index"] + store.sizes["token"] * (keys["stream"] == 0)).values.astype(int)
    name = f"{second_group(store)}/top_index"
    if name not in store:
        return named, None
    return named, store.read(name, sample=index, branch="cond", query="image").values.astype(int)


def sample_of(store, index: int, kept: Kept) -> Sample:
    """Return a sample's truth, its keys named by the store's token table (which other tests check)."""
    grid = (HEIGHT // 16, WIDTH // 16)
    tables = {branch: store.tokens(index, branch) for branch in BRANCHES}
    words = [metrics.clean(text) for text in tables["cond"]["text"]]
    gates = {
        name: stacked(kept, attention, f"{stream} gate")
        for name, attention, stream in (
            ("image", "attn", "image"),
            ("text", "attn", "text"),
            ("attn2", "attn2", "image"),
        )
    }
    return Sample(
        stacked(kept, "attn", "attention"), stacked(kept, "attn", "norms"),
        stacked(kept, "attn2", "attention"), stacked(kept, "attn2", "norms"),
        {branch: [*table["group"], *["image"] * grid[0] * grid[1]] for branch, table in tables.items()},
        [place for place, word in enumerate(words) if word == WORD], grid,
        {name: gate for name, gate in gates.items() if gate is not None},
    )  # fmt: skip


def errors(pipe, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return the largest relative error of every number of a model: precision -> name -> error."""
    kept = [keep(pipe, prompt, seed + place, **CALL) for place, prompt in enumerate(PROMPTS)]
    found: dict[str, dict[str, float]] = {}
    options = {"top_steps": "all", "topk": TOP, "atlas": True, "maps": "off", "no_unconditional": True}
    for precision in LIMITS:
        path = folder / f"{precision}-{seed}.h5"
        with sd35h5.capture(pipe, path, precision=precision, **options) as generate:
            for place, prompt in enumerate(PROMPTS):
                generate(prompt, seed=seed + place, **CALL)
        worst = found.setdefault(precision, {})
        with open_store(path) as store:
            for index, truth in enumerate(kept):
                sample = sample_of(store, index, truth)
                expected = truths(sample, *named_keys(store, index), store.labels("group"))
                told = stored(store, index, kinds_there(sample))
                assert told.keys() == expected.keys(), told.keys() ^ expected.keys()
                for name, values in told.items():
                    worst[name] = max(worst.get(name, 0.0), relative(name, values, expected))
    return found


def relative(name: str, values: np.ndarray, expected: dict[str, np.ndarray]) -> float:
    """Return max |value − truth| ÷ |truth|; for a contrast ÷ the conditional value; infinite where one is missing."""
    truth = expected[name]
    assert values.shape == truth.shape, f"{name}: {values.shape}, not {truth.shape}"
    there = np.isfinite(truth)
    if not np.array_equal(there, np.isfinite(values)):
        return float("inf")
    scale = np.abs(expected["first_token_mean"] if name == "branch_contrast" else truth)[there]
    return float((np.abs(values - truth)[there] / np.where(scale > 0, scale, 1)).max())


def page(worst: dict[str, dict[str, float]], drawn: int) -> tuple[str, bool]:
    """Return the table of the largest errors as Markdown, and whether all are within their limits."""
    good = all(error <= LIMITS[precision] for precision, found in worst.items() for error in found.values())
    lines = [
        "# Numbers against brute force", "",
        f"Largest relative error over {drawn} random models, {len(PROMPTS)} prompts, {CALL['num_inference_steps']} "
        "steps, all layers and heads.",
        "", "| number | exact arrays (≤ 1e-5) | rounded arrays (≤ 1e-3) |", "| --- | --- | --- |",
        *(f"| {name} | {worst['exact'][name]:.1e} | {worst['rounded'][name]:.1e} |" for name in worst["exact"]),
        "", "For `is_sink` whether any differs. `top_keys` is the true mass of the keys that the store names, rank by "
        "rank, against the stored one, which `top_mass` compares with the true heaviest. Rows that begin with attn2 "
        "are of MMDiT-X's second attention, in both layouts; those of gates are of all statistics, groups and both "
        "branches. "
        + ("All within." if good else "NOT within."),
        "Made by `python benchmarks/metrics_truth.py`.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n", good


def main() -> int:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=3, help="random models, each plain and gated")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the table"
    )
    asked = parser.parse_args()
    if asked.models < 1:
        parser.error("--models is 1 or more")
    torch.set_num_threads(1)
    worst: dict[str, dict[str, float]] = {precision: {} for precision in LIMITS}
    with tempfile.TemporaryDirectory() as temporary:
        for place, (name, pipe, seed) in enumerate(models(asked.models)):
            print(name, file=sys.stderr)
            folder = Path(temporary) / str(place)
            folder.mkdir()
            for precision, found in errors(pipe, seed, folder).items():
                for number, error in found.items():
                    worst[precision][number] = max(worst[precision].get(number, 0.0), error)
    text, good = page(worst, 2 * asked.models)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "metrics_truth.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
