"""Errors that are sentences: what happened, where, and what to do."""

from __future__ import annotations


class Sd35h5Error(Exception):
    """A sentence for the user; the command line prints it on one line and exits 1."""


class StoreError(Sd35h5Error, ValueError):
    """A file that is not a store, or a request that the store cannot answer."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """No file or folder at the path that was asked for."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnreadableError(StoreError):
    """Values that a file held when it was opened and that cannot be read now."""


class RunHeldError(StoreError):
    """A capture that another process fills or packs."""


class NothingMeasuredError(StoreError):
    """A number of which nothing was measured in the samples, branch and steps that were asked for."""


class CaptureError(Sd35h5Error, RuntimeError):
    """A capture that cannot begin or go on."""


class OutOfMemoryError(CaptureError, MemoryError):
    """A capture that a device or the host has not enough memory for; what is sealed stays."""


#: what an option needs that is not installed
NEEDS_DISTRIBUTED = "needs dask.distributed: pip install 'sd35h5[cluster]', or pip install distributed"


class ConfigError(Sd35h5Error, ValueError):
    """An option with a value that cannot be used."""


class ForeignFileError(Sd35h5Error, ValueError):
    """A file of another tool that cannot be brought into a store."""
