"""Follows one sample through the pipeline: tells steps and branches apart, and joins probe and recorder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sd35h5.capturing import finite
from sd35h5.capturing.call import Call
from sd35h5.capturing.following.course import Course
from sd35h5.capturing.following.text_states import TextStates
from sd35h5.capturing.prompt_notes import table_of, words_without_map
from sd35h5.capturing.recorder import SampleRecorder
from sd35h5.capturing.sample_facts import Layout, SampleFacts, make_layout, pairing_fields, reads_t5
from sd35h5.capturing.sealing import Sealing
from sd35h5.capturing.session import Identity, Session
from sd35h5.errors import CaptureError
from sd35h5.measuring.altering import Interventions
from sd35h5.measuring.compiled import bare
from sd35h5.measuring.optional_tiers import MapPlan, RawPlan, RowPlan, TierPlan
from sd35h5.measuring.passes import PassPlan, never_ran
from sd35h5.measuring.probe import Probe
from sd35h5.measuring.processor import replaced_layers
from sd35h5.planning.pairing_key import pairing_key
from sd35h5.planning.selectors import choose_rows
from sd35h5.planning.token_table import TokenTable, choose_map_tokens
from sd35h5.planning.validation import validate_tiers
from sd35h5.store import schema
from sd35h5.store.processes import writer_client
from sd35h5.store.runs import part_name

if TYPE_CHECKING:
    from sd35h5.measuring.passes import PassResult

_TEXT_GROUPS = len(schema.GROUPS) - 1  # all but the image


class PassWatcher:
    """Hooks before and after each call of the transformer, then `finished` and `let_go`, or `abandon`.

    A sample that is sealed already is followed until its pairing key is checked, and then only drawn.

    Args:
        probe: measures this sample's rows alone.
        texts: tells which branch a row is.
        samples: how many are drawn in the same call of the pipeline.
    """

    def __init__(
        self,
        session: Session,
        probe: Probe,
        call: Call,
        identity: Identity,
        texts: TextStates,
        samples: int = 1,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self._pipe, self._session, self._probe, self._texts = session.pipe, session, probe, texts
        self._call, self._identity, self._samples, self._on_step = call, identity, samples, on_step
        self._course = Course(call.scale() if call.guided else None, call.branches)
        self._key = self._sample_id = ""
        self._is_new_step = False
        self._checked = -1  # the step whose row sums were checked
        self._ran: frozenset[int] = frozenset()  # layers that ran in an earlier call
        self._rows: tuple[str, ...] = ()
        self._skipped: frozenset[int] = frozenset()
        self._inputs: Mapping[str, object] = {}  # of the call under way
        self._layout: Layout | None = None
        self._recorder: SampleRecorder | None = None
        self._membership: dict[str, Tensor] = {}
        self._map_tokens: Tensor | None = None
        self._queries: Tensor | None = None
        self._interventions: Interventions | None = None

    @property
    def step(self) -> int:
        """The step under way, or the last one."""
        return self._course.step

    @property
    def is_at_end(self) -> bool:
        """Whether this is the last step."""
        return self._layout is not None and self.step == len(self._layout.timesteps) - 1

    def before(self, module: nn.Module, args: tuple, kwargs: Mapping[str, object]) -> None:
        """Forward pre-hook of the transformer; `skip_layers` tells a skip pass, the text states the branches."""
        if args:  # a __call__ of its own may give them by their places
            names = list(inspect.signature(bare(self._pipe.transformer).forward).parameters)
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        latents, skipped, states = (
            kwargs["hidden_states"],
            kwargs.get("skip_layers"),
            kwargs["encoder_hidden_states"],
        )
        branches = self._texts.branches(states, self._samples, self.step + (skipped is None))
        if skipped is not None and branches != ("cond",):
            rows = " and ".join(branches)
            raise CaptureError(f"step {self.step}: layers are left out for {rows}, not for cond alone")
        self._rows = branches if skipped is None else ("skip",)
        self._is_new_step = self._course.take(self._rows, self._scale())
        if self._layout is None:
            self._begin(latents, states, kwargs["timestep"])
        if self.step >= len(self._layout.timesteps):
            raise CaptureError(f"the pipeline calls its transformer more often than its {self.step} steps")
        self._probe.altered = self._interventions.at(self.step, self._rows)
        self._skipped, self._inputs = frozenset(skipped or ()), kwargs
        if self._recorder is not None:
            self._probe.begin(self._plan(self._skipped))

    def after(self, module: nn.Module, args: tuple, output: object) -> None:
        """Forward hook of the transformer."""
        if self._recorder is not None:
            self._take(self._probe.end(), output)
        self._probe.altered, self._inputs = None, {}
        if self._on_step is not None and self._is_new_step:
            self._on_step()

    def _take(self, result: PassResult | None, output: object) -> None:
        """Hand on what a call of the transformer yielded, None where a cache left all layers out."""
        layers = frozenset(range(self._layout.layers)) - self._skipped
        rested = layers if result is None else result.rested
        if rested and (replaced := replaced_layers(self._pipe.transformer) & rested):
            raise never_ran(replaced)
        if rested and "cond" in self._rows:
            self._course.rested[self.step] = set(rested)
            self._session.note_rest(self.step, len(rested), len(layers))
        expected = self._layout.timesteps[self.step]
        flags = finite.flags(self.step, self._inputs, output, expected)
        check = partial(finite.check, self.step, self._skipped | rested, finite.Cause(self._pipe))
        if result is not None:
            self._ran |= layers - rested
            self._checked = self.step if self._checked < 0 else self._checked
        self._recorder.add(self.step, self._rows, result, flags, check)
        if (altered := self._probe.altered) is not None:
            masses = altered.stacked_mass(self._layout.layers).items()
            if named := {self._session.altered[attn]: mass for attn, mass in masses}:
                self._recorder.add_altered(self.step, self._rows, named)

    def _scale(self) -> object:
        """Guidance scale of the step that begins, as a callback may have changed it; see `Call.scale`."""
        pipe, call = self._pipe, self._call
        guidance = getattr(pipe, "guidance_scale", call.get("guidance_scale"))
        return call.scale(guidance, getattr(pipe, "_skip_layer_guidance_scale", None))

    def finished(self, image: np.ndarray | None) -> Sealing | None:
        """What is left to do for this sample once it is drawn; None if it is sealed already.

        Raises:
            CaptureError: the pipeline stopped before its last step, no layer ever ran, or the sample that is sealed
                took another course.
        """
        key = self._course.key(self._key)
        if self._recorder is None:
            self._session.check_sealed(self._identity, self._call, key, is_drawn=True)
            return None
        if not self.is_at_end:
            last = len(self._layout.timesteps) - 1
            at = f"step {self.step} of 0..{last}"
            raise CaptureError(f"the pipeline stopped after {at}: this sample is not sealed")
        if not self._ran:
            raise CaptureError(
                "no layer ran in any step, as a cache still held what it computed for an earlier picture: reset it "
                "before each picture"
            )
        events = self._course.events(self._sample_id)
        return Sealing(self._recorder, image, key, events, self._session.told_of_model())

    def let_go(self) -> None:
        """The recorder is another's now."""
        self._recorder = None

    def abandon(self, interrupted: bool) -> None:
        """After an error: leave no half-written file, and the probe idle."""
        self._probe.abandon()
        self._probe.altered = None
        if self._recorder is not None:
            self._recorder.abandon()
            self._recorder = None
        if interrupted:  # Ctrl-C can fall between opening the file and knowing of it
            for left in self._session.parts.glob(f"{part_name(self._identity.index)}.*"):
                left.unlink()

    def _plan(self, skipped: frozenset[int]) -> PassPlan:
        layout, cond = self._layout, "cond" in self._rows
        return PassPlan(
            branches=self._rows,
            # a branch without a place in the file is not kept, and its groups do not matter
            membership=torch.stack(
                [self._membership.get(branch, self._membership["cond"]) for branch in self._rows]
            ),
            patches=layout.patches,
            check=self._checked in (-1, self.step),
            top=layout.ranks if cond and self.step in layout.top_steps else 0,
            tiers=self._tier_plan() if cond else TierPlan(),
            skipped=skipped,
            may_rest=frozenset(range(layout.layers)) if self._session.has_cache_hooks else self._ran,
        )

    def _tier_plan(self) -> TierPlan:
        """What this step measures of the cond row beside the sinks."""
        layout, step, maps, rows, raw = self._layout, self.step, None, None, None
        if self._map_tokens is not None and step in layout.map_steps:
            every_head = self._session.tiers.map_heads == "all"
            keep = partial(self._recorder.add_head_maps, step) if every_head else None
            maps = MapPlan(self._map_tokens, frozenset(layout.map_layers), layout.pool, keep)
        if self._queries is not None and step in layout.map_steps:
            rows = RowPlan(self._queries, layout.pool)
        if layout.raw and step in layout.raw["raw_step"]:
            device = self._membership["cond"].device
            heads, tokens = (
                torch.tensor(layout.raw[f"raw_{name}"], device=device) for name in ("head", "token")
            )
            keep = partial(self._recorder.add_raw, step)
            raw = RawPlan(frozenset(layout.raw["raw_layer"]), heads, tokens, keep)
        return TierPlan(maps, rows, layout.atlas and step in layout.top_steps, raw)

    def _begin(self, latents: Tensor, states: Tensor, timestep: Tensor) -> None:
        """At the first call everything is known: axes, tokens, noise levels. Open the sample's file."""
        call, session, tiers = self._call, self._session, self._session.tiers
        has_t5, text_tokens = reads_t5(self._pipe, call, session.has_t5), states.shape[1]
        tables = self._token_tables(text_tokens, has_t5)
        self._layout = layout = make_layout(
            self._pipe, tiers, call, latents, timestep, text_tokens, has_t5, session.second
        )
        validate_tiers(tiers, len(layout.timesteps))
        rows = choose_rows(tiers.rows, layout.patches, len(layout.token_encoders), tables["cond"])
        self._interventions = Interventions(
            session.interventions, (layout.layers, layout.heads, len(layout.timesteps)), layout.patches,
            {branch: table.groups for branch, table in tables.items()},
            session.control, self._identity.index, latents.device, session.second,
        )  # fmt: skip
        shared = session.pairing_fields()
        self._key = pairing_key(
            pairing_fields(self._pipe, call, layout, latents, self._samples, has_t5, shared)
        )
        if session.check_sealed(self._identity, call, self._key):
            return
        device = latents.device
        for branch, table in tables.items():
            groups = torch.from_numpy(table.groups.astype(np.int64)).to(device)
            self._membership[branch] = torch.nn.functional.one_hot(groups, _TEXT_GROUPS).float()
        chosen = (
            choose_map_tokens(tables["cond"], tiers.maps, tiers.words, layout.maps) if layout.maps else []
        )
        self._map_tokens = torch.tensor(chosen, device=device) if chosen else None
        queries = [
            position + stream * layout.patches[0] * layout.patches[1]
            for stream, position in rows
            if position >= 0
        ]
        self._queries = torch.tensor(queries, device=device) if queries else None
        self._sample_id = session.sample_id(self._identity, call.seed)
        events = [*call.events(), *self._events(tables)]
        facts = SampleFacts(
            **vars(self._identity), sample_id=self._sample_id, prompt=call.prompt,
            negative_prompt=call.negative_prompt, seed=call.seed,
        )  # fmt: skip
        self._recorder = SampleRecorder(
            session.parts, session.header(layout, events), layout, facts, tables,
            kept_branches=tiers.kept_branches,
            text_queries=tiers.text_queries, map_tokens=chosen, gates=session.gates,
            rows=rows, altered=tuple(session.altered.values()),
            apart=device.type == "cuda" and writer_client.SUPPORTED,
            round_mantissa=self._probe.reducer_on(device).round_mantissa,
        )  # fmt: skip

    def _events(self, tables: Mapping[str, TokenTable]) -> list[dict]:
        """What the file says of this sample's texts: what truncation left, and asked words without a map."""
        events = []
        if inputs := self._call.inputs():
            pipeline = type(self._pipe).__name__
            events.append(
                {"event": "drawn from", "sample_id": self._sample_id, "pipeline": pipeline, **inputs}
            )
        for branch in ("cond", "uncond"):
            if branch in tables:
                what = "the negative prompt" if branch == "uncond" else f"prompt {self._identity.prompt_id}"
                events += self._session.note_truncation(tables[branch], what)
        if self._layout.maps and self._session.tiers.words:
            words = words_without_map(tables["cond"], self._session.tiers.words)
            events += self._session.note_words(words, self._identity.prompt_id)
        return events

    def _token_tables(self, text_tokens: int, has_t5: bool) -> dict[str, TokenTable]:
        """The token table of every branch; `skip` reads what `cond` reads."""
        tables: dict[str, TokenTable] = {}
        read = partial(table_of, self._pipe, text_tokens=text_tokens, has_t5=has_t5)
        for branch in self._call.branches:  # `cond` is the first
            tables[branch] = tables["cond"] if branch == "skip" else read(self._call.texts(branch))
        return tables
