"""Everything else that can befall a command: a full disk, a folder that vanishes, a process or a thread that dies."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
from making.disks import enlarge, mounted
from parts.dying.forked import Child, Place
from parts.dying.kills import is_as_undisturbed, sealed_in, take_up, unlike
from parts.dying.stages import OUT, SEALING, Stage, Undisturbed

from sd35h5.store import writer
from sd35h5.store.cutting import block_copies
from sd35h5.store.processes.writer_client import ProcessWriter
from sd35h5.store.schema import PARTS_SUFFIX
from sd35h5.store.sharing.room import MARGIN

ROOM = "64m"
_PAGE = 4096
BLOCKS = 40  # that a thread has deflated when it fails
NOT_HERE = "skipped: no file system can be mounted here, which takes root and a system that allows it"


@dataclass
class Row:
    """What one fault made of one command.

    Args:
        status: exit code. said: its sentence. sealed, lost: samples that were sealed when it ended, and of those the
            ones that are not as undisturbed. again: what the same command made.
    """

    fault: str
    stage: str
    status: int
    said: str
    sealed: int
    lost: int
    again: str
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Mishap:
    """A fault, and how it comes about.

    Args:
        stages: that it can befall; () for all.
        within: is done in the process before its command.
        meanwhile: is done while the command runs, in its folder; what it returns is done when that has ended.
        watched: the function that tells when.
        is_small: it works on a disk that is too small.
        is_half_left: nobody is there to remove a half-written file; the same command does.
    """

    name: str
    stages: tuple[str, ...] = ()
    within: Callable[[Undisturbed], None] | None = None
    meanwhile: Callable[[Child, Path], Callable[[], None]] | None = None
    watched: Place | None = None
    is_small: bool = False
    is_half_left: bool = False


def mishaps(fault: Mishap, stages: Sequence[Stage], folder: Path) -> Iterator[Row | str]:
    """Let a fault befall the commands of stages. Yields: a row each, or a sentence where it cannot be had."""
    for stage in stages:
        if stage.name == "sealing" or (fault.stages and stage.name not in fault.stages):
            continue  # sealing is in the command that captures
        calm = _calm(stage, folder)
        place = folder / "place"
        with (
            mounted(place, f"{_small_disk(stage, calm)}") if fault.is_small else nullcontext(True) as is_there
        ):
            if not is_there:
                yield f"{fault.name}: {NOT_HERE}"
                return
            yield _befall(fault, stage, calm, place / "run")
        shutil.rmtree(place, ignore_errors=True)


def _befall(fault: Mishap, stage: Stage, calm: Undisturbed, folder: Path) -> Row:
    """Run the command under the fault, look at what is there, and give the same command again without it."""
    stage.prepare(folder)
    within = partial(fault.within, calm) if fault.within else None
    said = folder.parents[1] / "said.txt"
    child = stage.begin(folder, said, within, fault.watched)
    repair = fault.meanwhile(child, folder) if fault.meanwhile else None
    status, text = child.finish(), child.text()
    if repair:
        repair()
    if fault.is_small:
        enlarge(folder.parent, ROOM)
    at = f"{fault.name}, {stage.name}"
    sealed = sealed_in(folder)
    lost = [index for index, where in sealed.items() if not is_as_undisturbed(*where, index, calm.whole)]
    sentences = [line for line in re.split(r"[\r\n]+", text) if line.startswith("error: ")]
    wrong = [f"{at}: sample {index} is sealed and not as undisturbed" for index in lost]
    if status != 1 or len(sentences) != 1 or "Traceback" in text:
        wrong.append(f"{at}: exit code {status}, said {text[-1500:]!r}")
    wrong += [f"{at}: {path.name} is left" for path in folder.rglob("*.tmp") if not fault.is_half_left]
    take_up(stage, folder, wrong, at)
    wrong += (different := [f"{at}: {told}" for told in unlike(folder, calm)])
    again = "makes another file" if different else "makes an equal file"
    shown = " ".join(sentences).replace(str(folder), "…").replace("|", "/")
    return Row(fault.name, stage.name, status, shown, len(sealed), len(lost), again, wrong)


def _calm(stage: Stage, folder: Path) -> Undisturbed:
    """The command undisturbed: made for the kills already, or made now."""
    there = folder / f"calm-{stage.name}"
    whole = there / OUT
    return Undisturbed(whole, 0.0, [], 0.0) if whole.exists() else stage.undisturbed(there)


def _small_disk(stage: Stage, calm: Undisturbed) -> int:
    """Bytes of a disk with room for what is given, for what HDF5 may take, and for two thirds of a finished file."""
    given = sum(path.stat().st_size for path in stage.given.iterdir()) if stage.given else 0
    return given + (MARGIN + int(calm.whole.stat().st_size * 2 / 3)) // _PAGE * _PAGE


def _limit_size(share: float, more: int, calm: Undisturbed) -> None:
    """Let this process write no file larger than a share of the finished one and some bytes."""
    most = int(calm.whole.stat().st_size * share) + more
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _vanish(child: Child, folder: Path) -> Callable[[], None]:
    """Take the folder away while it is written to. Returns: what brings it back."""
    parts = folder / f"{OUT}{PARTS_SUFFIX}"
    away = folder.with_name("away")
    if not child.wait(calls=2 if child.watched == SEALING else 1):
        raise RuntimeError(f"it ended before its folder was taken: {child.text()[-1000:]}")
    what = parts if child.watched == SEALING else folder
    os.rename(what, away)

    def bring_back() -> None:
        if what.exists():  # made anew by who did not find it
            shutil.rmtree(what)
        os.rename(away, what)

    return bring_back


def _writes_apart(_: Undisturbed) -> None:
    """Have samples written by processes of their own, as beside a GPU."""
    from sd35h5.capturing import recorder

    recorder.SampleWriter = lambda *args, owned, **more: ProcessWriter(*args, **more)


def _kill_writer(child: Child, _: Path) -> Callable[[], None]:
    """End the process that writes the second sample."""
    child.wait(calls=2)
    for process in psutil.Process(child.pid).children():
        os.kill(process.pid, signal.SIGKILL)
    return lambda: None


def _failing_thread(error: Callable[[], BaseException], _: Undisturbed) -> None:
    """Let a thread that deflates or writes raise, at some block."""
    for module, name in ((writer, "encode_chunk"), (block_copies, "_write")):
        setattr(module, name, _raising(getattr(module, name), error))


def _raising(real: Callable, error: Callable[[], BaseException]) -> Callable:
    """A function that does what another one does, until it has done it so often."""
    blocks = iter(range(BLOCKS))

    def broken(*args: object) -> object:
        if next(blocks, None) is None:
            raise error()
        return real(*args)

    return broken


_THREADED = ("capturing", "slicing", "merging", "importing")
_APART = (ProcessWriter, "seal")
_BROKEN = {
    "a thread cannot write": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "a thread has no memory": MemoryError,
    "a thread fails otherwise": lambda: RuntimeError("it broke"),
}
MISHAPS = (
    Mishap("no file larger than 100 kB", (), partial(_limit_size, 0, 100_000)),
    Mishap("no file larger than the finished one", (), partial(_limit_size, 1, 0)),
    Mishap("a disk that two thirds fit on", is_small=True),
    Mishap("the folder vanishes, and comes back", meanwhile=_vanish, is_half_left=True),
    Mishap(
        "a writing process is killed", ("capturing",), _writes_apart, _kill_writer, _APART, is_half_left=True
    ),
    *(Mishap(name, _THREADED, partial(_failing_thread, error)) for name, error in _BROKEN.items()),
)
