"""Attention maps of a store: which tokens have one, and their values over steps and layers; torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics import targets
from sd35h5.metrics.averaging import places_of
from sd35h5.store.showable import showable

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

MAPS, HEAD_MAPS = "maps/image_to_text", "maps/image_to_text_per_head"
#: words of prompts that name no thing: articles, places, colours, sizes, kinds of picture
NO_THINGS = frozenset(
    "a an the of in on at to and or with by from for is are it its this that one two three four five some many "
    "left right above below under over beside behind between near next top bottom middle side background "
    "foreground red green blue yellow orange purple pink brown black white grey gray golden dark light bright "
    "big small large little tiny huge tall old young new picture photo photograph painting drawing image".split()
)


def mapped_tokens(store: Store, sample: int, branch: str = "cond") -> pd.DataFrame:
    """Return the tokens of a sample that have a map.

    Returns: map_token (position in the maps), token, text (as shown), encoder, group, word (-1 for none),
    word_text.
    """
    if MAPS not in store:
        raise StoreError(f"{store.name} holds no attention maps: capture it with --maps words to have them")
    index = store.read("maps/map_token_index", sample=sample, branch=branch).values.astype(int)
    if not (index >= 0).any():
        raise StoreError(f"{store.name} holds no maps of branch {branch!r}: they are of the cond branch")
    text = targets.branch_texts(store, branch, [sample])[0]
    table = targets.with_words(store.tokens(sample, branch), text).set_index("token", drop=False)
    mapped = table.loc[index[index >= 0]].reset_index(drop=True)
    mapped.insert(0, "map_token", np.flatnonzero(index >= 0))
    texts = zip(mapped["text"], mapped["group"], strict=True)
    mapped["text"] = [targets.shown_text(piece, group) for piece, group in texts]
    return mapped[["map_token", "token", "text", "encoder", "group", "word", "word_text"]]


def map_choices(store: Store, sample: int, branch: str = "cond") -> pd.DataFrame:
    """Return what a map can be shown of: words, each as the sum of its CLIP and T5 tokens, then single
    tokens.

    Returns: label, text, word_text, map_tokens and tokens (tuples of positions), and kind: "word", "piece" of
        a word that is offered too, or "token".
    """
    mapped = mapped_tokens(store, sample, branch)
    rows, covered = [], set()
    for _, part in mapped[mapped["word"] >= 0].groupby("word", sort=True):
        if len(part) > 1:
            rows.append(_choice(part, str(part["word_text"].iloc[0]), "word"))
            covered |= set(part["token"])
    for place, token in enumerate(mapped["token"]):
        rows.append(
            _choice(
                mapped.iloc[[place]], mapped["text"].iloc[place], "piece" if token in covered else "token"
            )
        )
    return pd.DataFrame(rows, columns=["label", "text", "word_text", "kind", "map_tokens", "tokens"])


def first_thing(choices: pd.DataFrame) -> int:
    """Return the row of `map_choices` to open on: the first word that names a thing, else the first word, else 0."""
    words = choices[(choices["word_text"] != "") & (choices["kind"] != "piece")]
    words = words.assign(token=[tokens[0] for tokens in words["tokens"]]).sort_values("token", kind="stable")
    things = words[~words["word_text"].str.strip(".,;:!?'\"").isin(NO_THINGS)]
    return int((things if len(things) else words).index[0]) if len(words) else 0


def _choice(part: pd.DataFrame, text: str, kind: str) -> tuple:
    where = " + ".join(f"{row.encoder} {row.token}" for row in part.itertuples())
    maps, tokens = tuple(part["map_token"].tolist()), tuple(part["token"].tolist())
    return f"{showable(text)} · {where}", showable(text), part["word_text"].iloc[0], kind, maps, tokens


def token_maps(
    store: Store, sample: int, map_tokens: int | Sequence[int], branch: str = "cond"
) -> xr.DataArray:
    """Return the map of a token, or the sum of several: Σ A[image patch, token], mean over heads and pooled
    patches.

    Units: 1 (share of the patch's attention, 0..1). Source: maps/image_to_text (rounded, ≤ 0.05 %).
    Returns: float32 (map_step, layer, y, x); map_step holds the true step index.
    """
    chosen = [map_tokens] if isinstance(map_tokens, int) else list(map_tokens)
    values = store.read(MAPS, sample=sample, branch=branch, map_token=chosen)
    if not np.isfinite(values.values).any():
        raise StoreError(f"{store.name} holds no map of that token for branch {branch!r}")
    return values.sum("map_token", skipna=False).transpose("map_step", "layer", "y", "x")


def head_maps(
    store: Store, sample: int, map_tokens: Sequence[int], layer: int, branch: str = "cond"
) -> xr.DataArray | None:
    """Return the map of a token, or the sum of several, of every head of a layer; None where they were not captured.

    Units: 1 (share of the patch's attention, 0..1).  Source: maps/image_to_text_per_head (rounded, ≤ 0.05 %).
    Returns: float32 (map_step, head, y, x).
    """
    if HEAD_MAPS not in store:
        return None
    where = {"sample": sample, "branch": branch, "map_token": list(map_tokens)}
    (where["layer"],) = places_of(store, "layer", [layer])
    values = store.read(HEAD_MAPS, **where).sum("map_token", skipna=False)
    return values.transpose("map_step", "head", "y", "x") if np.isfinite(values.values).any() else None


def cell_maps(
    store: Store, sample: int, map_tokens: Sequence[int], layer: int, head: int, branch: str = "cond"
) -> tuple[xr.DataArray, bool]:
    """Return the map of a token, or the sum of several, at one layer: of the head itself where the store has it.

    Units: 1 (share of the patch's attention, 0..1).  Source: maps/image_to_text_per_head, else maps/image_to_text.
    Returns: float32 (map_step, y, x), and whether it is of that head (else it is the mean over heads).
    """
    of_heads = head_maps(store, sample, map_tokens, layer, branch)
    if of_heads is not None:
        return of_heads.sel(head=head, drop=True), True
    return token_maps(store, sample, map_tokens, branch).sel(layer=layer, drop=True), False


def picture_shape(values: xr.DataArray) -> tuple[int, int]:
    """Return (height, width) of a picture of a map when there is no image: about 256 pixels on the longer
    side."""
    y, x = values.sizes["y"], values.sizes["x"]
    times = max(1, round(256 / max(y, x)))
    return y * times, x * times


def fit(shape: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return (height, width) of the same proportion whose longer side is `longest`."""
    times = longest / max(shape)
    return max(1, round(shape[0] * times)), max(1, round(shape[1] * times))
