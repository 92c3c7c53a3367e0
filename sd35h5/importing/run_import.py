"""Bring folders of the older tool into one store: sample after sample, going on where an earlier import stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd35h5.capturing.finishing import finish
from sd35h5.capturing.progress import say
from sd35h5.capturing.recorder import SampleRecorder
from sd35h5.capturing.sample_facts import Layout, SampleFacts, map_places
from sd35h5.errors import ForeignFileError
from sd35h5.importing.dump_tables import DumpTables
from sd35h5.importing.import_options import ImportOptions
from sd35h5.importing.imported_samples import ImportedSample, ImportPlan, plan_import
from sd35h5.importing.older_folders import MAPS_FILE, OlderFolder, read_picture
from sd35h5.importing.reduced_probabilities import Reduced, reduce_blocks
from sd35h5.long_work import counted
from sd35h5.measuring.passes import PassResult
from sd35h5.measuring.reductions import group_mass
from sd35h5.planning.interventions import NO_SECOND
from sd35h5.planning.selectors import choose, choose_steps
from sd35h5.planning.token_table import (
    CLIP_TOKENS,
    TokenTable,
    check_phrases,
    choose_map_tokens,
    token_encoders,
    truncation_note,
)
from sd35h5.store import schema
from sd35h5.store.runs import begin_run, running, sealed_indices
from sd35h5.store.writer import Header

_RENORMALISED = 0.99  # of every row of a whole step to the text: no model's image looks at nothing else
_TEXT_GROUPS = len(schema.GROUPS) - 1


def import_folders(folders: Sequence[OlderFolder], options: ImportOptions) -> Path:
    """Make a store of the older tool's folders, see `find_folders`. Returns: the store.

    Raises:
        ForeignFileError, ConfigError, StoreError: a sentence; sealed samples stay, and the same call goes on.
    """
    plan = plan_import(folders, options)
    check_phrases(options.tiers.words, [sample.prompt for sample in plan.samples])
    layout = _layout(plan, options)
    tables = DumpTables(plan, options)
    with running(options.out) as parts:
        begin_run(options.out, plan.config(options), len(plan.samples), options.overwrite)
        sealed = sealed_indices(parts)
        for note in tables.notes():
            say(note)
        try:
            for sample in plan.samples:
                if sample.index not in sealed:
                    _import_sample(sample, parts, plan, layout, tables, options)
        except BaseException:
            count = f"{len(sealed_indices(parts))} of {len(plan.samples)} samples are sealed in {parts}"
            say(f"{count}; the same command goes on from there")
            raise
        return finish(parts, options.out)


def _layout(plan: ImportPlan, options: ImportOptions) -> Layout:
    """The axes that all samples share; what needs queries and keys is not there."""
    shape, tiers = plan.shape, options.tiers
    return Layout(
        branches=plan.branches,
        timesteps=shape.timesteps,
        sigmas=tuple(timestep / 1000 for timestep in shape.timesteps),  # as flow matching has it
        layers=shape.layers,
        heads=shape.heads,
        second=NO_SECOND,
        token_encoders=tuple(map(int, token_encoders(CLIP_TOKENS, shape.tokens - CLIP_TOKENS, plan.has_t5))),
        patches=shape.patches,
        pixels=plan.pixels if plan.has_pictures else None,
        ranks=0,
        top_steps=(),
        maps=map_places(tiers.maps, shape.tokens),
        map_steps=tuple(choose_steps("map_steps", tiers.map_steps, len(shape.timesteps))),
        pool=tiers.map_pool,
        map_layers=tuple(choose("map_layers", tiers.map_layers, shape.layers, "layer")),
        rows=0,
        atlas=False,
        raw=None,
    )


def _import_sample(
    sample: ImportedSample,
    parts: Path,
    plan: ImportPlan,
    layout: Layout,
    tables: DumpTables,
    options: ImportOptions,
) -> None:
    """Read one sample's attention and seal it; after an error nothing is left of it."""
    own, tiers = tables.of(sample), options.tiers
    image = read_picture(sample.picture, plan.pixels) if layout.pixels and sample.picture else None
    chosen = choose_map_tokens(own["cond"], tiers.maps, tiers.words, layout.maps) if layout.maps else []
    facts = SampleFacts(
        index=sample.index, sample_id=sample.sample_id, prompt_id=sample.prompt_id, prompt=sample.prompt,
        negative_prompt=options.negative_prompt, prompt_index=sample.prompt_index,
        image_index=sample.image_index, tags="", seed=sample.seed,
    )  # fmt: skip
    recorder = SampleRecorder(
        parts, _header(sample, plan, layout, own, options), layout, facts, own, tiers.kept_branches,
        text_queries=False, map_tokens=chosen, gates=None,
    )  # fmt: skip
    try:
        _read_attention(sample, plan, layout, own, torch.tensor(chosen), tiers.map_heads == "all", recorder)
        recorder.seal(image, sample.key)
    except BaseException:
        recorder.abandon()
        raise
    finally:
        sample.file.close()


def _header(
    sample: ImportedSample,
    plan: ImportPlan,
    layout: Layout,
    tables: Mapping[str, TokenTable],
    options: ImportOptions,
) -> Header:
    told: dict[str, Any] = {"event": "imported", "sample_id": sample.sample_id, "folder": sample.folder.name,
                            "place": sample.place, "fingerprint": sample.file.fingerprint}  # fmt: skip
    notes = [truncation_note(f"prompt {sample.prompt_id}", tables["cond"])]
    events = [told, *({"event": "truncated", "note": note} for note in notes if note)]
    origin = {"kind": schema.IMPORTED, "from": MAPS_FILE, "unknown": options.unknown()}
    return Header(
        attributes={"model_id": options.model_id} if options.model_id else {},
        scales=layout.scales(),
        provenance={
            "config": json.dumps(plan.config(options), ensure_ascii=False),
            "origin": json.dumps(origin),
            "events": json.dumps(events, ensure_ascii=False),
        },
        precision=options.tiers.precision,
    )


def _read_attention(
    sample: ImportedSample, plan: ImportPlan, layout: Layout, tables: Mapping[str, TokenTable], mapped: Tensor,
    every_head: bool, recorder: SampleRecorder,
) -> None:  # fmt: skip
    """Give the recorder every step, as a capture's watcher does.

    Args:
        mapped: tokens with maps. every_head: keep a map of each head, too.
    """
    shape, branches = plan.shape, plan.branches
    membership = torch.stack([_membership(tables[branch]) for branch in branches])
    work = product(range(len(shape.timesteps)), range(shape.layers))
    told = f"{sample.folder.name}, sample {sample.index + 1} of {len(plan.samples)}"
    layers: list[list[Reduced]] = []
    for step, layer in counted(work, told, len(shape.timesteps) * shape.layers):
        has_maps = len(mapped) > 0 and step in layout.map_steps and layer in layout.map_layers
        at = f"{sample.folder.name}/{MAPS_FILE}, timestep {shape.timesteps[step]:g}, layer {layer}"
        reduce = partial(
            reduce_blocks,
            heads=shape.heads,
            patches=shape.patches,
            tokens=shape.tokens,
            at=at,
            pool=layout.pool,
        )
        read = partial(sample.file.blocks, step, layer)
        layers.append([
            reduce(read(plan.batch_row(sample, branch)), mapped=mapped if has_maps and branch == "cond" else None)
            for branch in branches
        ])  # fmt: skip
        if every_head and has_maps:
            recorder.add_head_maps(step, layer, layers[-1][branches.index("cond")].maps)
        if layer == shape.layers - 1:
            if step == 0:
                _refuse_renormalised(layers, f"{sample.folder.name}/{MAPS_FILE}")
            result = _as_pass(layers, branches.index("cond"), membership)
            recorder.add(step, branches, result, {}, lambda arrays: None)
            layers = []


def _membership(table: TokenTable) -> Tensor:
    groups = torch.from_numpy(table.groups.astype("int64"))
    return torch.nn.functional.one_hot(groups, _TEXT_GROUPS).float()


def _refuse_renormalised(layers: list[list[Reduced]], where: str) -> None:
    if min(row.least for rows in layers for row in rows) > _RENORMALISED:
        raise ForeignFileError(
            f"{where}: every patch gives all its attention to the text, in every head of a step: it was renormalised "
            "over the text, and what the image receives is lost"
        )


def _as_pass(layers: list[list[Reduced]], cond: int, membership: Tensor) -> PassResult:
    """What a capture would have measured of one step; of the text's queries nothing is known."""
    mass = torch.stack([torch.stack([row.mass for row in rows]) for rows in layers], dim=1)  # (B, L, H, T)
    groups = group_mass(mass.flatten(1, 2).unsqueeze(2), membership)  # (B, L * H, 1, G)
    groups = groups.unflatten(1, mass.shape[1:3]).movedim((3, 4), (1, 2))  # (B, 1, G, L, H)
    entropy = torch.stack([torch.stack([row.entropy for row in rows]) for rows in layers], dim=1).unsqueeze(1)
    return PassResult(
        mass=mass.unsqueeze(1), group=_and_text(groups), entropy=_and_text(entropy), maps=_maps(layers, cond),
        gates=None, gate_groups=None, second_gates=None, second=None, top=None, rows=None, atlas=None,
    )  # fmt: skip


def _and_text(of_image: Tensor) -> Tensor:
    """Add a query stream of which nothing is known: (B, 1, …) -> (B, 2, …)."""
    return torch.cat([of_image, torch.full_like(of_image, float("nan"))], dim=1)


def _maps(layers: list[list[Reduced]], cond: int) -> Tensor | None:
    """(map, layer, y, x), mean over heads; NaN where a layer has none."""
    found = [rows[cond].maps for rows in layers]
    some = next((maps for maps in found if maps is not None), None)
    if some is None:
        return None
    gap = torch.full_like(some.mean(1), float("nan"))
    return torch.stack([gap if maps is None else maps.mean(1) for maps in found], dim=1)
