"""Ctrl-C and its like are heeded at the next step where Python lost them, and handlers are put back."""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from sd35h5.capturing.interrupts import Stopped, heeded_interrupts

OTHERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _usual_handlers() -> Iterator[None]:
    """Those of a process that a person starts; the tests may run in a script's background, where SIGINT is ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(OTHERS, signal.SIG_DFL)}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Thing:
    """What a weak reference can point to."""


def _fail(_: object) -> None:
    raise ValueError("theirs")


def test_of_a_swallowed_interrupt_nothing_is_printed_but_of_other_errors(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    hook = sys.unraisablehook
    with heeded_interrupts() as heed:
        for callback in (lambda _: signal.raise_signal(signal.SIGTERM), _fail):
            thing = Thing()
            reference = weakref.ref(thing, callback)
            del thing
            assert reference() is None
        with pytest.raises(Stopped):
            heed()
    assert [type(each.exc_value) for each in told] == [ValueError]
    assert sys.unraisablehook is hook


def test_an_interrupt_that_a_weak_reference_swallows_is_raised_afterwards():
    with heeded_interrupts() as heed:
        heed()
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        assert reference() is None
        with pytest.raises(KeyboardInterrupt):
            heed()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_is_raised_at_once_where_it_can_be():
    with heeded_interrupts(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_handler_and_other_threads_are_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("theirs"))
    try:
        with heeded_interrupts() as heed:
            signal.raise_signal(signal.SIGINT)
            heed()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["theirs"]

    def work() -> None:
        with heeded_interrupts() as heed:
            heed()
            seen.append("thread")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["theirs", "thread"]


@pytest.mark.parametrize("number", OTHERS)
def test_the_signals_of_schedulers_and_closing_terminals_are_as_ctrl_c(number):
    with heeded_interrupts() as heed:
        with pytest.raises(KeyboardInterrupt) as stopped:
            signal.raise_signal(number)
        assert stopped.value.status == 128 + number and str(stopped.value) == signal.Signals(number).name
        signal.raise_signal(
            signal.SIGTERM
        )  # a scheduler repeats itself: what is being put in order is left alone
        with pytest.raises(Stopped):
            heed()
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)  # a person who insists
    assert signal.getsignal(number) == signal.SIG_DFL


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with heeded_interrupts() as heed:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)
        heed()
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_within_another_one_the_outer_one_is_heeded():
    with heeded_interrupts(), heeded_interrupts() as inner:
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            inner()
