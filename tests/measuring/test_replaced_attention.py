"""Where the user attends by something else, that draws and is measured: never another picture without a word."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from making.pipelines import make_pipeline, torch_generator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import sd35h5
from sd35h5 import open_store

PLAIN = F.scaled_dot_product_attention


def coarse(query, key, value, *args, **kwargs):
    """Attention in rounded queries and keys, as quantised kernels compute it."""
    return PLAIN((query * 8).round() / 8, (key * 8).round() / 8, value, *args, **kwargs)


class Coarse(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        function = coarse if function is PLAIN else function
        return function(*args, **(kwargs or {}))


@pytest.fixture
def short(call):
    return call | {"num_inference_steps": 2, "output_type": "latent"}


@pytest.mark.parametrize("how", ["function", "mode", "math"])
def test_the_picture_is_the_users_and_rows_are_of_his_queries_and_keys(
    tmp_path, short, monkeypatch, caplog, how
):
    pipe = make_pipeline()
    untouched = pipe("a red cat", generator=torch_generator(0), **short).images
    if how == "function":
        monkeypatch.setattr(F, "scaled_dot_product_attention", coarse)
    mode = {"mode": Coarse(), "math": sdpa_kernel(SDPBackend.MATH)}.get(how, torch.no_grad())
    with mode:
        plain = pipe("a red cat", generator=torch_generator(0), **short).images
    mode = {"mode": Coarse(), "math": sdpa_kernel(SDPBackend.MATH)}.get(how, torch.no_grad())
    with (
        caplog.at_level(logging.WARNING, "sd35h5"), mode,
        sd35h5.capture(pipe, tmp_path / "a.h5") as generate,
    ):  # fmt: skip
        captured = generate("a red cat", seed=0, **short).images
    assert torch.equal(captured, plain)
    assert how == "math" or not torch.equal(plain, untouched)
    assert "this attention backend gives no log-sum-exp" in caplog.text
    with open_store(tmp_path / "a.h5") as store:
        masses = store.read("sinks/mass_group", query="image").sum("group", skipna=False)
        np.testing.assert_allclose(masses, 1, atol=1e-5)


def test_a_device_that_is_set_for_new_tensors_is_no_replacement(tmp_path, short, caplog):
    pipe = make_pipeline()
    plain = pipe("a red cat", generator=torch_generator(0), **short).images
    with (
        caplog.at_level(logging.WARNING, "sd35h5"), torch.device("cpu"),
        sd35h5.capture(pipe, tmp_path / "a.h5") as generate,
    ):  # fmt: skip
        assert torch.equal(generate("a red cat", seed=0, **short).images, plain)
    assert "log-sum-exp" not in caplog.text
