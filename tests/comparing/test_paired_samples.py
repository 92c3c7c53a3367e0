"""Pairing by key, differences of pairs, and what cannot be paired, with the reason."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from making.stores import PROMPTS, make_store

from sd35h5 import compare, metrics, open_store
from sd35h5.errors import StoreError


@pytest.fixture
def stores(tmp_path):
    """Open a synthetic store a name; closed after the test."""
    opened = []

    def make(name: str, **options):
        opened.append(open_store(make_store(tmp_path / f"{name}.h5", **options)))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def test_equal_prompts_and_seeds_pair_whatever_the_gate(stores):
    pairing = compare.pair(stores("a", seed=1), stores("b", seed=2, gates=True))
    assert list(pairing.pairs["reference_sample"]) == list(pairing.pairs["other_sample"]) == [0, 1]
    assert pairing.unpaired.empty


def test_difference_is_other_minus_reference_pair_by_pair(stores):
    first, second = stores("a", seed=1), stores("b", seed=2)
    pairing = compare.pair(first, second)
    before, after = compare.paired_values(first, second, pairing)
    expected = metrics.first_token_mean(second).values - metrics.first_token_mean(first).values
    np.testing.assert_array_equal(compare.difference(before, after).values, expected)


def test_pairs_follow_the_key_and_not_the_position(stores):
    pairing = compare.pair(stores("a"), stores("b", samples=3, prompts=(PROMPTS[0], PROMPTS[1], "more")))
    assert len(pairing.pairs) == 2
    assert list(pairing.unpaired["run"]) == ["b"]
    assert pairing.unpaired.iloc[0]["field"] == "prompt"
    assert pairing.unpaired.iloc[0]["value"] == "more"


@pytest.mark.parametrize(
    ("changed", "field", "value"),
    [
        ({"steps": 6}, "steps", "6"),
        ({"negative_prompt": "blurry"}, "negative_prompt", "blurry"),
        ({"height": 64}, "height", "64"),
        ({"prompts": ("a green tree",)}, "prompt", "a green tree"),
    ],
)
def test_the_field_that_differs_is_named(stores, changed, field, value):
    pairing = compare.pair(stores("a"), stores("b", **changed))
    assert pairing.pairs.empty
    alone = pairing.unpaired
    assert set(alone["run"]) == {"a", "b"}
    mine = alone[alone["run"] == "b"]
    assert mine["field"].str.contains(field).all()
    assert mine["value"].str.contains(value).all()


def test_a_scheduler_that_differs_is_named_from_the_components(stores, tmp_path):
    for name, shift in (("a", 3.0), ("b", 1.0)):
        path = make_store(tmp_path / f"{name}.h5", samples=1, pairing_key=name)
        with h5py.File(path, "r+") as file:
            if "components" in file["provenance"]:
                del file["provenance/components"]
            components = {"scheduler": {"shift": shift}, "transformer": {"dtype": "float32"}}
            file["provenance/components"] = json.dumps(components)
    with open_store(tmp_path / "a.h5") as first, open_store(tmp_path / "b.h5") as second:
        alone = compare.pair(first, second).unpaired
    assert list(alone["field"]) == ["scheduler", "scheduler"]
    assert list(alone["value"]) == ['{"shift": 3.0}', '{"shift": 1.0}']


def test_the_same_sample_twice_pairs_once_and_is_told(stores):
    repeated = {"prompts": (PROMPTS[0],), "pairing_key": "same", "seed": 0}
    first = stores("a", samples=1, **repeated)
    pairing = compare.pair(first, stores("b", samples=2, **repeated))
    assert len(pairing.pairs) == 1
    assert len(pairing.unpaired) == 1


def test_unpaired_runs_have_no_difference(stores):
    first, second = stores("a"), stores("b", steps=6)
    with pytest.raises(StoreError, match="no sample of b"):
        compare.paired_values(first, second, compare.pair(first, second))


def test_setting_differences_tell_the_gate(stores):
    table = compare.setting_differences({"a": stores("a"), "b": stores("b", gates=True)})
    assert table.set_index("field").loc["gate_type"].tolist() == ["none", "headwise"]


def test_the_sentence_holds_both_means(stores):
    first, second = stores("a", sink=4.0), stores("b", sink=1.0)
    pairing = compare.pair(first, second)
    before, after = compare.paired_values(first, second, pairing)
    said = compare.sentence(before, after, pairing, "attention mass")
    assert f"{float(before.mean()):.3g} in a" in said
    assert f"{float(after.mean()):.3g} in b" in said
    assert "2 pairs" in said
