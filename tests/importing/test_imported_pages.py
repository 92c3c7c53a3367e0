"""The dashboard and the commands show an imported file, and say in a sentence what is not there."""

from __future__ import annotations

import pytest
from making.older_tool import random_maps, write_older
from making.pages import text_of
from PIL import Image

from sd35h5 import __main__ as commands


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """An import of one sample, with its picture."""
    folder = tmp_path_factory.mktemp("older")
    write_older(folder / "000", random_maps(steps=2), ["a red apple"], pictures=[Image.new("RGB", (96, 64))])
    assert commands.main(["import", str(folder), "--out", str(folder / "old.h5")]) == 0
    return folder / "old.h5"


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("overview", "gate: not told"),
        ("sinks", "old holds no heaviest keys"),
        ("maps", "old was imported from another tool"),
        ("gates", "Whether the model had gates is unknown, the file does not say: old"),
        ("files", "old was imported from another tool"),
    ],
)
def test_a_page_shows_an_imported_file_and_claims_nothing_that_it_does_not_tell(app, imported, page, told):
    text = text_of(app(imported, page=page))
    assert told in text and "samples of both files pair" not in text and "gate: none" not in text
    assert "Without gates" not in text


def test_commands_work_on_an_imported_file(imported, tmp_path, capsys):
    for words in (["info"], ["verify", "--deep"], ["analyze", "--out_dir", str(tmp_path / "metrics")],
                  ["export", "--out_dir", str(tmp_path / "pictures"), "--maps"]):  # fmt: skip
        assert commands.main([words[0], str(imported), *words[1:]]) == 0
    assert "seed -1" in capsys.readouterr().out
    assert len(list((tmp_path / "pictures").rglob("*_overlay.png"))) > 2
