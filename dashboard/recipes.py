"""The few lines of Python that read the numbers of a chart from the file: each ends with `table`."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

from dashboard import cached_reads
from dashboard.choosing.selection import View
from dashboard.recipe_parts import (
    at_layer,
    map_table,
    opened,
    pairing,
    prompts,
    samples,
    steps,
    target,
    values,
    within,
)
from sd35h5 import metrics


def heatmap(view: View) -> str:
    """Return what reads the layer × head heatmap."""
    return opened(view.run) + values(view, at_cell=False) + "table = metrics.by_layer_head(values)"


def curve(view: View) -> str:
    """Return what reads the curve over steps."""
    lines = opened(view.run) + values(view) + prompts(view.samples)
    return lines + "table = metrics.over_steps(values, prompts)"


def profile(view: View) -> str:
    """Return what reads the mean of each layer."""
    one = "" if view.cell is None else f".sel(head=[{view.cell[1]}])"
    lines = opened(view.run) + values(view, at_cell=False) + prompts(view.samples)
    return f"{lines}table = metrics.over_layers(values{one}, prompts)"


def histogram(view: View) -> str:
    """Return what reads how many heads have which mean."""
    return f"{heatmap(view)}\ntable = metrics.head_counts(table)"


def tokens(view: View) -> str:
    """Return what reads the shown sample's tokens with their mass."""
    layers, heads = view.looked_at
    chosen = f"steps={list(view.steps)}, layers={list(layers)}, heads={list(heads)}"
    return opened(view.run) + f"table = metrics.token_mass(store, {view.sample}, {view.branch!r}, {chosen})"


def token_groups(view: View) -> str:
    """Return what reads the shown sample's groups."""
    return f"{tokens(view)}\ntable = metrics.group_totals(table)"


def across_prompts(view: View) -> str:
    """Return what reads the metric of each sample."""
    lines = opened(view.run) + values(view)
    return f"{lines}table = metrics.sample_means(values, store.samples.loc[{list(view.samples)!r}])"


def groups(view: View) -> str:
    """Return what reads where the mass goes over layers."""
    one = "" if view.cell is None else f".sel(head=[{view.cell[1]}])"
    lines = f"mass = metrics.mean_group_mass(store, {view.branch!r}, 'image', {samples(view)})"
    return f"{opened(view.run)}{lines}{within(view, at_cell=False)}{one}\ntable = metrics.groups_over_layers(mass)"


def rates(view: View) -> str:
    """Return what reads the sink rate over ε."""
    lines = opened(view.run) + values(view, name="first_token_mean") + prompts(view.samples)
    where = f"store, {target(view)}, {view.branch!r}, {samples(view)}"
    lines += f"uniform = float(metrics.uniform_mass({where}).mean())\n"
    return f"{lines}table = metrics.sink_curve(values, prompts, uniform)"


def kinds(view: View, by: str) -> str:
    """Return what reads of what kind the heaviest key is."""
    lines = f"keys = metrics.top_keys(store, {view.branch!r}, 'image', {samples(view)}, count=1)"
    steps = f"\nkeys = keys.isel(top_step=keys['top_step'].isin({list(view.steps)!r}))"
    at = within(view, dims=("layer", "head"))
    return f"{opened(view.run)}{lines}{at}{steps}\ntable = metrics.kind_shares(keys, by={by!r})"


def gate_heads(view: View, run: cached_reads.Run, chosen: tuple[int, ...], query: str) -> str:
    """Return what reads the gate of each head."""
    where = f"store, {view.branch!r}, {query!r}, {list(chosen)!r}, steps={list(view.steps)!r}"
    return (
        f"{opened(run)}table = metrics.gate_heads({where})\n"
        f"table = table[table['layer'].isin({list(view.layers)!r}) & table['head'].isin({list(view.heads)!r})]"
    )


def gate_curves(view: View, run: cached_reads.Run, chosen: tuple[int, ...], series: list[str]) -> str:
    """Return what reads the mean gate of both streams over steps."""
    one = f"metrics.gate_statistic(store, 'mean', {view.branch!r}, query, {list(chosen)!r}){within(view)}"
    return (
        f"import pandas as pd\n{opened(run)}{prompts(chosen)}table = pd.concat([\n"
        f"    metrics.over_steps({one}, prompts).assign(series=query + ' queries')\n"
        f"    for query in {[name.removesuffix(' queries') for name in series]!r}\n])"
    )


def group_gates(view: View, run: cached_reads.Run, chosen: tuple[int, ...], series: list[str]) -> str:
    """Return what reads the gate at each group over steps."""
    gates = f"metrics.mean_group_gates(store, {view.branch!r}, {list(chosen)!r}, prompts){within(view)}"
    return (
        f"import pandas as pd\n{opened(run)}{prompts(chosen)}"
        f"gates = {gates}.expand_dims('sample')\ntable = pd.concat([\n"
        "    metrics.over_steps(gates.sel(group=name, drop=True), ['all']).assign(series=name)\n"
        f"    for name in {series!r}\n])[['step', 'timestep', 'sigma', 'mean', 'series']]"
    )


def contributions(view: View, run: cached_reads.Run, chosen: tuple[int, ...]) -> str:
    """Return what reads each kind of key's part of the mass and of what passes the gate."""
    at = within(view, dims=("layer", "head"))
    where = f"sample={list(chosen)!r}, branch={view.branch!r}, query='image'"
    keys = f"metrics.top_keys(store, {view.branch!r}, 'image', {list(chosen)!r}){at}"
    return (
        f"{opened(run)}keys = {keys}\n"
        f"added = store.read('gates/contribution', {where}){at}\n"
        f"steps = keys['top_step'].isin({list(view.steps)!r}).values\n"
        "table = metrics.contribution_shares(keys.isel(top_step=steps), added.isel(top_step=steps))"
    )


def compared(view: View, other: cached_reads.Run) -> tuple[str, str, str]:
    """Return what reads the reference's heatmap, the other's, and their difference, paired samples only."""
    lines = (
        f"from dataclasses import replace\n\n{opened(view.run, 'compare', 'metrics')}"
        f"other = sd35h5.open_store({Path(other.path).name!r})\n{pairing(view)}"
    )
    at = within(view, False, ("layer", "head")) + steps(view)
    before, after = f"before{at}", f"after{at}"
    table = f"{lines}table = metrics.by_layer_head"
    return f"{table}({before})", f"{table}({after})", f"{table}(compare.difference({before}, {after}))"


def token_map(
    view: View, run: cached_reads.Run, sample: int, map_tokens: tuple[int, ...], step: int, layer: int | None
) -> str:
    """Return what reads a token's map at a step: y, x, value."""
    where = f"store, {sample}, {list(map_tokens)!r}, {view.branch!r}"
    return f"{opened(run)}values = metrics.token_maps({where})\n{map_table(step, at_layer(layer))}"


def region(
    view: View, run: cached_reads.Run, sample: int, where: metrics.Region, ranked: str, **more: object
) -> str:
    """Return what ranks words, heads, layers or steps by what of their map lies in a region.

    Args: ranked: the metric's name; more: its arguments besides store, sample, region and branch.
    """
    asked = ", ".join(f"{name}={value!r}" for name, value in {"branch": view.branch, **more}.items())
    return (
        f"{opened(run)}region = metrics.{where!r}\n"
        f"table = metrics.{ranked}(store, {sample}, region=region, {asked})"
    )


def row_map(view: View, row: int, step: int, layer: int | None) -> str:
    """Return what reads where a chosen query looks on the image: y, x, value."""
    where = f"store, {view.sample}, {row}, {view.branch!r}"
    return f"{opened(view.run)}values = metrics.row_maps({where})\n{map_table(step, at_layer(layer))}"


def row_tokens(view: View, row: int, step: int, layer: int | None) -> str:
    """Return what reads how much of a chosen query's attention each token gets."""
    where = f"store, {view.sample}, {row}, {step}, {layer}, {view.branch!r}"
    return f"{opened(view.run)}table = metrics.row_tokens({where})"


def run_samples(run: cached_reads.Run) -> str:
    """Return what reads the run's samples."""
    return f"import sd35h5\n\nstore = sd35h5.open_store({Path(run.path).name!r})\ntable = store.samples"


def patches(view: View) -> str:
    """Return what reads where on the image the heaviest keys lie."""
    return kinds(view, "layer").rpartition("\n")[0] + "\ntable = metrics.patch_shares(keys)"


def cell_map(view: View, map_tokens: tuple[int, ...], step: int) -> str:
    """Return what reads the clicked cell's map of a token in the shown sample: y, x, value."""
    layer, head = view.cell or (0, 0)
    where = f"store, {view.sample}, {list(map_tokens)!r}, {layer}, {head}, {view.branch!r}"
    lines = f"{opened(view.run)}values, of_the_head = metrics.cell_maps({where})\n"
    return lines + map_table(step)


def compared_curves(view: View, others: list[cached_reads.Run]) -> str:
    """Return what reads the paired runs' curves over steps, as the rows of `series`."""
    return (
        f"{_each_pairing(view, others, 'tables = []')}"
        "    prompts = list(pairing.pairs['prompt_id'])\n    if not tables:\n"
        f"        tables.append(metrics.over_steps(before, prompts).assign(series={view.run.name!r}))\n"
        "    tables.append(metrics.over_steps(after, prompts).assign(series=name))\n"
        "table = pd.concat(tables)"
    )


def compared_slopes(view: View, others: list[cached_reads.Run]) -> str:
    """Return what reads every paired sample's mean in each run."""
    return (
        f"{_each_pairing(view, others, 'rows = []')}    pairs = pairing.pairs\n"
        f"    sides = [({view.run.name!r}, before), (name, after)]\n"
        "    for run, values in sides if not rows else sides[1:]:\n"
        "        means = values.mean(['step', 'layer', 'head']).values\n"
        "        rows += zip([run] * len(pairs), pairs['reference_sample'], pairs['prompt'], means)\n"
        "table = pd.DataFrame(rows, columns=['run', 'sample', 'prompt', 'value'])"
    )


def compared_effect(view: View, others: list[cached_reads.Run]) -> str:
    """Return what reads each run's change in all, or at the clicked cell, with its interval."""
    return (
        f"{_each_pairing(view, others, 'tables = []')}"
        "    change, prompts = compare.difference(before, after), list(pairing.pairs['prompt_id'])\n"
        "    tables.append(compare.overall_effect(change, prompts).to_frame().T.astype(float).assign(run=name))\n"
        "table = compare.standardised(pd.concat(tables))"
    )


def compared_layers(view: View, others: list[cached_reads.Run]) -> str:
    """Return what reads each run's change in each layer, with its interval."""
    return (
        f"{_each_pairing(view, others, 'tables = []', at_cell=False)}"
        "    change, prompts = compare.difference(before, after), list(pairing.pairs['prompt_id'])\n"
        "    tables.append(compare.layer_effects(change, prompts).assign(run=name))\n"
        "table = pd.concat(tables)"
    )


def _each_pairing(view: View, others: list[cached_reads.Run], first: str, at_cell: bool = True) -> str:
    """Return the lines that read `before` and `after` of each of these runs, paired with the reference."""
    at = within(view, at_cell, ("layer", "head")) + steps(view)
    lines = f"other = sd35h5.open_store(file)\n{pairing(view)}"
    lines += f"before, after = before{at}, after{at}\n" if at else ""
    return (
        "import pandas as pd\nfrom dataclasses import replace\n\n"
        f"{opened(view.run, 'compare', 'metrics')}{first}\n"
        f"for name, file in {[(run.name, Path(run.path).name) for run in others]!r}:\n"
        f"{indent(lines, '    ')}"
    )


def scattered(
    view: View,
    chosen: dict[cached_reads.Run, tuple[int, ...]],
    numbers: list[tuple[str, list[int], list[int]]],
) -> str:
    """Return what reads two numbers, each with its layers and heads, of each sample of several runs."""
    runs = [(run.name, Path(run.path).name, list(samples)) for run, samples in chosen.items()]
    return (
        "import pandas as pd\nimport sd35h5\nfrom sd35h5 import metrics\n\n"
        f"tables = []\nfor name, file, chosen in {runs!r}:\n    store = sd35h5.open_store(file)\n"
        f"    asked = ({target(view)}, {view.branch!r}, chosen)\n    x, y = (\n"
        f"        metrics.sample_values(store, what, *asked, layers, heads, {list(view.steps)!r})\n"
        f"        for what, layers, heads in {numbers!r}\n    )\n"
        "    tables.append(metrics.points(store.samples, chosen, x, y).assign(run=name))\n"
        "table = pd.concat(tables)"
    )
