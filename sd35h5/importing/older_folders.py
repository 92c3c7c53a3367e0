"""The folders that the older tool filled: which there are, their prompts, and the pictures beside. Torch-free."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sd35h5.errors import ForeignFileError
from sd35h5.store.opening import reason
from sd35h5.store.showable import forbidden, showable

MAPS_FILE, TOKENS_FILE, PICTURES = "attn_maps.pt", "tokens.json", "images"
FIRST_TOKEN_FILE = "attn_first_token.pt"  # what its script for gated models writes
MAX_TOKENS_BYTES = 16 << 20
_CHARTS = ("layer_head_heatmap.png", "timestep_curve.png")  # of its metrics, which lie beside the picture


@dataclass(frozen=True)
class OlderFolder:
    """One call of the older tool.

    Args:
        prompts: of its samples, in order; None where no tokens.json tells them.
        token_ids: CLIP-L's, of each prompt, neither cut nor padded; None where they are not told.
        pictures: in the order of the prompts; () if there are none.
    """

    path: Path
    prompts: tuple[str, ...] | None
    token_ids: tuple[tuple[int, ...], ...] | None
    pictures: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The folder's own name, as it is told."""
        return showable(self.path.resolve().name, 60)

    @property
    def maps(self) -> Path:
        """The dump."""
        return self.path / MAPS_FILE


def find_folders(paths: Sequence[Path]) -> list[OlderFolder]:
    """Find the folders with a dump: those that are named, or those in them (`000`, `001`, …), by number.

    Folders of such a number beside them that have no dump are told on stderr, and left out.

    Raises: ForeignFileError: there is none, or one cannot be read.
    """
    found: dict[Path, None] = {}
    without: list[str] = []
    for path in paths:
        inside, left = _with_dump(path)
        found |= dict.fromkeys(inside)
        without += left
    if without:
        told = ", ".join(showable(name, 20) for name in without[:5]) + " …" * (len(without) > 5)
        print(f"{told}: no {MAPS_FILE}, left out", file=sys.stderr)
    return [_read_folder(path) for path in found]


def _with_dump(path: Path) -> tuple[list[Path], list[str]]:
    try:
        if not path.is_dir():
            what = "is no folder" if path.exists() else "is not there"
            raise ForeignFileError(
                f"{path} {what}: name the folder that holds {MAPS_FILE}, or one of such folders"
            )
        if (path / MAPS_FILE).is_file():
            return [path], []
        folders = sorted((each for each in path.iterdir() if each.is_dir()), key=_numbered)
        inside = [each for each in folders if (each / MAPS_FILE).is_file()]
    except OSError as error:
        raise ForeignFileError(f"{path} cannot be listed: {reason(error)}") from error
    if not inside:
        raise ForeignFileError(
            f"{path} has no {MAPS_FILE}, and no folder in it has one{_first_token_alone(path)}"
        )
    return inside, [each.name for each in folders if each not in inside and each.name.isdecimal()]


def _first_token_alone(path: Path) -> str:
    if any(path.glob(FIRST_TOKEN_FILE)) or any(path.glob(f"*/{FIRST_TOKEN_FILE}")):
        return f": {FIRST_TOKEN_FILE} holds means of the first token alone, of which no store can be made"
    return ""


def _numbered(path: Path) -> list[tuple[int, int | str]]:
    """Sorts `2` before `10`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path.name)]


def _read_folder(path: Path) -> OlderFolder:
    told = _told(path / TOKENS_FILE)
    try:
        pictures = _pictures(path)
    except OSError as error:
        raise ForeignFileError(f"{path} cannot be listed: {reason(error)}") from error
    prompts = _texts(path, told["prompts"]) if "prompts" in told else None
    return OlderFolder(path, prompts, _ids(path, told.get("token_ids"), prompts), pictures)


def _told(file: Path) -> Mapping[str, object]:
    """What tokens.json holds; nothing where it is not there."""
    where = f"{file.parent.name}/{file.name}"
    try:
        if not file.is_file():
            return {}
        if file.stat().st_size > MAX_TOKENS_BYTES:
            raise ForeignFileError(
                f"{where} has more than {MAX_TOKENS_BYTES >> 20} MiB: it is no list of tokens"
            )
        told = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ForeignFileError(f"{where} cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ForeignFileError(f"{where} is no JSON: {_or_prompt()}") from error
    if not isinstance(told, dict):
        raise ForeignFileError(f"{where} holds no prompts: {_or_prompt()}")
    return told


def _or_prompt() -> str:
    return "take it away and say the prompts with --prompt"


def _texts(path: Path, told: object) -> tuple[str, ...]:
    prompts = [told] if isinstance(told, str) else told
    if not isinstance(prompts, list) or not prompts or not all(isinstance(each, str) for each in prompts):
        raise ForeignFileError(f"{path.name}/{TOKENS_FILE}: its prompts are no list of texts: {_or_prompt()}")
    for place, prompt in enumerate(prompts):
        if found := forbidden(prompt):
            raise ForeignFileError(
                f"{path.name}/{TOKENS_FILE}, prompt {place}: {found} is a character that no file can hold"
            )
    return tuple(prompts)


def _ids(path: Path, told: object, prompts: tuple[str, ...] | None) -> tuple[tuple[int, ...], ...] | None:
    if told is None or prompts is None:
        return None
    is_lists = isinstance(told, list) and all(isinstance(each, list) for each in told)
    if (
        not is_lists
        or not all(isinstance(one, int) for each in told for one in each)
        or len(told) != len(prompts)
    ):
        raise ForeignFileError(
            f"{path.name}/{TOKENS_FILE}: its token_ids are not one list of whole numbers a prompt: {_or_prompt()}"
        )
    return tuple(map(tuple, told))


def _pictures(path: Path) -> tuple[Path, ...]:
    """`images/00.png`, …, else the one picture that lies beside."""
    inside = sorted((path / PICTURES).glob("*.png"), key=_numbered) if (path / PICTURES).is_dir() else []
    beside = [each for each in sorted(path.glob("*.png")) if each.name not in _CHARTS]
    return tuple(inside or (beside if len(beside) == 1 else ()))


def read_picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a picture of a known size; what another one would take in memory is never asked for.

    Args:
        size: (height, width) in pixels.
    Returns: uint8 (pixel_y, pixel_x, 3).
    Raises: ForeignFileError: no PNG, or of another size.
    """
    where = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
    try:
        if not path.is_file():
            raise ForeignFileError(f"{where} is no file")
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.size != size[::-1]:
                raise ForeignFileError(
                    f"{where} has {picture.width} × {picture.height} pixels, its attention is of {size[1]} × "
                    f"{size[0]}: it is the picture of something else; leave pictures out with --no_images"
                )
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, ForeignFileError):
            raise
        raise ForeignFileError(
            f"{where} is no PNG that can be read: leave pictures out with --no_images"
        ) from error


def numbers_of(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(prompt, image) of each sample: equal texts are one prompt, whose images are counted."""
    first: dict[str, int] = {}
    seen: dict[str, int] = {}
    for text in texts:
        prompt = first.setdefault(text, len(first))
        yield prompt, seen.get(text, 0)
        seen[text] = seen.get(text, 0) + 1
