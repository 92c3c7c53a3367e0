"""Attention sinks of Stable Diffusion 3.5: capture, store, measure. Every name is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import compare as compare
    from . import metrics as metrics
    from .capturing import capture
    from .errors import CaptureError, ConfigError, Sd35h5Error, StoreError, StoreNotFoundError
    from .reader import Store, open_store
    from .verifying import Report, verify

__version__ = "0.1.0"
__all__ = [
    "CaptureError", "ConfigError", "Report", "Sd35h5Error", "Store", "StoreError", "StoreNotFoundError",
    "capture", "compare", "metrics", "open_store", "verify",
]  # fmt: skip

# public name -> the module that holds it: no module may have the name of a function, or it would hide it
_HOMES = {
    "capture": "capturing",
    "open_store": "reader", "Store": "reader",
    "verify": "verifying", "Report": "verifying",
    **dict.fromkeys(
        ("CaptureError", "ConfigError", "Sd35h5Error", "StoreError", "StoreNotFoundError"), "errors"
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): torch only for `capture`."""
    if name in ("compare", "metrics"):
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'sd35h5' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
