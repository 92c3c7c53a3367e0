"""The runs of a page: their names, the words and targets that it shows, and what is said of each in its list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from sd35h5.errors import Sd35h5Error, StoreError
from sd35h5.figures.prompt_names import short_names
from sd35h5.metrics import attention_maps, targets
from sd35h5.metrics.catalogue import MEASURES, absent, head_axis, uniform_value
from sd35h5.metrics.first_token import LABELS
from sd35h5.metrics.targets import FIRST_TOKEN, PADS, Target
from sd35h5.reports.info import nbytes
from sd35h5.store.schema import GROUPS
from sd35h5.store.showable import showable
from sd35h5.store.words import same_word

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

WORDS_OF = 100  # samples whose words are counted
MOST_WORDS = 8  # that numbers are made for, where none are named
NAME_ROOM = 40  # letters
AGAINST_TEXT = ("first_token_share", "text_mass_fraction")  # of which the image is no part
IMAGE = Target("group", "image")
ALL = "all"  # the set of all samples of a run
_FOLDERS = re.compile(r"(?<![\w:/.])(?:~?/|[A-Za-z]:[\\/])(?:[^\s/\\'\"]+[/\\])+")


@dataclass(frozen=True)
class PublishedRun:
    """A run of a page.

    Args:
        key: its folder in the page's data, `r0` and so on; name: as the dashboard calls it, and URLs.
        words: that were chosen; none means maps of all words.
        sets: name -> samples that numbers are means over: all, and those that pair with another run.
        targets: branch -> what numbers are about: the first token, the groups that are there, words.
    """

    key: str
    name: str
    store: Store
    words: tuple[str, ...]
    sets: dict[str, tuple[int, ...]]
    targets: dict[str, tuple[Target, ...]]

    @property
    def metrics(self) -> list[str]:
        """The metrics that the file holds."""
        missing = absent(self.store)
        return [name for name in MEASURES if name not in missing]

    def targets_of(self, metric: str, branch: str) -> list[Target]:
        """The targets that a metric is shown of; the first alone where it is about all keys."""
        every = self.targets[branch] if MEASURES[metric].of_target else (FIRST_TOKEN,)
        return [one for one in every if one != IMAGE or metric not in AGAINST_TEXT]


def published_run(
    place: int, name: str, store: Store, words: Sequence[str], sets: dict[str, tuple[int, ...]]
) -> PublishedRun:
    """Return a run of a page, its targets looked up. Args: sets: of samples, besides all."""
    chosen = tuple(dict.fromkeys(map(same_word, words)))
    found = {branch: _targets(store, branch, chosen) for branch in store.labels("branch")}
    return PublishedRun(f"r{place}", name, store, chosen, {ALL: tuple(range(len(store))), **sets}, found)


def _targets(store: Store, branch: str, chosen: Sequence[str]) -> tuple[Target, ...]:
    some = range(min(WORDS_OF, len(store)))
    there = set(targets.token_groups(store, branch, some).ravel().tolist())
    groups = [Target("group", name) for place, name in enumerate(GROUPS) if place in there or name == "image"]
    words = chosen or _frequent_things(targets.token_words(store, branch, some))
    return (FIRST_TOKEN, *groups, *(Target("word", word) for word in words))


def _frequent_things(words: np.ndarray) -> list[str]:
    """Return the words of most prompts that name a thing. Args: words: str (sample, token)."""
    counts = Counter(word for row in words for word in dict.fromkeys(row.tolist()) if word)
    things = [word for word in counts if word.strip(".,;:!?'\"") not in attention_maps.NO_THINGS]
    return sorted(things, key=lambda word: -counts[word])[:MOST_WORDS]


def numbers_name(run: PublishedRun, branch: str, metric: str, target: Target, chosen: str) -> str:
    """Return the file of a metric's mean over a set of samples."""
    place = run.targets[branch].index(target)
    return f"{run.key}/numbers/{branch}/{metric}.t{place}.{chosen}.arrow"


def uniform(
    run: PublishedRun, metric: str, target: Target, branch: str, samples: Sequence[int]
) -> float | None:
    """Return what a metric would be under uniform attention; None where that says nothing or the file does not."""
    try:
        return uniform_value(run.store, metric, target, branch, samples)
    except Sd35h5Error:
        return None


def listed(run: PublishedRun) -> dict[str, Any]:
    """Return what the page knows of a run before it reads any of its numbers."""
    store, sizes = run.store, run.store.sizes
    prompts = store.samples["prompt_id"]
    return {
        "key": run.key, "name": run.name, "sets": {name: list(those) for name, those in run.sets.items()},
        "about": about(store), "samples": len(store), "prompts": int(prompts.nunique()),
        "sizes": {name: int(sizes[name]) for name in ("layer", "head", "step", "token")},
        "keys": _keys(store), "mapped": attention_maps.MAPS in store, "pictured": "images/image" in store,
        "branches": {
            branch: {"targets": [_target(one) for one in run.targets[branch]]} for branch in store.labels("branch")
        },
        "metrics": [
            {
                "name": name, "title": MEASURES[name].title, "label": LABELS.get(name, MEASURES[name].label),
                "of_target": MEASURES[name].of_target, "heads": int(sizes[head_axis(store, name)]),
                "image_too": name not in AGAINST_TEXT,
            }
            for name in run.metrics
        ],
    }  # fmt: skip


def about(store: Store) -> dict[str, str]:
    """Return a run's card: model, gates, intervention, size."""
    attributes, sizes = store.attributes, store.sizes
    told = {
        name: showable(attributes.get(name) or "", 200)
        for name in ("gate_type", "intervention", "created_utc")
    }
    count = f"{sizes['sample']} sample{'s' if sizes['sample'] != 1 else ''}"
    count += "" if store.status == "complete" else f" of {store.planned}"
    shape = (
        f"{sizes['layer']} layers × {sizes['head']} heads",
        f"{sizes['step']} steps",
        f"{sizes['token']} text tokens",
    )
    return {
        "model": showable(PurePath(attributes.get("model_id") or "no name in the file").name, 80),
        "gate": told["gate_type"] or "not told", "intervention": told["intervention"] or "none",
        "created": told["created_utc"],
        "shape": " · ".join(shape), "size": f"{count} · {nbytes(store.bytes_on_disk())}",
    }  # fmt: skip


def names_of(store: Store) -> list[str]:
    """Return a short name for each sample, by its prompt."""
    return short_names([showable(prompt) for prompt in store.samples["prompt"]], NAME_ROOM)


def without_folders(text: str) -> str:
    """Return a text of a file's provenance without the folders of the machine that drew it: `…/run.h5`."""
    return _FOLDERS.sub("…/", text)


def _target(target: Target) -> dict[str, object]:
    names = {"token": "first token (clip_bos)", "group": str(target), "word": str(target)}
    is_pad = target.kind == "group" and target.value in PADS
    return {"text": f"{target.kind}:{target.value}", "name": names[target.kind], "pad": is_pad}


def _keys(store: Store) -> int:
    try:
        return targets.key_count(store)
    except StoreError:
        return 0
