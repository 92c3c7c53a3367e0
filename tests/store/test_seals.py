"""What a content hash leaves out is sealed, too: scales, attributes and provenance, of a sample and a packed file."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from making.stores import make_store

from sd35h5 import StoreError, verify
from sd35h5.store.schema import SEAL
from sd35h5.store.score_joining import join_scores
from sd35h5.store.seals.file_seal import seal_file
from sd35h5.store.writer import pack


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("seals") / "good.h5", samples=2, gates=True)


def changed(good: Path, folder: Path, change) -> tuple[str, ...]:
    """What verify says of a copy that was changed after it was sealed."""
    path = folder / "changed.h5"
    shutil.copy(good, path)
    with h5py.File(path, "a", libver=("v110", "v114")) as file:
        change(file)
    return verify(path, deep=True).problems


def _value(name: str):
    return lambda file: file[name].__setitem__(0, 0.25)


CHANGES = {
    "a scale": (_value("sigma"), "sigma is not what was sealed: its values, type or attributes were changed"),
    "an index": (
        lambda f: f["sample"].__setitem__(0, 7),
        "sample is not what was sealed: its values, type or attributes were changed",
    ),
    "a root attribute": (
        lambda f: f.attrs.__setitem__("model_id", "another"),
        "/ is not what was sealed: its type, shape or attributes were changed",
    ),
    "a long name": (
        lambda f: f["sinks/mass_group"].attrs.__setitem__("long_name", "something else"),
        "sinks/mass_group is not what was sealed: its type, shape or attributes were changed",
    ),
    "provenance": (
        lambda f: f["provenance/config"].__setitem__((), '{"steps": 50}'),
        "provenance/config is not what was sealed: its values, type or attributes were changed",
    ),
    "a scale that is gone": (
        lambda f: f.__delitem__("sigma"),
        "sigma is gone, which was there when the file was sealed",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_after_sealing_is_named(good, tmp_path, what):
    change, sentence = CHANGES[what]
    assert sentence in changed(good, tmp_path, change)


def test_names_that_no_seal_holds_may_come_later(good, tmp_path):
    def change(file: h5py.File) -> None:
        file.attrs["my_note"] = "looked at"
        file["mine/numbers"] = np.arange(3)

    assert changed(good, tmp_path, change) == ()


def test_a_hash_of_the_seal_is_that_of_the_documents_lines(good):
    """Computed by docs/format.md alone: a scale with its values, a variable without."""
    with h5py.File(good) as file:
        seal = json.loads(file[SEAL][()])
        sigma, masses = file["sigma"], file["sinks/mass_group"]
        for name, dataset in (("sigma", sigma), ("sinks/mass_group", masses)):
            lines = [f"dataset <f4 {dataset.shape}"]
            for attribute in sorted(set(dataset.attrs) & set(seal["attributes"])):
                value = dataset.attrs[attribute]
                if isinstance(value, bytes):
                    kind, shape, raw = "text", "()", b"%d:%s" % (len(value), value)
                else:
                    kind, shape, raw = value.dtype.str, value.shape, value.tobytes()
                lines.append(f"attribute {attribute} {kind} {shape} {hashlib.sha256(raw).hexdigest()}")
            if name == "sigma":
                lines.append(f"values {hashlib.sha256(dataset[:].tobytes()).hexdigest()}")
            found = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
            assert found == {**seal["whole"], **seal["described"]}[name]


def test_a_changed_part_is_not_packed_and_sealed_anew(tmp_path):
    parts = make_store(tmp_path / "run.h5", samples=2, packed=False)
    with h5py.File(parts / "000000.h5", "a") as file:
        file["sigma"][0] = 0.5
    with pytest.raises(StoreError, match=r"^000000.h5: sigma is not what was sealed"):
        pack(parts, tmp_path / "run.h5")


def test_joined_scores_are_sealed_and_a_changed_file_takes_none(good, tmp_path):
    path, table = tmp_path / "scored.h5", tmp_path / "scores.csv"
    shutil.copy(good, path)
    table.write_text("sample_id,clip\n000000,0.5\n000001,0.25\n")
    join_scores(path, table)
    assert verify(path, deep=True).ok
    assert "scores/clip is not what was sealed" in changed(path, tmp_path, _value("scores/clip"))[0]
    with h5py.File(path, "a") as file:
        file["sigma"][0] = 0.5
    with pytest.raises(StoreError, match="sigma is not what was sealed"):
        join_scores(path, table, overwrite=True)


def test_sealing_again_changes_nothing(good, tmp_path):
    path = tmp_path / "again.h5"
    shutil.copy(good, path)
    with h5py.File(path, "a") as file:
        before = file[SEAL][()]
        seal_file(file)
        assert file[SEAL][()] == before
