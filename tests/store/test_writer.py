"""What goes in comes out, a sealed file is whole, a killed capture loses only the sample in flight."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from making.samples import SIZES, content, header, put_required
from making.stores import make_store

from sd35h5 import open_store, verify
from sd35h5.errors import StoreError
from sd35h5.store import schema
from sd35h5.store.blocks import batches, round_mantissa, runs
from sd35h5.store.schema import SCALES, VARIABLES, variable
from sd35h5.store.writer import Header, SampleWriter, begin_run, pack, read_run, sealed_indices

HERE = Path(__file__).parents[1]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), precision=st.sampled_from(["rounded", "exact"]))
def test_values_put_in_any_pieces_and_order_are_read_back(tmp_path_factory, data, precision):
    name = data.draw(
        st.sampled_from(["sinks/mass_image", "maps/image_to_text", "sinks/mass_group", "tokens/token_id"])
    )
    spec = variable(name)
    writer = SampleWriter(tmp_path_factory.mktemp("parts"), 0, header(precision))
    shape = spec.shape(writer.sizes)[1:]
    values = np.random.default_rng(0).integers(0, 1 << 20, shape).astype(spec.dtype) / (
        1 if "id" in name else 3
    )
    values = values.astype(spec.dtype)
    at = data.draw(st.lists(st.sampled_from(spec.dims[1:]), unique=True, max_size=3))
    places = list(np.ndindex(*(writer.sizes[dim] for dim in at)))
    for place in data.draw(st.permutations(places)):
        where = dict(zip(at, place, strict=True))
        writer.put(name, values[tuple(where.get(dim, slice(None)) for dim in spec.dims[1:])], **where)
    put_required(writer)
    sealed = writer.seal()
    expected = round_mantissa(values) if spec.rounded and precision == "rounded" else values
    with open_store(sealed) as store:
        np.testing.assert_array_equal(store.read(name, sample=0).values, expected)


def test_positions_can_be_listed_along_several_dimensions_in_any_order(tmp_path):
    name, values = "maps/image_to_text_per_head", np.random.default_rng(3).random((2, 4, 2, 5, 3), np.float32)
    writer = SampleWriter(tmp_path, 0, header("exact"))
    writer.put(name, values, branch=1, map_step=0, map_token=[2, 0], layer=[3, 1, 0, 2])
    with pytest.raises(StoreError, match="layer=4 is outside"):
        writer.put(name, values, branch=0, map_step=0, map_token=[2, 0], layer=[4, 1, 0, 2])
    with pytest.raises(StoreError, match=r"expects map_token 1 x layer 4 x head 2 x y 5 x x 3"):
        writer.put(name, values, branch=0, map_step=0, map_token=[2])
    put_required(writer)
    with open_store(writer.seal()) as store:
        found = store.read(name, sample=0).values
    expected = np.full((2, 2, 3, 4, 2, 5, 3), np.nan, np.float32)
    for place, layer in np.ndindex(2, 4):
        expected[1, 0, (2, 0)[place], (3, 1, 0, 2)[layer]] = values[place, layer]
    np.testing.assert_array_equal(found, expected)


def test_every_variable_of_the_format_is_written_packed_and_read(tmp_path):
    lengths = {name: 2 + i % 3 for i, name in enumerate(SCALES) if SCALES[name].is_dimension}
    flags = {name: np.arange(len(SCALES[name].labels)) for name in lengths if SCALES[name].labels}
    scales = {name: np.arange(n) for name, n in lengths.items()} | flags
    rng = np.random.default_rng(0)
    put: dict[str, list[np.ndarray]] = {}
    for index in range(2):
        writer = SampleWriter(tmp_path / "run.h5.parts", index, Header({}, scales, {"config": "{}"}, "exact"))
        for name, spec in VARIABLES.items():
            if name in ("samples/sealed", "samples/content_sha256"):
                continue
            values = rng.integers(0, 100, spec.shape(writer.sizes)[1:])
            values = np.char.mod("t%d", values).astype(object) if spec.is_text else values.astype(spec.dtype)
            put.setdefault(name, []).append(values)
            writer.put(name, values)
        writer.seal()
    out = pack(tmp_path / "run.h5.parts", tmp_path / "run.h5", keep_parts=False)
    with open_store(out) as store:
        assert set(store.variables) == set(VARIABLES)
        for name, values in put.items():
            np.testing.assert_array_equal(store.read(name).values, np.stack(values), err_msg=name)
    assert verify(out, deep=True).problems == ()
    with xr.open_datatree(out, engine="h5netcdf") as tree:
        assert all(tree[name].dims == spec.dims for name, spec in VARIABLES.items())


def test_the_content_hash_does_not_depend_on_the_pieces(tmp_path):
    values = np.random.default_rng(1).random((2, 3, 4, 2, 70))
    hashes = set()
    for index, by_layer in enumerate((False, True)):
        writer = SampleWriter(tmp_path, index, header())
        for step in range(3):
            for layer in range(4) if by_layer else [slice(None)]:
                where = {"step": step} | ({"layer": layer} if by_layer else {})
                writer.put("sinks/mass_image", values[:, step, layer], **where)
        put_required(writer, seed=5)
        hashes.add(content(writer.seal()))
    assert len(hashes) == 1


@given(st.lists(st.floats(width=32), min_size=1))
def test_rounding_keeps_ten_mantissa_bits(floats):
    values = np.array(floats, np.float32)
    rounded = round_mantissa(values)
    normal = np.isfinite(values) & (np.abs(values) >= np.finfo(np.float32).tiny) & (np.abs(values) < 3e38)
    with np.errstate(invalid="ignore"):
        error = np.abs(rounded - values)
    assert (error[normal] <= np.abs(values[normal]) * 2.0**-11).all()
    assert not (rounded[normal].view(np.uint32) & 0x1FFF).any()
    np.testing.assert_array_equal(np.isnan(rounded), np.isnan(values))


def test_only_partly_filled_blocks_are_held_in_memory(tmp_path):
    writer = SampleWriter(tmp_path, 0, header())
    for step in range(3):
        writer.put("sinks/mass_image", np.ones((4, 2, 70)), branch=0, step=step)
    assert not writer._pending["sinks/mass_image"]
    writer.put("sinks/mass_image", np.ones((2, 70)), branch=1, step=0, layer=0)
    assert len(writer._pending["sinks/mass_image"]) == 3  # tokens 0..31, 32..63, 64..69
    writer.abandon()


@pytest.mark.parametrize(
    ("name", "values", "at", "sentence"),
    [
        ("sinks/mass", 1, {}, "'sinks/mass' is no variable.*did you mean"),
        ("sinks/mass_image", np.ones((4, 3, 70)), {"branch": 0, "step": 3 - 1},
         r"at branch=0, step=2 has shape \(4, 3, 70\), the file expects layer 4 x head 2 x token 70"),
        ("sinks/mass_image", np.ones((4, 2, 70)), {"branch": 0, "step": 3}, r"step=3 is outside 0\.\.2"),
        ("sinks/mass_image", np.ones((4, 2, 70)), {"branch": 0, "stpe": 3}, "no dimension 'stpe'"),
        ("topk/top_mass", 1.0, {}, "needs the scale 'top_step', 'rank': the header has none"),
        ("tokens/token_word", np.full((2, 70), 40_000), {}, r"int16, the values span 40000\.\.40000"),
        ("tokens/token_word", np.ones((2, 70)), {}, "int16, the values are float64"),
        ("samples/prompt", 3, {}, "holds texts without control characters, not 3"),
        ("samples/prompt", "a\0b", {}, "holds texts without control characters"),
        ("samples/sealed", 1, {}, r"written by seal\(\)"),
    ],
)  # fmt: skip
def test_a_wrong_put_is_refused_in_a_sentence(tmp_path, name, values, at, sentence):
    writer = SampleWriter(tmp_path, 0, header())
    with pytest.raises(StoreError, match=sentence):
        writer.put(name, values, **at)
    writer.abandon()


@pytest.mark.parametrize("at", [{}, {"branch": 1}, {"branch": 1, "step": 2, "layer": 3}])
def test_values_are_never_overwritten(tmp_path, at):
    writer = SampleWriter(tmp_path, 0, header())
    whole = np.ones((2, 3, 4, 2, 70))
    index = tuple(at.get(dim, slice(None)) for dim in ("branch", "step", "layer"))
    writer.put("sinks/mass_image", whole[index], **at)
    with pytest.raises(StoreError, match="mass_image was put before at branch="):
        writer.put("sinks/mass_image", whole)
    writer.abandon()


def test_a_sample_without_its_table_is_not_sealed(tmp_path):
    writer = SampleWriter(tmp_path, 3, header())
    writer.put("samples/prompt", "a cat")
    with pytest.raises(StoreError, match="sample 000003 cannot be sealed: .*seed.* not put"):
        writer.seal()
    writer.abandon()
    assert not list(tmp_path.iterdir())


def test_a_header_with_names_outside_the_format_is_refused():
    with pytest.raises(StoreError, match="no scale 'lyer'"):
        Header({}, {"lyer": np.arange(3)}, {"config": "{}"})
    with pytest.raises(StoreError, match="'sigma' needs one value for each position along 'step'"):
        Header({}, {"step": np.arange(3), "sigma": np.arange(2)}, {"config": "{}"})
    with pytest.raises(StoreError, match=r"'branch' holds the flags 0..2 \(cond, uncond, skip\) only"):
        Header({}, {"branch": np.array([0, 3])}, {"config": "{}"})
    with pytest.raises(StoreError, match="needs provenance"):
        Header({}, {})


def test_packing_keeps_every_value_and_hash_and_compressed_chunk(tmp_path):
    parts = make_store(tmp_path / "run.h5", samples=3, packed=False)
    packed = pack(parts, tmp_path / "run.h5")
    with open_store(packed) as one, open_store(parts) as many:
        assert one.variables == many.variables
        assert all(one.read(name).identical(many.read(name)) for name in one.variables)
    with h5py.File(packed) as file, h5py.File(parts / "000002.h5") as part:
        a, b = file["sinks/mass_image"].id, part["sinks/mass_image"].id
        assert a.read_direct_chunk((2, 0, 3, 0, 0, 32)) == b.read_direct_chunk((0, 0, 3, 0, 0, 32))
    assert verify(packed, deep=True).ok and verify(parts, deep=True).ok


@pytest.mark.parametrize("older_first", [True, False])
def test_samples_of_a_version_with_other_chunks_are_packed_and_stay_sound(tmp_path, monkeypatch, older_first):
    """Hashes are over blocks, which are the file's chunks: who cuts a sample anew seals it anew."""
    spec = variable("sinks/mass_image")
    older = {**VARIABLES, spec.name: replace(spec, chunk={**spec.chunk, "token": 8})}
    values = np.random.default_rng(0).random((2, 2, 3, 4, 2, 70), np.float32)
    for index, known in enumerate((older, VARIABLES) if older_first else (VARIABLES, older)):
        monkeypatch.setattr(schema, "VARIABLES", known)
        writer = SampleWriter(tmp_path / "run.h5.parts", index, header("exact"))
        writer.put(spec.name, values[index])
        put_required(writer)
        writer.seal()
    monkeypatch.setattr(schema, "VARIABLES", VARIABLES)
    packed = pack(tmp_path / "run.h5.parts", tmp_path / "run.h5")
    with h5py.File(packed, "r+") as file:
        assert file[spec.name].chunks[-1] == (8 if older_first else 32)
        np.testing.assert_array_equal(file[spec.name], values)
    assert verify(packed, deep=True).ok and verify(tmp_path / "run.h5.parts", deep=True).ok
    with h5py.File(tmp_path / "run.h5.parts" / "000001.h5", "r+") as file:
        file[spec.name][0, 0, 0, 0, 0, 0] = 7  # no longer what was sealed: not sealed anew either
    again = pack(tmp_path / "run.h5.parts", tmp_path / "again.h5")
    assert "sample 1 are not those that were sealed" in verify(again, deep=True).problems[0]


def test_packing_fills_what_one_sample_lacks(tmp_path):
    for index in range(2):
        writer = SampleWriter(tmp_path / "run.h5.parts", index, header())
        if index:
            writer.put("sinks/mass_image", np.ones((4, 2, 70)), branch=1, step=2)
        put_required(writer)
        writer.seal()
    with open_store(pack(tmp_path / "run.h5.parts", tmp_path / "run.h5")) as store:
        values = store.read("sinks/mass_image").values
    assert np.isnan(values[0]).all() and (values[1, 1, 2] == 1).all() and np.isnan(values[1, 0]).all()


def test_samples_of_different_runs_are_not_packed(tmp_path):
    parts = make_store(tmp_path / "a.h5", samples=1, packed=False)
    other = make_store(tmp_path / "b.h5", samples=2, steps=5, packed=False)
    shutil.copy(other / "000001.h5", parts)
    with pytest.raises(StoreError, match=r"000001.h5 has another step than the first sample"):
        pack(parts, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists() and not (tmp_path / "a.h5.tmp").exists()


def test_samples_captured_after_packing_are_read_and_packed_with_the_others(tmp_path):
    out = tmp_path / "run.h5"
    whole = make_store(tmp_path / "whole.h5", samples=4)
    parts = make_store(out, samples=4, packed=False)
    late = tmp_path / "late"
    late.mkdir()
    for index in (0, 3):
        (parts / f"00000{index}.h5").rename(late / f"00000{index}.h5")
    pack(parts, out, keep_parts=False)
    assert begin_run(out, {"steps": 4, "height": 96, "width": 64, "seed": 0}, planned=4) == parts
    for file in late.iterdir():
        file.rename(parts / file.name)
    assert sealed_indices(parts) == {0, 1, 2, 3}
    for path in (out, pack(parts, out), pack(parts, out, keep_parts=False)):
        with open_store(path) as store, open_store(whole) as expected:
            assert len(store) == 4 and store.status == "complete"
            assert all(store.read(name).equals(expected.read(name)) for name in expected.variables)
        assert verify(path, deep=True).ok
    assert not parts.exists()


def test_two_packings_of_one_run_do_not_mix(tmp_path):
    parts, out = make_store(tmp_path / "run.h5", samples=2, packed=False), tmp_path / "run.h5"
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: pack(parts, out), range(2))) == [out, out]
    assert verify(out, deep=True).ok and not list(tmp_path.glob("*.tmp"))


def test_a_packed_file_of_another_run_is_not_mixed_in(tmp_path):
    parts = make_store(tmp_path / "a.h5", samples=1, packed=False)
    for changes, sentence in (
        ({"layers": 5}, "b.h5 has another layer than the first sample"),
        ({"width": 96}, "b.h5 holds samples of another configuration"),
    ):
        other = make_store(tmp_path / "b.h5", samples=2, **changes)
        before = other.read_bytes()
        with pytest.raises(StoreError, match=sentence):
            pack(parts, other)
        assert other.read_bytes() == before
        other.unlink()


def test_provenance_that_differs_is_kept_as_events(tmp_path):
    for index, environment in enumerate(('{"gpu": "a"}', '{"gpu": "b"}')):
        texts = {"config": "{}", "environment": environment, "events": f'["resumed {index}"]'}
        scales = {n: np.arange(k) for n, k in SIZES.items()}
        writer = SampleWriter(tmp_path / "p", index, Header({}, scales, texts))
        put_required(writer)
        writer.seal([{"event": "sealed", "place": index}])
    with open_store(pack(tmp_path / "p", tmp_path / "run.h5")) as store:
        assert store.provenance["environment"] == {"gpu": "a"}
        events = store.provenance["events"]
        assert events[:2] == ["resumed 0", {"event": "sealed", "place": 0}]
        assert [each for each in events if "1" in str(each)][-2:] == [
            "resumed 1",
            {"event": "sealed", "place": 1},
        ]
        assert {
            "event": "environment differs",
            "sample": "000001",
            "value": {"gpu": "b"},
        } in store.provenance["events"]


def test_a_run_is_continued_only_with_its_own_configuration(tmp_path):
    out = tmp_path / "run.h5"
    parts = begin_run(out, {"steps": 28, "prompts": ("a", "b"), "seed": 0}, planned=2)
    assert (
        begin_run(out, {"steps": 27}, planned=2) == parts
    )  # nothing is sealed, so nothing stands in its way
    begin_run(out, {"steps": 28, "prompts": ("a", "b"), "seed": 0}, planned=2)
    writer = SampleWriter(parts, 0, header())
    put_required(writer)
    writer.seal()
    assert begin_run(out, {"steps": 28, "prompts": ["a", "b"], "seed": 0}, planned=2) == parts
    with pytest.raises(
        StoreError,
        match=r"another configuration \(guidance: nothing there, 4.5 now; steps: 28 there, 20 now\)",
    ):
        begin_run(out, {"steps": 20, "prompts": ["a", "b"], "seed": 0, "guidance": 4.5}, planned=2)
    assert begin_run(out, {"steps": 20}, planned=1, overwrite=True) == parts
    assert read_run(parts) == {"config": {"steps": 20}, "planned": 1}


def test_a_packed_run_counts_as_sealed_and_guards_its_configuration(tmp_path):
    out = make_store(tmp_path / "run.h5", samples=2)
    config = {"steps": 4, "height": 96, "width": 64, "seed": 0}
    assert sealed_indices(begin_run(out, config, planned=2)) == {0, 1}
    with pytest.raises(StoreError, match="steps: 4 there, 5 now"):
        begin_run(out, {**config, "steps": 5}, planned=2)


def test_a_file_that_is_no_store_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "notes.h5").write_text("my notes")
    with pytest.raises(StoreError, match="^notes.h5 cannot be opened: it is a text, not HDF5"):
        begin_run(tmp_path / "notes.h5", {}, planned=1)
    assert (tmp_path / "notes.h5").read_text() == "my notes"


def test_two_writers_of_one_sample_each_seal_it_whole(tmp_path):
    """As on hosts that share a disk and no locks: who is later replaces the file, and nobody writes into another's."""
    first, second = SampleWriter(tmp_path, 0, header()), SampleWriter(tmp_path, 0, header())
    put_required(first)
    put_required(second)
    sealed = first.seal()
    assert verify(sealed, deep=True).ok and len(list(tmp_path.glob("*.tmp"))) == 1
    assert second.seal() == sealed and verify(sealed, deep=True).ok
    assert [path.name for path in tmp_path.iterdir()] == ["000000.h5"]


def test_what_a_dead_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    living = SampleWriter(tmp_path, 0, header())
    left = [tmp_path / "000000.h5.tmp", tmp_path / f"{next(tmp_path.glob('*.tmp')).name[:-12]}00000000.tmp"]
    elsewhere = tmp_path / "000000.h5.0123abcd-01234567.tmp"  # of another host, which no lock tells of
    for path in (*left, elsewhere):
        path.write_bytes(b"half")
    second = SampleWriter(tmp_path, 0, header())
    assert not any(path.exists() for path in left) and elsewhere.exists()
    put_required(living)
    assert verify(living.seal(), deep=True).ok
    second.abandon()


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from making.samples import *\nfrom sd35h5.errors import StoreError\n"
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "writer = SampleWriter(Path(sys.argv[3]), 0, header('exact', token=np.arange(8_000)))\n"
        "noise = np.random.default_rng(0).random((2, 3, 4, 2, 8_000))\n"
        "try:\n    writer.put('sinks/mass_image', noise); put_required(writer); writer.seal()\n"
        "except StoreError as error: print(error)\nwriter.abandon()"
    )
    command = [sys.executable, "-c", code, str(HERE), str(HERE.parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"sample 000000 cannot be written to {tmp_path}: file too large\n", done.stderr
    assert not list(tmp_path.iterdir())


def test_a_killed_capture_loses_only_the_sample_in_flight(tmp_path):
    """SIGKILL at several moments; the sealed files are whole, and going on gives the same data as one run."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path; from making import stores\n"
        "from sd35h5.store.writer import sealed_indices; import sd35h5.store.writer as w\n"
        "write = stores._write_sample\n"
        "def go(w, *a): return w.abandon() if w.index in sealed_indices(w.path.parent) else write(w, *a)\n"
        "stores._write_sample = go\n"
        "stores.make_store(Path(sys.argv[3]), samples=6, packed=False)"
    )
    command = [sys.executable, "-c", code, str(HERE), str(HERE.parent), str(tmp_path / "run.h5")]
    parts = tmp_path / "run.h5.parts"
    for sealed in (1, 2, 4):
        process = subprocess.Popen(command)
        while process.poll() is None and len(list(parts.glob("*.h5"))) < sealed:
            time.sleep(0.01)
        time.sleep(0.03 * sealed)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert verify(parts, deep=True).ok
    subprocess.run(command, check=True)
    whole = make_store(tmp_path / "whole.h5", samples=6, packed=False)
    assert [content(p) for p in sorted(parts.glob("*.h5"))] == [
        content(p) for p in sorted(whole.glob("*.h5"))
    ]
    assert not list(parts.glob("*.tmp"))  # a leftover became the sample's next attempt


@pytest.mark.skipif(not shutil.which("h5dump"), reason="needs hdf5-tools")
def test_h5dump_reads_every_value(tmp_path):
    path = make_store(tmp_path / "run.h5", samples=2, gates=True)
    done = subprocess.run(["h5dump", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"a red apple left of a cat"' in done.stdout
    with open_store(path) as store:
        value = store.read("sinks/mass_group", sample=0, branch=0, query=0, group=0, step=0, layer=0, head=0)
    dumped = subprocess.run(
        ["h5dump", "-y", "-m", "%.9g", "-d", "/sinks/mass_group", "-c", "1,1,1,1,1,1,1", str(path)],
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert f"{float(value):.9g}" in dumped


def test_threads_take_small_blocks_together_and_large_ones_alone():
    sizes = [100_000, 200_000, 40, 2_000_000, 5, 6]
    blocks = [((place,), np.zeros(size, np.uint8)) for place, size in enumerate(sizes)]
    taken = [[origin[0] for origin, _ in batch] for batch in batches(blocks)]
    assert taken == [[0, 1], [2, 3], [4, 5]] and list(batches([])) == []


@given(st.lists(st.integers(0, 30), max_size=12))
def test_runs_hold_every_position_once_in_its_place(positions):
    found = [
        (place, position)
        for places, taken in runs(positions)
        for place, position in zip(
            range(places.start, places.stop), range(taken.start, taken.stop), strict=True
        )
    ]
    assert found == list(enumerate(positions))
    assert len(list(runs(range(3, 9)))) == 1
