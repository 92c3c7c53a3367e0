"""A capture under way: what its samples share, and what was sealed before."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sd35h5.capturing.call import Call
from sd35h5.capturing.sample_facts import Layout
from sd35h5.errors import CaptureError
from sd35h5.gates.modules import attn2_layout_of, describe, gates_of
from sd35h5.measuring.compiled import bare, compiled_how
from sd35h5.measuring.processor import check_processors, regrouped_attentions
from sd35h5.planning.interventions import CausalOptions, control_seed, parse_interventions
from sd35h5.planning.options import Tiers
from sd35h5.planning.token_table import TokenTable, truncation_note
from sd35h5.store.bounded_queue import Drain
from sd35h5.store.reader import open_store
from sd35h5.store.runs import sealed_indices
from sd35h5.store.schema import PARTS_SUFFIX
from sd35h5.store.showable import showable, well_formed_json
from sd35h5.store.writer import Header

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

log = logging.getLogger("sd35h5")


@dataclass(frozen=True)
class Identity:
    """Which sample this is."""

    index: int
    prompt_id: str
    prompt_index: int
    image_index: int
    tags: str = ""


class Session:
    """What the samples of one capture share: where they go, what is kept, the axes of the first one."""

    def __init__(
        self, pipe: StableDiffusion3Pipeline, parts: Path, tiers: Tiers, settings: Mapping[str, object],
        model_id: str,
        revision: str, sources: Mapping[str, dict] | None = None, causal: CausalOptions | None = None,
        encoder_masks: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.encoder_masks = encoder_masks
        self.pipe, self.parts, self.tiers, self.settings = pipe, parts, tiers, settings
        check_processors(pipe.transformer)
        causal = causal or CausalOptions()
        self.interventions, self.control = parse_interventions(causal), control_seed(causal)
        self.compiled = compiled_how(pipe.transformer)
        self.gates = gates_of(pipe.transformer)
        self.attn2_layout = attn2_layout_of(pipe.transformer)
        config = pipe.transformer.config
        regrouped = regrouped_attentions(pipe.transformer)
        self.second_layers = () if regrouped else tuple(config.dual_attention_layers)  # can be altered
        self.model_shape = (
            f"{config.num_layers} layers, {config.num_attention_heads} heads of {config.attention_head_dim}"
        )
        self._header = Header(
            attributes={
                "model_id": well_formed_json(model_id), "model_revision": revision, "model_shape": self.model_shape,
                **describe(self.gates), "attn2_layout": self.attn2_layout or "none",
                **({"gate_weights": "dropped"} if "dropped" in (sources or {}).get("gates", {}) else {}),
                "intervention": " ".join(each.text for each in self.interventions) or "none",
                "intervention_control": causal.control or "none",
            },
            scales={},
            provenance={
                "config": json.dumps(well_formed_json(dict(settings)), ensure_ascii=False),
                "environment": json.dumps(_environment(pipe)),
                "components": json.dumps(well_formed_json(_components(pipe, sources or {}, self.compiled))),
                "origin": json.dumps({"kind": "capture"}),
            },
            precision=tiers.precision,
        )  # fmt: skip
        self.sealing = Drain(threads=1, max_waiting=1)  # one sample at a time, while the next one is drawn
        self._layout: Layout | None = None
        self.are_prompts_noted = False
        self._noted: set[str] = set()
        self.sealed = _sealed_samples(parts)

    def header(self, layout: Layout, events: list[dict]) -> Header:
        """The header for a sample with these axes.

        Raises:
            CaptureError: other axes than the first sample's.
        """
        if self._layout is not None and (fields := self._layout.differences(layout)):
            raise CaptureError(
                f"this sample differs from the first one in {', '.join(fields)}: one file has one shape, "
                "so capture it into another file"
            )
        self._layout = layout
        provenance = {**self._header.provenance, **({"events": json.dumps(events)} if events else {})}
        return replace(self._header, scales=layout.scales(), provenance=provenance)

    def check_sealed(self, identity: Identity, call: Call, key: str) -> bool:
        """Tell whether a sample is sealed already.

        Raises:
            CaptureError: it is, but as another sample; or the file is complete and this would be one more.
        """
        before = self.sealed.get(identity.index)
        if before is None:
            out = self.parts.with_name(self.parts.name.removesuffix(PARTS_SUFFIX))
            if out.is_file():
                raise CaptureError(
                    f"{out.name} is complete with {len(self.sealed)} samples: "
                    "capture further ones into another file"
                )
            return False
        for name, now in (("prompt", call.prompt), ("seed", call.seed), ("pairing_key", key)):
            if before[name] != now:
                raise CaptureError(
                    f"sample {identity.index} is sealed already with {name} {before[name]!r}, "
                    f"but this call has {now!r}: "
                    "make the same calls to go on, or use overwrite=True or another file"
                )
        return True

    def note_truncation(self, table: TokenTable, what: str) -> list[dict]:
        """Tell which encoders read only a part of a text. Returns: the event for the file."""
        note = truncation_note(what, table)
        if note is None:
            return []
        self._say_once("truncated", note)
        return [{"event": "truncated", "note": note}]

    def note_words(self, words: Mapping[str, str], prompt_id: str) -> list[dict]:
        """Tell which asked words have no map in a prompt, and why. Returns: the event for the file."""
        for word, why in words.items():
            self._say_once(
                f"{word} {why}", f"“{showable(word, 40)}” has no map in prompt {prompt_id}: it {why}"
            )
        return [{"event": "words without a map", "words": dict(words)}] if words else []

    def _say_once(self, what: str, note: str) -> None:
        """Say it of the first text only, and of none where all were told of before anything was drawn."""
        if what not in self._noted and not self.are_prompts_noted:
            log.warning("%s", note)
        self._noted.add(what)


def _sealed_samples(parts: Path) -> dict[int, dict]:
    """Rows of the samples table that are on disk already, by sample index."""
    out = parts.with_name(parts.name.removesuffix(PARTS_SUFFIX))
    indices = sorted(sealed_indices(parts))
    if not indices:
        return {}
    with open_store(out if out.is_file() else parts) as store:
        rows = store.samples.to_dict("records")
    return dict(zip(indices, rows, strict=True))


def _environment(pipe: StableDiffusion3Pipeline) -> dict[str, str]:
    """Versions and machine that the numbers come from; no host or user name."""
    packages = ("sd35h5", "torch", "diffusers", "transformers", "tokenizers", "numpy", "h5py")
    found = {name: _version(name) for name in packages}
    device = torch.device(pipe._execution_device)  # its models may wait on the host
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        **found,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": f"{device.type} {name}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a bare checkout has no metadata
        return "not installed"


def _components(
    pipe: StableDiffusion3Pipeline, sources: Mapping[str, dict], compiled: Mapping[str, object]
) -> dict[str, dict]:
    """Class, dtype and size of every model of the pipeline, and where its weights came from if that is
    known; how the transformer is compiled; class and settings of the scheduler."""
    found = {}
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module):
            found[name] = {
                "class": type(bare(component)).__name__,
                "dtype": str(next(component.parameters()).dtype).removeprefix("torch."),
                "parameters": sum(parameter.numel() for parameter in component.parameters()),
                **sources.get(name, {}),
            }
    found["transformer"] |= {"compiled": dict(compiled)} if compiled else {}
    if "gates" in sources:
        found["gates"] = sources["gates"]
    scheduler = pipe.scheduler
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    found["scheduler"] = {"class": type(scheduler).__name__, **json.loads(json.dumps(settings, default=str))}
    return found
