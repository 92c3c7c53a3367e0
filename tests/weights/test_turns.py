"""Models that take turns on a device: weights wait on the host, go over, and are never copied back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn

from sd35h5.weights import loading, mapped_tensors
from sd35h5.weights.in_memory.copying import Copying
from sd35h5.weights.in_memory.turns import bring, take_turns
from sd35h5.weights.layouts import COMPONENTS
from sd35h5.weights.model_options import Model
from sd35h5.weights.sources import find_part

DEVICE = torch.device("cpu")  # what has its turn lies in another place of the same memory


def _addresses(model: nn.Module) -> list[int]:
    return [each.data_ptr() for each in (*model.parameters(), *model.buffers())]


def test_one_model_at_a_time_has_the_device_and_then_takes_back_the_memory_it_had():
    first, second = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).eval(), nn.Linear(5, 2)
    waiting, others = _addresses(first), _addresses(second)
    given = torch.randn(4, 3)
    expected = first(given)
    take_turns([first, second], DEVICE)
    assert torch.equal(first(given), expected)
    assert not {*_addresses(first)} & {*waiting} and _addresses(second) == others
    second(expected)
    assert _addresses(first) == waiting and not {*_addresses(second)} & {*others}
    bring(first)
    there = _addresses(first)
    bring(first)
    assert _addresses(first) == there != waiting and _addresses(second) == others
    remove_hook_from_module(first)
    assert _addresses(first) == waiting and torch.equal(first(given), expected)


def test_what_changes_on_the_device_comes_back():
    first, second = nn.Linear(3, 5), nn.Linear(5, 2)
    waiting, before = _addresses(first), first.weight.detach().clone()
    take_turns([first, second], DEVICE)
    bring(first)
    with torch.no_grad():
        first.weight.add_(1)  # as merging an adapter does
    bring(second)
    assert torch.equal(first.weight, before + 1) and first.bias.data_ptr() == waiting[1]


def test_weights_under_two_names_are_one_on_the_device_too():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    take_turns([model], DEVICE)
    bring(model)
    assert model["a"].weight is model["b"].weight


def test_a_model_that_does_not_fit_stays_whole_on_the_host(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    waiting, real, moved = _addresses(model), torch.Tensor.to, []

    def to(tensor, *args, **kwargs):
        moved.append(1)
        if len(moved) == 3:
            raise torch.OutOfMemoryError
        return real(tensor, *args, **kwargs)

    take_turns([model], DEVICE)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(torch.Tensor, "to", to)
        bring(model)
    assert _addresses(model) == waiting
    bring(model)
    assert not {*_addresses(model)} & {*waiting}


@pytest.mark.parametrize("component", COMPONENTS)
def test_weights_that_wait_stay_in_their_files_and_are_the_same(tiny_folder, monkeypatch, component):
    monkeypatch.setattr(mapped_tensors, "_LET_GO", 1000)  # files are opened anew all the time
    part = find_part(component, Model(model_id=str(tiny_folder)), Path(tiny_folder))
    read, mapped = (
        loading.fill(loading.plan_part(part), torch.float32, "cpu", is_mapped) for is_mapped in (False, True)
    )
    files = [str(path) for path in part.files]
    for name, tensor in mapped.named_parameters():
        assert torch.equal(tensor, read.get_parameter(name)), name
        assert _mapped_from(tensor) in files and _mapped_from(read.get_parameter(name)) not in files, name


def _mapped_from(tensor: torch.Tensor) -> str:
    """The file from which the tensor's memory is mapped, or nothing."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.split()[0].partition("-")
        if int(begin, 16) <= tensor.data_ptr() < int(end, 16):
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_a_copy_through_small_buffers_is_the_tensor(dtype):
    copied = Copying(DEVICE, piece=1000, small=100)
    for shape in ((3, 333), (7,), (50, 20, 5), ()):
        tensor = torch.randn(shape).mul(50).to(dtype)
        for each in (tensor, tensor.mT if tensor.ndim > 1 else tensor):
            copy = copied(each)
            assert torch.equal(copy, each) and copy.data_ptr() != each.data_ptr()
