"""Every number by its definition, in float64 from whole attention matrices: nothing of the library computes here."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

TOP = 6  # heaviest keys
WORD = "apple"
BRANCHES = ("cond", "uncond")
PLACES = ("corner", "border", "inner")


@dataclass(frozen=True)
class Sample:
    """One sample's whole attention and gates, and what its keys are; text tokens come first."""

    attention: np.ndarray  # float64 (step, layer, branch, head, query, key)
    norms: np.ndarray  # float64 (step, layer, branch, head, key)
    second: (
        np.ndarray | None
    )  # of attn2, float64 (step, layer, branch, head, query, key); NaN in layers without
    second_norms: np.ndarray | None  # of attn2, float64 (step, layer, branch, head, key)
    groups: dict[str, list[str]]  # branch -> group of every key
    word: list[int]  # text keys of WORD
    grid: tuple[int, int]  # rows and columns of patches
    #: image, text, attn2 -> float64 (step, layer, branch, query, head, channel); NaN in layers without
    gates: dict[str, np.ndarray] = field(default_factory=dict)

    def rows(self, branch: str, query: str) -> np.ndarray:
        """Return A of a branch's image or text queries: (step, layer, head, query, key)."""
        text = sum(group != "image" for group in self.groups[branch])
        part = slice(text, None) if query == "image" else slice(0, text)
        return self.attention[:, :, BRANCHES.index(branch), :, part]

    def mass(self, branch: str = "cond", query: str = "image") -> np.ndarray:
        """Return mean_q A[q, k]: (step, layer, head, key)."""
        return self.rows(branch, query).mean(-2)

    def keys(self, prefix: str, branch: str = "cond") -> list[int]:
        """Return the keys whose group begins so."""
        return [key for key, group in enumerate(self.groups[branch]) if group.startswith(prefix)]

    def places(self) -> np.ndarray:
        """Return what each patch is, row by row: one of PLACES."""
        y, x = np.divmod(np.arange(self.grid[0] * self.grid[1]), self.grid[1])
        edges = np.isin(y, (0, self.grid[0] - 1)).astype(int) + np.isin(x, (0, self.grid[1] - 1))
        return np.array(PLACES)[2 - edges]

    def kinds(self) -> np.ndarray:
        """Return what each key of the cond branch is: its group, or its place on the image."""
        return np.array([*(group for group in self.groups["cond"] if group != "image"), *self.places()])


def pairs_gini(values: np.ndarray) -> np.ndarray:
    """Return the Gini coefficient over the last axis: the mean difference of pairs ÷ twice the mean."""
    return np.abs(values[..., :, None] - values[..., None, :]).mean((-1, -2)) / (2 * values.mean(-1))


def group_gini(groups: list[str], mass: np.ndarray) -> np.ndarray:
    """Return the Gini coefficient of keys that share their group's mass evenly: (step, layer, head)."""
    even = np.empty_like(mass)
    for group in set(groups):
        own = [key for key, name in enumerate(groups) if name == group]
        even[..., own] = mass[..., own].mean(-1, keepdims=True)
    return pairs_gini(even)


def entropy(rows: np.ndarray) -> np.ndarray:
    """Return the mean over queries of the entropy over the given keys, renormalised."""
    share = rows / rows.sum(-1, keepdims=True)
    return -(share * np.log(share)).sum(-1).mean(-1)


def at(values: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Return (step, layer, head, rank) of the named keys."""
    return np.take_along_axis(values, named, -1)


def heaviest(mass: np.ndarray) -> np.ndarray:
    """Return the TOP largest masses, heaviest first."""
    return -np.sort(-mass, -1)[..., :TOP]


def about_text(sample: Sample) -> dict[str, np.ndarray]:
    """Return the numbers of the first token, groups, words and encoders: name -> (step, layer, head)."""
    mass, text = sample.mass(), len(sample.keys("clip_")) + len(sample.keys("t5_"))
    on_text = mass[..., :text].sum(-1)
    epsilons = np.geomspace(1e-4, 1, 49)
    found = {
        "first_token_mean": mass[..., 0],
        "first_token_share": mass[..., 0] / (on_text / text),
        "text_mass_fraction": mass[..., 0] / on_text,
        "first_token_mean, one token": mass[..., 3],
        "first_token_share, group clip_pad": mass[..., sample.keys("clip_pad")].mean(-1) / (on_text / text),
        "text_mass": on_text,
        "encoder_mass, t5": mass[..., sample.keys("t5_")].sum(-1),
        "image_self_mass": mass[..., sample.keys("image")].sum(-1),
        "group_mass, text queries": sample.mass("cond", "text")[..., sample.keys("t5_pad")].sum(-1),
        "entropy": entropy(sample.rows("cond", "image")[..., :text]),
        "entropy, uncond, text queries": entropy(sample.rows("uncond", "text")[..., :text]),
        "branch_contrast": mass[..., 0] - sample.mass("uncond")[..., 0],
        "is_sink at 1.5 × uniform": (mass[..., 0] > 1.5 / mass.shape[-1]).astype(float),
        "sink_curve": (mass[..., 0].ravel() > epsilons[:, None]).mean(-1),
        "gini": group_gini(sample.groups["cond"], mass),
    }
    if sample.word:
        found[f"first_token_mean, word “{WORD}”"] = mass[..., sample.word].sum(-1)
    return found


def about_heaviest(sample: Sample, named: np.ndarray) -> dict[str, np.ndarray]:
    """Return the numbers of the heaviest keys: name -> (step, layer, head[, rank]), or by kind, or by patch.

    Args: named: the keys that the store names as the heaviest. Where two masses are equal to seven digits either may
        come first, so “which” is the truth's mass of the named keys, and norms are those of the named keys.
    """
    mass, norms = sample.mass(), at(sample.norms[:, :, 0], named)
    kinds, patch = sample.kinds()[named], named - len(sample.groups["cond"]) + len(sample.places())
    common = [
        (named[a, :, :, :5, None] == named[b, :, :, None, :5]).sum((-1, -2)) / 5
        for a, b in combinations(range(len(named)), 2)
    ]
    return {
        "top_mass, 1": heaviest(mass)[..., 0],
        "top_mass, 5": heaviest(mass)[..., :5].sum(-1),
        "top_keys, mass of those named": at(mass, named),
        "value_norm_ratio": norms[..., 0] / norms[..., 1:].mean(-1),
        "contribution": at(mass, named) * norms,
        "kind_shares": np.array([(kinds == kind).any(-1).mean() for kind in kinds_there(sample)]),
        "patch_shares": np.array([(patch == place).any(-1).mean() for place in range(len(sample.places()))]),
        "stability over steps": np.mean(common, 0),
    }


def kinds_there(sample: Sample) -> list[str]:
    """Return the kinds that have keys, in the order of their names."""
    return sorted(set(sample.kinds().tolist()))


def over_patches(rows: np.ndarray, patches: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
    """Return the numbers over image keys: name -> (step, layer, head).

    Args: rows: (step, layer, head, query, key); patches: their mean over queries, of the patches alone.
    """
    return {
        "entropy_all": entropy(rows),
        "patch_top": patches.max(-1),
        "patch_gini": pairs_gini(patches),
        "border_share": patches[..., places != "inner"].sum(-1) / patches.sum(-1),
    }


def about_second(sample: Sample, named: np.ndarray) -> dict[str, np.ndarray]:
    """Return the numbers of MMDiT-X's second, image-only attention, NaN in layers without: name -> as above."""
    rows = sample.second[:, :, 0]
    mass, norms = rows.mean(-2), at(sample.second_norms[:, :, 0], named)
    found = over_patches(rows, mass, sample.places()) | {
        "top_mass, 1": heaviest(mass)[..., 0],
        "top_mass, 5": heaviest(mass)[..., :5].sum(-1),
        "mass of the keys named": at(mass, named),
        "value norm of the keys named": norms,
    }
    if "attn2" in sample.gates:
        gate = mean_gate(sample, "attn2", heads=mass.shape[2])
        found["contribution after the gate"] = at(mass, named) * norms * gate[..., None]
    return {f"attn2: {name}": values for name, values in found.items()}


# ---- gates -------------------------------------------------------------------------------------------------


def mean_gate(sample: Sample, stream: str, heads: int | None = None) -> np.ndarray:
    """Return the cond branch's mean gate of a stream: (step, layer, head).

    Args: heads: how many attend where they are not those of the gates, over whose channels they then lie.
    """
    gate = sample.gates[stream][:, :, 0].mean(2)  # (step, layer, head, channel)
    if heads in (None, gate.shape[2]):
        return gate.mean(-1)
    channels = np.broadcast_to(gate, (*gate.shape[:-1], heads))  # a head of the gates has as many channels
    return channels.reshape(*gate.shape[:2], heads, -1).mean(-1)


def gate_statistics(gate: np.ndarray) -> np.ndarray:
    """Return mean, std, min, max and the shares below 0.1 and 0.5 over queries and channels.

    Returns: (step, layer, branch, head, statistic); NaN in layers without a gate.
    """
    flat = np.moveaxis(gate, -2, -3).reshape(
        *gate.shape[:-3], gate.shape[-2], -1
    )  # (…, head, query * channel)
    shares = [np.where(np.isnan(flat), np.nan, flat < edge).mean(-1) for edge in (0.1, 0.5)]
    return np.stack([flat.mean(-1), flat.std(-1), flat.min(-1), flat.max(-1), *shares], -1)


def gate_heads(gate: np.ndarray) -> np.ndarray:
    """Return the cond branch's statistics of each head over all steps: (layer, head, statistic)."""
    each = gate_statistics(gate)[:, :, 0]  # of steps with as many gates each
    found = each.mean(0)
    found[..., 2], found[..., 3] = each[..., 2].min(0), each[..., 3].max(0)
    return found


def group_gates(sample: Sample, groups: tuple[str, ...]) -> np.ndarray:
    """Return the mean gate of each group's queries: (group, step, layer, branch, head), NaN where there is none."""
    image, text = sample.gates["image"], sample.gates["text"]
    found = np.full((len(groups), *image.shape[:3], image.shape[4]), np.nan)
    for place, group in enumerate(groups):
        for number, branch in enumerate(BRANCHES):
            own = sample.keys(group, branch)
            if group == "image":
                found[place, :, :, number] = image[:, :, number].mean((2, 4))
            elif own:
                found[place, :, :, number] = text[:, :, number, own].mean((2, 4))
    return found


def contribution_shares(sample: Sample, named: np.ndarray) -> np.ndarray:
    """Return each kind's part of the named keys' mass and of what they add after the gate: (kind, 2)."""
    mass = at(sample.mass(), named)
    added = mass * at(sample.norms[:, :, 0], named) * mean_gate(sample, "image")[..., None]
    kinds = sample.kinds()[named]
    return np.array(
        [[each[kinds == kind].sum() / each.sum() for each in (mass, added)] for kind in kinds_there(sample)]
    )


def about_gates(sample: Sample, named: np.ndarray, groups: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the numbers of the gates: name -> their axes as the functions above say."""
    found = {f"gate_statistic, {name}": gate_statistics(gate) for name, gate in sample.gates.items()}
    found |= {f"gate_heads, {name}": gate_heads(gate) for name, gate in sample.gates.items()}
    added = (
        at(sample.mass(), named) * at(sample.norms[:, :, 0], named) * mean_gate(sample, "image")[..., None]
    )
    return found | {
        "group_gates": group_gates(sample, groups),
        "contribution after the gate": added,
        "contribution after the gate, as stored": added,
        "contribution_shares": contribution_shares(sample, named),
    }


def truths(sample: Sample, named: np.ndarray, named_second: np.ndarray, groups: tuple[str, ...]) -> dict:
    """Return every number of a sample by its definition: name -> array.

    Args: named, named_second: the heaviest keys of either attention as the store has them, int (step, layer, head,
        rank); groups: the names of groups, in the store's order.
    """
    patches = sample.mass()[..., sample.keys("image")]
    found = about_text(sample) | about_heaviest(sample, named)
    found |= over_patches(sample.rows("cond", "image"), patches, sample.places())
    if sample.second is not None:
        found |= about_second(sample, named_second)
    return found | (about_gates(sample, named, groups) if sample.gates else {})
