"""Chunks that we filter ourselves are read as if HDF5 had filtered them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd35h5.store.blocks import extent, origins
from sd35h5.store.chunks import decode_chunk, encode_chunk, fletcher32

ROOT = Path(__file__).parents[2]


def _checksum_of_hdf5(data: bytes) -> int:
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("a", data=np.frombuffer(data, np.uint8), chunks=True, fletcher32=True)
        file.flush()  # HDF5 2.0 overruns the buffer of a direct read of a chunk that is still in its cache
        return int.from_bytes(dataset.id.read_direct_chunk((0,))[1][-4:], "little")


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=2000))
def test_the_checksum_is_that_of_hdf5(data):
    assert fletcher32(data) == _checksum_of_hdf5(data)


@pytest.mark.parametrize("value", [0, 1, 255])
@pytest.mark.parametrize("length", [1, 2, 511, 512, 513, 65_535 * 2, 140_001])
def test_the_checksum_of_long_and_uniform_data_is_that_of_hdf5(length, value):
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset(
            "a", data=np.full(length, value, np.uint8), chunks=(length,), fletcher32=True
        )
        file.flush()
        stored = dataset.id.read_direct_chunk((0,))[1]
    assert fletcher32(stored[:-4]) == int.from_bytes(stored[-4:], "little")


@pytest.mark.parametrize("dtype", ["<f4", "<i2", "<i4", "<i8", "u1"])
@pytest.mark.parametrize(("shape", "chunk"), [((7, 70), (1, 32)), ((7, 70), (3, 32)), ((5,), (5,))])
def test_what_is_written_directly_reads_back_as_what_h5py_writes(dtype, shape, chunk):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 120, shape).astype(dtype)
    filters = {"shuffle": True, "compression": "gzip", "compression_opts": 1, "fletcher32": True}
    with h5py.File("memory", "w", driver="core", backing_store=False, libver=("v110", "v114")) as file:
        ours = file.create_dataset("ours", shape, dtype, chunks=chunk, fillvalue=3, **filters)
        theirs = file.create_dataset("theirs", data=values, chunks=chunk, fillvalue=3, **filters)
        file.flush()
        for origin in origins(tuple(slice(0, n) for n in shape), chunk):
            whole = extent(origin, chunk, shape)
            block = values[tuple(slice(o, o + n) for o, n in zip(origin, whole, strict=True))]
            ours.id.write_direct_chunk(origin, encode_chunk(block, chunk, 3))
            inside = tuple(slice(0, n) for n in whole)
            decoded = decode_chunk(theirs.id.read_direct_chunk(origin)[1], chunk, np.dtype(dtype))
            np.testing.assert_array_equal(decoded[inside], block)
            assert ours.id.read_direct_chunk(origin)[0] == 0
        np.testing.assert_array_equal(ours[:], theirs[:])
        assert ours.id.get_num_chunks() == theirs.id.get_num_chunks()


def test_an_edge_chunk_is_padded_with_the_fill():
    block = np.arange(6, dtype="<f4").reshape(2, 3)
    chunk = decode_chunk(encode_chunk(block, (4, 4), np.nan), (4, 4), np.dtype("<f4"))
    np.testing.assert_array_equal(chunk[:2, :3], block)
    assert np.isnan(chunk[2:]).all() and np.isnan(chunk[:, 3:]).all()


def test_a_flipped_bit_fails_the_checksum():
    data = bytearray(encode_chunk(np.arange(100, dtype="<f4"), (100,), 0))
    data[20] ^= 4
    with pytest.raises(ValueError, match="checksum"):
        decode_chunk(bytes(data), (100,), np.dtype("<f4"))


@pytest.mark.parametrize("without", [True, False])
def test_zlib_stands_in_where_isal_is_missing(without):
    code = (
        f"import sys; sys.modules.update({'{'}'isal': None{'}'} if {without} else {{}})\n"
        "import numpy as np; from sd35h5.store import chunks\n"
        "print(chunks.compress.__module__)\n"
        "values = np.arange(3000, dtype='<f4')\n"
        "data = chunks.encode_chunk(values, (3000,), 0)\n"
        "print(np.array_equal(chunks.decode_chunk(data, (3000,), values.dtype), values))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    module, same = done.stdout.split()
    assert ("isal" in module) != without and same == "True", done.stderr
