"""The forms in which checkpoints hold gates, as pure functions on keys, shapes and state dicts. Torch-free.

(a) fused: the rows of `joint_blocks.i.{x_block,context_block}.attn[2].qkv` beyond q, k and v;
(b) separate: `joint_blocks.i.{x_block,context_block}.attn[2].gate_proj`;
(c) ours: `transformer_blocks.i.attn.{to_gate,add_gate}`, `transformer_blocks.i.attn2.to_gate`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd35h5.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_SCALES = ("scale_weight", "weight_scale")  # as sd35h5.weights.scaled reads them
FUSED, SEPARATE, OURS = "a", "b", "c"
FORMS = {FUSED: "fused rows of qkv", SEPARATE: "gate_proj", OURS: "to_gate and add_gate (ours)"}
_PREFIX = r"(?:model\.diffusion_model\.|diffusion_model\.)?"
_ORIGINAL = re.compile(
    rf"(?P<prefix>{_PREFIX})joint_blocks\.(?P<layer>\d+)\.(?P<block>x_block|context_block)\."
    r"(?P<attention>attn2?)\.(?P<module>qkv|gate_proj)\.(?P<kind>weight|bias)"
)
OUR_KEY = re.compile(
    r"transformer_blocks\.(?P<layer>\d+)\.(?:attn\.(?:to_gate|add_gate)|attn2\.to_gate)\.(?:weight|bias)"
)
_BASE = re.compile(r"(^|\.)(x_embedder|pos_embed)\.proj\.weight$|\.attn\.(qkv|to_q)\.weight$")


@dataclass(frozen=True)
class GateRows:
    """Where a gate's weight or bias is in a file: rows start to stop of the tensor `source`."""

    source: str
    start: int
    stop: int
    form: str


def find_gates(shapes: Mapping[str, Sequence[int]]) -> dict[str, GateRows]:
    """Find the gates among a checkpoint's tensors, by keys and shapes. Returns: form (c) key -> its rows.

    The text gate of the last layer is found too, though it is never applied.

    Raises:
        ConfigError: rows beyond q, k and v that are no gate, a gate with a part missing, or scaled fp8.
    """
    found: dict[str, GateRows] = {}
    for key, shape in shapes.items():
        if OUR_KEY.fullmatch(key):
            found[key] = GateRows(key, 0, shape[0], OURS)
        elif match := _ORIGINAL.fullmatch(key):
            start = 0
            if match["module"] == "qkv":
                start = 3 * _width(match, shapes)
                if not _has_gate_rows(match, shapes):
                    continue
            ours = _our_key(match)
            if ours in found:
                raise ConfigError(f"{key} and {found[ours].source} are both a gate of the same attention")
            form = FUSED if match["module"] == "qkv" else SEPARATE
            found[ours] = GateRows(key, start, shape[0], form)
    for rows in found.values():
        module = rows.source.rpartition(".")[0]
        if scale := next((name for name in _SCALES if f"{module}.{name}" in shapes), None):
            raise ConfigError(
                f"{module}.{scale}: gates are not read from scaled fp8, get the file in 16 or 32 bits"
            )
    return found


def _our_key(match: re.Match) -> str:
    if match["block"] == "context_block" and match["attention"] == "attn2":
        raise ConfigError(f"{match[0]}: the second attention is of the image alone, it has no text stream")
    name = "add_gate" if match["block"] == "context_block" else "to_gate"
    return f"transformer_blocks.{match['layer']}.{match['attention']}.{name}.{match['kind']}"


def _width(match: re.Match, shapes: Mapping[str, Sequence[int]]) -> int:
    """Channels of an attention, from its fused weight: (3 · width + gate rows, width)."""
    weight = match[0].removesuffix(match["kind"]) + "weight"
    if weight not in shapes:
        raise ConfigError(f"{match[0]} comes without {weight}")
    return shapes[weight][1]


def _has_gate_rows(match: re.Match, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a fused tensor has rows beyond q, k and v, and as many as a gate has.

    The heads are told by the norm of the queries, whose size is a head's; without norms, any number of rows
    that divides the channels will do until the model is there.
    """
    module, width = match[0].removesuffix(f".{match['kind']}"), _width(match, shapes)
    extra = shapes[match[0]][0] - 3 * width
    sides = [shapes[f"{module}.{kind}"][0] for kind in ("weight", "bias") if f"{module}.{kind}" in shapes]
    if extra == 0 and len(set(sides)) == 1:
        return False
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ConfigError(
            f"{module}.weight has {sides[0]} rows, {3 * width} of them for q, k and v, but {module}.bias "
            + (f"has {sides[1]}" if len(sides) == 2 else "is missing")
        )
    norm = shapes.get(f"{module.removesuffix('qkv')}ln_q.weight")
    heads = width // norm[0] if norm else None
    if extra == width or (extra == heads if heads else extra > 0 and width % extra == 0):
        return True
    told = f"neither {heads} heads nor {width} channels" if heads else f"no division of {width} channels"
    raise ConfigError(
        f"{module}.weight has {sides[0]} rows: {3 * width} for q, k and v, and {extra} more, which fit {told}"
    )


def is_checkpoint(keys: Sequence[str]) -> bool:
    """Whether a file holds a model, and not gates alone."""
    return any(_BASE.search(key) for key in keys)


def refuse_others(name: str, shapes: Mapping[str, Sequence[int]], found: Mapping[str, object]) -> None:
    """Refuse a file that is neither gates alone nor a model with gates.

    Raises:
        ConfigError: naming an unknown key.
    """
    if is_checkpoint(list(shapes)):
        if not found:
            raise ConfigError(f"{name} holds a model without gates")
        return
    unknown = [] if any(".gate_proj." in key and "joint_blocks." in key for key in shapes) else [
        key for key in shapes if not OUR_KEY.fullmatch(key)
    ]  # fmt: skip
    if unknown or not found:
        raise ConfigError(
            f"{name} is not a gates file: "
            + (f"unknown key {unknown[0]!r}" if unknown else "it holds no tensors")
            + ", expected transformer_blocks.N.attn.to_gate.weight and the like"
        )


def has_second_attention(keys: Sequence[str]) -> bool:
    """Whether these keys, of any layout, are of an MMDiT-X."""
    return any(re.search(r"\.\d+\.(x_block\.)?attn2\.", key) for key in keys)


def base_shapes(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint once its gates are split off, as `split_gate_keys` leaves it."""
    left = {key: tuple(shape) for key, shape in shapes.items()}
    for rows in find_gates(shapes).values():
        if rows.start:
            left[rows.source] = (rows.start, *left[rows.source][1:])
        else:
            del left[rows.source]
    return left


def split_gate_keys(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint of any form into the model without gates, and the gates in form (c) keys.

    Returns: views of the state's tensors; the first dict has the keys of an ungated checkpoint of the same
    layout, the second is empty if there are no gates.
    """
    base, gates = dict(state), {}
    for key, rows in find_gates({name: tensor.shape for name, tensor in state.items()}).items():
        gates[key] = state[rows.source][rows.start : rows.stop]
        if rows.start:
            base[rows.source] = state[rows.source][: rows.start]
        else:
            del base[rows.source]
    return base, gates


def fuse_gates(
    base: Mapping[str, Tensor], gates: Mapping[str, Tensor], zero_rows: bool = True
) -> dict[str, Tensor]:
    """Put gates into an original-MMDiT state dict as form (a).

    Args:
        zero_rows: widen the layers without a gate too, with zeros, as trainers do.
    """
    import torch  # nothing else here needs it: the plan of a capture is printed without

    heads_or_channels = {tensor.shape[0] for tensor in gates.values()}
    if len(heads_or_channels) != 1:
        raise ConfigError(f"gates of {sorted(heads_or_channels)} rows are not of one type")
    (rows,) = heads_or_channels
    fused, used = dict(base), set()
    attentions = {OUR_KEY.fullmatch(key)[0].split(".")[2] for key in gates}
    for key, tensor in base.items():
        match = _ORIGINAL.fullmatch(key)
        if match is None or match["module"] != "qkv":
            continue
        ours = _our_key(match)
        used.add(ours)
        if ours in gates:
            fused[key] = torch.cat([tensor, gates[ours].to(tensor)])
        elif zero_rows and match["attention"] in attentions:
            fused[key] = torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])])
    _refuse_unplaced(gates, used)
    return fused


def separate_gates(base: Mapping[str, Tensor], gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put gates into an original-MMDiT state dict as form (b)."""
    separate, used = dict(base), set()
    for key, tensor in base.items():
        match = _ORIGINAL.fullmatch(key)
        if match is None or match["module"] != "qkv" or (ours := _our_key(match)) not in gates:
            continue
        used.add(ours)
        separate[key.replace(".qkv.", ".gate_proj.")] = gates[ours].to(tensor)
    _refuse_unplaced(gates, used)
    return separate


def _refuse_unplaced(gates: Mapping[str, Tensor], used: set[str]) -> None:
    if left := sorted(gates.keys() - used):
        raise ConfigError(f"{left[0]} has no attention in this checkpoint to go to")


def is_zero(tensor: Tensor) -> bool:
    """Whether all values are zero; fp8, which knows few operations, too."""
    return not bool(tensor.float().any())


def zero_attentions(gates: Mapping[str, Tensor], layers: int | None = None) -> list[tuple[int, str]]:
    """Attentions whose gate rows are zero, all weights and biases of both streams.

    Args:
        gates: form (c) keys. layers: number of blocks, the last of which applies no text gate, if known.

    Returns: (layer, `attn` or `attn2`), ascending.
    """
    seen: dict[tuple[int, str], bool] = {}
    for key, tensor in gates.items():
        _, layer, attention, name, _ = key.split(".")
        if name == "add_gate" and layers is not None and int(layer) == layers - 1:
            continue
        place = int(layer), attention
        seen[place] = seen.get(place, True) and is_zero(tensor)
    return sorted(place for place, zero in seen.items() if zero)
