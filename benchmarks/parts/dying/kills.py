"""One SIGKILL at some moment of a command, what it leaves, and what the same command makes of that."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import h5py
from making.equal_arrays import are_equal, differing
from parts.dying.forked import Child
from parts.dying.stages import OUT, SEALING, Stage, Undisturbed

from sd35h5.store.schema import PARTS_SUFFIX, VARIABLES

_SOONER = 0.9  # of the moment, where the command had ended by then
ALREADY = "is there already"


@dataclass
class Found:
    """What became of the kills of a stage.

    Args:
        kills: that came in time. half: after which a half-written file lay there. there: after which the whole one did.
        sealed: samples that were sealed when they came. lost, anew: of those, not there or other than undisturbed, and
            sealed again by the same command.
        wrong: sentences on what is not as it should be.
    """

    kills: int = 0
    half: int = 0
    there: int = 0
    sealed: int = 0
    lost: int = 0
    anew: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def kill_once(
    stage: Stage, calm: Undisturbed, folder: Path, trial: int, share: float, lot: random.Random, found: Found
) -> None:
    """End the command once at a moment, look at what is there, and give the same command again.

    Args:
        calm: the command undisturbed. trial: its number. share: 0..1, how far into the stage the kill comes.
        lot: chooses which sample's sealing it meets.
    """
    child = killed(stage, calm, folder, trial, share, lot)
    found.kills += 1
    found.seconds += child.seconds
    at = f"{stage.name}, kill {trial} after {child.marks[-1][1] if child.marks else 0:.3f} s"
    sealed = sealed_in(folder)
    found.sealed += len(sealed)
    lost = [index for index, where in sealed.items() if not is_as_undisturbed(*where, index, calm.whole)]
    found.lost += len(lost)
    found.wrong += [f"{at}: sample {index} is sealed and not as undisturbed" for index in lost]
    found.half += any(folder.rglob("*.tmp"))
    found.there += (folder / OUT).exists()
    again = take_up(stage, folder, found.wrong, at)
    found.seconds += again.seconds
    if stage.watched == SEALING:
        anew = again.calls - (len(samples_of(calm.whole)) - len(sealed))
        found.anew += anew
        found.wrong += [f"{at}: {anew} sealed samples were made anew"] * bool(anew)
    found.wrong += [f"{at}: {told}" for told in unlike(folder, calm)]


def killed(
    stage: Stage, calm: Undisturbed, folder: Path, trial: int, share: float, lot: random.Random
) -> Child:
    """A command that was killed; begun again where it had ended before."""
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        stage.prepare(folder)
        child = stage.begin(folder, folder.with_name("said.txt"))
        if stage.is_within:
            call = lot.randrange(len(calm.calls))
            is_there = child.wait(calls=call + 1)
            moment = child.seconds + share * calm.calls[call]
        elif trial % 2:
            is_there = child.wait(calls=1)
            moment = child.seconds + share * (calm.seconds - calm.entered)
        else:
            is_there, moment = True, share * calm.seconds
        if is_there and child.wait(moment):
            child.kill()
            return child
        share *= _SOONER


def take_up(stage: Stage, folder: Path, wrong: list[str], at: str) -> Child:
    """Give the same command again; where it says that its file is there, that it is to be made anew."""
    child = stage.begin(folder, folder.with_name("again.txt"))
    if child.finish() and ALREADY in child.text():
        return child
    if child.status:
        wrong.append(f"{at}: the same command again fails: {child.text()[-500:]}")
    return child


def sealed_in(folder: Path) -> dict[int, tuple[Path, int]]:
    """The samples that are sealed in a folder: index -> the file and the position in it."""
    out, parts = folder / OUT, folder / f"{OUT}{PARTS_SUFFIX}"
    there = dict.fromkeys(samples_of(out)) if out.exists() else {}
    found = {index: (out, position) for position, index in enumerate(there)}
    return found | {int(path.stem): (path, 0) for path in parts.glob("*.h5")}


def samples_of(path: Path) -> list[int]:
    """The scale `sample` of a file."""
    with h5py.File(path) as file:
        return file["sample"][:].tolist()


def is_as_undisturbed(path: Path, position: int, index: int, whole: Path) -> bool:
    """Whether all that a sealed sample has is what the undisturbed file has of it, and nothing is missing."""
    with h5py.File(path) as file, h5py.File(whole) as other:
        row = other["sample"][:].tolist().index(index)
        names = {name for name in VARIABLES if name in other}
        return names == {name for name in VARIABLES if name in file} and all(
            are_equal(file[name][position : position + 1], other[name][row : row + 1])
            for name in names
            if VARIABLES[name].dims[0] == "sample"
        )


def unlike(folder: Path, calm: Undisturbed) -> list[str]:
    """What of a finished command's folder is not as undisturbed: arrays, files beside, samples."""
    out = folder / OUT
    if not out.exists():
        return [f"there is no {OUT}"]
    told = [f"{name} differs" for name in differing(out, calm.whole)]
    left = sorted(path.name for path in folder.iterdir() if path != out)
    return told + [f"{name} is left behind" for name in left]
