"""Both implementations of what is seen of tensors' bits, against whole numbers of Python.

The Triton half runs on CUDA, or in Triton's interpreter where triton is installed.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
SIDE = 16


@pytest.fixture(params=["torch", "triton"])
def looking(request):
    """The module that is tried."""
    from sd35h5.weights.in_memory import bits

    if request.param == "torch":
        return bits
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    from sd35h5.weights.in_memory import bit_kernels

    return bit_kernels


def _numbers(tensor: torch.Tensor, weights: list[int]) -> list[int]:
    """By the definition, in Python's integers, wrapped to 64 bits at the end."""
    words = tensor.reshape(-1).view(torch.uint8)
    words = words[: len(words) // (4 * SIDE) * 4 * SIDE].view(torch.int32).tolist()
    expected = [0] * -(-len(words) // SIDE**2)
    for place, word in enumerate(words):
        row, column = divmod(place, SIDE)
        expected[row // SIDE] += word * (weights[column] + weights[SIDE + row % SIDE])
    return [(number + 2**63) % 2**64 - 2**63 for number in expected]


def test_a_pieces_number_is_the_sum_of_its_words_times_their_weights(looking):
    from sd35h5.weights.in_memory.bits import odd_numbers

    weights = odd_numbers(2 * SIDE)
    torch.manual_seed(0)
    tensors = [torch.randn(rows, SIDE) for rows in (1, 15, 16, 17, 35)]
    tensors += [torch.randn(300).to(torch.bfloat16), torch.randint(0, 256, (5, 77), dtype=torch.uint8)]
    expected = [number for tensor in tensors for number in _numbers(tensor, weights.tolist())]
    there = [tensor.to(DEVICE) for tensor in tensors]
    assert looking.piece_numbers(there, weights.to(DEVICE), SIDE).tolist() == expected


def test_bytes_are_gathered_from_each_tensors_first_on_by_its_stride(looking):
    torch.manual_seed(0)
    tensors = [torch.randint(0, 256, (count,), dtype=torch.uint8) for count in (1, 9000, 4097, 30)]
    firsts, strides = [0, 7, 1, 29], [1, 1, 3, 5]
    pairs = zip(tensors, firsts, strides, strict=True)
    expected = [byte for tensor, first, stride in pairs for byte in tensor.tolist()[first::stride]]
    there = [tensor.to(DEVICE) for tensor in tensors]
    assert looking.gathered(there, firsts, strides).tolist() == expected
