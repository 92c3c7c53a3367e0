"""One Store for all forms on disk; selections equal numpy's; errors are sentences."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from dask import is_dask_collection
from hypothesis import given, settings
from hypothesis import strategies as st
from making.stores import PROMPTS, make_store

import sd35h5
from sd35h5 import StoreError, StoreNotFoundError, open_store
from sd35h5.store import schema
from sd35h5.store.writer import begin_run

ROOT = Path(__file__).parents[2]
BITS = 2.0**-11


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "run.h5", samples=3, gates=True, pool=2, height=128)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "run.h5"
    return make_store(path, samples=3, gates=True, pool=2, height=128, packed=False, planned=5)


def test_every_form_on_disk_is_the_same_store(run, parts):
    with open_store(run) as packed, open_store(parts) as folder, open_store(parts.with_suffix("")) as capture:
        assert packed.name == folder.name == capture.name == "run"
        assert (packed.status, packed.planned) == ("complete", 3)
        assert (folder.status, folder.planned) == (capture.status, capture.planned) == ("capturing", 5)
        assert packed.sizes == folder.sizes and packed.variables == folder.variables
        assert packed.config == folder.config == {"steps": 4, "height": 128, "width": 64, "seed": 0}
        assert packed.samples.equals(folder.samples) and packed.samples.equals(capture.samples)
        for name in packed.variables:
            assert packed.read(name).identical(folder.read(name)), name
    with open_store(parts / "000001.h5") as one:
        assert len(one) == 1 and one.samples["prompt"].tolist() == [PROMPTS[1]] and one.status == "complete"


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_selection_is_numpys_selection(run, parts, data):
    with open_store(data.draw(st.sampled_from([run, parts]))) as store:
        name = data.draw(st.sampled_from(["sinks/mass_image", "sinks/mass_group", "maps/image_to_text"]))
        dims = schema.variable(name).dims
        expected = store.read(name)
        for dim in data.draw(st.lists(st.sampled_from(dims), unique=True)):
            size = store.sizes[dim]
            position = st.integers(-size, size - 1)
            positions = st.lists(position, max_size=4)
            sel = data.draw(position | positions | st.slices(size))
            with open_store(run) as again:
                found = again.read(name, **{dim: sel})
            xr.testing.assert_identical(found, store.read(name).isel({dim: sel}))
        sel = {
            dim: data.draw(st.lists(st.integers(0, store.sizes[dim] - 1), min_size=1, max_size=3))
            for dim in dims
        }
        xr.testing.assert_identical(store.read(name, **sel), expected.isel(sel))


def test_group_masses_are_sums_of_masses_and_sum_to_one(run):
    with open_store(run) as store:
        masses = store.read("sinks/mass_group", branch="cond", query="image")
        np.testing.assert_allclose(masses.sum("group"), 1, rtol=1e-5)
        for sample in range(3):
            group = store.tokens(sample)["group"].to_numpy()
            tokens = store.read("sinks/mass_image", branch="cond", sample=sample)
            for label in ("clip_bos", "clip_word", "t5_pad"):
                summed = tokens.values[..., group == label].sum(-1)
                np.testing.assert_allclose(summed, masses.sel(group=label).isel(sample=sample), rtol=BITS)


def test_maps_average_to_the_mass_of_their_token(run):
    with open_store(run) as store:
        maps = store.read("maps/image_to_text", sample=2, branch="cond")
        tokens = store.read("maps/map_token_index", sample=2, branch="cond").values
        assert maps.dims == ("map_step", "map_token", "layer", "y", "x") and tokens.tolist() == [0, 1, 2, 3]
        mass = store.read(
            "sinks/mass_image", sample=2, branch="cond", step=maps["map_step"].values.tolist(), token=tokens
        )
        head_mean = mass.mean("head").transpose("step", "token", "layer")
        np.testing.assert_allclose(maps.mean(("y", "x")), head_mean, rtol=2 * BITS)


def test_labels_select_as_positions_do(run):
    with open_store(run) as store:
        by_label = store.read("sinks/mass_group", branch="uncond", query="text", group=["image", "clip_bos"])
        by_place = store.read("sinks/mass_group", branch=1, query=1, group=[8, 0])
        xr.testing.assert_identical(by_label, by_place)
        assert (
            by_label["group"].values.tolist() == ["image", "clip_bos"]
            and by_label["branch"].item() == "uncond"
        )


def test_a_label_is_looked_up_among_the_branches_that_are_there(tmp_path):
    with open_store(
        make_store(tmp_path / "a.h5", samples=1, branches=("uncond",), token_branches=("uncond",))
    ) as store:
        assert store.labels("branch") == ("uncond",)
        assert store.read("sinks/mass_image", branch="uncond").equals(
            store.read("sinks/mass_image", branch=0)
        )
        with pytest.raises(StoreError, match="a has no branch 'cond': it has uncond"):
            store.read("sinks/mass_image", branch="cond")


def test_coordinates_tell_the_true_step(run):
    with open_store(run) as store:
        maps = store.read("maps/image_to_text", map_step=1)
        assert maps["map_step"].item() == 2
        assert maps["timestep"].item() == 500 and maps["sigma"].item() == 0.5
        mass = store.read("sinks/mass_image", step=[3, 0])
        assert mass["step"].values.tolist() == [3, 0] and mass["timestep"].values.tolist() == [250, 1000]
        assert mass["sample"].values.tolist() == [0, 1, 2]
        assert maps["y"].values.tolist() == [0.5, 2.5, 4.5, 6.5]


def test_what_was_not_measured_is_not_a_number(run):
    with open_store(run) as store:
        assert np.isnan(store.read("sinks/mass_image", branch="uncond")).all()
        assert (store.read("maps/map_token_index", branch="uncond") == -1).all()
        assert (store.read("topk/top_stream", branch="uncond") == 255).all()


def test_samples_and_tokens_are_tables(run):
    with open_store(run) as store:
        samples = store.samples
        assert samples["sample"].tolist() == [0, 1, 2] and samples["prompt"].tolist() == list(PROMPTS)
        assert samples["seed"].tolist() == [0, 1, 2] and (samples["sealed"] == 1).all()
        tokens = store.tokens(0)
        assert list(tokens) == ["token", "encoder", "text", "group", "word", "char_start", "char_end",
                                "id_clip_l", "id_clip_g", "id_t5"]  # fmt: skip
        assert len(tokens) == store.sizes["token"]
        assert tokens.iloc[2].tolist() == [2, "clip", "red</w>", "clip_word", 1, 2, 5, 11, 11, -1]
        words = tokens[tokens["group"] == "t5_word"]
        assert [
            PROMPTS[0][a:b] for a, b in zip(words["char_start"], words["char_end"], strict=True)
        ] == PROMPTS[0].split()
        assert set(tokens["encoder"]) == {"clip", "t5"}
        assert "clip_word" not in set(store.tokens(0, "uncond")["group"])


def test_the_image_is_read_or_none(run, parts, tmp_path):
    with open_store(run) as store, open_store(parts) as folder:
        assert store.image(1).shape == (128, 64, 3) and store.image(1).dtype == np.uint8
        np.testing.assert_array_equal(store.image(-1), folder.image(2))
    bare = tmp_path / "bare.h5"
    shutil.copy(parts / "000000.h5", bare)
    with h5py.File(bare, "a") as file:
        del file["images"]
    with open_store(bare) as store:
        assert store.image(0) is None


def test_an_image_that_one_packed_sample_lacks_is_none(parts, tmp_path):
    from sd35h5.store.writer import pack

    folder = tmp_path / "run.h5.parts"
    shutil.copytree(parts, folder)
    with h5py.File(folder / "000001.h5", "a") as file:
        del file["images"], file["provenance/seal"]  # as if it never had them
    with open_store(pack(folder, tmp_path / "run.h5")) as store, open_store(folder) as many:
        for either in (store, many):
            assert [either.image(i) is None for i in range(3)] == [False, True, False]


def test_reading_touches_only_what_is_selected(run, tmp_path):
    """Every chunk but those of one sample and step is destroyed: that step is read, the rest refused."""
    damaged = tmp_path / "damaged.h5"
    shutil.copy(run, damaged)
    with h5py.File(run) as file:
        dataset = file["sinks/mass_image"].id
        infos = [dataset.get_chunk_info(i) for i in range(dataset.get_num_chunks())]
    with damaged.open("r+b") as raw:
        for info in infos:
            if info.chunk_offset[:3] != (1, 0, 2):
                raw.seek(info.byte_offset)
                raw.write(os.urandom(info.size))
    with open_store(run) as whole, open_store(damaged) as store:
        sel = {"sample": 1, "branch": "cond", "step": 2}
        xr.testing.assert_identical(
            store.read("sinks/mass_image", **sel), whole.read("sinks/mass_image", **sel)
        )
        with pytest.raises(
            StoreError, match=r"sinks/mass_image of damaged.h5 cannot be read: the file is damaged"
        ):
            store.read("sinks/mass_image", sample=0)


def test_the_dataset_is_lazy_and_equals_read(run, parts):
    for path in (run, parts):
        with open_store(path) as store:
            tree = store.to_xarray()
            assert {group.strip("/") for group in tree.groups} >= {
                "sinks",
                "topk",
                "maps",
                "tokens",
                "samples",
            }
            lazy = tree["sinks"]["mass_group"].sel(group="image").isel(sample=1, step=slice(1, 3))
            eager = store.read("sinks/mass_group", sample=1, group="image", step=slice(1, 3))
            np.testing.assert_array_equal(lazy.values, eager.values)
            tree["sinks"].to_dataset().load()


@pytest.mark.parametrize("kind", ["packed", "folder", "sealed", "running"])
def test_dask_arrays_are_blocks_of_whole_chunks_of_the_file_and_equal_read(run, parts, tmp_path, kind):
    path = {"packed": run, "folder": parts, "sealed": sorted(parts.glob("*.h5"))[1]}.get(kind)
    path = path or make_store(tmp_path / "run.h5", packed=False, planned=5)
    with open_store(path) as store:
        tree = store.to_xarray(chunks="auto")
        small = store.to_xarray(chunks={"sample": 1, "layer": 1})
        for name in ("sinks/mass_image", "sinks/mass_group", "maps/image_to_text", "samples/prompt"):
            array, stored = tree[name], store.chunks(name)
            assert is_dask_collection(array.variable) and array.dims == schema.variable(name).dims
            for cut, chunk in zip(array.data.chunks, stored or array.shape, strict=True):
                assert all(size % chunk == 0 for size in cut[:-1])
            np.testing.assert_array_equal(array.compute(), store.read(name))
        assert (
            set(small["sinks/mass_group"].data.chunks[0])
            == {1}
            == set(small["sinks/mass_group"].data.chunks[-2])
        )
        lazy = small["sinks/mass_group"].isel(sample=0, layer=[2, 0], step=slice(1, None, 2)).compute()
        eager = store.read("sinks/mass_group", sample=0, layer=[2, 0], step=slice(1, None, 2))
        np.testing.assert_array_equal(lazy, eager)
        with pytest.raises(StoreError, match="chunks names steps: .* has "):
            store.to_xarray(chunks={"steps": 1})


def test_blocks_are_cut_at_chunks_of_the_file_where_a_variable_is_larger_than_a_block(run):
    with open_store(run) as store, dask.config.set({"array.chunk-size": "1KiB"}):
        array = store.to_xarray(chunks="auto")["sinks/mass_image"]
        assert array.data.npartitions > 8
        for cut, chunk in zip(array.data.chunks, store.chunks("sinks/mass_image"), strict=True):
            assert all(size % chunk == 0 for size in cut[:-1])
        np.testing.assert_array_equal(array.data.compute(scheduler="threads"), store.read("sinks/mass_image"))


def test_dask_arrays_go_to_another_process_which_opens_the_same_samples_itself(run, parts, tmp_path):
    copy = tmp_path / "run.h5.parts"
    shutil.copytree(parts, copy)
    for path in (run, copy):
        with open_store(path) as store:
            sent = pickle.dumps(store.to_xarray(chunks="auto")["sinks/entropy_text"].data)
            expected = store.read("sinks/entropy_text").values
        code = "import pickle, sys; print(repr(float(pickle.load(sys.stdin.buffer).sum().compute())))"
        done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
        assert float(done.stdout) == pytest.approx(float(expected.sum()))
    here = shutil.copy(run, tmp_path / "one.h5")
    with open_store(here) as store:
        sent = pickle.dumps(store)
    make_store(tmp_path / "two.h5").rename(here)
    with pickle.loads(sent) as again, pytest.raises(StoreError, match="one.h5 is another file than when"):
        again.read("sinks/entropy_text")


def test_xarray_and_netcdf_conventions_give_names_and_coordinates(run):
    with xr.open_datatree(run, engine="h5netcdf") as tree:
        assert "phony_dim" not in str(tree)
        assert tree["sinks"]["mass_image"].dims == schema.variable("sinks/mass_image").dims
        assert tree["samples"]["prompt"].values.tolist() == list(PROMPTS)
        assert tree["maps"]["image_to_text"]["map_step"].values.tolist() == [0, 2]
        assert tree.coords["timestep"].values.tolist() == [1000, 750, 500, 250]
        with open_store(run) as store:
            np.testing.assert_array_equal(
                tree["sinks"]["mass_image"].values, store.read("sinks/mass_image").values
            )


def test_a_capture_before_its_first_sample_is_an_empty_store(tmp_path):
    begin_run(tmp_path / "run.h5", {"steps": 3}, planned=4)
    with open_store(tmp_path / "run.h5") as store:
        assert (len(store), store.status, store.planned, store.config) == (0, "capturing", 4, {"steps": 3})
        assert store.samples.empty and store.variables == () and "0 of 4 samples" in repr(store)
        with pytest.raises(StoreError, match="run has no sealed sample yet"):
            store.read("sinks/mass_image")


def test_a_sample_in_flight_is_not_seen(parts, tmp_path):
    folder = tmp_path / "run.h5.parts"
    shutil.copytree(parts, folder)
    (folder / "000003.h5.tmp").write_bytes(b"half")
    with open_store(folder) as store:
        assert len(store) == 3


def test_repr_tells_what_is_inside(run):
    with open_store(run) as store:
        text = repr(store)
    assert text.startswith("<sd35h5.Store 'run': complete, 3 of 3 samples>")
    for word in ("synthetic", "headwise", "layer 3", "head 2", "mass_image", "image_to_text"):
        assert word in text


@pytest.mark.parametrize(
    ("name", "sel", "sentence"),
    [
        (
            "sinks/mass_text",
            {},
            "run has no sinks/mass_text: it was captured with samples, tokens, sinks, topk",
        ),
        ("sinks/mass", {}, "did you mean sinks/mass_"),
        (
            "sinks/mass_image",
            {"haed": 1},
            "no dimension 'haed': it has sample, branch, step, layer, head, token",
        ),
        ("sinks/mass_image", {"head": 2}, r"head=2 is outside 0\.\.1 of run"),
        ("sinks/mass_image", {"layer": [0, -4]}, r"layer=-4 is outside 0\.\.2"),
        ("sinks/mass_image", {"layer": "first"}, "layer is selected by position, it has no labels"),
        ("sinks/mass_image", {"head": 0.5}, "head=0.5 is no position"),
        ("sinks/mass_image", {"head": [True]}, "head=True is no position"),
        ("sinks/mass_image", {"head": np.array([True, False])}, "by positions, not by a mask"),
        ("sinks/mass_group", {"group": "clip"}, "run has no group 'clip': it has clip_bos, clip_word"),
    ],
)
def test_a_wrong_question_is_answered_in_a_sentence(run, name, sel, sentence):
    with open_store(run) as store, pytest.raises(StoreError, match=sentence):
        store.read(name, **sel)


def test_a_closed_store_refuses_to_read(run):
    with open_store(run) as store:
        store.read("samples/seed")
    with pytest.raises(StoreError, match="run is closed"):
        store.read("samples/seed")


def test_what_is_no_store_is_refused_in_a_sentence(tmp_path, run):
    with pytest.raises(StoreNotFoundError, match=r"^nothing.h5: there is no such file or folder$"):
        open_store(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(StoreError, match="text.h5 cannot be opened: it is a text, not HDF5"):
        open_store(tmp_path / "text.h5")
    (tmp_path / "short.h5").write_bytes(run.read_bytes()[:50_000])
    with pytest.raises(StoreError, match="short.h5 cannot be opened"):
        open_store(tmp_path / "short.h5")
    h5py.File(tmp_path / "other.h5", "w").close()
    with pytest.raises(StoreError, match="other.h5 is HDF5, but no sd35h5 store"):
        open_store(tmp_path / "other.h5")
    with pytest.raises(StoreNotFoundError, match=r"without sealed samples: open one of its runs \(other.h5"):
        open_store(tmp_path)


@pytest.mark.parametrize("version", ["2.0", "0.9", ""])
def test_another_major_version_is_refused_a_minor_one_is_read(run, tmp_path, version):
    path = tmp_path / "a.h5"
    shutil.copy(run, path)
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = version
    with pytest.raises(StoreError, match=version or "it has no schema_version"):
        open_store(path)
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = "1.7"
        file.create_dataset("sinks/of_the_future", data=[1.0])
        file.create_dataset("future/thing", data=[1.0])
    with open_store(path) as store:
        assert "sinks/of_the_future" not in store and "sinks/mass_image" in store


def test_links_to_other_files_are_not_followed(run, tmp_path):
    path = tmp_path / "a.h5"
    shutil.copy(run, path)
    with h5py.File(path, "a") as file:
        del file["sinks/mass_group"]
        file["sinks/mass_group"] = h5py.ExternalLink(str(run), "/sinks/mass_group")
    with open_store(path) as store, pytest.raises(StoreError, match="mass_group is a link to somewhere else"):
        store.read("sinks/mass_group")


def test_an_untrusted_file_is_verified_first(run, tmp_path):
    with open_store(run, trusted=False) as store:
        assert len(store) == 3
    (tmp_path / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1000))
    with pytest.raises(StoreError, match="bad.h5 cannot be opened: it is cut off, it has only 1008 bytes"):
        open_store(tmp_path / "bad.h5", trusted=False)


def test_joined_scores_are_columns(run, tmp_path):
    path = tmp_path / "a.h5"
    shutil.copy(run, path)
    with h5py.File(path, "a") as file:
        score = file.create_dataset("scores/clip_score", data=np.array([0.1, np.nan, 0.3], np.float32))
        score.dims[0].attach_scale(file["sample"])
    with open_store(path) as store:
        assert store.samples["clip_score"].isna().tolist() == [False, True, False]


def test_the_public_names_are_there_and_torch_is_not():
    code = (
        "import sys, sd35h5; sd35h5.open_store, sd35h5.verify, sd35h5.Store\n"
        "assert not {'torch', 'diffusers', 'pandas', 'xarray'} & set(sys.modules), sys.modules.keys()\n"
        "assert sd35h5.metrics.__name__ == 'sd35h5.metrics' and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert set(sd35h5.__all__) <= set(dir(sd35h5))
    with pytest.raises(AttributeError, match="module 'sd35h5' has no attribute 'captre'"):
        sd35h5.captre  # noqa: B018
