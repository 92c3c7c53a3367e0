"""A capture under way: what its samples share, and what was sealed before."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sd35h5.capturing.call import Call
from sd35h5.capturing.following.accepted_pipelines import kind_of
from sd35h5.capturing.identity import components, environment, refuse_another_model
from sd35h5.capturing.sample_facts import Layout
from sd35h5.capturing.sealing import Sealing, seal_all
from sd35h5.errors import CaptureError
from sd35h5.gates.modules import attn2_layout_of, describe, gates_of
from sd35h5.measuring.compiled import compiled_how
from sd35h5.measuring.layer_caches import caches_of
from sd35h5.measuring.processor import check_processors, second_attention
from sd35h5.planning.interventions import (
    CausalOptions,
    altered_variables,
    control_seed,
    parse_interventions,
)
from sd35h5.planning.options import Tiers
from sd35h5.planning.token_table import TokenTable, truncation_note
from sd35h5.store.bounded_queue import Drain
from sd35h5.store.runs import sealed_texts
from sd35h5.store.schema import MODEL_ATTRIBUTES, PARTS_SUFFIX
from sd35h5.store.sharing.sealed_samples import sealed_attributes, sealed_samples
from sd35h5.store.showable import showable, well_formed_json
from sd35h5.store.writer import Header
from sd35h5.weights.in_memory.fingerprint import (
    Glimpse,
    begun_fingerprints,
    fingerprints,
    glimpse,
    is_alike,
    stays_put,
    tokenizer_fingerprints,
)

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
        encoder_masks: tuple[str, ...] = (), planned: int = 0, gone: Mapping[str, dict] | None = None,
    ) -> None:  # fmt: skip
        self.encoder_masks, self._planned = encoder_masks, planned
        self.pipe, self.parts, self.tiers, self.settings = pipe, parts, tiers, settings
        check_processors(pipe.transformer)
        causal = causal or CausalOptions()
        self.interventions, self.control = parse_interventions(causal), control_seed(causal)
        self.compiled = compiled_how(pipe.transformer)
        self.gates = gates_of(pipe.transformer)
        self.attn2_layout = attn2_layout_of(pipe.transformer)
        config = pipe.transformer.config
        self.second = second_attention(pipe.transformer)
        self.altered = altered_variables(self.interventions, self.second)
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
                "environment": json.dumps(environment(pipe._execution_device)),
                "origin": json.dumps({"kind": "capture"}),
            },
            precision=tiers.precision,
        )  # fmt: skip
        self.seal: Callable[[Sequence[Sealing]], None] = seal_all
        self.sealing = Drain(threads=1, max_waiting=1)  # one sample at a time, while the next one is drawn
        self._layout: Layout | None = None
        self.are_prompts_noted = False
        self._noted: set[str] = set()
        self._caches: dict[str, object] = {}  # on the transformer in the call under way
        self.sealed = sealed_samples(parts)
        self._ids = {index: row["sample_id"] for index, row in self.sealed.items()}
        self._sources, self.components = sources or {}, {}
        self._gone = dict(gone or {})  # records of the text encoders that have run and were let go
        self.has_t5 = pipe.text_encoder_3 is not None or "text_encoder_3" in self._gone
        self._known = sealed_texts(parts, "components")  # of the samples that are there
        self._tokenizers = tokenizer_fingerprints(pipe.components)
        self._seen: Glimpse | None = None  # the model at the last call, and at the one under way
        self._now: Glimpse | None = None
        self._is_due = False  # whether the call under way takes the fingerprints
        self._awaited: Callable[[], dict[str, str]] | None = None
        self._continue_header()

    def check_model(self) -> None:
        """Take the fingerprints of the model as it is now.

        Raises:
            CaptureError: the samples that are there are another model's.
        """
        self._identify(fingerprints(self.pipe))

    def _identify(self, found: Mapping[str, str]) -> None:
        found = {**found, **self._tokenizers}
        now = self._gone | components(self.pipe, self._sources, found, self.compiled)
        refuse_another_model(self._known, now, self._out)
        self.components = now

    def begin_call(self) -> None:
        """Before a call of the pipeline: the first one takes the fingerprints, which tell the model of all.

        Raises:
            CaptureError: as `check_model`, or a cache on the transformer that cannot be followed.
        """
        self._caches = caches_of(self.pipe.transformer)
        self._now = None
        self._awaited, self._is_due = None, self._seen is None
        if self._is_due and (self._known or not stays_put(self.pipe)):
            self.check_model()
            self._is_due = False

    def look_first(self) -> None:
        """At a call's first step: have the device take the fingerprints behind it, if they are due."""
        if self._is_due:
            self._awaited, self._is_due = begun_fingerprints(self.pipe), False

    def told_of_model(self) -> dict[str, str]:
        """Which model has drawn, as a provenance text."""
        if self._awaited is not None:
            self._identify(self._awaited())
            self._awaited = None
        return {"components": json.dumps(well_formed_json(self.components))}

    def look(self) -> None:
        """At a call's last step, while the device computes it: see whether the model changes."""
        self._now = glimpse(self.pipe)

    def end_call(self) -> None:
        """After a call, before its samples are sealed.

        Raises:
            CaptureError: the model is another since the first call.
        """
        if self._now is not None and self._seen is not None and not is_alike(self._seen, self._now):
            self.check_model()
        self._seen = self._now or self._seen
        if self.components not in self._known:
            self._known.append(self.components)

    def sample_id(self, identity: Identity, seed: int) -> str:
        """A name that no other sample of the run has: of prompt and seed, and a number where they come again."""
        taken = {name for index, name in self._ids.items() if index != identity.index}
        name = first = f"{identity.prompt_id}-seed{seed}"
        again = 1
        while name in taken:
            again += 1
            name = f"{first}-{again}"
        self._ids[identity.index] = name
        return name

    @property
    def _out(self) -> Path:
        return self.parts.with_name(self.parts.name.removesuffix(PARTS_SUFFIX))

    def _continue_header(self) -> None:
        """A run keeps the name that its model was first given, and has one kind of gates.

        Raises:
            CaptureError: the samples that are there have others.
        """
        there = sealed_attributes(self.parts)
        if self.second.own_heads and there.get("min_reader") == "1.0":
            raise CaptureError(
                f"{self._out.name} holds samples of an earlier version, which did not measure attn2 in sd-scripts' "
                "layout: capture into another file, or overwrite the file (--overwrite, overwrite=True)"
            )
        before = {name: there[name] for name in MODEL_ATTRIBUTES if name in there}
        now = dict(self._header.attributes)
        names = {name: before.pop(name) for name in ("model_id", "model_revision") if name in before}
        if told := [f"{name} is {value} there, {now[name]} now" for name, value in before.items()
                    if now.get(name, value) != value]:  # fmt: skip
            raise CaptureError(
                f"{self._out.name} holds samples of another model ({'; '.join(told)}): capture into another file, "
                "or overwrite the file (--overwrite, overwrite=True)"
            )
        self._header = replace(self._header, attributes={**now, **names})

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
        provenance = self._header.provenance | ({"events": json.dumps(events)} if events else {})
        return replace(self._header, scales=layout.scales(), provenance=provenance)

    def check_sealed(self, identity: Identity, call: Call, key: str, is_drawn: bool = False) -> bool:
        """Tell whether a sample is sealed already.

        Args:
            is_drawn: the key has its second part, if any; before, only the first one is compared.
        Raises:
            CaptureError: it is, but as another sample; or the file is complete and this would be one more.
        """
        before = self.sealed.get(identity.index)
        if before is None:
            if self._out.is_file() and identity.index >= self._planned:
                raise CaptureError(
                    f"{self._out.name} is complete with {len(self.sealed)} samples: "
                    "capture further ones into another file"
                )
            return False
        for name, now in (("prompt", call.prompt), ("seed", call.seed), ("pairing_key", key)):
            there = before[name]
            if name == "pairing_key" and not is_drawn:
                there = there.partition("-")[0]
            if there != now:
                raise CaptureError(
                    f"sample {identity.index} is sealed already with {name} {before[name]!r}, "
                    f"but this call has {now!r}: "
                    "make the same calls to go on, or use overwrite=True or another file"
                )
        return True

    @property
    def has_cache_hooks(self) -> bool:
        """Whether a cache of diffusers.hooks may leave layers out from the first step on."""
        return bool(self._caches.keys() - {"forward"})

    def pairing_fields(self) -> dict[str, object]:
        """What two samples must share of a capture to be compared; `other` has what few captures have."""
        rare = {"compiled": self.compiled, "caches": self._caches, "pipeline": kind_of(self.pipe)}
        return {
            "encoder_masks": list(self.encoder_masks), "model_shape": self.model_shape,
            "attn2_layout": self.attn2_layout, "other": {name: each for name, each in rare.items() if each},
        }  # fmt: skip

    def note_rest(self, step: int, rested: int, layers: int) -> None:
        """Tell, once, that a cache left layers out."""
        self._say_once(
            "layers that did not run",
            f"a cache left out {rested} of {layers} layers in step {step}, and perhaps others later: where a layer "
            "does not run it is stored as not run",
        )

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
