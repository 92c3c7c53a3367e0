"""What to measure in one call of the transformer, and what it yielded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from sd35h5.errors import CaptureError
from sd35h5.measuring.optional_tiers import TierPlan


@dataclass(frozen=True)
class PassPlan:
    """What to measure in one call of the transformer.

    Args:
        branches: name of each batch row.
        membership: float32 (batch row, text tokens, text groups), 1 where a token belongs to a group.
        patches: (y, x) of the image tokens.
        check: measure the row sums of A.
        top: number of heaviest keys of the cond row, 0 for none.
        tiers: what else to measure of the cond row.
        skipped: layers that this pass leaves out (skip-layer guidance).
        may_rest: layers that need not run, as a cache gives back what they computed before.
    """

    branches: tuple[str, ...]
    membership: Tensor
    patches: tuple[int, int]
    check: bool = False
    top: int = 0
    tiers: TierPlan = TierPlan()
    skipped: frozenset[int] = frozenset()
    may_rest: frozenset[int] = frozenset()


@dataclass
class PassResult:
    """What one call of the transformer yielded; float32 unless said, NaN (−1) for layers that it skipped."""

    mass: Tensor  # (batch row, query stream, layer, head, text token)
    group: Tensor  # (batch row, query stream, group, layer, head)
    entropy: Tensor  # (batch row, query stream, layer, head)
    gates: Tensor | None  # (statistic, batch row, query stream, layer, head)
    gate_groups: Tensor | None  # (batch row, query stream, group, layer, head)
    second_gates: Tensor | None  # of attn2: (statistic, batch row, query stream, layer, head)
    # of attn2: entropy_all (layer, head), patch_mass (layer, head, y, x), top_… and contribution (layer, head, rank)
    second: dict[str, Tensor] | None
    # stream, index, mass, value_norm, of gated models also contribution: (query stream, layer, head, rank)
    top: dict[str, Tensor] | None
    maps: Tensor | None  # (map, layer, y, x), mean over heads
    rows: dict[str, Tensor] | None  # image: (query, layer, y, x), text: (query, layer, token)
    atlas: dict[str, Tensor] | None  # patch_mass: (query stream, layer, head, y, x), entropy_all without y, x
    row_sum_error: Tensor | None = None  # (), the largest of all rows, where the plan asks for the check
    rested: frozenset[int] = frozenset()  # layers that did not run


def never_ran(layers: Iterable[int]) -> CaptureError:
    """The error that these layers attended past their processors."""
    told = ", ".join(map(str, sorted(layers)))
    return CaptureError(f"the attention of layer {told} never ran its processor: something else replaced it")
