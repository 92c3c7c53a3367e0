"""A run whose file is replaced, removed, cut off or still growing while its page is open costs a sentence, and comes
back when its file does."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from making.pages import ROOT, linked_of, text_of
from making.stores import make_store
from streamlit.testing.v1 import AppTest

from dashboard import cached_reads, caching, run_list
from dashboard.choosing.watching import has_changed, look
from sd35h5 import open_store
from sd35h5.store.processes import guarded_files

PAGES = sorted(path.stem for path in (ROOT / "dashboard" / "views").glob("*.py"))
ONE_OR_ALL = ["sinks", *(pytest.param(page, marks=pytest.mark.long) for page in PAGES if page != "sinks")]
CHOSEN = {
    "sample": "1", "branch": "uncond", "layers": "1-2", "heads": "1", "steps": "2-3", "cell": "2.1",
    "target": "group:t5_pad", "metric": "first_token_mean", "word": "word:apple", "layer": "2", "at": "2",
}  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Path]:
    """A run, one of another shape with fewer of everything, and one under way, of three samples so far."""
    folder = tmp_path_factory.mktemp("shapes")
    large = {"layers": 3, "heads": 2, "steps": 4, "samples": 2, "gates": True, "rows": ((0, 5), (1, 78))}
    small = {
        "layers": 1,
        "heads": 1,
        "steps": 1,
        "samples": 1,
        "prompts": ("one pen",),
        "height": 32,
        "width": 48,
    }
    return {
        "large": make_store(folder / "large.h5", **large),
        "small": make_store(folder / "small.h5", **small, without=("maps/", "gates/", "topk/")),
        "growing": make_store(folder / "growing.h5", samples=3, packed=False, planned=5),
    }


@pytest.fixture
def unread():
    """Readers that have opened nothing, and no values kept of other tests."""
    run_list.readers().close()
    for cache in (run_list.readers, caching.kept, cached_reads._store):
        cache.clear()


def replace(path: Path, source: Path) -> None:
    """Put another file in a file's place, as a finished copy does."""
    shutil.copy(source, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize("page", ONE_OR_ALL)
def test_a_file_of_another_shape_in_its_place_is_drawn_with_what_it_has(app, stores, tmp_path, page):
    path = Path(shutil.copy(stores["large"], tmp_path / "run.h5"))
    shutil.copy(stores["large"], tmp_path / "beside.h5")
    test = app(tmp_path, page=page, url={**CHOSEN, "run": "run", "with": "beside"})
    replace(path, stores["small"])
    test.run()
    assert not test.exception, test.exception
    assert test.sidebar.selectbox(key="run").value == "run"
    if page == "sinks":
        assert linked_of(test)[0].panels["run"].shape == (1, 1, 1)


def page_that_reads() -> None:
    """Open a run, let something happen to its file, then read values that no reader has read."""
    import streamlit as st

    from dashboard import cached_reads

    run = st.session_state["run"]
    with cached_reads.sentence(run):
        store = cached_reads.store(run)
        cached_reads.samples(run)
        st.session_state["happens"]()
        for name in ("sinks/mass_image", "sinks/mass_group"):
            st.session_state[name] = store.read(name, branch="cond")
        st.markdown("all was read")


def told_while(path: Path, happens: Callable[[], object]) -> tuple[str, AppTest]:
    """The words of a page in whose drawing that happens to the file."""
    test = AppTest.from_function(page_that_reads, default_timeout=60)
    test.session_state["run"] = run_list.Run(path.name.partition(".")[0], str(path), run_list.stamp(path))
    test.session_state["happens"] = happens
    test.run()
    assert not test.exception, test.exception
    words = text_of(test)
    assert str(path.parent) not in words and "damaged" not in words
    return words, test


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("cut off in place", "run changed while the page was drawn"),
        ("another shape", "run changed while the page was drawn"),
        pytest.param("another of its shape", "run changed while the page was drawn", marks=pytest.mark.long),
        ("removed", "run was removed while the page was drawn, or its disk cannot be reached"),
        ("folder gone", "run was removed while the page was drawn, or its disk cannot be reached"),
    ],
)
def test_what_happens_to_a_file_while_a_page_is_drawn_is_one_sentence(
    stores, tmp_path, monkeypatch, unread, kind, sentence
):
    monkeypatch.setattr(guarded_files, "SPLIT_BYTES", 100)  # by all readers, of which one has opened it
    path = tmp_path / "inside" / "run.h5"
    path.parent.mkdir()
    shutil.copy(stores["large"], path)
    happens = {
        "cut off in place": lambda: os.truncate(path, path.stat().st_size // 3),
        "another shape": lambda: replace(path, stores["small"]),
        "another of its shape": lambda: make_store(path, layers=3, heads=2, steps=4, samples=2, gates=True, seed=9),
        "removed": path.unlink,
        "folder gone": lambda: shutil.rmtree(path.parent),
    }  # fmt: skip
    words, _ = told_while(path, happens[kind])
    assert words.count("\n") == 0 and words.startswith(sentence), words


def test_a_sample_that_is_sealed_meanwhile_changes_no_number_of_the_page(
    stores, tmp_path, monkeypatch, unread
):
    monkeypatch.setattr(guarded_files, "SPLIT_BYTES", 100)
    parts = Path(shutil.copytree(stores["growing"], tmp_path / "run.h5.parts"))
    with open_store(parts) as store:
        expected = store.read("sinks/mass_image", branch="cond")[1:]
    (parts / "000000.h5").rename(tmp_path / "later.h5")
    words, test = told_while(parts, lambda: (tmp_path / "later.h5").rename(parts / "000000.h5"))
    assert words == "all was read"
    np.testing.assert_array_equal(test.session_state["sinks/mass_image"], expected)


def test_a_capture_that_is_packed_meanwhile_is_told(stores, tmp_path, monkeypatch, unread):
    monkeypatch.setattr(guarded_files, "SPLIT_BYTES", 100)
    parts = Path(shutil.copytree(stores["growing"], tmp_path / "run.h5.parts"))

    def pack() -> None:
        shutil.copy(stores["large"], tmp_path / "run.h5")
        shutil.rmtree(parts)

    assert told_while(parts, pack)[0].startswith("run changed while the page was drawn")


def test_a_run_that_is_gone_is_said_to_be_and_shown_again_when_it_is_back(app, stores, tmp_path):
    (folder := tmp_path / "disk" / "a").mkdir(parents=True)
    path = Path(shutil.copy(stores["large"], folder / "run.h5"))
    shutil.copy(stores["small"], tmp_path / "disk" / "other.h5")
    test = app(tmp_path / "disk", page="files", url={"run": "a/run", "with": "other"})
    assert test.sidebar.selectbox(key="run").value == "a/run"
    os.truncate(path, path.stat().st_size // 2)
    test.run()
    words = text_of(test)
    assert "a/run is not there any more" in words and "it is cut off" in words, words
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    test.run()
    assert "a/run is not there any more" in text_of(test) and "nothing called disk" in text_of(test)
    test.run()
    assert not test.exception and "a/run is not there any more" in text_of(test)
    (tmp_path / "unmounted").rename(tmp_path / "disk")
    replace(path, stores["large"])
    test.run()
    assert not test.exception and test.sidebar.selectbox(key="run").value == "a/run"
    assert "Sizes by dataset" in text_of(test) and "other" in test.sidebar.multiselect[0].value
    (tmp_path / "disk" / "other.h5").unlink()
    test.run()
    assert not test.exception and "other is not there any more" in text_of(test)


def test_readers_that_cannot_start_blame_no_file(app, stores, monkeypatch, unread):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    run_list.readers.clear()
    words = text_of(app(stores["large"], page="files"))
    assert re.search(r"does not start\\: No such file or directory; no file is to blame", words), words
    assert "damaged" not in words and "nowhere" not in words


def looks(folder: Path):
    """What a look at a folder finds, as the watch sees it."""
    return look((str(folder),), folder)


def test_the_watch_draws_anew_for_what_came_went_or_was_finished_and_came_to_rest(stores, tmp_path):
    shutil.copy(stores["large"], tmp_path / "run.h5")
    parts = Path(shutil.copytree(stores["growing"], tmp_path / "live.h5.parts"))
    shown = looks(tmp_path)
    assert len(shown) == 2 and not has_changed(shown, shown, shown)
    shutil.copy(parts / "000001.h5", parts / "000003.h5")
    assert not has_changed(shown, looks(tmp_path), looks(tmp_path))  # one sample more

    (tmp_path / "deep" / "er").mkdir(parents=True)
    copy = tmp_path / "deep" / "er" / "new.hdf5"
    copy.write_bytes(stores["small"].read_bytes()[:1000])
    first = looks(tmp_path)
    assert not has_changed(shown, shown, first)  # seen once: it may be on its way
    shutil.copy(stores["small"], copy)
    assert not has_changed(shown, first, looks(tmp_path))
    assert has_changed(shown, looks(tmp_path), looks(tmp_path))

    shown = looks(tmp_path)
    shutil.copy(stores["small"], tmp_path / "live.h5")
    shutil.rmtree(parts)
    assert has_changed(shown, looks(tmp_path), looks(tmp_path))
    shown = looks(tmp_path)
    (tmp_path / "run.h5").unlink()
    assert has_changed(shown, looks(tmp_path), looks(tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("kind", ["cut off in place", "removed"])
def test_no_page_breaks_when_its_file_goes_between_the_check_and_the_first_read(
    app, stores, tmp_path, monkeypatch, unread, kind, page
):
    for name in ("a-baseline", "b"):
        shutil.copy(stores["large"], tmp_path / f"{name}.h5")
    path, find = tmp_path / "a-baseline.h5", run_list.find

    def find_and_lose(*arguments) -> run_list.Found:
        found = find(*arguments)
        run_list.readers().close()  # those that have it open would go on reading it
        run_list.readers.clear()
        path.unlink() if kind == "removed" else os.truncate(path, path.stat().st_size // 3)
        return found

    monkeypatch.setattr(run_list, "find", find_and_lose)
    words = text_of(app(tmp_path, page=page))
    assert "while the page was drawn" in words and "damaged" not in words
