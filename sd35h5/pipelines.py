"""Make an SD3 pipeline ready to draw: from a folder or a hub id, on a device, in a dtype, gates on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from sd35h5.config import DTYPES, Model
from sd35h5.errors import CaptureError, ConfigError
from sd35h5.facts import ModelFacts, hub_sentence, is_folder, transformer_folder
from sd35h5.gate_files import put_gates, read_gates
from sd35h5.gate_options import GateOptions
from sd35h5.gates import Gates

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


def load(
    model: Model, facts: ModelFacts, gating: GateOptions | None = None
) -> tuple[StableDiffusion3Pipeline, Gates | None]:
    """Load the pipeline and put its gates on. Returns: the pipeline, on its device, and the gates or None.

    Raises:
        ConfigError: a component that does not fit.
        CaptureError: weights that cannot be had.
    """
    device = resolve_device(model.device)
    dtype = getattr(torch, resolve_dtype(model.dtype, device))
    local = is_folder(model.model_id)
    with quiet():
        try:
            transformer = _load_transformer(model, dtype)
            pipe = StableDiffusion3Pipeline.from_pretrained(
                model.model_id, transformer=transformer, dtype=dtype, local_files_only=local
            )
        except (OSError, ValueError, RuntimeError) as error:  # the hub, a missing file, a wrong shape
            if isinstance(error, ConfigError):
                raise
            if local:
                raise CaptureError(f"{model.model_id} cannot be loaded: {_first_line(error)}") from error
            raise CaptureError(f"{hub_sentence(model.model_id, error)} ({_first_line(error)})") from error
    pipe.to(device)
    source = read_gates(facts.gates_file) if facts.gates_file is not None else None
    gates = put_gates(pipe.transformer, source, gating or GateOptions()).gates
    return pipe, gates


def _load_transformer(model: Model, dtype: torch.dtype) -> SD3Transformer2DModel:
    """Load the transformer and refuse gaps and surplus keys, of which diffusers only warns."""
    root = Path(model.model_id).expanduser() if is_folder(model.model_id) else None
    folder = transformer_folder(model, root)
    place = {"pretrained_model_name_or_path": model.model_id, "subfolder": "transformer"}
    if folder is not None:
        place = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    transformer, info = SD3Transformer2DModel.from_pretrained(**place, dtype=dtype, output_loading_info=True)
    for problem, what in (("missing_keys", "lacks"), ("unexpected_keys", "has the unknown")):
        if keys := sorted(info[problem]):
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ConfigError(f"the transformer of {folder or model.model_id} {what} {keys[0]}{more}")
    return transformer


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
