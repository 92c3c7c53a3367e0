"""Every number of a store against brute force in float64 from full attention matrices, on random small models.

    python benchmarks/metrics_truth.py                 three random models, plain and gated, two prompts each
    python benchmarks/metrics_truth.py --models 1

Each model draws its samples twice: once captured into a store (exact, then rounded), once with every query, key, value
and gate kept, from which the whole matrix A is made in float64 and every number by its definition, without the
library. The error of a number is max |store − truth| ÷ |truth| over all samples, steps, layers and heads; of a
difference (the contrast), relative to the larger side. Prints its table and writes it to
benchmarks/results/metrics_truth.md. Exits with 1 if an error is above 1e-5 (1e-3 through rounded arrays).
Needs the development packages: the small models are those of the tests.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from conftest import HEIGHT, T5_TOKENS, WIDTH, make_pipeline

import sd35h5
from sd35h5 import open_store
from sd35h5.analysis import gating, metrics, patches, sinks, topkeys
from sd35h5.analysis.targets import Target
from sd35h5.gates.attention import project_joint
from sd35h5.gates.modules import build_gates, install_gates

PROMPTS = ("a red apple left of a cat", "a dog on a green background")
STEPS, TOP = 3, 6
CALL = {
    "height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS, "guidance_scale": 4.5,
    "max_sequence_length": T5_TOKENS,
}  # fmt: skip
LIMITS = {"exact": 1e-5, "rounded": 1e-3}
WORD = "apple"


@dataclass
class Truth:
    """What was kept of one sample: A, ‖v‖ and gates, float64, text keys first, cond then uncond."""

    attention: list[np.ndarray] = field(default_factory=list)  # a call: (branch, head, query, key)
    norms: list[np.ndarray] = field(default_factory=list)  # a call: (branch, head, key)
    gates: list[np.ndarray | None] = field(default_factory=list)  # a call: (branch, image query, head)

    def stacked(self, calls: list[np.ndarray], layers: int) -> np.ndarray:
        """Return (step, layer, branch, …) of what every call of every layer kept."""
        return np.stack(calls).reshape(STEPS, layers, *calls[0].shape)


class Keeper:
    """An attention processor that keeps q, k, v and gates of each call and leaves the rest to the one it wraps."""

    def __init__(self, inner, truth: Truth) -> None:
        self.inner, self.truth = inner, truth

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        joint = project_joint(attn, hidden_states, encoder_hidden_states)
        image = joint.image_tokens
        order = [*range(image, joint.key.shape[2]), *range(image)]  # text first, as in the store
        query, key, value = (
            part.detach()[:, :, order].double().flip(0) for part in (joint.query, joint.key, joint.value)
        )
        logits = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
        self.truth.attention.append(torch.softmax(logits, dim=-1).numpy())
        self.truth.norms.append(value.norm(dim=-1).numpy())
        gate = getattr(self.inner, "gate", None)
        if gate is not None:
            found = gate(hidden_states, encoder_hidden_states)[0].detach().double().flip(0)
            self.truth.gates.append(found.unflatten(-1, (attn.heads, -1)).mean(-1).numpy())
        return self.inner(attn, hidden_states, encoder_hidden_states)


def keep(pipe, prompt: str, seed: int) -> Truth:
    """Draw once more, keeping everything."""
    truth = Truth()
    transformer = pipe.transformer
    before = dict(transformer.attn_processors)
    transformer.set_attn_processor({name: Keeper(inner, truth) for name, inner in before.items()})
    try:
        pipe(prompt, generator=torch.Generator("cpu").manual_seed(seed), **CALL)
    finally:
        transformer.set_attn_processor(before)
    return truth


# ---- the numbers by definition -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One sample's whole attention and what its keys are."""

    attention: np.ndarray  # float64 (step, layer, branch, head, query, key)
    norms: np.ndarray  # float64 (step, layer, branch, head, key)
    gate: np.ndarray | None  # float64 (step, layer, branch, image query, head)
    groups: dict[str, list[str]]  # branch -> group of every key
    word: list[int]  # text keys of WORD

    def rows(self, branch: str, query: str) -> np.ndarray:
        """Return A of a branch's image or text queries: (step, layer, head, query, key)."""
        text = sum(group != "image" for group in self.groups[branch])
        part = slice(text, None) if query == "image" else slice(0, text)
        return self.attention[:, :, ("cond", "uncond").index(branch), :, part]

    def mass(self, branch: str = "cond", query: str = "image") -> np.ndarray:
        """Return mean_q A[q, k]: (step, layer, head, key)."""
        return self.rows(branch, query).mean(-2)

    def keys(self, prefix: str, branch: str = "cond") -> list[int]:
        """Return the keys whose group begins so."""
        return [key for key, group in enumerate(self.groups[branch]) if group.startswith(prefix)]


def gini_of(groups: list[str], mass: np.ndarray) -> np.ndarray:
    """Return the Gini coefficient of keys that share their group's mass evenly, by pairs: (step, layer, head)."""
    even = np.empty_like(mass)
    for group in set(groups):
        own = [key for key, name in enumerate(groups) if name == group]
        even[..., own] = mass[..., own].mean(-1, keepdims=True)
    pairs = np.abs(even[..., :, None] - even[..., None, :]).mean((-1, -2))
    return pairs / (2 * even.mean(-1))


def entropy_of(rows: np.ndarray, text: int) -> np.ndarray:
    """Return the mean over queries of the entropy over text keys, renormalised."""
    share = rows[..., :text] / rows[..., :text].sum(-1, keepdims=True)
    return -(share * np.log(share)).sum(-1).mean(-1)


def over_patches(sample: Sample) -> dict[str, np.ndarray]:
    """Return the numbers over image keys by their definitions: name -> (step, layer, head)."""
    rows, patches = sample.rows("cond", "image"), sample.mass()[..., sample.keys("image")]
    pairs = np.abs(patches[..., :, None] - patches[..., None, :]).mean((-1, -2))
    y, x = np.divmod(np.arange(patches.shape[-1]), WIDTH // 16)
    border = (y == 0) | (y == HEIGHT // 16 - 1) | (x == 0) | (x == WIDTH // 16 - 1)
    return {
        "entropy_all": -(rows * np.log(rows)).sum(-1).mean(-1),
        "patch_top": patches.max(-1),
        "patch_gini": pairs / (2 * patches.mean(-1)),
        "border_share": patches[..., border].sum(-1) / patches.sum(-1),
    }


def truths(sample: Sample, named: np.ndarray) -> dict[str, np.ndarray]:
    """Return every number of a sample by its definition: name -> (step, layer, head[, rank]).

    Args: named: the keys that the store names as the heaviest. Where two masses are equal to seven digits either may
        come first, so “which” is the truth's mass of the named keys, and norms are those of the named keys.
    """
    mass = sample.mass()
    groups, text = sample.groups["cond"], len(sample.keys("clip_")) + len(sample.keys("t5_"))
    on_text = mass[..., :text].sum(-1)
    order = np.argsort(-mass, -1)[..., :TOP]
    heaviest = np.take_along_axis(mass, order, -1)
    norms = np.take_along_axis(sample.norms[:, :, 0], named, -1)
    found = {
        "first_token_mean": mass[..., 0],
        "first_token_share": mass[..., 0] / (on_text / text),
        "text_mass_fraction": mass[..., 0] / on_text,
        "first_token_mean, one token": mass[..., 3],
        f"first_token_mean, word “{WORD}”": mass[..., sample.word].sum(-1) if sample.word else mass[..., 0] * np.nan,
        "first_token_share, group clip_pad": mass[..., sample.keys("clip_pad")].mean(-1) / (on_text / text),
        "text_mass": on_text,
        "encoder_mass, t5": mass[..., sample.keys("t5_")].sum(-1),
        "image_self_mass": mass[..., sample.keys("image")].sum(-1),
        "group_mass, text queries": sample.mass("cond", "text")[..., sample.keys("t5_pad")].sum(-1),
        "entropy": entropy_of(sample.rows("cond", "image"), text),
        "entropy, uncond, text queries": entropy_of(sample.rows("uncond", "text"), text),
        "branch_contrast": mass[..., 0] - sample.mass("uncond")[..., 0],
        "is_sink at 1.5 × uniform": (mass[..., 0] > 1.5 / mass.shape[-1]).astype(float),
        "top_mass, 1": heaviest[..., 0],
        "top_mass, 5": heaviest[..., :5].sum(-1),
        "gini": gini_of(groups, mass),
        "top_keys, mass of those named": np.take_along_axis(mass, named, -1),
        "value_norm_ratio": norms[..., 0] / norms[..., 1:].mean(-1),
        "contribution": heaviest * norms,
        **over_patches(sample),
    }  # fmt: skip
    if sample.gate is not None:
        gate = sample.gate[:, :, 0].mean(-2)
        found |= {
            "gate_statistic, mean": gate,
            "contribution after the gate": heaviest * norms * gate[..., None],
        }
    return found


def stored(store, index: int) -> dict[str, np.ndarray]:
    """Return the same numbers as the library gives them."""
    one = [index]
    keys = topkeys.top_keys(store, samples=one)
    pads = metrics.group_mass(store, "cond", "text", one).sel(group="t5_pad")
    apple = Target("word", WORD)
    has_word = metrics.target_positions(store, apple, "cond", index).size > 0
    found = {
        "first_token_mean": metrics.first_token_mean(store, samples=one),
        "first_token_share": metrics.first_token_share(store, samples=one),
        "text_mass_fraction": metrics.text_mass_fraction(store, samples=one),
        "first_token_mean, one token": metrics.first_token_mean(store, Target("token", 3), samples=one),
        "first_token_share, group clip_pad": metrics.first_token_share(
            store, Target("group", "clip_pad"), samples=one
        ),
        "text_mass": metrics.text_mass(store, samples=one),
        "encoder_mass, t5": metrics.encoder_mass(store, "t5", samples=one),
        "image_self_mass": metrics.image_self_mass(store, samples=one),
        "group_mass, text queries": pads,
        "entropy": metrics.entropy(store, samples=one),
        "entropy, uncond, text queries": metrics.entropy(store, "uncond", "text", one),
        "branch_contrast": metrics.branch_contrast(store, samples=one),
        "is_sink at 1.5 × uniform": sinks.is_sink(store, samples=one, times_uniform=1.5),
        "top_mass, 1": sinks.top_mass(store, 1, samples=one),
        "top_mass, 5": sinks.top_mass(store, 5, samples=one),
        "gini": sinks.gini(store, samples=one),
        "top_keys, mass of those named": keys["mass"],
        "value_norm_ratio": topkeys.value_norm_ratio(keys),
        "contribution": gating.contribution(keys),
        "entropy_all": patches.entropy_all(store, samples=one),
        "patch_top": patches.patch_top(store, samples=one),
        "patch_gini": patches.patch_gini(store, samples=one),
        "border_share": patches.border_share(store, samples=one),
    }
    if has_word:
        found[f"first_token_mean, word “{WORD}”"] = metrics.first_token_mean(store, apple, samples=one)
    if "gates/mean" in store:
        gate = gating.gate_statistic(store, samples=one)
        found |= {
            "gate_statistic, mean": gate,
            "contribution after the gate": gating.contribution(keys, gate),
        }
    return {name: values.values[0].astype(float) for name, values in found.items()}


# ---- comparing ---------------------------------------------------------------------------------------------


def named_keys(store, index: int) -> np.ndarray:
    """Return the heaviest keys as the store names them, text keys first: int (step, layer, head, rank)."""
    keys = topkeys.top_keys(store, samples=[index]).isel(sample=0)
    return (keys["index"] + store.sizes["token"] * (keys["stream"] == 0)).values.astype(int)


def sample_of(store, index: int, truth: Truth, layers: int) -> Sample:
    """Return a sample's truth, its keys named by the store's token table (which other tests check)."""
    patches = (HEIGHT // 16) * (WIDTH // 16)
    tables = {branch: store.tokens(index, branch) for branch in ("cond", "uncond")}
    words = [str(text).replace("</w>", "").replace("▁", "") for text in tables["cond"]["text"]]
    return Sample(
        truth.stacked(truth.attention, layers), truth.stacked(truth.norms, layers),
        truth.stacked(truth.gates, layers) if truth.gates else None,
        {branch: [*table["group"], *["image"] * patches] for branch, table in tables.items()},
        [place for place, word in enumerate(words) if word == WORD],
    )  # fmt: skip


def errors(pipe, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return the largest relative error of every number of a model: precision -> name -> error."""
    kept = [keep(pipe, prompt, seed + place) for place, prompt in enumerate(PROMPTS)]
    layers = len(pipe.transformer.transformer_blocks)
    found: dict[str, dict[str, float]] = {}
    for precision in LIMITS:
        path = folder / f"{precision}-{seed}.h5"
        options = {
            "precision": precision,
            "top_steps": "all",
            "topk": TOP,
            "atlas": True,
            "maps": "off",
            "no_unconditional": True,
        }
        with sd35h5.capture(pipe, path, **options) as generate:
            for place, prompt in enumerate(PROMPTS):
                generate(prompt, seed=seed + place, **CALL)
        worst: dict[str, float] = {}
        with open_store(path) as store:
            for index, truth in enumerate(kept):
                expected = truths(sample_of(store, index, truth, layers), named_keys(store, index))
                for name, values in stored(store, index).items():
                    worst[name] = max(worst.get(name, 0.0), relative(name, values, expected))
        found[precision] = worst
    return found


def relative(name: str, values: np.ndarray, expected: dict[str, np.ndarray]) -> float:
    """Return max |value − truth| ÷ |truth|; for a contrast ÷ the conditional value."""
    truth = expected[name]
    if name.startswith("is_sink"):
        return float(np.abs(values - truth).max())
    scale = expected["first_token_mean"] if name == "branch_contrast" else truth
    return float((np.abs(values - truth) / np.abs(scale)).max())


def models(count: int):
    """Yield (name, pipeline, seed): random models, each also with random gates."""
    for seed in range(count):
        for gate_type in (None, "headwise" if seed % 2 == 0 else "elementwise"):
            pipe = make_pipeline(qk_norm="rms_norm" if seed % 2 == 0 else None, seed=seed)
            if gate_type is not None:
                gates = build_gates(pipe.transformer, gate_type)
                for parameter in gates.modules.parameters():
                    torch.nn.init.normal_(parameter, std=0.5)
                install_gates(pipe.transformer, gates)
            yield f"model {seed}, gates {gate_type or 'none'}", pipe, 100 * seed


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
    good = all(error <= LIMITS[precision] for precision, found in worst.items() for error in found.values())
    lines = [
        "# Numbers against brute force", "",
        f"Largest relative error over {2 * asked.models} random models, {len(PROMPTS)} prompts, {STEPS} steps, all "
        "layers and heads.",
        "", "| number | exact arrays (≤ 1e-5) | rounded arrays (≤ 1e-3) |", "| --- | --- | --- |",
        *(f"| {name} | {worst['exact'][name]:.1e} | {worst['rounded'][name]:.1e} |" for name in worst["exact"]),
        "", "For `is_sink` whether any differs. `top_keys` is the true mass of the keys that the store names, rank by "
        "rank, against the stored one, which `top_mass` compares with the true heaviest. "
        + ("All within." if good else "NOT within."),
        "Made by `python benchmarks/metrics_truth.py`.",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "metrics_truth.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
