"""One bad file, link, name or folder among the runs of a dashboard breaks no page for the others, nor itself."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from making.pages import text_of
from making.stores import make_store

from dashboard import run_list
from sd35h5 import open_store
from sd35h5.__main__ import main
from sd35h5.store.showable import well_formed, well_formed_json

PAGES = ("overview", "compare", "files")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("sound") / "good.h5", samples=1, gates=True)


def looping_parts(folder: Path, sound: Path) -> None:
    parts = make_store(folder / "bad.h5", samples=1, packed=False)
    (parts / "000001.h5").symlink_to("000002.h5")
    (parts / "000002.h5").symlink_to("000001.h5")


def looping_run_json(folder: Path, sound: Path) -> None:
    parts = make_store(folder / "bad.h5", samples=1, packed=False)
    (parts / "run.json").unlink()
    (parts / "run.json").symlink_to("run.json")


def looping_run(folder: Path, sound: Path) -> None:
    (folder / "bad.h5").symlink_to("bad.h5")


def broken_model_id(folder: Path, sound: Path) -> None:
    with h5py.File(shutil.copy(sound, folder / "bad.h5"), "r+") as file:
        file.attrs["model_id"] = np.bytes_(b"stabilityai/caf\xe9 \xff")


def broken_prompt(folder: Path, sound: Path) -> None:
    with h5py.File(shutil.copy(sound, folder / "bad.h5"), "r+") as file:
        file["samples/prompt"][0] = b"a caf\xe9 in \xed\xa0\x80 the rain"


def surrogate_in_config(folder: Path, sound: Path) -> None:
    with h5py.File(shutil.copy(sound, folder / "bad.h5"), "r+") as file:
        config = json.loads(file["provenance/config"].asstr()[()]) | {"words": ["\ud83d"], "\udc00": 1}
        del file["provenance/config"]
        file["provenance/config"] = json.dumps(config)


def surrogate_in_run_json(folder: Path, sound: Path) -> None:
    parts = make_store(folder / "bad.h5", samples=1, packed=False)
    told = json.loads((parts / "run.json").read_text())
    told["config"]["note"] = "\ud83d"
    (parts / "run.json").write_text(json.dumps(told))


def undecodable_name(folder: Path, sound: Path) -> None:
    shutil.copy(sound, os.fsencode(folder) + b"/bad\xff.h5")
    Path(os.fsdecode(os.fsencode(folder) + b"/empty\xfe.h5")).write_bytes(b"")


BAD = {
    each.__name__.replace("_", " "): each
    for each in (
        looping_parts, looping_run_json, looping_run, broken_model_id, broken_prompt, surrogate_in_config,
        surrogate_in_run_json, undecodable_name,
    )
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_no_page_breaks_for_the_others_nor_for_the_bad_one(app, sound, tmp_path, kind):
    shutil.copy(sound, tmp_path / "good.h5")
    BAD[kind](tmp_path, sound)
    test = app(tmp_path, page="overview", url={"run": "good"})
    assert test.sidebar.selectbox(key="run").value == "good"
    runs = test.sidebar.selectbox(key="run").options
    assert len(runs) == 2 or "bad" in text_of(test)
    for page in PAGES if len(runs) == 2 else ():
        app(tmp_path, page=page, url={"run": next(name for name in runs if name != "good")})


def test_a_folder_that_cannot_be_listed_is_told_and_the_others_are_shown(app, sound, tmp_path, monkeypatch):
    (closed := tmp_path / "closed").mkdir()
    (tmp_path / "link.h5.parts").symlink_to(closed)
    shutil.copy(sound, tmp_path / "good.h5")
    real = {name: getattr(os, name) for name in ("listdir", "scandir")}

    def refuse(name: str):
        def call(path="."):
            if not isinstance(path, int) and os.path.realpath(path) == str(closed):
                raise PermissionError(13, "Permission denied", str(path))
            return real[name](path)

        return call

    for name in real:  # root may list every folder
        monkeypatch.setattr(os, name, refuse(name))
    test = app(closed, tmp_path, page="overview")
    assert test.sidebar.selectbox(key="run").value == "good"
    assert ("closed", run_list.UNREADABLE) in test.session_state["found"].refused


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("broken model id", ""),
        ("broken prompt", "samples/prompt holds a text that is not UTF-8"),
        ("surrogate in config", "provenance/config holds a control character"),
    ],
)
def test_the_command_line_prints_them_or_says_what_is_wrong(sound, tmp_path, capsys, kind, refused):
    BAD[kind](tmp_path, sound)
    assert main(["info", "--json", str(tmp_path / "bad.h5")]) == bool(refused)
    said = capsys.readouterr()
    if refused:
        assert refused in said.err and len(said.err.encode().splitlines()) == 1
    else:
        json.dumps(json.loads(said.out), ensure_ascii=False).encode()
    with open_store(tmp_path / "bad.h5") as store:  # who trusts a file reads it all the same
        repr(store).encode()


def test_lone_surrogates_become_one_sign_each_and_pairs_their_character():
    assert well_formed("a\ud83db \ud83d\ude00 \udcff") == "a\ufffdb \U0001f600 \ufffd"
    assert well_formed("café 猫 \U0001f600") == "café 猫 \U0001f600"
    assert well_formed_json({"\ud800": ["x\udc00", 1, None, True, 0.5]}) == {
        "\ufffd": ["x\ufffd", 1, None, True, 0.5]
    }
    deep = json.loads("[" * 300 + "]" * 300)
    assert str(well_formed_json(deep)).count("[") < 50 < sys.getrecursionlimit()
