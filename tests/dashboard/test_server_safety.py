"""The dashboard beside files that kill or hang their readers, and what its server keeps and opens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making.killing import killed_again_and_again
from making.pages import linked_of, text_of
from streamlit.testing.v1 import AppTest

from dashboard import cached_reads, caching, run_list

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("overview", "sinks", "tokens", "maps", "gates", "compare", "evidence")


@pytest.fixture
def fresh():
    """Readers and kept values of this test alone."""
    caches = (run_list.readers, caching.kept, cached_reads._store)
    for cache in caches:
        cache.clear()
    yield run_list.readers()
    run_list.readers().close()
    for cache in caches:
        cache.clear()


def forget_values() -> None:
    """Forget what was read, so that a page reads it again, but not that the files were verified."""
    kept = caching.kept()
    for key in [key for key in kept._values if key[0] != "verified"]:
        del kept._values[key]


def test_a_file_that_kills_its_readers_leaves_the_page_standing(app, folder, fresh):
    path = folder / "other.h5"
    test = app(path, page="sinks")
    forget_values()
    with killed_again_and_again(fresh):
        test.run()
    assert not test.exception
    words = text_of(test)
    assert "reading it crashed the HDF5 library" in words
    assert str(folder) not in words
    fresh._ended.clear()  # the minute that it is not tried again
    test.run()
    assert not test.exception
    assert "crashed" not in text_of(test)
    assert len(linked_of(test)) == 1 and len(test.get("vega_lite_chart")) >= 4


def test_a_file_that_hangs_its_readers_ends_with_a_sentence_within_the_limit(app, folder, fresh):
    test = app(folder / "other.h5", page="sinks")
    forget_values()
    for reader in fresh._readers:
        reader._seconds = 1
        os.kill(reader.start().pid, signal.SIGSTOP)
    begin = time.monotonic()
    test.run()
    assert time.monotonic() - begin < 15
    assert not test.exception
    assert "reading it did not end" in text_of(test)


def test_the_server_opens_no_hdf5_file_itself_and_never_imports_torch(folder):
    code = f"""
import sys; sys.argv = ["app.py", {str(folder)!r}]
import h5py
def refuse(*_, **__): raise AssertionError("the server opened a file")
h5py.File = refuse
from streamlit.testing.v1 import AppTest
for page in {PAGES!r}:
    test = AppTest.from_file({str(ROOT / "dashboard" / "app.py")!r}, default_timeout=60)
    test.switch_page(f"views/{{page}}.py"); test.run()
    assert not test.exception, test.exception
    assert not test.error and test.sidebar.selectbox(key="run").value == "demo-baseline"
print([name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_is_kept_is_bounded_in_number_and_in_bytes():
    kept = caching.Kept(max_entries=3, max_bytes=10_000)
    for number in range(5):
        kept.put(number, np.full(100, number))
    assert len(kept) == 3
    with pytest.raises(KeyError):
        kept.get(1)
    assert kept.get(2)[0] == 2  # asked for: now the last to go
    kept.put("large", np.zeros(1100))
    assert kept.nbytes <= 10_000
    assert kept.get(2)[0] == 2
    with pytest.raises(KeyError):
        kept.get(3)
    kept.put("larger than all", np.zeros(10_000))
    assert kept.get("large").size == 1100
    assert kept.nbytes == sum(len(data) for value in kept._values.values() for data in value)


def test_no_page_can_change_what_another_gets():
    kept = caching.Kept()
    own = np.zeros(3)
    kept.put("values", own)
    own[:] = 7
    with pytest.raises(ValueError, match="read-only"):
        kept.get("values")[:] = 7
    kept.put("table", pd.DataFrame({"mass": [1.0, 2.0]}))
    table = kept.get("table")
    table["mass"] = 7
    table["more"] = 7
    assert kept.get("table")["mass"].tolist() == [1.0, 2.0]
    assert not kept.get("values").any()


def test_words_of_a_file_in_an_error_are_shown_as_text():
    def page() -> None:
        from dashboard import cached_reads
        from sd35h5.errors import StoreError

        with cached_reads.sentence():
            raise StoreError("no word “![x](http://elsewhere/x.png) **bold**” in it")

    test = AppTest.from_function(page).run(timeout=60)
    assert not test.exception
    assert r"\!\[x\]\(http\://elsewhere/x.png\) \*\*bold\*\*" in test.info[0].value
