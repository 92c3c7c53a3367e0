"""What training wrappers leave in the names of tensors: `module.`, `_orig_mod.` and the like. Torch-free."""

from __future__ import annotations

# DataParallel and DDP, torch.compile, FSDP, activation checkpointing
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrapped(key: str) -> str:
    """A tensor's name without the wrappers that it was saved through, wherever they stand in it."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)
