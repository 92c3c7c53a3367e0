"""Make an SD3 pipeline ready to draw: from folders, files or the hub, on a device, in a dtype, gates on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusion3Pipeline
from torch import nn

from sd35h5.errors import CaptureError, ConfigError, Sd35h5Error
from sd35h5.gates.choice import Choice, choose_gates, put_gates
from sd35h5.gates.gate_files import read_gates
from sd35h5.gates.gate_options import GateOptions
from sd35h5.gates.modules import Gates
from sd35h5.planning.memory_needs import is_out_of_memory
from sd35h5.weights.adapters.activating import activate, adapter_name
from sd35h5.weights.adapters.adapter_changes import Adapter
from sd35h5.weights.adapters.merging import check_adapters, merge
from sd35h5.weights.attn2_origin import attn2_of
from sd35h5.weights.checkpoints import sha256_of, told_of
from sd35h5.weights.fetching import local_base
from sd35h5.weights.frame import load_scheduler, load_tokenizers, with_tokens
from sd35h5.weights.held_gates import gates_to_apply
from sd35h5.weights.in_memory.turns import take_turns
from sd35h5.weights.layouts import COMPONENTS, ENCODERS
from sd35h5.weights.loading import Planned, build, fill, plan_part, provenance, split_gates
from sd35h5.weights.model_facts import ModelFacts, base_path, transformer_folder
from sd35h5.weights.model_options import DTYPES, Model
from sd35h5.weights.sources import TOKENIZERS, find_parts, from_base, tokenizer_files

log = logging.getLogger("sd35h5")
_NOISE = ("The following part of your input was truncated", "Token indices sequence length is longer")


def resolve_device(device: str) -> str:
    """`auto` as the device it stands for; `cuda` only where there is one.

    Raises:
        ConfigError: no such CUDA device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        count, index = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
        if not torch.cuda.is_available() or index >= count:
            there = f"{count or 'no'} CUDA device{'s' * (count != 1)}"
            raise ConfigError(f"--device {device}: this machine has {there}; use --device cpu")
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """Name of the torch dtype: bfloat16 on CUDA and float32 on the CPU unless said otherwise."""
    if dtype == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    return DTYPES[dtype]


class Loaded(NamedTuple):
    """A pipeline on its device.

    Args:
        gates: those it draws with, or None.
        sources: component -> where its weights came from: source, layout, stored dtype, files with sha256.
    """

    pipe: StableDiffusion3Pipeline
    gates: Gates | None
    sources: dict[str, dict]


class Prepared:
    """A model of which everything is found, planned and fitting, and not a weight is read.

    Text encoders and what draws can be had one after the other, so that they are never in memory together.

    Args:
        planned: component -> where its every weight is.
        told: component -> its source, while its files are hashed.
        adapters: those of --lora.

    Attributes:
        encoders: the text encoders among the components.
        configs: component -> what its class is built from.
    """

    def __init__(
        self, model: Model, facts: ModelFacts, base: Path | None, planned: Mapping[str, Planned],
        tokenizers: Mapping[str, Any], choice: Choice, told: Mapping[str, Future], adapters: Sequence[Adapter] = (),
    ) -> None:  # fmt: skip
        self.model, self.device = model, resolve_device(model.device)
        self.dtype = getattr(torch, resolve_dtype(model.dtype, self.device))
        self.tokenizers, self._facts, self._choice, self._told = tokenizers, facts, choice, told
        self._planned, self._adapters = dict(planned), adapters
        self._adapter_files = told_of([each.file for each in adapters])
        self._scheduler = load_scheduler(base)
        self.encoders = tuple(name for name in ENCODERS if name in planned)
        self.configs = {name: each.part.config for name, each in planned.items()}

    def source(self, component: str) -> dict[str, Any]:
        """Where the component's weights come from, and what they are adapted by; waits until its files are hashed."""
        hashed = zip(self._adapters, self._adapter_files, strict=True)
        adapters = {
            adapter_name(number): each.told(component) | {"sha256": file["sha256"]}
            for number, (each, file) in enumerate(hashed)
            if component in each.components
        }
        return self._told[component].result() | ({"adapters": adapters} if adapters else {})

    def text_pipeline(self) -> StableDiffusion3Pipeline:
        """Read the text encoders, into a pipeline that can only encode: of its transformer it has the shape."""
        waits = self.model.offload == "sequential"  # else all have room where the transformer will have it
        pipe = self._pipeline(self.encoders, waits)
        if waits:
            offload(pipe, None, self.device, self.model.offload)
        pipe.register_modules(transformer=build("transformer", self.configs["transformer"]))
        return pipe

    def pipeline(self, with_encoders: bool = True) -> Loaded:
        """Read all that was not read yet, or all but the text encoders, and put adapters and gates on."""
        components = [name for name in self._planned if with_encoders or name not in ENCODERS]
        model, choice, facts = self.model, self._choice, self._facts
        pipe = self._pipeline(components, bool(model.offload))
        with _told_as_loading(model.model_id):
            put_gates(pipe.transformer, choice)
            blocks = {"blocks": pipe.transformer.transformer_blocks, "whole": [pipe.transformer]}
            for part in blocks.get(model.compile, ()):
                part.compile(fullgraph=True)
            if model.offload:
                offload(pipe, choice.gates, self.device, model.offload)
            sources = {component: self.source(component) for component in self._told}
            if choice.record:
                sources["gates"] = choice.record | _told_of(facts.gates_file)
            if self._adapters:
                sources["lora"] = {"files": self._adapter_files}
        for name, tokenizer in self.tokenizers.items():  # of a folder of its own each
            folder = Path(tokenizer.name_or_path)
            if (files := tokenizer_files(folder.parent).get(name)) is not None:
                sources[name] = {"source": str(folder), "files": told_of(files)}
        return Loaded(pipe, choice.gates, sources)

    def _pipeline(self, components: Collection[str], waits: bool) -> StableDiffusion3Pipeline:
        """A pipeline of these components, which are given away: nothing here holds them.

        Args:
            waits: on the host, where weights stay mapped from their files as far as they can.
        """
        place = "cpu" if waits else self.device
        with _told_as_loading(self.model.model_id):
            models = {name: self._filled(self._planned.pop(name), place, waits) for name in components}
            pipe = StableDiffusion3Pipeline(
                **{**dict.fromkeys(COMPONENTS), **models},
                **{**dict.fromkeys(TOKENIZERS), **self.tokenizers},
                scheduler=self._scheduler,
            )
            pipe.to(place)
            activate(models, self._adapters)
        return pipe

    def _filled(self, planned: Planned, place: str, is_mapped: bool) -> nn.Module:
        """A component's model with its weights, and what is merged into them."""
        model = fill(planned, self.dtype, place, is_mapped)
        merge(model, planned, [each for each in self._adapters if not each.stays_apart])
        return model


@contextmanager
def prepared(
    model: Model, facts: ModelFacts, gating: GateOptions | None = None, adapters: Sequence[Adapter] = ()
) -> Iterator[Prepared]:
    """Find every component wherever it comes from, and settle which adapters and gates go on, before a weight is read.

    Raises:
        ConfigError: a component that does not fit, in one sentence.
        CaptureError: weights that cannot be had.
    """
    device = resolve_device(model.device)
    if model.offload and not device.startswith("cuda"):
        raise ConfigError(f"--offload brings models to a CUDA device in turn, and the device is {device}")
    needed = {*from_base(model)} - ({"transformer"} if model.transformer != "transformer" else set())
    base = (
        local_base(model.model_id, {*needed, "scheduler"}, variant=model.variant)
        if needed
        else base_path(model.model_id)
    )
    folder = transformer_folder(model, base) if "transformer" in from_base(model) else None
    parts = find_parts(model, base, folder)
    for note in dict.fromkeys(note for part in parts.values() for note in part.notes):
        log.info(note)
    attn2 = attn2_of(parts["transformer"])
    gates_to_apply(parts["transformer"], facts.gates_file, facts.layers)  # refuses gates from two files
    with quiet(), ThreadPoolExecutor(1) as hashing:  # the files are hashed while they are read
        first = sorted(parts, key=lambda name: name not in ENCODERS)  # what is asked for first
        told = {component: hashing.submit(provenance, parts[component]) for component in first}
        try:
            with _told_as_loading(model.model_id):
                tokenizers = load_tokenizers(model, base, parts)
                parts = {component: with_tokens(part, tokenizers) for component, part in parts.items()}
                parts["transformer"], held = split_gates(parts["transformer"])
                bare = build("transformer", parts["transformer"].config)  # without memory: it only has sizes
                source = held if facts.gates_file is None else read_gates(facts.gates_file)
                choice = choose_gates(bare, source, gating or GateOptions(), attn2)
                planned = {name: plan_part(part) for name, part in parts.items()}
                check_adapters(adapters, planned)
                ready = Prepared(model, facts, base, planned, tokenizers, choice, told, adapters)
                del planned  # models that are let go go: nothing but `ready` holds them
            yield ready
        except BaseException:
            for future in told.values():  # no sentence, nor Ctrl-C, should wait for hashes that nobody needs
                future.cancel()
            raise


@contextmanager
def _told_as_loading(model_id: str) -> Iterator[None]:
    """Tell of what the libraries raise in one sentence."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, Sd35h5Error) or is_out_of_memory(error):
            raise
        raise CaptureError(f"{model_id} cannot be loaded: {_first_line(error)}") from error


def load(
    model: Model, facts: ModelFacts, gating: GateOptions | None = None, adapters: Sequence[Adapter] = ()
) -> Loaded:
    """Load every component, text encoders too, and put adapters and gates on; raises as `prepared` does."""
    with prepared(model, facts, gating, adapters) as ready:
        return ready.pipeline()


def offload(pipe: StableDiffusion3Pipeline, gates: Gates | None, device: str, how: str = "model") -> None:
    """Let each model, or each of its layers (`sequential`), wait on the host and go to the device only while it
    computes; gates are small and stay there."""
    if how == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        take_turns([each for each in pipe.components.values() if isinstance(each, nn.Module)], device)
    if gates is not None:
        gates.to(device, pipe.transformer.dtype)


def _told_of(gates_file: Path | None) -> dict[str, object]:
    """Size and sha256 of a file of gates; those within a model's own file are told with the transformer."""
    if gates_file is None:
        return {}
    return {"size": gates_file.stat().st_size, "sha256": sha256_of(gates_file)}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the libraries' loading bars and notes that do not concern the user; errors still show."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    bars, verbosity = (diffusers_logging, transformers_logging), transformers_logging.get_verbosity()
    for library in bars:
        library.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for library in bars:
            library.enable_progress_bar()


@contextmanager
def without_truncation_noise() -> Iterator[None]:
    """Hold back the pipeline's note on truncation, which is wrong for T5; ours tells it right."""
    loggers = [
        logging.getLogger("diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3"),
        logging.getLogger("transformers.tokenization_utils_base"),
    ]

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_NOISE)

    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
