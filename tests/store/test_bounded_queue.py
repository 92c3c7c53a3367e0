"""The queue behind the writer is bounded, passes errors on, and drops what is not wanted any more."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from making.samples import header, put_required

from sd35h5 import open_store
from sd35h5.store.bounded_queue import Drain, half_of_the_cores
from sd35h5.store.writer import SampleWriter


def test_who_submits_waits_while_the_queue_is_full():
    drain, gate, submitted = Drain(threads=1, max_waiting=100), threading.Event(), []

    def hand_over() -> None:
        for number in range(5):
            drain.submit(gate.wait, 40)
            submitted.append(number)

    thread = threading.Thread(target=hand_over)
    thread.start()
    thread.join(timeout=0.3)
    assert thread.is_alive() and submitted == [0, 1] and drain.waiting == 80
    gate.set()
    thread.join(timeout=30)
    drain.finish()
    assert submitted == [0, 1, 2, 3, 4] and drain.waiting == 0


def test_a_job_larger_than_the_queue_goes_in_alone():
    drain, done = Drain(threads=2, max_waiting=10), []
    for number in range(3):
        drain.submit(lambda number=number: done.append(number), 1000)
    drain.finish()
    assert sorted(done) == [0, 1, 2]


def test_an_error_comes_out_of_the_next_submit_and_of_finish():
    drain, done = Drain(threads=1, max_waiting=10), []

    def fail() -> None:
        raise OSError(28, "No space left on device")

    drain.submit(fail, 10)
    with pytest.raises(OSError, match="No space left"):
        drain.submit(lambda: done.append(1), 10)
    with pytest.raises(OSError, match="No space left"):
        drain.finish()
    assert not done


def test_what_waits_is_dropped_by_cancel():
    drain, gate, done = Drain(threads=1), threading.Event(), []
    drain.submit(gate.wait, 1)
    for _ in range(3):
        drain.submit(lambda: done.append(1), 1)
    threading.Timer(0.1, gate.set).start()
    drain.cancel()
    assert gate.is_set() and not done


def test_at_most_half_of_the_cores_deflate():
    import os

    assert 1 <= half_of_the_cores() <= max(1, len(os.sched_getaffinity(0)) // 2)


def test_the_callers_array_may_change_as_soon_as_it_was_put(tmp_path):
    writer = SampleWriter(tmp_path, 0, header("exact"))
    values = np.empty((4, 2, 70), np.float32)
    for step in range(3):
        values[:] = step
        writer.put("sinks/mass_image", values, branch=0, step=step)
    values[:] = -1
    put_required(writer)
    with open_store(writer.seal()) as store:
        for step in range(3):
            assert (store.read("sinks/mass_image", branch=0, step=step).values == step).all()


def test_a_writer_leaves_no_threads_behind(tmp_path):
    before = threading.active_count()
    for index in range(2):
        writer = SampleWriter(tmp_path, index, header())
        writer.put("sinks/mass_image", np.ones((4, 2, 70)), branch=0, step=0)
        put_required(writer)
        writer.abandon() if index else writer.seal()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_who_waits_finds_all_jobs_done_and_the_threads_alive():
    drain, done = Drain(threads=1), []
    for number in range(3):
        drain.submit(lambda number=number: (time.sleep(0.02), done.append(number)), 1)
    drain.wait()
    assert done == [0, 1, 2] and drain.waiting == 0
    drain.submit(lambda: done.append(3), 1)
    drain.finish()
    assert done[-1] == 3
