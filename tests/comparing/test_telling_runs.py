"""Compare begins with runs that can tell something: other gates, weights, adapters or interventions, equal prompts."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
from making.pages import linked_of
from making.stores import make_store

from sd35h5 import open_store
from sd35h5.comparing import telling_runs

SMALL = {"samples": 1, "layers": 2, "heads": 1, "steps": 2, "height": 64, "width": 48, "branches": ("cond",)}


def _store(path: Path, components: dict | None = None, config: dict | None = None, **changes) -> Path:
    """A small store; `components` and more of its config as a capture tells them."""
    make_store(path, **SMALL | changes)
    with h5py.File(path, "r+") as file:
        if components is not None:
            file["provenance"].create_dataset("components", data=json.dumps(components))
        if config is not None:
            told = json.loads(file["provenance/config"][()])
            file["provenance/config"][()] = json.dumps(told | config)
    return path


def _transformer(**told: object) -> dict:
    return {"transformer": {"class": "SD3Transformer2DModel", **told}, "vae": {"fingerprint": "v"}}


CASES = {
    "the same model": ({}, {}, ()),
    "gates": ({}, {"gates": True}, ("gates",)),
    "gates that are forced open": (
        {"gates": True},
        {"gates": True, "gate_override": "open"},
        ("gates",),
    ),
    "another model by name": ({}, {"model_id": "other"}, ("weights",)),
    "the same model in another folder": ({"model_id": "here/m"}, {"model_id": "/there/m"}, ()),
    "an intervention": ({}, {"intervention": "mask:clip_bos"}, ("intervention",)),
    "equal fingerprints under other names": (
        {"components": _transformer(fingerprint="a"), "model_id": "one"},
        {"components": _transformer(fingerprint="a"), "model_id": "two"},
        (),
    ),
    "other fingerprints under one name": (
        {"components": _transformer(fingerprint="a")},
        {"components": _transformer(fingerprint="b")},
        ("weights",),
    ),
    "equal files of which one was fingerprinted": (
        {"components": _transformer(files=[{"name": "x", "sha256": "f"}]), "model_id": "one"},
        {
            "components": _transformer(files=[{"name": "y", "sha256": "f"}], fingerprint="a"),
            "model_id": "two",
        },
        (),
    ),
    "adapters": ({}, {"config": {"lora": [["/there/style.safetensors:0.7"]]}}, ("adapters",)),
    "what is captured": ({}, {"config": {"maps": "all", "out": "elsewhere.h5"}}, ()),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return what the store of some options is made of, each written once."""
    known, folder = {}, tmp_path_factory.mktemp("telling")

    def get(options: dict) -> telling_runs.Made:
        key = json.dumps(options)
        if key not in known:
            with open_store(_store(folder / f"{len(known)}.h5", **options)) as store:
                known[key] = telling_runs.made(store)
        return known[key]

    return get


@pytest.mark.parametrize("case", CASES)
def test_what_matters_differs_only_where_the_model_or_its_gates_do(made, case):
    first, second, expected = CASES[case]
    one, other = made(first), made(second)
    assert telling_runs.differing_parts(one, other) == expected
    assert telling_runs.differing_parts(other, one) == expected
    assert telling_runs.beside(one, other) == telling_runs.Beside(expected, 1)


def test_runs_with_most_equal_prompts_and_seeds_come_first_and_those_without_never():
    found = {
        "same": telling_runs.Beside((), 9), "few": telling_runs.Beside(("gates",), 2),
        "none": telling_runs.Beside(("weights",), 0), "many": telling_runs.Beside(("adapters", "gates"), 7),
    }  # fmt: skip
    assert telling_runs.ranked(found) == ["many", "few"]


def test_a_baseline_that_something_can_be_told_beside_is_shown_first():
    tells = {"a-baseline": False, "b-baseline": True, "gated": True}
    assert telling_runs.reference_of([*tells][::-1], tells.get) == "b-baseline"
    assert telling_runs.reference_of(["gated", "a-baseline"], lambda name: False) == "a-baseline"


def test_a_fresh_tab_compares_the_runs_that_can_tell_something(app, tmp_path):
    _store(tmp_path / "a-baseline.h5", steps=3)  # pairs with none
    _store(tmp_path / "demo-baseline.h5")
    _store(tmp_path / "example-baseline.h5")
    _store(tmp_path / "gated.h5", gates=True)
    test = app(tmp_path, page="compare")
    view = test.session_state["view"]
    assert (view.run.name, [other.name for other in view.others]) == ("demo-baseline", ["gated"])
    assert list(linked_of(test)[0].panels) == ["demo-baseline", "gated", "gated − demo-baseline"]


def test_why_nothing_is_proposed_is_a_sentence_with_what_differs():
    found = {"again": telling_runs.Beside((), 1), "longer": telling_runs.Beside(("gates",), 0)}
    assert not telling_runs.ranked(found)
    assert telling_runs.why_none("baseline", found) == (
        "No run here tells anything beside baseline: again is not known to differ from it in weights, adapters, gates "
        "or intervention; longer (gates) differs, but no sample pairs."
    )
