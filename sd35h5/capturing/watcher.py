"""Follows one sample through the pipeline: tells steps and branches apart, and joins probe and recorder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sd35h5.capturing import finite
from sd35h5.capturing.call import Call
from sd35h5.capturing.prompt_notes import table_of, words_without_map
from sd35h5.capturing.recorder import SampleRecorder
from sd35h5.capturing.sample_facts import Layout, SampleFacts
from sd35h5.capturing.sealing import Sealing
from sd35h5.capturing.session import Identity, Session
from sd35h5.errors import CaptureError
from sd35h5.measuring.altering import Interventions
from sd35h5.measuring.attend import dtype_in_force
from sd35h5.measuring.optional_tiers import MapPlan, RawPlan, RowPlan, TierPlan
from sd35h5.measuring.passes import PassPlan
from sd35h5.measuring.probe import Probe
from sd35h5.planning.interventions import ALTERED_MASS, altered_variables
from sd35h5.planning.options import MAX_MAPS
from sd35h5.planning.pairing_key import pairing_key
from sd35h5.planning.selectors import choose, choose_rows, choose_steps, count_rows, raw_indices
from sd35h5.planning.token_table import TokenTable, choose_map_tokens, token_encoders
from sd35h5.planning.validation import validate_tiers
from sd35h5.store import schema
from sd35h5.store.processes import writer_client
from sd35h5.store.runs import part_name

_TEXT_GROUPS = len(schema.GROUPS) - 1  # all but the image


class PassWatcher:
    """Hooks before and after each call of the transformer, then `finished` and `let_go`, or `abandon`.

    A sample that is sealed already is followed until its pairing key is checked, and then only drawn.

    Args:
        probe: measures this sample's rows alone.
        samples: how many are drawn in the same call of the pipeline.
    """

    def __init__(
        self,
        session: Session,
        probe: Probe,
        call: Call,
        identity: Identity,
        samples: int = 1,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self._pipe, self._session, self._probe = session.pipe, session, probe
        self._call, self._identity, self._samples, self._on_step = call, identity, samples, on_step
        self.step = -1
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
    def is_at_end(self) -> bool:
        """Whether this is the last step."""
        return self._layout is not None and self.step == len(self._layout.timesteps) - 1

    def before(self, module: nn.Module, args: tuple, kwargs: Mapping[str, object]) -> None:
        """Forward pre-hook of the transformer; `skip_layers` tells a skip pass, not the batch size."""
        latents, skipped = kwargs["hidden_states"], kwargs.get("skip_layers")
        if skipped is None:
            self.step += 1
        if self._layout is None:
            self._begin(latents, kwargs["encoder_hidden_states"])
        if self.step >= len(self._layout.timesteps):
            raise CaptureError(f"the pipeline calls its transformer more often than its {self.step} steps")
        self._rows = self._batch_rows(skipped is not None, latents.shape[0])
        self._probe.altered = self._interventions.at(self.step, self._rows)
        self._skipped, self._inputs = frozenset(skipped or ()), kwargs
        if self._recorder is not None:
            self._probe.begin(self._plan(self._skipped))

    def after(self, module: nn.Module, args: tuple, output: object) -> None:
        """Forward hook of the transformer."""
        if self._recorder is not None:
            flags = finite.flags(self.step, self._inputs, output)
            check = partial(finite.check, self.step, self._skipped, finite.Cause(self._pipe))
            self._recorder.add(self.step, self._rows, self._probe.end(), flags, check)
            if (altered := self._probe.altered) is not None:
                masses = altered.stacked_mass(self._layout.layers).items()
                named = {ALTERED_MASS[attn]: mass for attn, mass in masses}
                if named:
                    self._recorder.add_altered(self.step, self._rows, named)
        self._probe.altered, self._inputs = None, {}
        if self._on_step is not None and self._rows != ("skip",):
            self._on_step()

    def finished(self, image: np.ndarray | None) -> Sealing | None:
        """What is left to do for this sample once it is drawn; None if it is sealed already.

        Raises:
            CaptureError: the pipeline stopped before its last step.
        """
        if self._recorder is None:
            return None
        if not self.is_at_end:
            last = len(self._layout.timesteps) - 1
            at = f"step {self.step} of 0..{last}"
            raise CaptureError(f"the pipeline stopped after {at}: this sample is not sealed")
        return Sealing(self._recorder, image)

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
            membership=torch.stack([self._membership[branch] for branch in self._rows]),
            patches=layout.patches,
            check=self.step == 0,
            top=layout.ranks if cond and self.step in layout.top_steps else 0,
            tiers=self._tier_plan() if cond else TierPlan(),
            skipped=skipped,
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

    def _batch_rows(self, skips: bool, batch: int) -> tuple[str, ...]:
        """Branch of each of the sample's batch rows: diffusers orders a guided batch [uncond | cond]."""
        rows = ("skip",) if skips else (("uncond", "cond") if self._call.guided else ("cond",))
        if len(rows) * self._samples != batch:
            each = f" for each of {self._samples} samples" * (self._samples > 1)
            raise CaptureError(
                f"the transformer was called with {batch} rows where {' and '.join(rows)}{each} were expected"
            )
        return rows

    def _begin(self, latents: Tensor, text_states: Tensor) -> None:
        """At the first call everything is known: axes, tokens, noise levels. Open the sample's file."""
        call, session, tiers = self._call, self._session, self._session.tiers
        tables = self._token_tables(text_states.shape[1])
        self._layout = layout = self._make_layout(latents, text_states.shape[1])
        validate_tiers(tiers, len(layout.timesteps))
        rows = choose_rows(tiers.rows, layout.patches, len(layout.token_encoders), tables["cond"])
        self._interventions = Interventions(
            session.interventions, (layout.layers, layout.heads, len(layout.timesteps)), layout.patches,
            {branch: table.groups for branch, table in tables.items()},
            session.control, self._identity.index, latents.device, session.second_layers,
        )  # fmt: skip
        key = pairing_key(self._pairing_fields(latents))
        if session.check_sealed(self._identity, call, key):
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
        events = [*call.events(), *self._events(tables)]
        facts = SampleFacts(
            **vars(self._identity), sample_id=session.sample_id(self._identity, call.seed),
            prompt=call.prompt,
            negative_prompt=call.negative_prompt, seed=call.seed, pairing_key=key,
        )  # fmt: skip
        self._recorder = SampleRecorder(
            session.parts, session.header(layout, events), layout, facts, tables,
            kept_branches=tiers.kept_branches,
            text_queries=tiers.text_queries, map_tokens=chosen, gates=session.gates,
            rows=rows, altered=altered_variables(session.interventions),
            apart=device.type == "cuda" and writer_client.SUPPORTED,
            round_mantissa=self._probe.reducer_on(device).round_mantissa,
        )  # fmt: skip

    def _events(self, tables: Mapping[str, TokenTable]) -> list[dict]:
        """What the file says of this sample's texts: what truncation left, and asked words without a map."""
        events = []
        for branch in ("cond", "uncond"):
            if branch in tables:
                what = "the negative prompt" if branch == "uncond" else f"prompt {self._identity.prompt_id}"
                events += self._session.note_truncation(tables[branch], what)
        if self._layout.maps and self._session.tiers.words:
            words = words_without_map(tables["cond"], self._session.tiers.words)
            events += self._session.note_words(words, self._identity.prompt_id)
        return events

    def _token_tables(self, text_tokens: int) -> dict[str, TokenTable]:
        """The token table of every branch; `skip` reads what `cond` reads."""
        tables: dict[str, TokenTable] = {}
        read = partial(table_of, self._pipe, text_tokens=text_tokens, has_t5=self._session.has_t5)
        for branch in self._call.branches:  # `cond` is the first
            tables[branch] = tables["cond"] if branch == "skip" else read(self._call.texts(branch))
        return tables

    def _make_layout(self, latents: Tensor, text_tokens: int) -> Layout:
        pipe, tiers = self._pipe, self._session.tiers
        config = pipe.transformer.config
        height, width = latents.shape[-2:]
        patches = (height // config.patch_size, width // config.patch_size)
        timesteps = pipe.scheduler.timesteps.tolist()
        has_image = not tiers.no_images and self._call.get("output_type") != "latent"
        places = {"off": 0, "first": 1, "words": MAX_MAPS, "all": text_tokens}[tiers.maps]
        clip = pipe.tokenizer_max_length
        return Layout(
            branches=self._call.branches,
            timesteps=tuple(timesteps),
            sigmas=tuple(float(sigma) for sigma in pipe.scheduler.sigmas[: len(timesteps)]),
            layers=config.num_layers,
            heads=config.num_attention_heads,
            token_encoders=tuple(
                int(e) for e in token_encoders(clip, text_tokens - clip, self._session.has_t5)
            ),
            patches=patches,
            pixels=(height * pipe.vae_scale_factor, width * pipe.vae_scale_factor) if has_image else None,
            ranks=min(tiers.topk, patches[0] * patches[1] + text_tokens),
            top_steps=tuple(choose_steps("top_steps", tiers.top_steps, len(timesteps))),
            maps=places,
            map_steps=tuple(choose_steps("map_steps", tiers.map_steps, len(timesteps))),
            pool=tiers.map_pool,
            map_layers=tuple(choose("map_layers", tiers.map_layers, config.num_layers, "layer")),
            rows=count_rows(tiers.rows),
            atlas=tiers.atlas,
            raw=raw_indices(
                tiers.raw, len(timesteps), config.num_layers, config.num_attention_heads, text_tokens
            ),
        )

    def _pairing_fields(self, latents: Tensor) -> dict[str, object]:
        """What must be equal for two samples to be compared; weights and gates are not among it."""
        pipe, call, layout = self._pipe, self._call, self._layout
        config, factor = pipe.scheduler.config, pipe.vae_scale_factor
        return {
            "prompt": call.prompt,
            "negative_prompt": call.negative_prompt,
            "seed": call.seed,
            "steps": len(layout.timesteps),
            "scheduler": {
                "class": type(pipe.scheduler).__name__,
                "shift": config.get("shift"),
                "stochastic": bool(config.get("stochastic_sampling", False)),
                "sigmas": [round(sigma, 5) for sigma in layout.sigmas],
            },
            "guidance": float(call.get("guidance_scale")) if call.guided else None,
            "skip_layer_guidance": call.skip_layer_guidance(),
            "height": latents.shape[-2] * factor,
            "width": latents.shape[-1] * factor,
            "max_sequence_length": call.get("max_sequence_length"),
            "encoder_masks": list(self._session.encoder_masks),
            "t5": self._session.has_t5,
            "dtype": str(dtype_in_force(latents)).removeprefix("torch."),
            "batch_size": self._samples,
            "model_shape": self._session.model_shape,
            "attn2_layout": self._session.attn2_layout,
            "other": call.other() | ({"compiled": self._session.compiled} if self._session.compiled else {}),
        }
