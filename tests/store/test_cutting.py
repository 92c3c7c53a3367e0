"""A slice holds what numpy and h5py cut out of the original, a merge what its files hold; both are sound."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making.disks import small_disk
from making.equal_arrays import arrays
from making.samples import header, put_required
from making.stores import make_store

from sd35h5 import open_store
from sd35h5.__main__ import main
from sd35h5.errors import ConfigError, StoreError
from sd35h5.store import schema
from sd35h5.store.cutting.joining import join
from sd35h5.store.cutting.slicing import cut
from sd35h5.store.cutting.wanted_part import Wanted
from sd35h5.store.processes.checker import check_file
from sd35h5.store.runs import running
from sd35h5.store.schema import VARIABLES, variable
from sd35h5.store.seals.file_seal import seal_file
from sd35h5.store.writer import SampleWriter

GOLDEN = Path(__file__).parents[1] / "golden"
TRUE = {"layer": "layer", "raw_layer": "layer", "head": "head", "raw_head": "head", "branch": "branch",
        "step": "step", "top_step": "step", "map_step": "step", "raw_step": "step"}  # fmt: skip
LAYERS, HEADS, STEPS, TOKENS = 5, 3, 4, 77 + 16


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Every tier of a capture, of three samples, 5 x 3 heads, 6 x 4 patches."""
    return make_store(
        tmp_path_factory.mktemp("run") / "run.h5", samples=3, layers=LAYERS, heads=HEADS, steps=STEPS, gates=True,
        atlas=True, second=True, rows=[(0, 2), (1, 0)], token_branches=("cond", "uncond"), tags="x,y",
    )  # fmt: skip


def dims_of(dataset: h5py.Dataset) -> list[str]:
    return [dim[0].name.strip("/") for dim in dataset.dims]


def brute_force(
    source: Path, chosen: dict[str, list[int]], tokens: list[int] | None = None
) -> dict[str, np.ndarray]:
    """All measured arrays of a slice, by whole arrays of the original. Args: chosen: dimension -> true indices."""
    expected = {}
    with h5py.File(source) as file:
        for group in (group for group in schema.VARIABLE_GROUPS if group in file):
            for name, dataset in file[group].items():
                values, dims = dataset[()], dims_of(dataset)
                mapped = file["maps/map_token_index"][()] if "map_token" in dims else None
                if tokens is not None and group not in ("samples", "tokens"):
                    blank = np.float32(np.nan) if values.dtype == np.float32 else -1
                    if "token" in dims:
                        gone = ~np.isin(np.arange(TOKENS), tokens)
                        values[..., gone] = blank  # the last dimension of all that have it
                        assert dims[-1] == "token"
                    if mapped is not None:
                        gone = np.moveaxis(~np.isin(mapped, tokens)[..., None], -1, -1)
                        values = np.moveaxis(values, dims.index("map_token"), 2)
                        values[gone[..., 0]] = blank
                        values = np.moveaxis(values, 2, dims.index("map_token"))
                for axis, dim in enumerate(dims):
                    wanted = chosen.get(TRUE.get(dim, dim))
                    if wanted is not None:
                        places = np.flatnonzero(np.isin(file[dim][()], wanted))
                        values = np.take(values, places, axis)
                expected[f"{group}/{name}"] = values
    return expected


def assert_is_cut(sliced: Path, expected: dict[str, np.ndarray]) -> None:
    """Every array is as expected, nothing else is there, and nothing that has values is missing."""
    found = {
        name: values
        for name, values in arrays(sliced).items()
        if "/" in name and not name.startswith("summary/")
    }
    found.pop("samples/content_sha256"), expected.pop("samples/content_sha256")
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected.pop(name), err_msg=name)
    gone = {name: values for name, values in expected.items() if values.size}
    assert all(name in ("maps/map_token_index", "rows/query_index", "rows/query_stream") for name in gone), (
        gone
    )
    assert check_file(sliced, deep=True) == []


def spelled(places: list[int]) -> str:
    return ",".join(map(str, places))


some = {
    name: st.lists(st.integers(0, size - 1), min_size=1, unique=True).map(sorted)
    for name, size in {"sample": 3, "layer": LAYERS, "head": HEADS, "step": STEPS, "branch": 2}.items()
}


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.fixed_dictionaries({}, optional=some))
def test_a_slice_is_what_numpy_cuts_out_of_the_original(run, tmp_path, chosen):
    names = {f"{dim}s": spelled(places) for dim, places in chosen.items() if dim != "branch"}
    branches = tuple(("cond", "uncond")[place] for place in chosen.get("branch", ()))
    cut(run, tmp_path / "cut.h5", Wanted(**names, branches=branches), overwrite=True)
    assert_is_cut(tmp_path / "cut.h5", brute_force(run, chosen))
    with h5py.File(run) as whole, h5py.File(tmp_path / "cut.h5") as file:
        for dim in ("sample", "layer", "head", "step", "branch"):
            wanted = chosen.get(dim, whole[dim][()].tolist())
            assert file[dim][()].tolist() == wanted  # true indices, not positions
        steps = chosen.get("step", range(STEPS))
        np.testing.assert_array_equal(file["sigma"][()], whole["sigma"][()][list(steps)])


@pytest.mark.parametrize(
    ("tokens", "wanted"), [("0-5,33", [*range(6), 33]), ("31,32,64-92", [31, 32, *range(64, 93)])]
)
def test_of_tokens_that_were_not_chosen_no_mass_and_no_map_stays_but_the_axis_does(
    run, tmp_path, tokens, wanted
):
    cut(run, tmp_path / "cut.h5", Wanted(tokens=tokens, layers="1,3"))
    expected = brute_force(run, {"layer": [1, 3]}, wanted)
    held = expected["maps/map_token_index"] >= 0
    places = np.flatnonzero(held.any((0, 1)))
    for name in [name for name in expected if name.startswith("maps/")]:
        expected[name] = np.take(expected[name], places, 3 if "image" in name else 2)
    assert_is_cut(tmp_path / "cut.h5", expected)
    with h5py.File(tmp_path / "cut.h5") as file:
        assert len(file["token"]) == TOKENS
        sums = file["sinks/mass_group"][()].sum(3)
        np.testing.assert_allclose(sums, 1, atol=1e-5)  # over all keys
        assert "axis token is whole" in json.loads(file["provenance/origin"][()])["notes"][0]


def test_raw_probabilities_and_maps_of_heads_are_cut_through_their_chunks(tmp_path):
    """Chunks of several layers and tokens that a selection divides, and edges of arrays that no chunk fills."""
    scales = {
        "raw_step": [0, 2], "raw_layer": [1, 3], "raw_head": [0, 1], "raw_token": range(2, 70), "layer": range(7),
        "patch_y": range(5), "patch_x": range(3),
    }  # fmt: skip
    told = header("exact", **{name: np.asarray(values) for name, values in scales.items()})
    rng = np.random.default_rng(0)
    for index in range(2):
        writer = SampleWriter(tmp_path / "run.h5.parts", index, told)
        put_required(writer, sample_id=f"s{index}")
        for name in ("raw/probability", "maps/image_to_text_per_head"):
            writer.put(name, rng.random(variable(name).shape(writer.sizes)[1:], np.float32))
        writer.put("maps/map_token_index", np.tile([1, 5, 40], (2, 1)))
        writer.seal()
    cut(
        tmp_path / "run.h5.parts",
        tmp_path / "cut.h5",
        Wanted(layers="1,2,5", heads="1", tokens="1-8,40-50", steps="0,2"),
    )
    with h5py.File(tmp_path / "cut.h5") as file:
        for index in range(2):
            with h5py.File(tmp_path / "run.h5.parts" / f"{index:06d}.h5") as part:
                raw, maps = part["raw/probability"][0], part["maps/image_to_text_per_head"][0]
            tokens = [*range(0, 7), *range(38, 49)]  # of raw_token, which begins at 2
            picked = raw[:, :, :1, 1:][:, :, :, :, tokens]
            np.testing.assert_array_equal(file["raw/probability"][index], picked)
            np.testing.assert_array_equal(
                file["maps/image_to_text_per_head"][index], maps[:, :1, :, [1, 2, 5]][:, :, :, :, 1:]
            )
        assert file["raw_layer"][()].tolist() == [1] and file["raw_token"][()].tolist() == [
            *range(2, 9),
            *range(40, 51),
        ]
    assert check_file(tmp_path / "cut.h5", deep=True) == []


def test_what_a_selection_does_not_divide_is_copied_as_it_lies_compressed(run, tmp_path):
    cut(run, tmp_path / "cut.h5", Wanted(samples="1-2", steps="1,2"))
    cut(run, tmp_path / "two.h5", Wanted(samples="1-2"))
    with (
        h5py.File(run) as whole,
        h5py.File(tmp_path / "cut.h5") as part,
        h5py.File(tmp_path / "two.h5") as two,
    ):
        name, offset = "sinks/mass_image", (1, 0, 2, 0, 0, 32)
        before = whole[name].id.read_direct_chunk(offset)
        assert part[name].id.read_direct_chunk((0, 0, 1, 0, 0, 32)) == before
        assert two[name].id.read_direct_chunk((0, 0, 2, 0, 0, 32)) == before
        hashes = [file["samples/content_sha256"].asstr()[()].tolist() for file in (whole, part, two)]
        assert hashes[2] == hashes[0][1:] and not set(hashes[1]) & set(hashes[0])


def test_a_slice_reads_of_the_file_only_what_it_keeps(run, tmp_path, monkeypatch):
    """Chunks of other tiers and steps may be damaged: a slice that leaves them out does not notice."""
    broken = tmp_path / "broken.h5"
    shutil.copy(run, broken)
    with h5py.File(broken) as file:
        places = [file["sinks/mass_image"].id.get_chunk_info_by_coord((0, 0, 1, 0, 0, 0)),
                  file["atlas/mass_patch"].id.get_chunk_info(0)]  # fmt: skip
    with broken.open("r+b") as file:
        for place in places:
            file.seek(place.byte_offset), file.write(bytes(place.size))
    cut(broken, tmp_path / "cut.h5", Wanted(steps="0,2-3", tiers=("sinks", "maps")))
    assert check_file(tmp_path / "cut.h5", deep=True) == []
    with pytest.raises(StoreError, match="broken.h5 cannot be read: .*; it is damaged"):
        cut(broken, tmp_path / "other.h5", Wanted(steps="1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.h5", "cut.h5"]


def test_samples_are_found_by_their_prompts_and_tags(run, tmp_path):
    made = cut(run, tmp_path / "cut.h5", Wanted(prompts="BLUE  car", tags=("y",)))
    assert made.samples.tolist() == [1]
    with pytest.raises(StoreError, match="no sample of --samples 0,2 has --prompts 'blue': nothing is left"):
        cut(run, tmp_path / "none.h5", Wanted(samples="0,2", prompts="blue"))
    with pytest.raises(StoreError, match="--tags x z"):
        cut(run, tmp_path / "none.h5", Wanted(tags=("x", "z")))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted(layers="3-7"), "--layers names layer 7, but 5 layers are numbered 0..4"),
        (Wanted(samples="9"), "--samples names sample 9"),
        (Wanted(branches=("skip",)), "--branches skip: the branches there are cond, uncond"),
        (Wanted(tiers=("raw",)), "--tiers raw: there are sinks, topk, maps"),
    ],
)
def test_what_is_not_there_is_refused_by_name(run, tmp_path, wanted, said):
    with pytest.raises((StoreError, ConfigError), match=said):
        cut(run, tmp_path / "none.h5", wanted)
    assert not list(tmp_path.iterdir())


def test_a_slice_says_what_it_was_cut_from_and_what_is_left_out(run, tmp_path, capsys):
    assert (
        main(["slice", str(run), "--steps", "1", "--samples", "0,2", "--out", str(tmp_path / "cut.h5")]) == 0
    )
    assert "left out, none of its steps was chosen: topk/top_stream" in capsys.readouterr().out
    with open_store(run) as whole, open_store(tmp_path / "cut.h5") as part:
        origin, table = part.provenance["origin"], whole.table()
        assert part.attributes["kind"] == "slice" and part.config == whole.config
        assert origin["of"]["file_uuid"] == whole.attributes["file_uuid"] != part.attributes["file_uuid"]
        assert origin["selection"] == {"samples": "0,2", "steps": "1"}
        assert origin["of"]["sample_sha256"] == {
            table["sample_id"][at]: table["content_sha256"][at] for at in (0, 2)
        }
        assert not [name for name in part.variables if name.startswith(("topk/", "maps/", "rows/"))]
    cut(tmp_path / "cut.h5", tmp_path / "again.h5", Wanted(samples="2"))  # by its number in the capture
    with open_store(tmp_path / "again.h5") as twice:
        assert twice.provenance["origin"]["of"]["origin"] == origin
        assert twice.samples["prompt_id"].tolist() == ["p2"]


def test_a_slice_holds_the_means_of_its_own_samples(run, tmp_path):
    cut(run, tmp_path / "cut.h5", Wanted(samples="0,2", layers="4"))
    with h5py.File(tmp_path / "cut.h5") as file:
        expected = file["sinks/mass_group"][()].mean(0, np.float64)
        np.testing.assert_allclose(file["summary/mass_group"][()], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "version", ["v1.0", pytest.param("v1.1", marks=pytest.mark.long)]
)  # the oldest always
def test_files_of_every_version_are_cut_and_joined(tmp_path, version):
    path = GOLDEN / f"{version}.h5"
    for sample in (0, 1):
        cut(path, tmp_path / f"{sample}.h5", Wanted(samples=str(sample)))
    join([tmp_path / "1.h5", tmp_path / "0.h5"], tmp_path / "both.h5")
    assert check_file(tmp_path / "both.h5", deep=True) == []
    before, after = arrays(path), arrays(tmp_path / "both.h5")
    for name in [name for name in before if "/" in name and not name.startswith("summary/")]:
        np.testing.assert_array_equal(after[name], before[name][::-1], err_msg=name)
    cut(path, tmp_path / "layer.h5", Wanted(layers="1", heads="0,2"))
    assert_is_cut(tmp_path / "layer.h5", brute_force(path, {"layer": [1], "head": [0, 2]}))


# ---- merges ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """The same shape with fewer tiers, drawn with other noise."""
    return make_store(
        tmp_path_factory.mktemp("other") / "other.h5",
        samples=2,
        layers=LAYERS,
        heads=HEADS,
        steps=STEPS,
        gates=True,
        seed=5,
    )


def test_a_merge_holds_every_array_of_its_files_one_behind_the_other(run, other, tmp_path):
    join([run, other], tmp_path / "all.h5")
    one, two, all_ = arrays(run), arrays(other), arrays(tmp_path / "all.h5")
    for name in [name for name in one if "/" in name and not name.startswith("summary/")]:
        if name in ("samples/sample_id", "samples/content_sha256"):
            continue
        np.testing.assert_array_equal(all_[name][:3], one[name], err_msg=name)
        if name in two:
            np.testing.assert_array_equal(all_[name][3:], two[name], err_msg=name)
        else:
            fill = all_[name][3:]
            assert (np.isnan(fill) if fill.dtype.kind == "f" else np.isin(fill, (-1, 255))).all(), name
    assert all_["sample"].tolist() == [0, 1, 2, 3, 4]
    assert check_file(tmp_path / "all.h5", deep=True) == []


def test_the_same_id_of_two_files_is_kept_apart_and_origin_says_so(run, other, tmp_path, capsys):
    assert main(["merge", str(run), str(other), "--out", str(tmp_path / "all.h5")]) == 0
    assert "sample 3: sample_id is now 000000@other" in capsys.readouterr().out
    with open_store(tmp_path / "all.h5") as store, open_store(other) as second:
        assert store.samples["sample_id"].tolist() == [
            "000000",
            "000001",
            "000002",
            "000000@other",
            "000001@other",
        ]
        assert store.samples["prompt_id"].tolist() == [
            "p0",
            "p1",
            "p2",
            "p0",
            "p1",
        ]  # they are the same prompts
        assert store.attributes["kind"] == "merge"
        files = store.provenance["origin"]["of"]
        assert [file["file"] for file in files] == ["run.h5", "other.h5"]
        assert files[1]["named"] == {"000000": "000000@other", "000001": "000001@other"}
        assert files[1]["file_uuid"] == second.attributes["file_uuid"]


def test_ids_of_other_prompts_are_kept_apart_too_and_compressed_chunks_are_copied(tmp_path):
    for name, prompts in (("a", ("a cat", "a dog")), ("b", ("a cow", "a dog"))):
        make_store(tmp_path / f"{name}.h5", prompts=prompts, sample_id=name, seed=len(name))
    join([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")
    with open_store(tmp_path / "all.h5") as store:
        assert store.samples["prompt_id"].tolist() == ["p0", "p1", "p0@b", "p1"]
        assert store.samples["sample_id"].tolist() == ["a", "a@a", "b", "b@b"]
    with h5py.File(tmp_path / "all.h5") as file, h5py.File(tmp_path / "b.h5") as part:
        chunks = [(file, (3, 0, 2, 0, 0, 64)), (part, (1, 0, 2, 0, 0, 64))]
        one, two = (each["sinks/mass_image"].id.read_direct_chunk(at) for each, at in chunks)
        assert one == two
    assert check_file(tmp_path / "all.h5", deep=True) == []


def test_equal_samples_are_refused_or_taken_once(run, tmp_path):
    cut(run, tmp_path / "first.h5", Wanted(samples="0-1"))
    cut(run, tmp_path / "last.h5", Wanted(samples="1-2"))
    files = [tmp_path / "first.h5", tmp_path / "last.h5"]
    with pytest.raises(
        StoreError, match="hold the same sample 000001, equal in every value: pass --skip_equal"
    ):
        join(files, tmp_path / "all.h5")
    assert join(files, tmp_path / "all.h5", skip_equal=True).skipped == ["000001"]
    before, after = arrays(run), arrays(tmp_path / "all.h5")
    for name in [name for name in before if name != "sample"]:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 4}, "model_shape = 4 x 3"),
        ({"layers": 4, "model_shape": "5 x 3"}, "has 4 positions along layer, run.h5 has 5: cut both alike"),
        ({"gates": False}, "has gate_type = none, run.h5 has headwise: a merge holds samples of one model"),
        ({"branches": ("cond",)}, "positions along branch"),
    ],
)  # fmt: skip
def test_files_of_another_shape_or_model_are_refused_by_what_differs(run, tmp_path, changes, said):
    shape = {"layers": LAYERS, "heads": HEADS, "steps": STEPS, "gates": True, "samples": 1, "seed": 3}
    other = make_store(tmp_path / "b.h5", **{**shape, **changes})
    with pytest.raises(StoreError, match=said):
        join([run, other], tmp_path / "all.h5")
    assert not (tmp_path / "all.h5").exists()


@pytest.mark.parametrize(("fingerprints", "refused"), [(("aa", "bb"), True), (("aa", "aa"), False)])
def test_a_model_is_told_by_its_fingerprint_not_by_its_name(tmp_path, fingerprints, refused):
    files = []
    for name, fingerprint in zip("ab", fingerprints, strict=True):
        files.append(make_store(tmp_path / f"{name}.h5", samples=1, sample_id=name, model_id=f"/data/{name}"))
        with h5py.File(files[-1], "r+") as file:
            told = {"transformer": {"fingerprint": fingerprint, "source": name}}
            file["provenance/components"] = json.dumps(told)
            file["provenance/events"] = json.dumps([{"event": "guidance", "sample_id": name}])
            seal_file(file)
    if refused:
        with pytest.raises(StoreError, match="another transformer than a.h5 .fingerprint bb, not aa."):
            join(files, tmp_path / "all.h5")
        return
    join(files, tmp_path / "all.h5")
    with open_store(tmp_path / "all.h5") as store:
        assert [event["sample_id"] for event in store.provenance["events"]] == ["a", "b"]
        assert store.provenance["origin"]["of"][1]["model_id"] == "/data/b"
        assert store.provenance["origin"]["of"][1]["components"]["transformer"]["source"] == "b"


def test_what_the_configurations_say_differently_is_in_origin_only(tmp_path):
    for name, steps in (("a", 3), ("b", 3)):
        writer = SampleWriter(tmp_path / f"{name}.h5.parts", 0, replace(header(), provenance={
            "config": json.dumps({"steps": steps, "prompts": [name]})}))  # fmt: skip
        put_required(writer, sample_id=name)
        writer.seal()
    join([tmp_path / "a.h5.parts", tmp_path / "b.h5.parts"], tmp_path / "all.h5")
    with open_store(tmp_path / "all.h5") as store:
        assert store.config == {"steps": 3}
        assert [file["config"] for file in store.provenance["origin"]["of"]] == [
            {"prompts": ["a"]},
            {"prompts": ["b"]},
        ]


def test_samples_of_a_version_with_other_chunks_are_sealed_anew_and_only_if_they_are_as_sealed(
    tmp_path, monkeypatch
):
    spec = variable("sinks/mass_image")
    older = {**VARIABLES, spec.name: replace(spec, chunk={**spec.chunk, "token": 8})}
    values = np.random.default_rng(0).random((2, 2, 3, 4, 2, 70), np.float32)
    for index, known in enumerate((older, VARIABLES)):
        monkeypatch.setattr(schema, "VARIABLES", known)
        writer = SampleWriter(tmp_path / f"{index}.h5.parts", index, header("exact"))
        writer.put(spec.name, values[index])
        put_required(writer, sample_id=f"s{index}")
        writer.seal()
    monkeypatch.setattr(schema, "VARIABLES", VARIABLES)
    files = [tmp_path / "1.h5.parts", tmp_path / "0.h5.parts"]
    join(files, tmp_path / "all.h5")
    with h5py.File(tmp_path / "all.h5") as file:
        np.testing.assert_array_equal(file[spec.name], values[::-1])
    assert check_file(tmp_path / "all.h5", deep=True) == []
    with h5py.File(tmp_path / "0.h5.parts" / "000000.h5", "r+") as file:
        file[spec.name][0, 0, 0, 0, 0, 0] = 7
    with pytest.raises(StoreError, match="sample s0 is not as it was sealed"):
        join(files, tmp_path / "again.h5")


# ---- where they may stand ----------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked_nor_written_over_what_is_read(run, other, tmp_path):
    own = Path(shutil.copy(run, tmp_path / "own.h5"))
    (tmp_path / "there.h5").write_text("mine")
    for make in (partial(cut, own, wanted=Wanted()), partial(join, [own, other])):
        with pytest.raises(StoreError, match="there.h5 is there already: pass --overwrite"):
            make(out=tmp_path / "there.h5")
        with pytest.raises(StoreError, match="own.h5 is what is read"):
            make(out=own, overwrite=True)
        with pytest.raises(StoreError, match="there is no folder nowhere"):
            make(out=tmp_path / "nowhere" / "x.h5")
    assert (tmp_path / "there.h5").read_text() == "mine"
    cut(own, tmp_path / "there.h5", Wanted(), overwrite=True)
    assert check_file(tmp_path / "there.h5", deep=True) == []


def test_a_capture_that_a_process_fills_is_neither_read_nor_written_over(run, tmp_path):
    parts = make_store(tmp_path / "run.h5", samples=1, packed=False, planned=2)
    with running(tmp_path / "run.h5"):
        for path in (tmp_path / "run.h5", parts):
            with pytest.raises(StoreError, match="run.h5 is being captured"):
                cut(path, tmp_path / "cut.h5", Wanted())
    for out in (tmp_path / "run.h5", parts / "cut.h5"):
        with pytest.raises(StoreError, match="belongs to a capture"):
            cut(run, out, Wanted(), overwrite=True)
    cut(parts, tmp_path / "cut.h5", Wanted(layers="0"))  # that stopped early: what it sealed is there
    assert check_file(tmp_path / "cut.h5", deep=True) == []


def test_a_full_disk_is_told_before_and_leaves_nothing(run, tmp_path):
    with small_disk(tmp_path / "disk", "200k") as disk:
        with pytest.raises(StoreError, match="cut.h5 takes about .* its disk has .* free: make room first"):
            cut(run, disk / "cut.h5", Wanted())
        assert not list(disk.iterdir())


def test_a_file_that_does_not_verify_is_not_opened(run, tmp_path):
    broken = Path(shutil.copy(run, tmp_path / "broken.h5"))
    with h5py.File(broken, "r+") as file:
        file["other"] = h5py.SoftLink("/samples")
    for make in (
        lambda: cut(broken, tmp_path / "x.h5", Wanted()),
        lambda: join([run, broken], tmp_path / "x.h5"),
    ):
        with pytest.raises(StoreError, match="broken.h5 cannot be opened: .*soft link"):
            make()
