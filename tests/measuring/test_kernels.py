"""Both implementations of the reductions keep one contract, against float64 on the same query and key.

The Triton half needs triton: it runs on CUDA, or with TRITON_INTERPRET=1 on the CPU, where it is skipped
unless `pip install triton` (280 MB) was run.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sd35h5.measuring.reducer import Reducer, reducer_for, torch_reducer, triton_reducer
from sd35h5.store import blocks

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels.py is imported
REDUCERS = {"torch": torch_reducer, "triton": triton_reducer}
HEADS, TOLERANCE = 3, 1e-5
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# batch, patches (y, x), text tokens, width: odd, beside and on the blocks of 64
SHAPES = [(1, (5, 13), 7, 8), (2, (9, 7), 70, 32), (2, (8, 16), 64, 64), (1, (3, 43), 1, 24)]


@pytest.fixture(params=REDUCERS)
def reducer(request) -> Reducer:
    if request.param == "triton" and find_spec("triton") is None:
        pytest.skip("triton is not installed")
    return REDUCERS[request.param]()


def _states(
    batch, patches, text, width, dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
    """Query, key, log-sum-exp and A in float64, laid out as the model lays them out: (B, N, heads, d)."""
    tokens = patches[0] * patches[1] + text
    generator = torch.Generator().manual_seed(tokens)
    states = torch.randn(2, batch, tokens, HEADS, width, generator=generator)
    query, key = (1.5 * states).to(DEVICE, dtype).transpose(2, 3)
    logits = query.double() @ key.double().transpose(-1, -2) / width**0.5
    return query, key, logits.logsumexp(-1).float(), logits.softmax(-1).cpu().numpy()


def _close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.cpu(), expected, rtol=TOLERANCE, atol=1e-30)


def _stream_means(values: np.ndarray, image: int, axis: int) -> np.ndarray:
    parts = np.split(values, [image], axis=2)
    return np.stack([part.mean(2) for part in parts], axis=axis)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("part", ["image", "text", "all"])
def test_masses_row_sums_and_entropies_are_those_of_float64(reducer, shape, dtype, part):
    query, key, lse, whole = _states(*shape, dtype)
    image = shape[1][0] * shape[1][1]
    keys = {"image": slice(0, image), "text": slice(image, None), "all": slice(None)}[part]
    found = reducer.reduce_keys(query, key[:, :, keys], lse, image, entropy=True)
    share = whole[..., keys]
    _close(found.mass, _stream_means(share, image, axis=2))
    _close(found.row_sum, share.sum(-1))
    renormalised = share / share.sum(-1, keepdims=True)
    entropy = -(renormalised * np.log(renormalised)).sum(-1)
    if share.shape[-1] == 1:  # the entropy of one key is 0: rounding is all there is to see
        assert found.row_entropy.abs().max() < 1e-5
        return
    np.testing.assert_allclose(found.row_entropy.cpu(), entropy, rtol=TOLERANCE, atol=2e-6)
    np.testing.assert_allclose(
        found.entropy.cpu(), _stream_means(entropy, image, axis=-1), rtol=TOLERANCE, atol=2e-6
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pooled_maps_are_means_of_a_cells_patches_in_float64(reducer, shape, pool, dtype):
    query, key, lse, whole = _states(*shape, dtype)
    (height, width), image = shape[1], shape[1][0] * shape[1][1]
    tokens = torch.arange(shape[2] - 1, -1, -3, device=DEVICE)
    maps = reducer.attention_maps(
        query[-1, :, :image], key[-1, :, image:][:, tokens], lse[-1, :, :image], shape[1], pool
    )
    columns = whole[-1, :, :image][..., image + tokens.cpu().numpy()]
    columns = columns.transpose(0, 2, 1).reshape(HEADS, len(tokens), height, width)
    assert maps.shape == (HEADS, len(tokens), -(-height // pool), -(-width // pool))
    for y, x in np.ndindex(*maps.shape[2:]):
        cell = columns[:, :, y * pool : (y + 1) * pool, x * pool : (x + 1) * pool]
        _close(maps[:, :, y, x], cell.mean((2, 3)))


def test_an_attention_of_the_image_alone_is_reduced_too(reducer):
    query, key, lse, whole = _states(2, (6, 11), 0, 16, torch.float32)
    found = reducer.reduce_keys(query, key, lse, 66, entropy=True)
    _close(found.mass[:, :, 0], whole.mean(2))
    entropy = -(whole * np.log(whole)).sum(-1).mean(2)
    np.testing.assert_allclose(found.entropy[..., 0].cpu(), entropy, rtol=TOLERANCE)


def test_without_entropy_the_masses_are_the_same_and_two_runs_are_equal_to_the_bit(reducer):
    query, key, lse, _ = _states(*SHAPES[1], torch.bfloat16)
    first, again = (reducer.reduce_keys(query, key, lse, 63, entropy=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    alone = reducer.reduce_keys(query, key, lse, 63)
    assert alone.entropy is None and alone.row_entropy is None
    torch.testing.assert_close(alone.mass, first.mass)
    torch.testing.assert_close(alone.row_sum, first.row_sum)
    barest = reducer.reduce_keys(query, key, lse, 63, row_sums=False)
    assert barest.row_sum is None
    torch.testing.assert_close(barest.mass, first.mass)


def test_chunks_of_queries_add_up(reducer, monkeypatch):
    """A small chunk stands for the many that a large picture has; its end is no end of a block."""
    if reducer.name == "triton":
        from sd35h5.measuring import kernels

        monkeypatch.setattr(
            kernels, "_WITH_ENTROPY", kernels._WITHOUT._replace(queries=16, keys=16, chunk=48)
        )
    query, key, lse, share = _states(1, (7, 11), 23, 16, torch.float32)
    found = reducer.reduce_keys(query, key, lse, 77, entropy=True)
    _close(found.mass, _stream_means(share, 77, axis=2))
    _close(found.row_sum, share.sum(-1))
    _close(found.entropy, _stream_means(-(share * np.log(share)).sum(-1), 77, axis=2))


def test_the_rows_of_one_sample_of_a_batch_are_read_where_they_lie(reducer):
    query, key, lse, _ = _states(6, (5, 13), 7, 16, torch.float32)
    views = [each[1::3] for each in (query, key, lse)]
    copies = [each.contiguous() for each in views]
    found, wanted = (reducer.reduce_keys(*states, 65, entropy=True) for states in (views, copies))
    assert all(torch.equal(a, b) for a, b in zip(vars(found).values(), vars(wanted).values(), strict=True))
    query, key, lse = (each[-1] for each in views)
    maps, alone = (
        reducer.attention_maps(q[:, :65], k[:, 65:], each[:, :65], (5, 13), 2)
        for q, k, each in ((query, key, lse), (each[-1] for each in copies))
    )
    assert torch.equal(maps, alone)


def test_a_row_that_does_not_look_at_the_keys_has_entropy_zero(reducer):
    query, key, lse, _ = _states(*SHAPES[1], torch.float32)
    found = reducer.reduce_keys(query, key, torch.full_like(lse, 500.0), 63, entropy=True)
    assert torch.equal(found.entropy, torch.zeros_like(found.entropy))


def test_only_cuda_is_measured_by_kernels(monkeypatch):
    assert reducer_for(torch.device("cpu")).name == "torch"
    monkeypatch.setattr("sd35h5.devices.find_spec", lambda name: None)
    assert reducer_for(torch.device("cuda")).name == "torch"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_every_bit_pattern_is_rounded_as_the_writer_rounds_it(reducer, words):
    special = [0x7F800000, 0xFF800000, 0x7FC00001, 0x7F7FFFFF, 0xFF7FFFFF, 0x80000000, 0x00001000, 0x3F801000]
    values = np.array(special + words, np.uint32).view(np.float32)
    rounded = reducer.round_mantissa(torch.from_numpy(values.copy()).to(DEVICE)).cpu().numpy()
    np.testing.assert_array_equal(rounded.view(np.uint32), blocks.round_mantissa(values).view(np.uint32))
