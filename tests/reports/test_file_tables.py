"""What a file holds, as tables: sizes as h5py tells them, the command that captures it again as the command line
reads it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import h5py
import pytest
import tyro
from making.pages import text_of
from making.stores import make_store

import capture_cli
from sd35h5 import open_store
from sd35h5.errors import StoreError
from sd35h5.planning.options import CaptureConfig
from sd35h5.reports import file_tables, missing_tiers
from sd35h5.store.cutting.joining import join
from sd35h5.store.cutting.slicing import cut
from sd35h5.store.cutting.wanted_part import Wanted

EXAMPLE = Path(__file__).resolve().parents[2] / "data" / "example-headwise.h5"


def parsed(line: str) -> dict[str, object]:
    words = shlex.split(line)
    assert words[:2] == ["python", "capture_cli.py"]
    read = tyro.cli(tyro.conf.OmitArgPrefixes[capture_cli.CommandLine], args=words[2:], use_underscores=True)
    return CaptureConfig(read.model, read.prompts, read.sampling, read.tiers, read.gating, read.causal).flat()


def test_the_table_of_variables_says_what_h5py_says(tmp_path):
    path = make_store(tmp_path / "run.h5", gates=True)
    with open_store(path) as store, h5py.File(path) as file:
        table = file_tables.variables(store).set_index("variable")
        assert set(table.index) == set(store.variables)
        for name, row in table.iterrows():
            dataset = file[name]
            assert row["stored"] == dataset.id.get_storage_size()
            assert row["chunk"] == " × ".join(map(str, dataset.chunks or ()))
            if dataset.dtype.kind != "O":
                assert row["raw"] == dataset.size * dataset.dtype.itemsize
                assert row["dtype"] == dataset.dtype.name
        assert table.loc["sinks/mass_group", "dimensions"].startswith("sample 2, branch 2, query 2, group 9")


def test_the_command_asks_for_the_same_capture_with_the_missing_tiers_and_nothing_else():
    with open_store(EXAMPLE) as store:
        absent = [row.tier for row in missing_tiers.tiers(store).itertuples() if not row.held]
        assert absent == ["maps, per head", "rows", "text", "atlas", "raw"]
        line = missing_tiers.capture_command(store, absent, "more.h5")
        asked, config = parsed(line), store.config
    added = {"map_heads": "all", "rows": ["centre"], "text_queries": True, "atlas": True,
             "raw": ["steps=0", "layers=0"], "offload": None}  # fmt: skip
    assert config["offload"] is False  # none was asked for
    shared = set(config) & set(asked)
    assert {name: asked[name] for name in shared} == {name: config[name] for name in shared} | added
    assert {"model_id", "gates", "steps", "maps", "gate_type"} <= shared
    assert asked["prompts_json"] == missing_tiers.PROMPTS_FILE  # these prompts have names of their own


def test_the_flags_that_are_written_are_all_that_decide_the_data():
    assert set(missing_tiers.FLAGS) == set(CaptureConfig().flat()) - {"prompt", "prompts_json", "limit"}


def test_prompts_stand_on_the_command_line_where_they_can(tmp_path):
    config = {"model_id": "my models/sd35", "prompts": ["it's a cat", 'a "red" apple; rm x'], "seed": 3}
    store = with_config(tmp_path, config)
    line = missing_tiers.capture_command(store, ["rows"], "more.h5")
    asked = parsed(line)
    assert asked["prompt"] == config["prompts"]
    assert (asked["model_id"], asked["seed"], asked["rows"]) == ("my models/sd35", 3, ["centre"])
    assert missing_tiers.prompts_file(store) is None


def test_prompts_too_many_for_the_configuration_are_read_from_the_samples(tmp_path):
    told = "100 texts, sha256 0011223344556677"
    store = with_config(tmp_path, {"model_id": "m", "prompts": told, "prompt_ids": told, "tags": told})
    entries = missing_tiers.prompts_file(store)
    first = store.samples.drop_duplicates("prompt_index")
    assert [(entry["id"], entry["prompt"], entry["seed"]) for entry in entries] == list(
        zip(first["prompt_id"], first["prompt"], first["seed"], strict=True)
    )
    assert parsed(missing_tiers.capture_command(store, ["rows"], "more.h5"))["prompts_json"] == "prompts.json"


def test_a_configuration_cannot_smuggle_options_into_the_command(tmp_path):
    store = with_config(tmp_path, {"model_id": "m", "prompts": ["--out", "/etc/passwd"]})
    assert (
        parsed(missing_tiers.capture_command(store, [], "more.h5"))["prompts_json"]
        == missing_tiers.PROMPTS_FILE
    )
    assert [entry["prompt"] for entry in missing_tiers.prompts_file(store)] == ["--out", "/etc/passwd"]
    store = with_config(tmp_path, {"model_id": "--overwrite", "prompts": ["a cat"]})
    with pytest.raises(StoreError, match="model_id that cannot stand"):
        missing_tiers.capture_command(store, [], "more.h5")


def test_a_file_of_the_time_when_offload_had_one_form_gives_a_command_that_runs(tmp_path):
    store = with_config(tmp_path, {"model_id": "m", "prompts": ["a cat"], "offload": True})
    assert parsed(missing_tiers.capture_command(store, [], "more.h5"))["offload"] == "model"


def test_what_a_slice_left_out_is_told_with_its_file_and_is_not_captured_anew(tmp_path):
    for name, sink in (("a", 3.0), ("b", 2.0)):
        make_store(tmp_path / f"{name}.h5", sink=sink)  # sinks, topk, maps and images
        cut(tmp_path / f"{name}.h5", tmp_path / f"{name}-part.h5", Wanted(tiers=("sinks", "topk")))
    cut(tmp_path / "a-part.h5", tmp_path / "again.h5", Wanted(tiers=("sinks",), layers="1"))
    join([tmp_path / "a-part.h5", tmp_path / "b-part.h5"], tmp_path / "both.h5")
    both = dict.fromkeys(("maps", "images"), "a.h5, b.h5")
    cuts = {"a": {}, "a-part": dict.fromkeys(both, "a.h5"), "both": both,
            "again": {"topk": "a-part.h5"} | dict.fromkeys(both, "a.h5")}  # fmt: skip
    for name, expected in cuts.items():
        with open_store(tmp_path / f"{name}.h5") as store:
            assert missing_tiers.left_out(store) == expected
    with open_store(tmp_path / "again.h5") as store:
        with pytest.raises(
            StoreError, match="left out topk: in a-part.h5; maps, images: in a.h5: cut it from there"
        ):
            missing_tiers.capture_command(store, ["topk", "maps", "images", "rows"], "more.h5")


@pytest.mark.parametrize(
    "origin", [3, {"of": 3}, {"of": [{"file": 3}], "left_out": 3}, {"of": {"origin": {"of": {}}}}]
)
def test_an_origin_of_another_form_leaves_nothing_out(tmp_path, origin):
    store = with_config(tmp_path, {"model_id": "m", "prompts": ["a cat"]})
    store.provenance["origin"] = origin
    assert missing_tiers.left_out(store) == {}


def test_a_capture_from_python_is_told_to_be_one(tmp_path):
    with pytest.raises(StoreError, match="captured from Python"):
        missing_tiers.capture_command(with_config(tmp_path, {"prompts": ["a cat"]}), [], "more.h5")


def command_of(test) -> str:
    (line,) = (code.value for code in test.code if code.value.startswith("python capture_cli.py"))
    return line


def with_config(tmp_path, config):
    path = make_store(tmp_path / f"{len(list(tmp_path.iterdir()))}.h5", samples=1)
    with h5py.File(path, "r+") as file:
        del file["provenance/config"]
        file["provenance"].create_dataset("config", data=json.dumps(config), dtype=h5py.string_dtype())
    return open_store(path)


def test_facts_are_flat_text_of_bounded_length():
    table = file_tables.facts(
        {"vae": {"dtype": "float32", "files": [{"size": 3}]}, "t5": True, "long": "x" * 9999}
    )
    found = dict(table.itertuples(index=False))
    assert found["vae.dtype"] == "float32"
    assert json.loads(found["vae.files"]) == [{"size": 3}]
    assert found["t5"] == "true"
    assert len(found["long"]) == file_tables.LONGEST + 1


def test_the_page_shows_sizes_schema_tiers_and_provenance(app):
    test = app(EXAMPLE, page="files")
    assert len(test.get("vega_lite_chart")) == 1
    assert "Verified" in test.success[0].value
    with open_store(EXAMPLE) as store:
        schema = next(frame.value for frame in test.dataframe if "chunk" in frame.value.columns)
        assert schema.equals(file_tables.variables(store))
        line = missing_tiers.capture_command(
            store, ["maps, per head", "rows", "text", "atlas"], "example-headwise-more.h5"
        )
    assert command_of(test) == line
    test.main.multiselect[0].set_value(["rows"]).run()
    assert "--rows centre" in command_of(test) and "--atlas" not in command_of(test)
    fields = {field for frame in test.dataframe if "field" in frame.value for field in frame.value["field"]}
    assert {"steps", "transformer.source", "torch", "gate_weights"} <= fields


def test_every_value_is_checked_on_request(app, tmp_path):
    path = make_store(tmp_path / "run.h5")
    test = app(path, page="files")
    test.button(key="deep-run").click().run()
    assert "Every value is the one that was sealed" in test.success[0].value
    with h5py.File(path, "r+", locking=False) as file:  # a reader has it open
        file["sinks/mass_group"][0, 0, 0, 0, 0, 0, 0] += 1
    test = app(path, page="files")
    test.button(key="deep-run").click().run()
    assert "not those that were sealed" in text_of(test)
    assert str(tmp_path) not in text_of(test)
