"""Samples of another tool pair on request only: what its files do not tell can be neither equal nor different."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
from making.stores import make_store

from sd35h5 import __main__ as commands
from sd35h5 import compare, open_store
from sd35h5.errors import StoreError


def _imported(path: Path, seed: int = -1, **options) -> Path:
    """A store as an import leaves it: settings that are not told are not there, and no key is a hash of any."""
    make_store(path, **options)
    with h5py.File(path, "r+") as file:
        config = {"imported": "attn_maps.pt", "steps": 4, "height": 96, "width": 64, "sources": path.stem}
        file["provenance/config"][()] = json.dumps(config)
        del file.attrs["model_shape"]
        file["samples/seed"][:] = seed
        for row in range(len(file["sample"])):
            file["samples/pairing_key"][row] = f"imported:{row:016x}"
    return path


@pytest.fixture
def paths(tmp_path):
    """A capture, and two imports of other pictures."""
    ours = make_store(tmp_path / "ours.h5", steps=4, height=96, width=64)
    return ours, _imported(tmp_path / "one.h5", sink=1.0), _imported(tmp_path / "two.h5", sink=5.0)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 1), pytest.param(1, 2, marks=pytest.mark.long)])
def test_nothing_of_an_import_pairs_by_itself_and_the_sentence_names_the_flag(
    paths, tmp_path, capsys, first, second
):
    out = tmp_path / "out"
    runs = [str(paths[first]), str(paths[second])]
    if first == second:
        runs[1] = str(_imported(tmp_path / "again.h5", sink=1.0))  # the very same keys
    assert commands.main(["compare", *runs, "--out_dir", str(out)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: no sample of ") and told.rstrip().endswith("--allow_mismatch imported")
    with open_store(runs[0]) as one, open_store(runs[1]) as other:
        assert len(compare.pair(one, other, allow_mismatch=["imported"]).pairs) == 2


def test_an_allowed_import_pairs_by_its_prompts_and_the_report_says_that_seeds_are_unknown(paths):
    with open_store(paths[0]) as ours, open_store(paths[1]) as theirs:
        assert compare.pair(ours, theirs).pairs.empty
        pairing = compare.pair(ours, theirs, allow_mismatch=["imported"])
        assert list(pairing.pairs["reference_sample"]) == list(pairing.pairs["other_sample"]) == [0, 1]
        told = pairing.mismatch.set_index("field")
        assert list(told.loc["imported"]) == ["no", "attn_maps.pt"]
        assert told.loc["seed", "other"].startswith("unknown")


def test_seeds_that_were_told_still_decide(paths, tmp_path):
    other = _imported(tmp_path / "told.h5", seed=7)
    with open_store(paths[0]) as ours, open_store(other) as theirs:
        pairing = compare.pair(ours, theirs, allow_mismatch=["imported"])
        assert pairing.pairs.empty and set(pairing.unpaired["field"]) == {"seed"}
        assert len(compare.pair(ours, theirs, allow_mismatch=["imported", "seed"]).pairs) == 2


def test_what_an_import_does_tell_must_still_be_equal(paths, tmp_path):
    other = make_store(tmp_path / "short.h5", steps=3, height=96, width=64)
    with open_store(other) as ours, open_store(paths[1]) as theirs:
        pairing = compare.pair(ours, theirs, allow_mismatch=["imported"])
        assert pairing.pairs.empty and set(pairing.unpaired["field"]) == {"steps"}
        with pytest.raises(StoreError, match="which is no field"):
            compare.pair(ours, theirs, allow_mismatch=["importet"])
