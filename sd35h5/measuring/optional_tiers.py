"""The tiers that are measured when asked for: maps, rows, the atlas and raw probabilities of one attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sd35h5.gates.attention import JointQKV
from sd35h5.measuring import reductions
from sd35h5.measuring.reducer import Reducer
from sd35h5.measuring.reductions import IMAGE, KeyReduction


@dataclass(frozen=True)
class MapPlan:
    """Maps of A[image, token] to keep.

    Args:
        tokens: int64, text positions.
        layers: those with maps; None for all.
        pool: patches averaged each way.
        keep_heads: takes a layer and its float32 (map, head, y, x); None to keep the mean over heads alone.
    """

    tokens: Tensor
    layers: frozenset[int] | None = None
    pool: int = 1
    keep_heads: Callable[[int, Tensor], None] | None = None

    def wants(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers


@dataclass(frozen=True)
class RowPlan:
    """Queries whose whole row of A is kept, mean over heads: int64 joint positions, and `pool`."""

    queries: Tensor
    pool: int = 1


@dataclass(frozen=True)
class RawPlan:
    """Unpooled A[image, token] to hand on, layer by layer: all heads of all layers would not fit the memory.

    Args:
        keep: takes a layer and its float32 (head, token, y, x).
    """

    layers: frozenset[int]
    heads: Tensor
    tokens: Tensor
    keep: Callable[[int, Tensor], None]


@dataclass(frozen=True)
class TierPlan:
    """What to measure of the cond row of one pass beside the sinks."""

    maps: MapPlan | None = None
    rows: RowPlan | None = None
    atlas: bool = False
    raw: RawPlan | None = None

    def of_layer(self, layer: int) -> tuple[MapPlan | None, RawPlan | None]:
        """The parts that this layer takes part in."""
        maps = self.maps if self.maps is not None and self.maps.wants(layer) else None
        return maps, self.raw if self.raw is not None and layer in self.raw.layers else None


def measure_maps(
    plan: TierPlan,
    layer: int,
    joint: JointQKV,
    lse: Tensor,
    row: int,
    patches: tuple[int, int],
    reducer: Reducer,
) -> dict[str, Tensor]:
    """Make the maps of batch row `row` in this layer, and hand those of every head and raw probabilities on.

    Returns: `maps` (map, y, x), mean over heads; or nothing.
    """
    maps, raw = plan.of_layer(layer)
    image = joint.image_tokens
    query, key, lse = joint.query[row, :, :image], joint.key[row, :, image:], lse[row, :, :image]
    if raw is not None:
        chosen = key[raw.heads][:, raw.tokens]
        raw.keep(layer, reducer.attention_maps(query[raw.heads], chosen, lse[raw.heads], patches, 1))
    if maps is None:
        return {}
    each = reducer.attention_maps(query, key[:, maps.tokens], lse, patches, maps.pool).transpose(0, 1)
    if maps.keep_heads is not None:
        maps.keep_heads(layer, each)
    return {"maps": each.mean(1)}


def measure_rows(
    plan: RowPlan, joint: JointQKV, lse: Tensor, row: int, patches: tuple[int, int]
) -> dict[str, Tensor]:
    """Whole rows of A of batch row `row`, mean over heads.

    Returns: `rows_image` (query, y, x), pooled, and `rows_text` (query, token).
    """
    query, lse = joint.query[row][:, plan.queries], lse[row][:, plan.queries]
    shares = reductions.attention_rows(query, joint.key[row], lse).mean(0)
    image, text = shares[:, : joint.image_tokens], shares[:, joint.image_tokens :]
    return {"rows_image": reductions.pool_columns(image.T, *patches, plan.pool), "rows_text": text}


def measure_atlas(
    text: KeyReduction, image: KeyReduction, image_tokens: int, patches: tuple[int, int]
) -> dict[str, Tensor]:
    """The mass of every patch and the entropy of whole rows, both of one batch row.

    Args:
        text, image: reductions of that batch row alone, with their entropies.

    Returns: `patch_mass` (query stream, head, y, x), `entropy_all` (query stream, head).
    """
    mass = image.mass[0].transpose(0, 1).unflatten(-1, patches)
    return {"patch_mass": mass, "entropy_all": reductions.joint_entropy((text, image), image_tokens)[0].T}


def measure_second(
    joint: JointQKV, lse: Tensor, row: int, patches: tuple[int, int], ranks: int, reducer: Reducer,
    mean_gate: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """What is kept of MMDiT-X's second, image-only attention, of batch row `row`.

    Args:
        ranks: number of heaviest keys; where the image has fewer patches the rest is NaN (−1).
        mean_gate: (head), mean over the image's queries; None where there is no gate.

    Returns: `entropy_all` (head), `patch_mass` (head, y, x), the largest `error` of a row sum, and with ranks
        `top_index`, `top_mass`, `top_value_norm` (head, rank), with a gate `contribution`, too.
    """
    one = slice(row, row + 1)
    keys = reducer.reduce_keys(joint.query[one], joint.key[one], lse[one], joint.image_tokens, entropy=True)
    mass = keys.mass[0, :, IMAGE]
    values = {
        "error": (keys.row_sum - 1).abs().max(),
        "entropy_all": keys.entropy[0, :, IMAGE],
        "patch_mass": mass.unflatten(-1, patches),
    }
    if ranks:
        count = min(ranks, mass.shape[-1])
        norms = reductions.value_norms(joint.value[row])
        top = reductions.top_keys(mass[:, None], mass.new_empty(len(mass), 1, 0), norms, count)
        for name, fill in (("index", -1), ("mass", float("nan")), ("value_norm", float("nan"))):
            values[f"top_{name}"] = F.pad(getattr(top, name)[:, 0], (0, ranks - count), value=fill)
        if mean_gate is not None:
            values["contribution"] = values["top_mass"] * values["top_value_norm"] * mean_gate[:, None]
    return values
