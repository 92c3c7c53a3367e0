"""Comparing runs of other settings: what a run is may always differ, and what must be allowed is named, all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import pytest
from making.stores import make_store

from sd35h5 import StoreError, compare, open_store
from sd35h5.__main__ import main
from sd35h5.comparing.paired_samples import is_free
from sd35h5.planning.options import CaptureConfig, Output, Prompts, Sampling, Tiers
from sd35h5.store.writer import begin_run

GATED = {
    "gate_weights": "trained",
    "gate_activation": "sigmoid",
    "gate_target": "joint",
    "gate_layers": "[0, 1, 2]",
}


def told(path: Path, **settings: object) -> Path:
    """Write settings into a file's configuration, as captures of the command line have them."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file["provenance/config"].asstr()[()]) | settings
        del file["provenance/config"]
        file["provenance/config"] = json.dumps(config)
    return path


def both(folder: Path, plain: dict, gated: dict, **stores) -> list[Path]:
    """A baseline and a gated run: settings of each, and what both are made with."""
    made = [make_store(folder / "plain.h5", steps=plain.get("steps", 4), **stores)]
    made.append(make_store(folder / "gated.h5", steps=gated.get("steps", 4), gates=True, **GATED, **stores))
    return [told(path, **one) for path, one in zip(made, (plain, gated), strict=True)]


def test_steps_alone_have_to_be_allowed_between_a_baseline_and_a_gated_run(tmp_path):
    plain = {
        "steps": 4,
        "gates": "",
        "transformer": "transformer",
        "atlas": False,
        "rows": [],
        "map_layers": "all",
    }
    gated = {"steps": 6, "gates": "g.safetensors", "transformer": "t2", "atlas": True, "rows": ["centre"],
             "map_layers": "0", "raw": ["layers:0"], "dit_path": "x.safetensors", "offload": "model",
             "device": "cuda:1", "gate_zero_rows": "drop", "budget": "4GB"}  # fmt: skip
    paths = both(tmp_path, plain, gated)
    assert main(["compare", *map(str, paths), "--out_dir", str(tmp_path / "out"), "--resamples", "100",
                 "--allow_mismatch", "steps"]) == 0  # fmt: skip
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["field"] for row in document["mismatch"]["gated"]] == ["steps"]
    assert document["pairs"] == {"gated": 2}


@pytest.mark.parametrize("already", [("steps",), pytest.param((), marks=pytest.mark.long)])
def test_all_that_must_be_allowed_is_named_and_then_it_goes(tmp_path, capsys, already):
    paths = both(
        tmp_path, {"steps": 4, "guidance": 4.5, "dtype": "float32", "height": 96},
        {"steps": 6, "guidance": 7.0, "dtype": "bfloat16", "height": 96},
    )  # fmt: skip
    command = ["compare", *map(str, paths), "--out_dir", str(tmp_path / "out"), "--resamples", "100"]
    allow = ["--allow_mismatch", *already] if already else []
    assert main([*command, *allow]) == 1
    named = re.search(r"--allow_mismatch ([\w ]+)$", capsys.readouterr().err.strip())[1].split()
    assert sorted(named) == ["dtype", "guidance", "steps"]
    assert main([*command, "--allow_mismatch", *named]) == 0
    for left_out in named:
        assert main([*command, "--allow_mismatch", *(name for name in named if name != left_out)]) == 1


def test_another_size_is_one_field_and_not_three(tmp_path):
    paths = [make_store(tmp_path / f"{height}.h5", height=height) for height in (96, 64)]
    with open_store(paths[0]) as first, open_store(paths[1]) as second:
        assert compare.setting_differences({"a": first, "b": second}, free=False)["field"].tolist() == [
            "height"
        ]
        pairing = compare.pair(first, second, allow_mismatch=["height"])
    assert len(pairing.pairs) == 2


def test_prompts_that_differ_are_named_beside_the_settings(tmp_path, capsys):
    make_store(tmp_path / "a.h5", prompts=("a cat",), samples=1)
    make_store(tmp_path / "b.h5", prompts=("a dog",), samples=1, steps=6)
    command = [
        "compare",
        *(str(tmp_path / f"{name}.h5") for name in "ab"),
        "--out_dir",
        str(tmp_path / "out"),
    ]
    assert main(command) == 1
    assert capsys.readouterr().err.strip().endswith("--allow_mismatch steps prompt")


def test_what_may_always_differ_may_be_allowed_too_and_other_words_are_refused(tmp_path):
    path = make_store(tmp_path / "a.h5")
    with open_store(path) as store:
        assert len(compare.pair(store, store, allow_mismatch=["gates", "gate_weights", "maps"]).pairs) == 2
        with pytest.raises(StoreError, match="allow_mismatch names stepz, which is no field"):
            compare.pair(store, store, allow_mismatch=["stepz"])


def test_every_option_of_a_capture_is_free_or_decides_what_is_measured():
    """A new option has to be thought of: left out here it would prevent pairing, or be passed over."""
    deciding = {
        *Sampling.__dataclass_fields__,
        "dtype",
        "compile",
        "no_t5",
        "attn2_layout",
        "negative_prompt",
    }
    names = set(CaptureConfig().flat())
    assert {name for name in names if not is_free(name)} == deciding & names
    for free in (Tiers, Output, set(Prompts.__dataclass_fields__) - {"negative_prompt"}):
        assert all(is_free(name) for name in getattr(free, "__dataclass_fields__", free))


@pytest.mark.parametrize("turned", [False, True])
def test_a_capture_without_a_sealed_sample_compares_to_nothing_in_a_sentence(tmp_path, capsys, turned):
    paths = [make_store(tmp_path / "a.h5"), tmp_path / "b.h5"]
    begin_run(tmp_path / "b.h5", {}, planned=3)
    command = ["compare", *map(str, reversed(paths) if turned else paths), "--out_dir", str(tmp_path / "out")]
    assert main(command) == 1
    assert capsys.readouterr().err == "error: b has no sealed sample yet: wait for the first of 3\n"
