"""Attention sinks of Stable Diffusion 3.5: capture, store, measure. Every name is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd35h5.analysis import compare as compare
    from sd35h5.analysis import metrics as metrics
    from sd35h5.capturing.capture import capture
    from sd35h5.errors import CaptureError, ConfigError, Sd35h5Error, StoreError, StoreNotFoundError
    from sd35h5.store.reader import Store, open_store
    from sd35h5.store.verifying import Report, verify

__version__ = "0.1.0"
__all__ = [
    "CaptureError", "ConfigError", "Report", "Sd35h5Error", "Store", "StoreError", "StoreNotFoundError",
    "capture", "compare", "metrics", "open_store", "verify",
]  # fmt: skip

# public name -> the module that holds it, or that it is: no package here may have one of these names
_HOMES = {
    "capture": "capturing.capture",
    "compare": "analysis.compare", "metrics": "analysis.metrics",
    "open_store": "store.reader", "Store": "store.reader",
    "verify": "store.verifying", "Report": "store.verifying",
    **dict.fromkeys(
        ("CaptureError", "ConfigError", "Sd35h5Error", "StoreError", "StoreNotFoundError"), "errors"
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): torch only for `capture`."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sd35h5' has no attribute '{name}'")
    home = importlib.import_module(f".{_HOMES[name]}", __name__)
    return home if name in ("compare", "metrics") else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
