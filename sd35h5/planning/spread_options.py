"""Which processes draw a capture: this one, a share of many, or workers. Options and how they are read. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from sd35h5.errors import NEEDS_DISTRIBUTED, ConfigError
from sd35h5.flags import Count, Text
from sd35h5.store.sharing.shares import Share

_RANGE = r"\d+(?:-\d+)?"


@dataclass(frozen=True)
class Spread:
    """Many GPUs, many hosts: at most one of these. Which process draws a sample changes nothing in it."""

    shard: Text = ""
    """Draw only this share of the samples: `2/8`, the second of eight, or `2,5-7/8`. `auto` reads which one from the
    environment of a Slurm array, torchrun or accelerate. All shards have the same --out; who is last packs it."""
    gpus: Text = ""
    """Draw with one worker process a GPU of this host: `all`, or `0,1`. Needs the extra `cluster`."""
    workers: Count = None
    """The same on the CPU: so many worker processes, which share its cores."""
    scheduler: Text = ""
    """Draw with the workers of a running dask.distributed scheduler: its address, `tcp://host:8786`, or its scheduler
    file. Only give one that you trust."""

    @property
    def is_with_workers(self) -> bool:
        """Whether other processes draw for this one."""
        return bool(self.gpus or self.workers is not None or self.scheduler)


def check_spread(spread: Spread, device: str, overwrite: bool) -> None:
    """Refuse what cannot be read or does not go together.

    Raises:
        ConfigError: a sentence naming the option.
    """
    named = {"--shard": spread.shard, "--gpus": spread.gpus, "--workers": spread.workers is not None,
             "--scheduler": spread.scheduler}  # fmt: skip
    if len(given := [name for name, is_given in named.items() if is_given]) > 1:
        raise ConfigError(
            f"{' and '.join(given)} each say who draws the samples: give one of them (a shard is drawn by the process "
            "itself)"
        )
    if spread.shard and overwrite:
        raise ConfigError(
            "--overwrite would remove what other shards have drawn: remove the file and its .parts folder before the "
            "first one begins, and leave --overwrite away"
        )
    if spread.workers is not None and spread.workers < 1:
        raise ConfigError(f"--workers {spread.workers} is too small: it is 1 or more")
    if spread.workers is not None and device.startswith("cuda"):
        raise ConfigError(f"--workers are processes on the CPU: for --device {device}, give --gpus")
    chosen_gpus(spread.gpus)
    if spread.is_with_workers and find_spec("distributed") is None:
        raise ConfigError(f"{given[0]} {NEEDS_DISTRIBUTED}")
    if spread.gpus and device not in ("auto", "cuda"):
        raise ConfigError(
            f"--gpus says which devices draw, and so does --device {device}: give one of the two"
        )


def chosen_gpus(text: str) -> tuple[int, ...] | None:
    """Numbers of GPUs, in their order; None for all, () where none is given.

    Raises:
        ConfigError: no numbers, or one that comes twice.
    """
    if text in ("", "all"):
        return None if text else ()
    numbers = text.split(",")
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ConfigError(f"--gpus {text!r} is neither `all` nor numbers of GPUs, such as 0,1")
    if len(set(map(int, numbers))) < len(numbers):
        raise ConfigError(f"--gpus {text} names a GPU twice, and each has one worker process")
    return tuple(map(int, numbers))


def resolve_share(text: str, environment: Mapping[str, str]) -> Share | None:
    """The share that `--shard` names; None without one.

    Raises:
        ConfigError: no share, or `auto` where the environment tells of none.
    """
    if not text:
        return None
    if text == "auto":
        return _share_of(environment)
    if not (told := re.fullmatch(rf"({_RANGE}(?:,{_RANGE})*)/(\d+)", text, re.ASCII)):
        raise ConfigError(f"--shard {text!r} is no share: give I/N, as 2/8, several, as 2,5-7/8, or auto")
    numbers: set[int] = set()
    count = int(told[2])
    for each in told[1].split(","):
        first, _, last = each.partition("-")
        if not 1 <= int(first) <= int(last or first) <= count:
            raise ConfigError(f"--shard {text}: {each} is outside 1..{count}; shards are counted from 1")
        numbers |= {*range(int(first), int(last or first) + 1)}
    return Share(tuple(sorted(numbers)), count)


def _share_of(environment: Mapping[str, str]) -> Share:
    """Which process of all that a Slurm array, torchrun or accelerate started this is: tasks of an array may each
    start several."""
    array = _numbers(environment, "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    ranks = _numbers(environment, "RANK", "WORLD_SIZE")
    if array is None and ranks is None:
        raise ConfigError(
            "--shard auto: there is neither SLURM_ARRAY_TASK_ID with SLURM_ARRAY_TASK_COUNT (a Slurm array) nor RANK "
            "with WORLD_SIZE (torchrun, accelerate) in the environment: say which share it is, as --shard 2/8"
        )
    task, tasks = (0, 1) if array is None else _place_in_array(*array, environment)
    rank, size = ranks or (0, 1)
    if rank >= size:
        raise ConfigError(f"--shard auto: RANK {rank} is not below WORLD_SIZE {size}")
    return Share((task * size + rank + 1,), tasks * size)


def _place_in_array(number: int, count: int, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which task of an array this is, from 0, and how many there are."""
    ends = _numbers(environment, "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
    if ends is None or count < 1:  # tasks that follow each other differ in this, wherever they begin
        return number % max(count, 1), max(count, 1)
    step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1") or 1)
    place, rest = divmod(number - ends[0], step)
    if rest or (ends[1] - ends[0]) // step + 1 != count:
        raise ConfigError(
            f"--shard auto: the tasks of this Slurm array have gaps ({count} of them between {ends[0]} and {ends[1]}), "
            "so that the number of one does not tell its share: write --shard $SLURM_ARRAY_TASK_ID/N"
        )
    return place, count


def _numbers(environment: Mapping[str, str], *names: str) -> tuple[int, ...] | None:
    """Variables of the environment as numbers; None where one is missing or none."""
    found = [environment.get(name, "") for name in names]
    return tuple(map(int, found)) if all(text.isascii() and text.isdigit() for text in found) else None
