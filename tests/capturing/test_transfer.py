"""What goes from the device to the host arrives equal and in order."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from sd35h5.capturing.transfer import Transfer, pack, unpack

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA")]
)
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])


def _tensors(device: str, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        "stream": torch.randint(0, 255, (3, 5), dtype=torch.uint8, device=device),
        "mass": torch.randn(4, 6, device=device).T,
        "index": torch.randint(-9, 9, (2, 1, 7), dtype=torch.int32, device=device),
        "scalar": torch.tensor(2.5, device=device),
        "long": torch.tensor([1 << 40], device=device),
    }


def test_packed_tensors_come_out_as_they_went_in_and_aligned():
    tensors = _tensors("cpu")
    arrays = unpack(*pack(tensors))
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert arrays[name].flags.aligned and arrays[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


@DEVICES
def test_what_is_sent_arrives_whole_and_in_order_however_slow_the_taker(device):
    transfer, found, gate = Transfer(max_waiting=1000), [], threading.Event()

    def take(arrays: dict[str, np.ndarray]) -> None:
        gate.wait(0.02)
        found.append({name: array.copy() for name, array in arrays.items()})

    for seed in range(20):
        transfer.send(_tensors(device, seed), take)
    transfer.finish()
    assert len(found) == 20
    for seed, arrays in enumerate(found):
        for name, tensor in _tensors(device, seed).items():
            np.testing.assert_array_equal(arrays[name], tensor.cpu().numpy())


@DEVICES
def test_an_error_of_the_taker_reaches_who_sends_or_finishes(device):
    def take(arrays: dict[str, np.ndarray]) -> None:
        raise OSError("disk full")

    transfer = Transfer()
    with pytest.raises(OSError, match="disk full"):
        transfer.send(_tensors(device), take)
        transfer.finish()
    transfer.cancel()
