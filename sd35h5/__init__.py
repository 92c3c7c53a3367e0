"""Attention sinks of Stable Diffusion 3.5: capture, store, measure. `__all__` is the whole public API.

Every name is imported on first use, so that nothing heavy comes with `import sd35h5`: `capture` brings torch,
`metrics` and `compare` (what holds in their own `__all__`) numpy and xarray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd35h5 import comparing as compare
    from sd35h5 import metrics as metrics
    from sd35h5.capturing.capture import capture
    from sd35h5.errors import CaptureError, ConfigError, Sd35h5Error, StoreError, StoreNotFoundError
    from sd35h5.store.places.open_store import open_store
    from sd35h5.store.reader import Store
    from sd35h5.store.verifying import Report, verify

__version__ = "0.1.0"
__all__ = [
    "CaptureError", "ConfigError", "Report", "Sd35h5Error", "Store", "StoreError", "StoreNotFoundError",
    "capture", "compare", "metrics", "open_store", "verify",
]  # fmt: skip

# public name -> the module that holds it
_HOMES = {
    "capture": "capturing.capture",
    "open_store": "store.places.open_store", "Store": "store.reader",
    "verify": "store.verifying", "Report": "store.verifying",
    **dict.fromkeys(
        ("CaptureError", "ConfigError", "Sd35h5Error", "StoreError", "StoreNotFoundError"), "errors"
    ),
}  # fmt: skip
_PACKAGES = {"compare": "comparing", "metrics": "metrics"}  # public name -> the package that it is


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): torch only for `capture`."""
    if name in _PACKAGES:
        return importlib.import_module(f".{_PACKAGES[name]}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'sd35h5' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
