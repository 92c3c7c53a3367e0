"""The switches and fixtures that every test shares; what they are made with is in tests/making."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: busy cores else cost a factor of twenty
# one thread, also in processes that tests start: pytest-xdist has a worker a core, and the last bit of a sum
# depends on the number of threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from making.pipelines import HEIGHT, T5_TOKENS, WIDTH, make_pipeline

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what was imported stays: collections need not walk through a million objects each time


@pytest.fixture(scope="session")
def tiny_pipeline() -> StableDiffusion3Pipeline:
    """The tiny pipeline; tests must leave it as they found it."""
    return make_pipeline()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: StableDiffusion3Pipeline) -> Path:
    """The tiny pipeline saved in diffusers' layout, with a headwise and an elementwise variant of its
    transformer."""
    import torch

    from sd35h5.gates.modules import GATES_FILE, build_gates, save_gates

    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline.save_pretrained(folder)
    for gate_type in ("headwise", "elementwise"):
        target = folder / f"transformer_{gate_type}"
        tiny_pipeline.transformer.save_pretrained(target)
        gates = build_gates(tiny_pipeline.transformer, gate_type)
        torch.manual_seed(1)
        for parameter in gates.modules.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        save_gates(target / GATES_FILE, gates)
    return folder


@pytest.fixture(scope="session")
def call() -> dict[str, object]:
    """Arguments of a short, rectangular, guided run."""
    return {
        "height": HEIGHT, "width": WIDTH, "num_inference_steps": 5, "guidance_scale": 4.5,
        "max_sequence_length": T5_TOKENS,
    }  # fmt: skip


@pytest.fixture
def app(monkeypatch):
    """Start the dashboard with paths on one of its pages, see making.pages.open_page."""
    from making.pages import open_page  # a machine with a GPU needs no Streamlit to test capturing

    return partial(open_page, monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a baseline, a gated run that pairs with it, and one that does not."""
    from making.stores import make_store

    folder = tmp_path_factory.mktemp("runs")
    make_store(folder / "demo-baseline.h5", layers=3, heads=2, steps=4, sink=4.0)
    make_store(folder / "demo-headwise.h5", layers=3, heads=2, steps=4, sink=2.0, gates=True)
    make_store(folder / "other.h5", layers=3, heads=2, steps=6)
    return folder
