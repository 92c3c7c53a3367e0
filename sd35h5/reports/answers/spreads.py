"""The interval over prompts of the heads that a sentence names."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from sd35h5.comparing import effects
from sd35h5.metrics.averaging import are_balanced, finite_mean, prompt_means
from sd35h5.reports.answers.sink_answers import Spread

RESAMPLES = 1999  # of many prompts, too, it is there with the page


def spreads(
    cells: Sequence[tuple[int, int]], values: xr.DataArray, prompts: Sequence[str]
) -> dict[tuple[int, int], Spread]:
    """Return the interval of each cell's mean; none with few prompts, or where prompts have unlike many samples.

    Args: values: (sample, step, layer, head); prompts: the prompt of each sample.
    """
    count = len(set(prompts))
    if count < effects.MIN_PROMPTS or not are_balanced(prompts):
        return {}
    found = {}
    for layer, head in cells:
        part = finite_mean(values.sel(layer=layer, head=head), ["step"])
        low, high = effects.bootstrap_interval(
            prompt_means(part.values[:, None], prompts).to_numpy(), RESAMPLES
        )
        found[layer, head] = Spread(float(low[0]), float(high[0]), count)
    return found
