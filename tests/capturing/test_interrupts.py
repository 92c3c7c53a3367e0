"""Ctrl-C is heeded at the next step where Python lost it, and handlers are put back."""

from __future__ import annotations

import signal
import threading
import weakref

import pytest

from sd35h5.capturing.interrupts import heeded_interrupts


class Thing:
    """What a weak reference can point to."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
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
