"""What a capture is expected to cost in time, from what benchmarks measured. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from sd35h5.planning.options import Tiers
from sd35h5.planning.selectors import choose_steps


@dataclass(frozen=True)
class Measured:
    """Shares of a step of the stock pipeline, and MB/s; a test holds them against benchmarks/results.

    Args:
        sinks: of every step. top: of a step that looks for the heaviest keys, on top of that.
        atlas: the same of a step that keeps the atlas. head_maps: of one that keeps maps of every head.
        rate: of values that are hashed, deflated and written.
    """

    sinks: float
    top: float
    atlas: float
    head_maps: float
    rate: float


# benchmarks/results/capture_cost_large.json: SD3.5-Large's shape, 1024², bfloat16, an H100 and 8 of 16 cores
LARGE_ON_H100 = Measured(sinks=0.020, top=0.068, atlas=0.081, head_maps=0.002, rate=1483)
DEMO_ON_CPU = 0.5  # benchmarks/results/demo_cost.json: the bundled models on two cores


def expected_share(tiers: Tiers, steps: int, measured: Measured = LARGE_ON_H100) -> float:
    """Expected extra time of the sampling as a share of what it takes without a capture."""
    tops = len(choose_steps("top_steps", tiers.top_steps, steps)) / steps
    maps = len(choose_steps("map_steps", tiers.map_steps, steps)) / steps
    # one pass over all keys serves both
    every_key = max(measured.top * bool(tiers.topk), measured.atlas * tiers.atlas)
    head_maps = measured.head_maps * (tiers.maps != "off" and tiers.map_heads == "all")
    return measured.sinks + tops * every_key + maps * head_maps


def told_cost(tiers: Tiers, steps: int, raw_bytes: int, measured: Measured = LARGE_ON_H100) -> str:
    """The expected cost as one line.

    Args:
        raw_bytes: of a sample, before compression.
    """
    share = expected_share(tiers, steps, measured)
    seconds = raw_bytes / (measured.rate * 1e6)
    return (
        f"expected: sampling takes {100 * share:.1f} % longer on a GPU (as measured on an H100 at SD3.5-Large's "
        f"size), {100 * DEMO_ON_CPU:.0f} % on a CPU; beside it, {seconds:.2g} s a sample to deflate and write"
    )
