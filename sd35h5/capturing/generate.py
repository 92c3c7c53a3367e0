"""The pipeline, capturing: one call of it draws a sample or several, each of which is sealed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from sd35h5.capturing.call import Call, Drawing
from sd35h5.capturing.encoder_masks import masked_encoders
from sd35h5.capturing.finite import check_picture, watched_decoder
from sd35h5.capturing.following.accepted_pipelines import signature_of
from sd35h5.capturing.following.text_states import TextStates, watched_encoding
from sd35h5.capturing.interrupts import heeded_interrupts
from sd35h5.capturing.pipeline import without_truncation_noise
from sd35h5.capturing.session import Identity, Session
from sd35h5.capturing.watcher import PassWatcher
from sd35h5.errors import CaptureError
from sd35h5.measuring.batch_probe import BatchProbe
from sd35h5.measuring.compiled import followed, room_for_graphs
from sd35h5.measuring.probe import Probe
from sd35h5.measuring.processor import installed

log = logging.getLogger("sd35h5")


class Generate:
    """The pipeline, capturing: takes what it takes, and `seed`; returns what it returns; seals its samples."""

    def __init__(self, session: Session, probe: BatchProbe) -> None:
        self._session, self._probe = session, probe
        self._signature = signature_of(session.pipe)
        self._drawn = 0
        self._images: dict[str, int] = {}  # prompt -> images so far, in the order of their first calls

    def __repr__(self) -> str:
        return f"<capture into {self._session.parts.name}: {self._drawn} samples drawn>"

    def __call__(self, *args: object, seed: int | Sequence[int] | None = None, **kwargs: object) -> Any:
        """Draw one image and seal it as the next sample, or one of each prompt of a list, as the next samples.

        Args:
            seed: draw with `torch.Generator("cpu").manual_seed(seed)`, the next prompts of a list with seed + 1 and
                so on, or each with its own of a list; without `seed` and `generator`, they are drawn by lot and
                stored.
        """
        drawing = Drawing.bind(self._signature, args, kwargs, seed)
        images, identities = dict(self._images), []
        for place, call in enumerate(drawing.samples):
            image = images.setdefault(call.prompt, 0)
            prompt = list(images).index(call.prompt)
            identities.append(Identity(self._drawn + place, f"p{prompt:03d}", prompt, image))
            images[call.prompt] += 1
        result = self.draw(drawing, identities)
        self._drawn, self._images = self._drawn + len(identities), images
        return result

    def draw(
        self, drawing: Drawing, identities: Sequence[Identity], on_step: Callable[[], None] | None = None
    ) -> Any:
        """Draw the samples of one call under given identities and have them sealed, while the next are drawn; a
        sample that is sealed already is only drawn.

        Raises:
            CaptureError: several samples under interventions, or samples that do not fit into the file.
            StoreError: a sample before could not be sealed.
        """
        self._session.begin_call()
        with heeded_interrupts() as heed:

            def step() -> None:
                heed()
                if watchers[0].step == 0:
                    self._session.look_first()
                if watchers[0].is_at_end:
                    self._session.look()
                if on_step is not None:
                    on_step()

            texts = TextStates(drawing.arguments)
            watchers = self._watchers(drawing.samples, identities, texts, step)
            return self._sealed(drawing, watchers, texts)

    def _sealed(self, drawing: Drawing, watchers: Sequence[PassWatcher], texts: TextStates) -> Any:
        """Draw, and hand what is to be sealed over."""
        session, pipe = self._session, self._session.pipe
        try:
            reading, seeing = watched_encoding(pipe, texts), _watched(pipe.transformer, watchers)
            with (
                without_truncation_noise(),
                watched_decoder(pipe) as decoded,
                reading,
                seeing,
                self._stance(),
            ):
                result = pipe(**drawing.arguments)
            check_picture(watchers[0].step, decoded, result, pipe)
            drawn = [watcher.finished(_pixels(result, place)) for place, watcher in enumerate(watchers)]
            session.end_call()
            if new := [each for each in drawn if each is not None]:
                session.sealing.submit(partial(session.seal, new), 1)
            for watcher in watchers:
                watcher.let_go()
        except BaseException as error:
            for watcher in watchers:
                watcher.abandon(interrupted=isinstance(error, KeyboardInterrupt))
            session.sealing.wait()  # who handles the error finds the samples before sealed
            raise
        return result

    def _stance(self) -> AbstractContextManager:
        """Interventions alter attention from step to step, which no graph holds: they run eager."""
        eager = self._session.compiled and self._session.interventions
        return torch.compiler.set_stance("force_eager") if eager else nullcontext()

    def _watchers(
        self,
        calls: Sequence[Call],
        identities: Sequence[Identity],
        texts: TextStates,
        on_step: Callable[[], None],
    ) -> list[PassWatcher]:
        """One for each sample; the first tells the steps."""
        count = len(calls)
        if count > 1 and self._session.interventions:
            raise CaptureError(
                f"interventions alter one sample at a time, and this call has {count} prompts: call it once for each"
            )
        told = (on_step, *(None,) * (count - 1))
        return [
            PassWatcher(self._session, probe, call, identity, texts, count, each)
            for probe, call, identity, each in zip(
                self._probe.of(count), calls, identities, told, strict=True
            )
        ]


@contextmanager
def _watched(transformer: nn.Module, watchers: Sequence[PassWatcher]) -> Iterator[None]:
    """Let the watchers see each call of the transformer."""
    with ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(followed(transformer, watcher.before, watcher.after))
        yield


@contextmanager
def generating(session: Session) -> Iterator[Generate]:
    """The probe installed on the pipeline's transformer, and a `Generate` that uses it."""
    transformer = session.pipe.transformer
    config = transformer.config
    gates = session.gates
    probe = BatchProbe(
        Probe(
            config.num_layers, config.num_attention_heads, gated=gates is not None and bool(gates.layers),
            second_gated=gates is not None and bool(gates.second_layers),
        )
    )  # fmt: skip
    if session.compiled and session.interventions:
        log.warning(
            "the transformer is compiled: interventions are drawn without what torch.compile made of it"
        )
    with (
        room_for_graphs(bool(session.compiled)),
        installed(transformer, probe),
        masked_encoders(session.pipe, session.encoder_masks),
    ):
        try:
            yield Generate(session, probe)
        finally:
            session.sealing.finish()


def _pixels(result: object, place: int) -> np.ndarray | None:
    """One image of a pipeline's answer as uint8 (y, x, rgb); None for latents."""
    image = (result[0] if isinstance(result, tuple) else result.images)[place]
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            return None
        image = image.permute(1, 2, 0).float().cpu().numpy()
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f":
        pixels = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    return pixels if pixels.ndim == 3 and pixels.shape[-1] == 3 else None
