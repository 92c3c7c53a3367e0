"""The lines that recipes share: opening a file, the choice as Python, pairing two runs, a map as a table."""

from __future__ import annotations

from pathlib import Path

from dashboard import cached_reads
from dashboard.choosing.selection import View
from sd35h5 import metrics

IMPORTS = "import sd35h5\nfrom sd35h5 import {}\n\nstore = sd35h5.open_store({!r})\n"


def opened(run: cached_reads.Run, *modules: str) -> str:
    """Return the imports and the opening of the run, called by its file's name."""
    return IMPORTS.format(", ".join(modules or ("metrics",)), Path(run.path).name)


def within(view: View, at_cell: bool = True, dims: tuple[str, ...] = ("step", "layer", "head")) -> str:
    """Return `.sel(…)` of the chosen ranges and the clicked cell, by true index, "" where everything is chosen."""
    sizes = cached_reads.store(view.run).sizes
    places = {"step": view.steps, "layer": view.layers, "head": view.heads}
    if at_cell and view.cell is not None:
        places |= {"layer": (view.cell[0],), "head": (view.cell[1],)}
    sizes = {"step": sizes["step"], "layer": sizes["layer"], "head": sizes[view.head_axis]}
    parts = [f"{dim}={span(places[dim])}" for dim in sizes if dim in dims and len(places[dim]) < sizes[dim]]
    return f".sel({', '.join(parts)})" if parts else ""


def span(numbers: tuple[int, ...]) -> str:
    """Return a range of true indices as a slice, which holds both ends."""
    return f"slice({numbers[0]}, {numbers[-1]})"


def samples(view: View, chosen: tuple[int, ...] | None = None) -> str:
    """Return the chosen samples as an argument, None for all."""
    chosen = view.samples if chosen is None else chosen
    return repr(list(chosen)) if len(chosen) < cached_reads.store(view.run).sizes["sample"] else "None"


def prompts(chosen: tuple[int, ...]) -> str:
    """Return the line that gives the prompt of each sample."""
    return f"prompts = list(store.samples.loc[{list(chosen)!r}, 'prompt_id'])\n"


def target(view: View) -> str:
    """Return the token as Python."""
    return f"metrics.Target({view.target.kind!r}, {view.target.value!r})"


def values(view: View, at_cell: bool = True, name: str | None = None) -> str:
    """Return the lines that read the metric within the choice."""
    name, asked = name or view.metric, f"{target(view)}, {view.branch!r}, {samples(view)}"
    call = f"metrics.{name}(store, {asked})"
    if name not in metrics.METRICS:
        call = f"metrics.computed(store, {name!r}, {asked})"
    return f"values = {call}{within(view, at_cell, ('layer', 'head'))}{steps(view)}\n"


def steps(view: View) -> str:
    """Return `.sel(step=…)` of the chosen steps by their index: some metrics were captured at a part of them."""
    if len(view.steps) == cached_reads.store(view.run).sizes["step"]:
        return ""
    return f".sel(step=slice({view.steps[0]}, {view.steps[-1]}))"


def pairing(view: View) -> str:
    """Return the lines that pair `store` with `other`, the chosen samples only, and read `before` and `after`."""
    return (
        "pairing = compare.pair(store, other)\n"
        f"chosen = pairing.pairs[pairing.pairs['reference_sample'].isin({list(view.samples)!r})]\n"
        "pairing = replace(pairing, pairs=chosen.reset_index(drop=True))\n"
        "before, after = compare.paired_values(store, other, pairing, "
        f"{view.metric!r}, {target(view)}, {view.branch!r})\n"
    )


def at_layer(layer: int | None) -> str:
    """Return what takes one layer of a map, or their mean."""
    return ".mean('layer')" if layer is None else f".sel(layer={layer}, drop=True)"


def map_table(step: int, layer: str = "") -> str:
    """Return the lines from the `values` of a map at all steps to y, x, value. Args: layer: of `at_layer`."""
    return (
        f"values = values{layer}.sel(map_step={step}, drop=True)\n"
        "table = values.rename('value').to_dataframe()['value'].reset_index()[['y', 'x', 'value']]"
    )
