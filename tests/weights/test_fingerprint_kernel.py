"""Both implementations of the fingerprint's numbers against whole numbers of Python.

The Triton half runs on CUDA, or in Triton's interpreter where triton is installed.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when diffusers imports triton


@pytest.fixture(params=["torch", "triton"])
def counting(request):
    from sd35h5.weights.fingerprint import piece_numbers

    if request.param == "torch":
        return piece_numbers
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    from sd35h5.weights import fingerprint_kernel

    return fingerprint_kernel.piece_numbers


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 35])
def test_a_pieces_number_is_the_sum_of_its_words_times_their_weights(counting, rows):
    from sd35h5.weights.fingerprint import _odd_numbers

    side = 16
    words = torch.randint(-(2**31), 2**31, (rows, side), dtype=torch.int32)
    weights = _odd_numbers(2 * side)
    expected = [0] * -(-rows // side)
    for row, columns in enumerate(words.tolist()):
        for column, word in enumerate(columns):
            expected[row // side] += word * (int(weights[column]) + int(weights[side + row % side]))
    wrapped = [(number + 2**63) % 2**64 - 2**63 for number in expected]
    assert counting(words.to(DEVICE), weights.to(DEVICE)).tolist() == wrapped
