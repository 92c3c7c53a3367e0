"""The stages in which a process can end: what each command is given, and what it makes of it undisturbed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path

from making.pipelines import make_pipeline
from making.stores import make_store
from parts.dying.forked import Child, Place, spans

import capture_cli
from sd35h5 import __main__ as commands
from sd35h5.store import packing
from sd35h5.store.cutting import joining, slicing
from sd35h5.store.schema import PARTS_SUFFIX
from sd35h5.store.writer import SampleWriter

SAMPLES = 6
OUT = "out.h5"
SEALING = (SampleWriter, "seal")
CAPTURE = (
    f"--height 64 --width 96 --steps 2 --max_sequence_length 24 --maps all --map_steps all --map_heads all --atlas "
    f"--precision exact --seed 3 "
    f"--num_images {SAMPLES // 2} --prompt cat dog"
).split()
LARGE = {"atlas": True, "steps": 12, "height": 192, "width": 128}


@dataclass(frozen=True)
class Undisturbed:
    """What a command makes where nothing happens.

    Args:
        whole: the finished file. seconds: of the whole command, and of its watched calls.
        entered: when it first entered the watched function.
    """

    whole: Path
    seconds: float
    calls: list[float]
    entered: float


@dataclass(frozen=True)
class Stage:
    """Something that a command does.

    Args:
        name: of the stage. entrance: the command's `main`. words: what it is given, but for --out.
        watched: a function that it is in, or that begins it.
        is_within: whether it is over when the function returns; else it goes on until the command ends.
        given: a folder that lies where the file is made.
    """

    name: str
    entrance: Callable[[list[str]], int]
    words: tuple[str, ...]
    watched: Place
    is_within: bool = False
    given: Path | None = None

    def line(self, folder: Path) -> list[str]:
        """The command's words."""
        if self.name == "packing":
            return [*self.words, str(folder / f"{OUT}{PARTS_SUFFIX}"), "--remove_parts"]
        return [*self.words, "--out", str(folder / OUT)]

    @property
    def told(self) -> str:
        """The command, in a word or two."""
        return "capture_cli.py" if self.entrance is capture_cli.main else f"sd35h5 {self.words[0]}"

    def prepare(self, folder: Path) -> None:
        """Make the folder in which the command works."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.given:
            shutil.copytree(self.given, folder / self.given.name)

    def begin(
        self, folder: Path, said: Path, fault: Callable[[], None] | None = None, watched: Place | None = None
    ) -> Child:
        """Start the command in a folder."""
        return Child(partial(self.entrance, self.line(folder)), said, watched or self.watched, fault)

    def undisturbed(self, folder: Path) -> Undisturbed:
        """Run the command to its end."""
        self.prepare(folder)
        child = self.begin(folder, folder.with_name("undisturbed.txt"))
        if child.finish():
            raise SystemExit(f"{self.name} fails undisturbed: {child.text()[-2000:]}")
        return Undisturbed(folder / OUT, child.seconds, spans(child), child.marks[0][1])


class Sources:
    """What commands are given, made once in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def model(self) -> Path:
        """A tiny random model in diffusers' layout; made in a child, so that this process never computes."""
        return self._made("tiny", lambda path: make_pipeline().save_pretrained(path))

    @cached_property
    def dumps(self) -> Path:
        """Folders of the older tool, with two prompts each."""
        from making.older_tool import random_maps, write_older  # imports torch

        def write(root: Path) -> None:
            for number in range(SAMPLES // 2):
                maps = random_maps(prompts=2, seed=number)
                write_older(root / f"{number:03d}", maps, [f"a red cat {number}", f"a dog {number}"])

        return self._made("dumps", write)

    @cached_property
    def sealed(self) -> Path:
        """Sealed files that are not packed."""
        make_store(self.folder / OUT, samples=SAMPLES, packed=False, **LARGE)
        return self.folder / f"{OUT}{PARTS_SUFFIX}"

    @cached_property
    def packed(self) -> list[Path]:
        """Packed files of one shape and one model."""
        return [
            make_store(self.folder / f"{name}.h5", samples=SAMPLES // 2, sink=sink, **LARGE)
            for name, sink in (("one", 3.0), ("other", 2.0))
        ]

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.folder / name
        child = Child(lambda: int(bool(make(path))), self.folder / "made.txt", (Path, "exists"))
        if child.finish():
            raise SystemExit(child.text())
        return path

    def stage(self, name: str) -> Stage:
        """A stage, with what its command is given."""
        if name in ("capturing", "sealing"):
            words = (*CAPTURE, "--model_id", str(self.model))
            return Stage(name, capture_cli.main, words, SEALING, is_within=name == "sealing")
        if name == "packing":
            return Stage(name, commands.main, ("pack",), (packing, "_pack_into"), given=self.sealed)
        one, other = map(str, self.packed)
        if name == "slicing":
            words = ("slice", one, "--layers", "1-2", "--tokens", "0-40")
            return Stage(name, commands.main, words, (slicing, "new_file"))
        if name == "merging":
            return Stage(name, commands.main, ("merge", one, other), (joining, "new_file"))
        if name == "importing":
            words = ("import", str(self.dumps), "--tokenizer_path", str(self.model))
            return Stage(name, commands.main, words, SEALING)
        raise ValueError(name)


STAGES = ("capturing", "sealing", "packing", "slicing", "merging", "importing")
_WITH_TORCH = {"capturing", "sealing", "importing"}


def warm_up(stages: Collection[str]) -> None:
    """Import here what the children need: each then begins in no time."""
    names = ["sd35h5.store.verifying", "sd35h5.store.writer"]
    if _WITH_TORCH & set(stages):
        names += ["diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3", "transformers.models.t5",
                  "transformers.models.clip", "sd35h5.capturing.run_job", "sd35h5.importing.run_import"]  # fmt: skip
    for name in names:
        import_module(name)
