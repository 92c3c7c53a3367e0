"""What a device can compute with."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def takes_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run there: on CUDA, where triton finds the C compiler that it builds launchers with."""
    compiler = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")
    return device.type == "cuda" and find_spec("triton") is not None and bool(compiler)
