"""Text encoders run before anything is drawn, for all texts of a capture, and are let go; what they gave waits on disk.

The texts of one call of the pipeline are encoded together, as the pipeline would: another batch gives other last bits.
"""

from __future__ import annotations

import gc
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd35h5.capturing.call import Drawing
from sd35h5.capturing.encoder_masks import masked_encoders
from sd35h5.capturing.finite import check_texts
from sd35h5.capturing.identity import environment, hashes, model_record, refuse_another_model
from sd35h5.capturing.interrupts import heeded_interrupts
from sd35h5.capturing.pipeline import Prepared, without_truncation_noise
from sd35h5.capturing.progress import say
from sd35h5.errors import OutOfMemoryError, StoreError
from sd35h5.long_work import counted
from sd35h5.planning.memory_needs import is_out_of_memory
from sd35h5.store.opening import reason
from sd35h5.store.runs import TEXTS_FOLDER, out_of
from sd35h5.store.skeleton import publish
from sd35h5.weights.in_memory.fingerprint import fingerprint, tokenizer_fingerprints

Texts = tuple[str, ...]  # of one branch of one call of the pipeline
_RECORD = "encoders"  # metadata of a file: what `provenance/components` says of those that wrote it
_TEXTS_OF = ("prompt", "negative_prompt")  # arguments that embeddings replace


@dataclass(frozen=True)
class Encoding:
    """How texts are encoded beside which encoders do it: what is equal gives equal bits.

    Args:
        max_sequence_length: T5's tokens.
        masks: encoders in which padding is masked, see `masked_encoders`.
    """

    max_sequence_length: int
    masks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """What the text encoders gave for the texts of a capture.

    Args:
        files: of each branch's texts; a file holds `prompt_embeds` (text, token, channel) and `pooled_prompt_embeds`
            (text, channel) in the encoders' dtype.
        record: text encoder -> what the store tells of it, with its fingerprint.
    """

    files: Mapping[Texts, Path]
    record: Mapping[str, dict[str, Any]]

    def instead_of_texts(self, drawing: Drawing, device: torch.device) -> Drawing:
        """The same call with embeddings where it has texts."""
        given = {name: value for name, value in drawing.arguments.items() if name not in _TEXTS_OF}
        given |= self._read(tuple(call.prompt for call in drawing.samples), device)
        if drawing.samples[0].guided:
            negative = self._read(tuple(call.negative_prompt for call in drawing.samples), device)
            given |= {f"negative_{name}": each for name, each in negative.items()}
        return replace(drawing, arguments=given)

    def _read(self, texts: Texts, device: torch.device) -> dict[str, Tensor]:
        """The tensors of a file, copied: where they lie in it is not aligned, on which a product's last bits depend."""
        read = load_file(self.files[texts], str(device))
        return {name: tensor.clone() for name, tensor in read.items()}


def encode_texts(
    ready: Prepared, texts: Sequence[Texts], how: Encoding, parts: Path, known: Sequence[Mapping[str, Any]]
) -> Encoded:
    """Encode what is not kept in the capture's folder yet; the encoders are in memory only as long.

    Args:
        texts: of all branches of all calls that will be drawn.
        known: `provenance/components` of the samples that are there.
    Raises:
        CaptureError: the samples that are there are of other text encoders, or what these give is not finite.
        StoreError: a disk that takes no more.
    """
    folder, wanted = parts / TEXTS_FOLDER, dict.fromkeys(texts)
    record, files = None, {}
    if folder.is_dir():  # else nobody waits for the files' hashes
        files = _files(ready, wanted, how, folder)
        kept = {each: _kept_record(path) for each, path in files.items()}
        record = next(filter(None, kept.values()), None)
        wanted = [each for each in wanted if kept[each] is None]
    if wanted or record is None:
        with _told_when_full(ready):
            pipe = ready.text_pipeline()
            record = _record(pipe, ready)
            theirs = [{name: there.get(name, {}) for name in record} for there in known]
            refuse_another_model(theirs, record, out_of(parts))
            files = _files(ready, dict.fromkeys(texts), how, folder)
            _encode(pipe, torch.device(ready.device), wanted, how, files, record)
        del pipe
        let_go()
    return Encoded(files, record)


@contextmanager
def _told_when_full(ready: Prepared) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        layers = "--offload sequential brings them to the device layer by layer, "
        is_whole = ready.device.startswith("cuda") and ready.model.offload != "sequential"
        raise OutOfMemoryError(
            f"out of memory while the text encoders run: {layers if is_whole else ''}a smaller --batch_size gives them "
            "fewer texts at a time, --no_t5 draws without the largest. What is sealed stays"
        ) from error


def let_go() -> None:
    """Give back the memory of models that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget_texts(parts: Path) -> None:
    """Remove what the text encoders gave."""
    shutil.rmtree(parts / TEXTS_FOLDER, ignore_errors=True)


def _record(pipe: StableDiffusion3Pipeline, ready: Prepared) -> dict[str, dict[str, Any]]:
    models = {name: getattr(pipe, name) for name in ready.encoders}
    told = {name: fingerprint(model, name) for name, model in models.items()}
    return {
        name: {**model_record(model, ready.source(name)), "fingerprint": told[name]}
        for name, model in models.items()
    }


@torch.no_grad()
def _encode(
    pipe: StableDiffusion3Pipeline, device: torch.device, wanted: Sequence[Texts], how: Encoding,
    files: Mapping[Texts, Path], record: Mapping[str, Any],
) -> None:  # fmt: skip
    metadata = {_RECORD: json.dumps(record)}
    with (
        heeded_interrupts() as heed,
        masked_encoders(pipe, how.masks),
        without_truncation_noise(),
        _told_when_stopped(files),
    ):
        for texts in counted(wanted, "encoding the prompts"):
            heed()
            states, _, pooled, _ = pipe.encode_prompt(
                [*texts], None, None, device=device, do_classifier_free_guidance=False,
                max_sequence_length=how.max_sequence_length,
            )  # fmt: skip
            given = {"prompt_embeds": states, "pooled_prompt_embeds": pooled}
            check_texts(pipe, given)
            _keep(files[texts], {name: each.cpu().contiguous() for name, each in given.items()}, metadata)


@contextmanager
def _told_when_stopped(files: Mapping[Texts, Path]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        kept = sum(path.is_file() for path in files.values())
        say(f"{kept} of {len(files)} batches of texts are encoded; the same command goes on from there")
        raise


def _keep(path: Path, states: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    # several processes, of several hosts, may encode the same texts
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(states), temporary, dict(metadata))
        publish(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path.parent} cannot be written: {reason(error)}") from error


def _kept_record(path: Path) -> dict[str, Any] | None:
    """What a kept file tells of the encoders that wrote it; None where there is no such file, or no whole one."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()[_RECORD])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return None


def _files(ready: Prepared, texts: Sequence[Texts], how: Encoding, folder: Path) -> dict[Texts, Path]:
    """Where each call's texts are kept: by them, by how they are encoded, and by the contents of what encodes them."""
    told = {
        "how": [how.max_sequence_length, how.masks], "dtype": str(ready.dtype),
        "machine": [environment(torch.device(ready.device)), torch.get_num_threads()],
        "encoders": {
            name: [ready.configs[name], hashes(ready.source(name)), _adapters(ready, name)] for name in ready.encoders
        },
        "tokenizers": tokenizer_fingerprints(ready.tokenizers),
    }  # fmt: skip
    return {each: folder / f"{_digest([told, each])}.safetensors" for each in texts}


def _adapters(ready: Prepared, name: str) -> list[tuple[str, float]]:
    """Contents and scales of what an encoder is adapted by."""
    return [(each["sha256"], each["scale"]) for each in ready.source(name).get("adapters", {}).values()]


def _digest(told: object) -> str:
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
