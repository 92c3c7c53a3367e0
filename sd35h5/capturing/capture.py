"""Capture a pipeline at hand: `with capture(pipe, "run.h5") as generate`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import StableDiffusion3Pipeline

from sd35h5.capturing.finishing import finish
from sd35h5.capturing.following.accepted_pipelines import check_pipeline
from sd35h5.capturing.generate import Generate, generating
from sd35h5.capturing.session import Session
from sd35h5.errors import ConfigError
from sd35h5.planning.going_on import deciding
from sd35h5.planning.interventions import CausalOptions, parse_interventions
from sd35h5.planning.options import Tiers
from sd35h5.planning.validation import check_masks
from sd35h5.store.runs import running
from sd35h5.store.writer import begin_run

log = logging.getLogger("sd35h5")


@contextmanager
def capture(
    pipe: StableDiffusion3Pipeline,
    out: str | Path,
    *,
    overwrite: bool = False,
    encoder_masks: Sequence[str] = (),
    **options: Any,
) -> Iterator[Generate]:
    """Capture what a pipeline draws: `with capture(pipe, "run.h5") as generate: generate("a cat", seed=0)`.

    Samples are sealed one by one in `OUT.parts` and packed into `out` when the block ends. After an error
    the sealed samples stay; the same calls again continue: those that are sealed are drawn, but not
    captured anew. Numbers of one model are never handed out for another: a fingerprint of all weights, adapters and
    gates is kept with each sample, and one that has changed is refused.

    Args:
        overwrite: remove what is at `out` first.
        encoder_masks: text encoders in which padding is masked, of `clip` and `t5`; the picture is then no
            longer the plain pipeline's.
        options: fields of `options.Tiers`, such as `maps="off"` or `map_steps="all"`, and of
            `interventions.CausalOptions`: `intervene="mask:clip_bos"`, `control="random:0"`.

    Raises:
        CaptureError: another pipeline class, an unknown attention processor, a capture under way on it.
        ConfigError: an unknown option or value.
        StoreError: another process captures into `out`, or it was begun with other options.
    """
    out = Path(out)
    check_pipeline(pipe)
    tiers, causal = _options(options)
    masks = check_masks(encoder_masks)
    settings = json.loads(json.dumps(asdict(tiers) | asdict(causal) | {"encoder_masks": masks}))
    name = str(getattr(pipe.config, "_name_or_path", "") or "a pipeline in memory")
    with running(out):
        parts = begin_run(out, settings, 0, overwrite, deciding)
        session = Session(pipe, parts, tiers, settings, name, "", causal=causal, encoder_masks=masks)
        with generating(session) as generate:
            yield generate
        finish(parts, out)


def _options(options: Mapping[str, Any]) -> tuple[Tiers, CausalOptions]:
    known = Tiers.__dataclass_fields__ | CausalOptions.__dataclass_fields__
    if unknown := [repr(name) for name in options if name not in known]:
        raise ConfigError(
            f"capture has no option {', '.join(unknown)}: it has {', '.join(known)}, and overwrite"
        )
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    if isinstance(given.get("intervene"), str):
        given["intervene"] = (given["intervene"],)
    causal = {name: given.pop(name) for name in CausalOptions.__dataclass_fields__ if name in given}
    options = Tiers(**given), CausalOptions(**causal)
    parse_interventions(options[1])
    return options
