"""`analyze` and `compare` by the workers of a scheduler: equal files, and a sentence for what goes wrong there."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from distributed import LocalCluster
from making.clusters import running_cluster
from making.stores import make_store

from sd35h5.__main__ import main
from sd35h5.spreading.hands import hands
from sd35h5.store.processes.guarded_store import open_checked

PROMPTS = tuple(f"a {color} {thing}" for color in ("red", "blue", "green") for thing in ("car", "cat", "dog"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A baseline, a gated run, of more samples than are measured together."""
    folder = tmp_path_factory.mktemp("runs")
    make_store(folder / "base.h5", samples=9, prompts=PROMPTS, steps=2, sink=4.0, seed=1)
    make_store(folder / "gated.h5", samples=9, prompts=PROMPTS, steps=2, sink=1.0, gates=True, seed=2)
    return folder


def _compare(folder, out, *more):
    runs = [str(folder / name) for name in ("base.h5", "gated.h5")]
    assert main(["compare", *runs, "--out_dir", str(out), "--resamples", "199", *more]) == 0
    return {path.name: path.read_bytes() for path in out.glob("*.csv")}


def _analyze(folder, out, *more):
    assert main(["analyze", str(folder / "base.h5"), "--out_dir", str(out), "--branch", "both", *more]) == 0
    return (out / "first_token_metrics.csv").read_bytes()


def test_workers_write_the_tables_of_one_process_byte_for_byte(folder, tmp_path):
    here = _compare(folder, tmp_path / "here")
    rows = _analyze(folder, tmp_path / "a")
    where = {"processes": False, "host": "127.0.0.1", "protocol": "tcp://", "dashboard_address": None}
    with LocalCluster(n_workers=2, threads_per_worker=1, **where) as cluster:
        more = ("--scheduler", cluster.scheduler_address)
        assert _compare(folder, tmp_path / "there", *more) == here and len(here) == 9
        assert _analyze(folder, tmp_path / "b", *more) == rows


@pytest.mark.long
def test_processes_elsewhere_do_the_same_though_one_of_them_dies(folder, tmp_path, capsys):
    here = _compare(folder, tmp_path / "here")
    with running_cluster(workers=2) as cluster:
        workers = [worker.pid for worker in cluster.workers.values()]
        threading.Timer(0.5, os.kill, (workers[0], signal.SIGKILL)).start()
        assert _compare(folder, tmp_path / "there", "--scheduler", cluster.scheduler_address) == here
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        run = make_store(hidden / "run.h5")
        with (
            open_checked(run) as store,
            hands({"run": run}, {"run": store}, cluster.scheduler_address) as who,
        ):
            run.rename(hidden / "moved.h5")
            with pytest.raises(
                ValueError, match="the worker tcp://.* cannot open run.h5: run.h5: there is no such"
            ):
                list(who.run(_name, ("run",), [0], "naming"))
            make_store(run, samples=3)
            with pytest.raises(ValueError, match="sees another run.h5 than this host"):
                list(who.run(_name, ("run",), [0], "naming"))
            with pytest.raises(ValueError, match="workers of tcp://.* died of one piece of the work"):
                list(who.run(_die, (), [0], "dying"))


@pytest.mark.long
def test_a_scheduler_that_is_not_there_is_a_sentence(folder, tmp_path, capsys):
    run = str(folder / "base.h5")
    assert main(["analyze", run, "--out_dir", str(tmp_path), "--scheduler", "tcp://127.0.0.1:1"]) == 1
    assert "no scheduler answers there" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def _name(stores, piece):
    return stores[0].name


def _die(stores, piece):
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
