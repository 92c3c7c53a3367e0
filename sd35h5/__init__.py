"""Attention sinks of Stable Diffusion 3.5: capture, store, measure. Importing this does not import torch."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from .errors import CaptureError, ConfigError, Sd35h5Error, StoreError, StoreNotFoundError
from .reader import Store, open_store
from .verify import Report, verify

__version__ = "0.1.0"
__all__ = [
    "CaptureError", "ConfigError", "Report", "Sd35h5Error", "Store", "StoreError", "StoreNotFoundError",
    "capture", "compare", "metrics", "open_store", "verify",
]  # fmt: skip


class _Package(ModuleType):
    """Keeps `sd35h5.capture` the function, also after `sd35h5/capture.py` was imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("capture", "verify") and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name == "capture":  # imports torch
        return importlib.import_module(".capture", __name__).capture
    if name in ("metrics", "compare"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'sd35h5' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
