"""Scores joined from a table: the right number beside the right sample, and never a file that is lost."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from making.stores import make_store

from sd35h5 import StoreError, open_store, verify
from sd35h5.__main__ import main
from sd35h5.store.packing import pack
from sd35h5.store.processes.guarded_store import open_through
from sd35h5.store.processes.reader_pool import Readers
from sd35h5.store.score_joining import join_scores
from sd35h5.store.scores_csv import read_scores
from sd35h5.store.writer import begin_run

ROOT = Path(__file__).parents[2]
GOOD = "sample_id,clip_score\n000002,0.25\n000000,-1e-3\n000001,\n"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("scores") / "run.h5", samples=3, steps=2)


@pytest.fixture
def run(plain, tmp_path) -> Path:
    return Path(shutil.copy(plain, tmp_path / "run.h5"))


def table(run: Path, text: str) -> Path:
    path = run.with_name("table.csv")
    path.write_text(text, encoding="utf-8")
    return path


def contents(path: Path) -> dict[str, object]:
    """Every dataset but scores, events and the seal over them, as stored."""
    found, told_anew = {}, ("provenance/events", "provenance/seal")

    def visit(name: str, obj: h5py.Dataset | h5py.Group) -> None:
        if isinstance(obj, h5py.Dataset) and not name.startswith("scores/") and name not in told_anew:
            values = np.asarray(obj[()])
            found[name] = values.tolist() if values.dtype == object else (values.shape, values.tobytes())

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def test_rows_in_any_order_find_their_samples_and_an_empty_cell_is_nan(run):
    assert join_scores(run, table(run, GOOD)) == {"clip_score": 2}
    with open_store(run) as store:
        np.testing.assert_array_equal(
            store.samples["clip_score"], np.array([-1e-3, np.nan, 0.25], np.float32)
        )
        assert store.samples["clip_score"].dtype == np.float32


def test_prompt_and_seed_name_a_sample_too_and_other_known_columns_are_left_alone(run):
    text = "seed,prompt_id,prompt,human,nsfw\n1,p1,whatever,4,0.5\n2,p2,whatever,nan,0.25\n"
    assert join_scores(run, table(run, text)) == {"human": 1, "nsfw": 2}
    with open_store(run) as store:
        np.testing.assert_array_equal(store.samples["human"], [np.nan, 4, np.nan])
        np.testing.assert_array_equal(store.samples["nsfw"], [np.nan, 0.5, 0.25])
        assert "whatever" not in store.samples["prompt"].tolist()


def test_everything_else_stays_and_the_hashes_that_sealed_the_samples_are_valid(run, plain):
    join_scores(run, table(run, GOOD))
    assert contents(run) == contents(plain)
    assert verify(run, deep=True).ok


def test_the_file_says_where_the_scores_come_from(run):
    join_scores(run, table(run, GOOD))
    join_scores(run, table(run, "sample_id,taste\n000000,1\n"))
    with open_store(run) as store:
        first, second = store.provenance["events"]
    assert (first["event"], first["scores"], second["scores"]) == ("scores joined", ["clip_score"], ["taste"])
    assert first["table"] == "table.csv" and first["sha256"] != second["sha256"]


def test_scores_are_replaced_whole_and_only_when_asked(run):
    join_scores(run, table(run, GOOD))
    again = table(run, "sample_id,clip_score\n000001,7\n")
    with pytest.raises(StoreError, match="^run.h5 has scores/clip_score already: pass --overwrite"):
        join_scores(run, again)
    assert join_scores(run, again, overwrite=True) == {"clip_score": 1}
    with open_store(run) as store:
        np.testing.assert_array_equal(store.samples["clip_score"], [np.nan, 7, np.nan])
    assert verify(run, deep=True).ok


BAD = {
    "sample_id,a\n000009,1\n": "line 2: sample_id '000009' is no sample of the file",
    "prompt_id,seed,a\np1,7,1\n": "line 2: prompt_id 'p1' and seed '7' is no sample of the file",
    "sample_id,a\n000000,1\n000001,1\n000000,1\n": "line 4: sample_id '000000' was in line 2 already",
    "sample_id,a\n000000,good\n": "line 2, column a: 'good' is no finite number",
    "sample_id,a\n000000,inf\n": "'inf' is no finite number",
    "sample_id,a\n000000,1e39\n": "'1e39' is no finite number of 32 bits",
    "sample_id,a\n000000,1_0\n": "'1_0' is no finite number",
    "sample_id,a\n000000,\n": "table.csv has no number in its column a",
    "sample_id,a\n": "table.csv has no number in its column a",
    "prompt_id,a\np0,1\n": "needs the column sample_id, or prompt_id and seed; it has 'prompt_id', 'a'",
    "sample_id;a\n000000;1\n": "needs the column sample_id, or prompt_id and seed; it has 'sample_id;a'"
    "|'sample_id;a' is no name",
    "sample_id\n000000\n": "nothing to join",
    "sample_id,clip-score\n000000,1\n": "'clip-score' is no name for a score",
    "sample_id,../x\n000000,1\n": "'../x' is no name for a score",
    f"sample_id,{'a' * 65}\n000000,1\n": "is no name for a score",
    "sample_id,a,a\n000000,1,2\n": "two columns called 'a'",
    "sample_id,a\n000000,1,2\n": "line 2: 3 cells, the first line names 2 columns",
    "": "table.csv is empty",
    'sample_id,a\n000000,"1\n': "no table of comma-separated values",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text)[:40])
def test_what_is_wrong_with_a_table_is_told_with_its_place(tmp_path, text):
    (path := tmp_path / "table.csv").write_text(text, encoding="utf-8")
    ids = [["000000", "000001", "000002"], ["p0", "p1", "p2"]]
    samples = dict(zip(("sample_id", "prompt_id"), map(np.array, ids), strict=True)) | {"seed": np.arange(3)}
    with pytest.raises(StoreError) as refused:
        read_scores(path, samples)
    told = str(refused.value)
    assert any(part in told for part in BAD[text].split("|")) and "\n" not in told, told


@pytest.mark.parametrize(
    "text",
    [
        text if place % 9 == 0 else pytest.param(text, marks=pytest.mark.long)
        for place, text in enumerate(BAD)
    ],
    ids=lambda text: repr(text)[:40],
)
def test_a_table_that_cannot_be_joined_gets_a_sentence_and_the_file_stays(run, capsys, text):
    before = run.read_bytes()
    assert main(["scores", str(run), str(table(run, text))]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert any(part in told for part in BAD[text].split("|")), told
    assert run.read_bytes() == before and not list(run.parent.glob("*.tmp"))


def test_columns_can_be_chosen(run, capsys):
    path = table(run, "sample_id,note,a,b\n000000,hm,1,2\n")
    assert main(["scores", str(run), str(path), "--columns", "b"]) == 0
    assert capsys.readouterr().out == "scores/b: 1 samples have a value\n"
    for name, told in (
        ("c", "has no column 'c': it has 'sample_id', 'note', 'a', 'b'"),
        ("sample_id", "own table"),
    ):
        assert main(["scores", str(run), str(path), "--columns", name]) == 1
        assert told in capsys.readouterr().err


def test_files_that_are_not_there_or_no_store_are_told(run, tmp_path):
    with pytest.raises(StoreError, match="^no.h5: there is no such file$"):
        join_scores(tmp_path / "no.h5", table(run, GOOD))
    with pytest.raises(StoreError, match="^no.csv: there is no such file$"):
        join_scores(run, tmp_path / "no.csv")
    (tmp_path / "latin.csv").write_bytes("sample_id,a\nß,1\n".encode("latin-1"))
    with pytest.raises(StoreError, match="^latin.csv is no table of comma-separated values in UTF-8"):
        join_scores(run, tmp_path / "latin.csv")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(StoreError, match="^text.h5 cannot be opened: it is a text, not HDF5"):
        join_scores(tmp_path / "text.h5", table(run, GOOD))


def test_two_samples_of_one_name_are_not_guessed_at(tmp_path):
    run = make_store(tmp_path / "run.h5", samples=2, steps=2, sample_id="same")
    with pytest.raises(StoreError, match="line 2: sample_id 'same' is the name of 2 samples"):
        join_scores(run, table(run, "sample_id,a\nsame,1\n"))


def test_a_capture_under_way_and_folders_of_samples_are_refused(run, tmp_path):
    text = table(run, GOOD)
    parts = make_store(tmp_path / "other.h5", samples=2, steps=2, packed=False)
    for path in (parts, tmp_path / "other.h5"):
        with pytest.raises(StoreError, match="a folder of sealed samples: pack it first"):
            join_scores(path, text)
    with pytest.raises(StoreError, match="^000001.h5 is a sealed sample of the capture other.h5.parts"):
        join_scores(parts / "000001.h5", text)
    begin_run(run, {"steps": 2, "height": 96, "width": 64, "seed": 0}, planned=4)
    with pytest.raises(StoreError, match="^run.h5 is being captured"):
        join_scores(run, text)


def test_scores_stay_when_further_samples_are_packed(tmp_path):
    run = make_store(tmp_path / "run.h5", samples=2, steps=2)
    join_scores(run, table(run, "sample_id,a\n000000,1\n000001,2\n"))
    parts = make_store(tmp_path / "more.h5", samples=3, steps=2, packed=False)
    for index in (0, 1):
        (parts / f"{index:06d}.h5").unlink()
    pack(parts, run)
    with open_store(run) as store:
        np.testing.assert_array_equal(store.samples["a"], [1, 2, np.nan])
    assert verify(run, deep=True).ok


def test_other_programs_read_them(run):
    join_scores(run, table(run, GOOD))
    with xr.open_datatree(run, engine="h5netcdf") as tree:
        score = tree["scores/clip_score"]
        assert score.dims == ("sample",) and score.attrs["units"] == "1"
        np.testing.assert_array_equal(score, np.array([-1e-3, np.nan, 0.25], np.float32))
    with open_store(run) as store:
        np.testing.assert_array_equal(store.to_xarray()["scores/clip_score"], store.samples["clip_score"])
        np.testing.assert_array_equal(store.read("scores/clip_score", sample=[2]), np.float32([0.25]))


@pytest.mark.skipif(not shutil.which("h5dump"), reason="needs hdf5-tools")
def test_h5dump_reads_them(run):
    join_scores(run, table(run, GOOD))
    done = subprocess.run(["h5dump", "-d", "/scores/clip_score", str(run)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert "(0): -0.001, nan, 0.25" in done.stdout.replace("-nan", "nan")


@pytest.mark.parametrize(
    "moment", ["shutil.copymode", pytest.param("os.fsync", marks=pytest.mark.long), "os.replace"]
)
def test_a_process_that_is_killed_leaves_the_file_as_it_was(run, moment):
    before, path = run.read_bytes(), table(run, GOOD)
    code = (
        f"import os, shutil, sys; from sd35h5.store.score_joining import join_scores\n"
        f"{moment} = lambda *_: os.kill(os.getpid(), 9)\n"
        f"join_scores(*sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run), str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert run.read_bytes() == before
    assert join_scores(run, path) == {"clip_score": 2}
    assert sorted(each.name for each in run.parent.iterdir()) == ["run.h5", "table.csv"]


def test_who_has_the_file_open_keeps_what_was_opened_and_sees_the_scores_when_opening_anew(run):
    readers = Readers(count=1)
    try:
        shown = open_through(readers, run, (1,))
        mass = shown.read("sinks/mass_group", sample=0).values
        with open_store(run) as held:
            join_scores(run, table(run, GOOD))
            np.testing.assert_array_equal(held.read("sinks/mass_group", sample=0).values, mass)
        assert "clip_score" not in shown.samples
        assert open_through(readers, run, (2,)).samples["clip_score"].notna().sum() == 2
    finally:
        readers.close()


def test_a_link_stays_a_link_and_the_permissions_stay(run, tmp_path):
    run.chmod(0o640)
    (tmp_path / "link.h5").symlink_to(run)
    join_scores(tmp_path / "link.h5", table(run, GOOD))
    assert (tmp_path / "link.h5").is_symlink() and run.stat().st_mode & 0o777 == 0o640
    with open_store(run) as store:
        assert "scores/clip_score" in store


def test_a_damaged_file_is_not_copied_over_the_one_that_is_there(run):
    with h5py.File(run, "r+") as file:
        file["samples/sealed"][1] = 0
    before = run.read_bytes()
    with pytest.raises(StoreError, match="run.h5 cannot be opened: sample 1 is not sealed"):
        join_scores(run, table(run, GOOD))
    assert run.read_bytes() == before


def test_a_score_that_takes_the_name_of_a_column_is_not_read_in_its_place(run):
    with h5py.File(run, "r+") as file:
        file.create_dataset("scores/seed", data=np.zeros(3, np.float32)).dims[0].attach_scale(file["sample"])
    with open_store(run) as store:
        assert store.samples["seed"].tolist() == [0, 1, 2] and "scores/seed" not in store
