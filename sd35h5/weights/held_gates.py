"""The gates that a file holds, by its header and its zeros: enough to decide about them without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sd35h5.errors import ConfigError
from sd35h5.gates.decision import HeldGates
from sd35h5.gates.forms import GateRows, find_gates, has_second_attention, refuse_others
from sd35h5.gates.kinds import Place
from sd35h5.weights.checkpoints import ITEM_BYTES, Entry, read_entries, read_metadata
from sd35h5.weights.quantised_files.gguf_header import BLOCKS
from sd35h5.weights.sources import Part

_SIGNLESS = {1: 0x7F, 2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0x7FFFFFFFFFFFFFFF}  # by bytes: -0.0 is zero, too
_BLOCK = 1 << 20  # bytes read at once


def gates_in_part(part: Part) -> HeldGates | None:
    """The gates that a transformer's own file holds, or None.

    Raises:
        ConfigError: rows or keys of gates that make no sense.
    """
    if any(entry.dtype in BLOCKS for entry in part.entries.values()):
        if find_gates({key: entry.shape for key, entry in part.entries.items()}):
            raise ConfigError(
                f"{part.said} holds gates within quantised weights, which are not read: take them out of the "
                "unquantised file (python -m sd35h5 gates extract) and give them with --gates"
            )
        return None
    try:
        return _held(part.files[0].name, part.entries, {}, part.config["num_layers"])
    except ConfigError as error:
        raise ConfigError(f"{part.said}: {error}") from error


def gates_to_apply(part: Part | None, path: Path | None, layers: int) -> HeldGates | None:
    """The gates of a file of gates, else those of the transformer's own file, if it holds any.

    Args:
        part: the transformer; None where only its config is at hand.
        path: --gates, or the gates.safetensors beside the transformer.

    Raises:
        ConfigError: both hold gates, and not the same; or a file that cannot be read.
    """
    own = None if part is None else gates_in_part(part)
    if path is None:
        return own
    if own is not None and not _are_taken_from(path, part, own):
        raise ConfigError(
            f"{own.name} holds gates of its own, and {path} others: leave one of them out (--gates takes what "
            "`python -m sd35h5 gates extract` made of this very file, or of another if the model has no gates)"
        )
    return gates_in_file(path, layers)


def _are_taken_from(path: Path, part: Part, own: HeldGates) -> bool:
    """Whether a file holds a checkpoint's own gates, byte for byte, and lacks only those whose rows are zero."""
    if not path.is_file():
        return False
    taken = read_entries((path,))
    there = find_gates({key: entry.shape for key, entry in taken.items()})
    rows = find_gates({key: entry.shape for key, entry in part.entries.items()})
    if not there.keys() <= rows.keys():
        return False
    left_out = {place_of(key) for key in rows.keys() - there.keys()}
    return left_out <= set(own.zeros) and all(
        _stored(taken[there[key].source], there[key]) == _stored(part.entries[rows[key].source], rows[key])
        for key in there
    )


def _stored(entry: Entry, rows: GateRows) -> tuple[str, bytes]:
    row = math.prod(entry.shape[1:]) * ITEM_BYTES[entry.dtype]
    return entry.dtype, entry.read(rows.start * row, (rows.stop - rows.start) * row)


def place_of(key: str) -> Place:
    """The attention of a gate, by its form (c) key."""
    _, layer, attention, *_ = key.split(".")
    return int(layer), attention


def gates_in_file(path: Path, layers: int) -> HeldGates:
    """The gates of a safetensors file, a whole model or gates alone.

    Args:
        layers: blocks of the model they are for, the last of which applies no text gate.

    Raises:
        ConfigError: no readable file, gate keys or shapes that make no sense, or no gates.
    """
    if not path.is_file():
        raise ConfigError(f"gates file {path.name} does not exist")
    entries = read_entries((path,))
    try:
        shapes = {key: entry.shape for key, entry in entries.items()}
        refuse_others(path.name, shapes, find_gates(shapes))
        return _held(path.name, entries, read_metadata(path), layers)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}" if path.name not in str(error) else str(error)) from error


def _held(
    name: str, entries: Mapping[str, Entry], metadata: Mapping[str, str], layers: int
) -> HeldGates | None:
    found = find_gates({key: entry.shape for key, entry in entries.items()})
    if not found:
        return None
    shapes = {key: (rows.stop - rows.start, *entries[rows.source].shape[1:]) for key, rows in found.items()}
    form = min(rows.form for rows in found.values())
    zeros = _zero_places(found, entries, layers)
    return HeldGates(name, form, shapes, zeros, metadata, has_second_attention(list(entries)))


def _zero_places(
    found: Mapping[str, GateRows], entries: Mapping[str, Entry], layers: int
) -> tuple[Place, ...]:
    """Attentions of which all gate rows are zero, as `forms.zero_attentions` tells them of tensors."""
    zero: dict[Place, bool] = {}
    for key, rows in found.items():
        _, layer, attention, name, _ = key.split(".")
        if name == "add_gate" and int(layer) == layers - 1:
            continue
        place = int(layer), attention
        zero[place] = zero.get(place, True) and _is_zero(entries[rows.source], rows)
    return tuple(sorted(place for place, is_zero in zero.items() if is_zero))


def _is_zero(entry: Entry, rows: GateRows) -> bool:
    """Whether these rows of a tensor are zero; the file is read as far as the first value that is not."""
    item = ITEM_BYTES[entry.dtype]
    row = math.prod(entry.shape[1:]) * item
    begin, end = rows.start * row, rows.stop * row
    for start in range(begin, end, _BLOCK):
        block = np.frombuffer(entry.read(start, min(_BLOCK, end - start)), f"<u{item}")
        if (block & block.dtype.type(_SIGNLESS[item])).any():
            return False
    return True
