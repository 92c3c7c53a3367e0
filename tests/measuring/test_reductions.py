"""Reductions against a float64 softmax of the whole matrix, on random shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd35h5.measuring import reductions
from sd35h5.measuring.attend import attend, blocked_lse
from sd35h5.measuring.reductions import (
    Workspace,
    attention_rows,
    group_mass,
    joint_entropy,
    pool_columns,
    pooled_centres,
    reduce_keys,
    top_keys,
    value_norms,
)
from sd35h5.store.schema import GATE_STATISTICS

SHAPES = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "heads": st.integers(1, 4),
        "image": st.integers(1, 40),
        "text": st.integers(1, 30),
        "width": st.sampled_from([8, 16, 32, 64]),
        "scale": st.sampled_from([0.1, 1.0, 4.0]),
        "seed": st.integers(0, 10_000),
    }
)


def _qkv(batch, heads, image, text, width, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, heads, image + text, width)
    return tuple(scale * torch.randn(shape, generator=generator))


def _tolerance(shape) -> float:
    """Relative error that float32 logits allow: those of scale 4 reach 400, where a float32 step is 3e-5."""
    return 5e-4 if shape["scale"] > 1 else 2e-5


def _attention(query, key) -> np.ndarray:
    """The whole matrix in float64."""
    logits = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
    return logits.softmax(-1).numpy()


@settings(max_examples=40, deadline=None)
@given(SHAPES)
def test_masses_and_entropies_equal_a_float64_softmax(shape):
    query, key, value = _qkv(**shape)
    image = shape["image"]
    _, lse = attend(query, key, value)
    whole = _attention(query, key)
    found = reduce_keys(query, key[:, :, image:], lse, image, workspace=Workspace(), entropy=True)
    text = whole[..., image:]
    mass = np.stack([text[:, :, :image].mean(2), text[:, :, image:].mean(2)], axis=2)
    renormalised = text / text.sum(-1, keepdims=True)
    entropy = -(renormalised * np.log(np.maximum(renormalised, 1e-300))).sum(-1)
    entropy[text.sum(-1) < 1e-30] = 0  # by definition: those rows do not look at the text at all
    entropy = np.stack([entropy[..., :image].mean(-1), entropy[..., image:].mean(-1)], axis=-1)
    rtol = _tolerance(shape)
    np.testing.assert_allclose(found.mass, mass, rtol=rtol, atol=1e-9)
    np.testing.assert_allclose(found.row_sum, text.sum(-1), rtol=rtol, atol=1e-9)
    np.testing.assert_allclose(found.entropy, entropy, rtol=rtol, atol=rtol)


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(1, 50))
def test_the_result_does_not_depend_on_the_tile(shape, tile):
    query, key, _ = _qkv(**shape)
    lse, image = blocked_lse(query, key), shape["image"]
    options = {"workspace": Workspace(), "entropy": True}
    whole = reduce_keys(query, key[:, :, image:], lse, image, tile=10_000, **options)
    tiled = reduce_keys(query, key[:, :, image:], lse, image, tile=tile, **options)
    for name, values in vars(whole).items():
        rtol = _tolerance(shape)
        torch.testing.assert_close(getattr(tiled, name), values, rtol=rtol, atol=rtol / 10, msg=name)


@settings(max_examples=25, deadline=None)
@given(SHAPES)
def test_group_masses_sum_to_one_and_the_image_gets_its_own_share(shape):
    query, key, _ = _qkv(**shape)
    image, text = shape["image"], shape["text"]
    found = reduce_keys(query, key[:, :, image:], blocked_lse(query, key), image, workspace=Workspace())
    groups = torch.from_numpy(np.random.default_rng(shape["seed"]).integers(0, 8, (shape["batch"], text)))
    masses = group_mass(found.mass, torch.nn.functional.one_hot(groups, 8).float())
    np.testing.assert_allclose(masses.sum(-1), 1, atol=_tolerance(shape))
    of_image = _attention(query, key)[..., :image].sum(-1)
    np.testing.assert_allclose(masses[:, :, 0, -1], of_image[:, :, :image].mean(-1), atol=_tolerance(shape))
    np.testing.assert_allclose(masses[:, :, 1, -1], of_image[:, :, image:].mean(-1), atol=_tolerance(shape))


@settings(max_examples=25, deadline=None)
@given(SHAPES)
def test_top_keys_are_the_heaviest_of_image_and_text_together(shape):
    query, key, value = _qkv(**shape)
    image, count = shape["image"], min(5, shape["image"] + shape["text"])
    lse = blocked_lse(query, key)
    parts = [
        reduce_keys(query, part, lse, image, workspace=Workspace()).mass[0]
        for part in key.split([image, shape["text"]], dim=2)
    ]
    top = top_keys(*parts, value_norms(value[0]), count)
    whole = _attention(query, key)[0]
    mass = np.stack([whole[:, :image].mean(1), whole[:, image:].mean(1)], axis=1)
    rtol = _tolerance(shape)
    np.testing.assert_allclose(top.mass, -np.sort(-mass, axis=-1)[..., :count], rtol=rtol, atol=1e-9)
    joint = top.index + image * top.stream.int()
    np.testing.assert_allclose(
        np.take_along_axis(mass, joint.numpy().astype(int), -1), top.mass, rtol=rtol, atol=1e-9
    )
    norms = np.linalg.norm(value[0].double().numpy(), axis=-1)
    heads = np.arange(shape["heads"])[:, None, None]
    np.testing.assert_allclose(top.value_norm, norms[heads, joint.numpy()], rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(SHAPES)
def test_entropies_and_rows_over_all_keys_equal_a_float64_softmax(shape):
    query, key, value = _qkv(**shape)
    image, text = shape["image"], shape["text"]
    _, lse = attend(query, key, value)
    parts = [
        reduce_keys(query, part, lse, image, workspace=Workspace(), entropy=True)
        for part in key.split([image, text], dim=2)
    ]
    whole, rtol = _attention(query, key), _tolerance(shape)
    entropy = -(whole * np.log(np.maximum(whole, 1e-300))).sum(-1)
    expected = np.stack([entropy[..., :image].mean(-1), entropy[..., image:].mean(-1)], axis=-1)
    np.testing.assert_allclose(joint_entropy(parts, image), expected, rtol=rtol, atol=rtol)
    alone = joint_entropy([part.of_row(-1) for part in parts], image)
    np.testing.assert_allclose(alone, expected[-1:], rtol=rtol, atol=rtol)
    chosen = torch.tensor([0, image + text - 1, image // 2])
    rows = attention_rows(query[0][:, chosen], key[0], lse[0][:, chosen])
    np.testing.assert_allclose(rows, whole[0][:, chosen], rtol=rtol, atol=1e-9)


def test_permuting_heads_permutes_the_results():
    query, key, _ = _qkv(2, 4, 12, 9, 16, 1.0, 0)
    order = torch.tensor([2, 0, 3, 1])
    lse = blocked_lse(query, key)
    straight = reduce_keys(query, key[:, :, 12:], lse, 12, workspace=Workspace(), entropy=True)
    permuted = reduce_keys(
        query[:, order], key[:, order, 12:], lse[:, order], 12, workspace=Workspace(), entropy=True
    )
    torch.testing.assert_close(permuted.mass, straight.mass[:, order])
    torch.testing.assert_close(permuted.entropy, straight.entropy[:, order])


def test_a_workspace_used_for_other_shapes_in_between_changes_nothing():
    workspace = Workspace()
    query, key, _ = _qkv(2, 3, 20, 11, 8, 1.0, 1)
    lse = blocked_lse(query, key)
    first = reduce_keys(query, key[:, :, 20:], lse, 20, workspace=workspace, entropy=True)
    mass = first.mass.clone()
    reduce_keys(query[:1], key[:1, :, :20], lse[:1], 20, workspace=workspace)
    torch.testing.assert_close(first.mass, mass)


def test_a_row_whose_text_share_underflows_has_no_nan_entropy():
    query, key, _ = _qkv(1, 1, 4, 3, 8, 1.0, 2)
    lse = torch.full((1, 1, 7), 500.0)
    found = reduce_keys(query, key[:, :, 4:], lse, 4, workspace=Workspace(), entropy=True)
    assert torch.equal(found.entropy, torch.zeros(1, 1, 2))


@pytest.mark.parametrize(("height", "width", "pool"), [(4, 6, 2), (5, 7, 2), (5, 3, 4), (4, 6, 1)])
def test_pooling_averages_the_patches_that_a_cell_has(height, width, pool):
    columns = torch.randn(3, height * width, 2, generator=torch.Generator().manual_seed(0))
    maps = pool_columns(columns, height, width, pool).numpy()
    whole = columns.numpy().transpose(0, 2, 1).reshape(3, 2, height, width)
    for y, centre_y in enumerate(pooled_centres(height, pool)):
        for x, centre_x in enumerate(pooled_centres(width, pool)):
            cell = whole[:, :, y * pool : (y + 1) * pool, x * pool : (x + 1) * pool]
            np.testing.assert_allclose(maps[:, :, y, x], cell.mean((-1, -2)), rtol=1e-5, atol=1e-7)
            assert centre_y == np.mean(range(y * pool, min((y + 1) * pool, height)))
            assert centre_x == np.mean(range(x * pool, min((x + 1) * pool, width)))
    assert maps.shape[-2:] == (y + 1, x + 1)


@pytest.mark.parametrize("per_channel", [1, 8])
def test_gate_statistics_are_those_of_tokens_and_channels_of_a_head(per_channel):
    gate = torch.rand(2, 10, 3 * per_channel, generator=torch.Generator().manual_seed(0))
    found = dict(zip(GATE_STATISTICS, reductions.gate_statistics(gate, 3).numpy(), strict=True))
    values = gate.numpy().reshape(2, 10, 3, per_channel).transpose(0, 2, 1, 3).reshape(2, 3, -1)
    expected = {"mean": values.mean(-1), "std": values.std(-1), "min": values.min(-1), "max": values.max(-1)}
    expected |= {"below_0_1": (values < 0.1).mean(-1), "below_0_5": (values < 0.5).mean(-1)}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
