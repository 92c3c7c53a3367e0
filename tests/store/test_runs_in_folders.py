"""Stores are found in folders below the given one: one folder a run, .hdf5 too; odd trees neither hang nor break it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from making.stores import make_store

from sd35h5.__main__ import main
from sd35h5.errors import StoreNotFoundError
from sd35h5.reports.run_names import run_names, short_names
from sd35h5.store.places import runs_in_folders
from sd35h5.store.places.open_store import open_store
from sd35h5.store.places.runs_in_folders import stores_in


def tree(root: Path, *names: str) -> Path:
    """Make empty files by name, and folders by names that end in a slash."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if name.endswith("/") else path.touch()
    return root


def names_in(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in stores_in(root).stores]


def test_stores_lie_in_folders_of_trackers_and_those_near_come_first(tmp_path):
    tree(
        tmp_path, "outputs/2026-11-27/run.h5", "mlruns/0/4f2c/artifacts/run.hdf5", "wandb/run-1/files/run.h5",
        "b.h5", "a.hdf5", "going.hdf5.parts/000000.h5", "notes/x.txt", ".cache/c.h5", "outputs/._run.h5",
    )  # fmt: skip
    assert names_in(tmp_path) == [
        "a.hdf5", "b.h5", "going.hdf5.parts", "outputs/2026-11-27/run.h5", "wandb/run-1/files/run.h5",
        "mlruns/0/4f2c/artifacts/run.hdf5",
    ]  # fmt: skip
    assert stores_in(tmp_path).is_whole


def test_a_folder_of_sealed_samples_is_one_run_wherever_it_lies(tmp_path):
    tree(
        tmp_path,
        "moved/000000.h5",
        "moved/000001.h5",
        "left.h5",
        "left.h5.parts/000000.h5",
        "under/way.h5.parts/",
    )
    assert names_in(tmp_path) == ["left.h5", "moved", "under/way.h5.parts"]
    assert stores_in(tmp_path / "moved").stores == (tmp_path / "moved",)


def test_a_trackers_own_run_json_hides_no_store(tmp_path):
    tree(tmp_path, "sacred/1/run.json", "sacred/1/run.h5", "sacred/2/run.json")
    assert names_in(tmp_path) == ["sacred/1/run.h5"]
    assert stores_in(tmp_path / "sacred" / "1").stores == (tmp_path / "sacred" / "1" / "run.h5",)


def test_links_that_loop_and_trees_without_end_are_not_followed(tmp_path):
    tree(tmp_path, "runs/a/run.h5", "/".join(["runs", *"deeper", *"still", "run.h5"]))
    (tmp_path / "runs" / "a" / "up").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "self.h5").symlink_to(tmp_path / "runs" / "self.h5")
    (tmp_path / "runs" / "self.h5.parts").symlink_to(tmp_path / "runs" / "self.h5.parts")
    found = stores_in(tmp_path / "runs")
    assert [path.relative_to(tmp_path / "runs").as_posix() for path in found.stores] == [
        "self.h5",
        "a/run.h5",
    ]
    assert not found.is_whole


@pytest.mark.parametrize(
    ("bound", "value"), [("MAX_ENTRIES", 30), ("MAX_STORES", 6), ("MAX_ENTRIES_BELOW", 4)]
)
def test_of_a_tree_beyond_the_bounds_what_is_near_is_found_and_the_rest_told(
    tmp_path, monkeypatch, bound, value
):
    tree(
        tmp_path,
        "near.h5",
        *(f"set{place}/image{number:02}.h5" for place in range(3) for number in range(20)),
    )
    assert len(stores_in(tmp_path).stores) == 61 and stores_in(tmp_path).is_whole
    monkeypatch.setattr(runs_in_folders, bound, value)
    found = stores_in(tmp_path)
    assert found.stores[0] == tmp_path / "near.h5" and 6 <= len(found.stores) <= 30 and not found.is_whole


def test_a_folder_below_that_cannot_be_listed_is_told_beside_the_others(tmp_path, monkeypatch):
    tree(tmp_path, "a/run.h5", "closed/run.h5", "z/run.h5")
    real = os.scandir

    def scandir(path):  # root may list every folder
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = stores_in(tmp_path)
    assert found.stores == (tmp_path / "a" / "run.h5", tmp_path / "z" / "run.h5")
    assert found.unlisted == (tmp_path / "closed",)
    with pytest.raises(PermissionError):
        stores_in(tmp_path / "closed")


def test_the_command_line_lists_them_and_opens_other_endings(tmp_path, capsys):
    store = make_store(tmp_path / "exp1" / "run.hdf5", samples=1)
    (tmp_path / "exp2").mkdir()
    shutil.copy(store, tmp_path / "exp2" / "run.h5")
    assert main(["runs", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["state"], row["sealed"]) for row in told] == [
        ("exp1/run.hdf5", "complete", 1), ("exp2/run.h5", "complete", 1),
    ]  # fmt: skip
    with pytest.raises(StoreNotFoundError, match=r"open one of its runs \(run.hdf5\)$"):
        open_store(tmp_path / "exp1")
    with open_store(store) as opened:
        assert opened.name == "run"


def test_names_are_paths_below_the_folder_and_no_two_alike():
    folder = Path("/data/runs")
    below = [
        folder / "run.h5",
        folder / "a" / "run.h5",
        folder / "a" / "b" / "run.hdf5",
        folder / "live.h5.parts",
    ]
    assert run_names(below, [folder] * 4) == ["run", "a/run", "a/b/run", "live"]
    apart = [Path("/a/x/run.h5"), Path("/a/y/run.h5"), Path("/b/y/run.h5"), Path("/a/z.h5.parts")]
    assert run_names(apart) == ["x/run", "a/y/run", "b/y/run", "z"]
    assert run_names([folder / "run.h5", folder / "run.hdf5"]) == ["run (1)", "run (2)"]


def test_a_narrow_list_shows_the_end_of_a_long_name_and_as_much_as_tells_it_apart():
    names = ["run", *(f"mlruns/0/{run * 32}/artifacts/run" for run in "ab"), f"wandb/{'run-' * 8}/files/mine"]
    assert short_names(names, 36) == {
        "run": "run", names[1]: f"…/{'a' * 32}/artifacts/run", names[2]: f"…/{'b' * 32}/artifacts/run",
        names[3]: "…/files/mine",
    }  # fmt: skip
