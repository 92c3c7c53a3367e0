"""The sidebar's samples: found by tag and by the text of their prompts, then chosen; and the one that is shown."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import cached_reads
from dashboard.choosing import address
from sd35h5.figures.prompt_names import folded, short_names
from sd35h5.reports import view_address
from sd35h5.store.showable import showable
from sd35h5.store.words import is_told

MANY = 12  # samples from which on they are searched
NAME_ROOM = TAG_ROOM = 40  # letters


def choose(run: cached_reads.Run) -> tuple[tuple[int, ...], int]:
    """Return the samples that numbers are means over, and the one whose tokens and maps are shown."""
    table = cached_reads.samples(run)
    found = _found(run, table)
    labels = names(run)
    key, shown = f"samples-{run.name}", f"sample-{run.name}"
    address.begin(key, view_address.SAMPLES, [], address.several_of(labels))
    st.session_state[key] = [sample for sample in st.session_state[key] if sample in set(found)]
    every = "all samples" if len(found) == len(table) else f"all {len(found)} that were found"
    chosen = st.multiselect(
        "Samples", found, format_func=labels.get, key=key, placeholder=every,
        help="numbers are means over these; none chosen means all",
    ) or found  # fmt: skip
    address.begin(shown, view_address.SAMPLE, chosen[0], address.one_of(chosen))
    if st.session_state[shown] not in chosen:
        st.session_state[shown] = chosen[0]
    sample = st.selectbox(
        "Shown sample", chosen, format_func=labels.get, key=shown,
        help="whose tokens and maps are shown: they belong to one prompt",
    )  # fmt: skip
    return tuple(chosen), sample


def names(run: cached_reads.Run, room: int = NAME_ROOM) -> dict[int, str]:
    """Return a name of each sample in so many letters and its number, from where its prompt differs from the others."""
    table = cached_reads.samples(run)
    short = short_names(table["prompt"].tolist(), room)
    return {
        sample: f"{sample} · {showable(name)}" for sample, name in zip(table["sample"], short, strict=True)
    }


def _found(run: cached_reads.Run, table: pd.DataFrame) -> list[int]:
    """The samples that have the chosen tags and words in their prompts; all of a short list."""
    every = table["sample"].tolist()
    if len(every) < MANY:
        return every
    tags = tags_of(table)
    wanted, text = [], ""
    if tags:
        key = f"tags-{run.name}"
        address.begin(key, view_address.TAGS, [], address.several_of(tags, "\n"))
        wanted = st.multiselect(
            "Tags", tags, key=key, placeholder="any",
            format_func=lambda tag: f"{folded(showable(tag), TAG_ROOM)} ({tags[tag]})",
            help="samples whose prompts have all of these tags",
        )  # fmt: skip
    key = f"find-{run.name}"
    address.begin(key, view_address.FIND, "", lambda value: value)
    text = st.text_input("Find in prompts", key=key, placeholder="a word or phrase", max_chars=200)
    address.write(view_address.TAGS, wanted)
    address.write(view_address.FIND, text)
    found = matching(table, wanted, text)
    if not found:
        st.caption(":material/search_off: no prompt has that: all samples are offered")
        return every
    return found


def tags_of(table: pd.DataFrame) -> dict[str, int]:
    """Return every tag and how many samples have it, the commonest first."""
    counts: dict[str, int] = {}
    for tags in table["tags"]:
        for tag in filter(None, str(tags).split(",")):
            counts[tag] = counts.get(tag, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def matching(table: pd.DataFrame, tags: list[str], text: str) -> list[int]:
    """Return the samples that have all tags, and the text, in any case, in their prompt or its name."""
    found = []
    for row in table[["sample", "tags", "prompt", "prompt_id"]].itertuples(index=False):
        if is_told(text, row.prompt, row.prompt_id) and set(tags) <= set(str(row.tags).split(",")):
            found.append(int(row.sample))
    return found
