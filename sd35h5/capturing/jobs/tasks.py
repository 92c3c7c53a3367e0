"""What a command asks of its workers, by name: a scheduler elsewhere imports this, and needs no torch for it."""

from __future__ import annotations

from typing import Any

from distributed import get_worker

NAME = "sd35h5"  # of the plugin `Drawer` in each worker
STEPS = "sd35h5-steps"  # topic under which workers tell how far they are


def settings_there() -> dict[str, object]:
    """As `Drawer.settings`, of the worker that runs this."""
    return get_worker().plugins[NAME].settings()


def load_there() -> None:
    """As `Drawer.load`."""
    get_worker().plugins[NAME].load()


def notes_there() -> list[str]:
    """As `Drawer.notes`."""
    return get_worker().plugins[NAME].notes()


def draw_there(first: int, end: int) -> Any:
    """As `Drawer.draw`, of the samples first..end - 1."""
    return get_worker().plugins[NAME].draw(range(first, end))


def flush_there() -> None:
    """As `Drawer.flush`."""
    get_worker().plugins[NAME].flush()


def stop_there(dask_worker: Any) -> None:
    """As `Drawer.stop`, beside what the worker runs."""
    dask_worker.plugins[NAME].stop()
