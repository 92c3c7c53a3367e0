"""Weights into models: built without memory, then filled tensor by tensor, from any layout, checked by key."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sd35h5.errors import ConfigError
from sd35h5.gates.forms import find_gates
from sd35h5.gates.gate_files import GateSource, source_of
from sd35h5.weights.checkpoints import stored_dtypes, told_of
from sd35h5.weights.layouts import HARMLESS, TITLES, Layout, Place
from sd35h5.weights.mapped_tensors import Mapped, open_part
from sd35h5.weights.quantised_files.gguf_header import is_gguf
from sd35h5.weights.quantised_files.gguf_tensors import check_package, dense, is_packed, put_packed
from sd35h5.weights.scaled import split_factors
from sd35h5.weights.sources import Part

log = logging.getLogger("sd35h5")
_SHARED, _EMBED = "shared.weight", "encoder.embed_tokens.weight"  # one tensor of T5 under two names
_PROJECTION = "text_projection.weight"


def build(component: str, config: Mapping[str, object]) -> nn.Module:
    """Make the component's model, its parameters on the meta device: no memory, no random numbers.

    Raises:
        ConfigError: a config that the class does not take.
    """
    try:
        if component in ("transformer", "vae"):
            of = SD3Transformer2DModel if component == "transformer" else AutoencoderKL
            with torch.device("meta"):
                return of.from_config(dict(config)).eval()
        clip = component != "text_encoder_3"
        with init_empty_weights(include_buffers=False):
            if clip:
                return CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()
            return T5EncoderModel(T5Config(**config)).eval()
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        first = str(error).split("\n")[0]
        raise ConfigError(f"the config of {TITLES[component]} makes no model: {first}") from error


def split_gates(part: Part) -> tuple[Part, GateSource | None]:
    """Split a transformer's file into the model without gates, and the gates that it holds, or None.

    Raises:
        ConfigError: rows or keys of gates that make no sense.
    """
    shapes = {key: entry.shape for key, entry in part.entries.items()}
    try:
        if not find_gates(shapes):
            return part, None
        with ExitStack() as stack:
            base, source = source_of(open_part(part, stack), part.files[0].name)
            held = replace(source, tensors={key: tensor.clone() for key, tensor in source.tensors.items()})
    except ConfigError as error:
        raise ConfigError(f"{part.said}: {error}") from error
    entries = {key: replace(part.entries[key], shape=tuple(tensor.shape)) for key, tensor in base.items()}
    return replace(part, entries=entries), held


@dataclass(frozen=True)
class Planned:
    """A component of which every parameter has its place in the file; not a byte of its weights is read.

    Args:
        model: on the meta device.
        part: without the factors of scaled fp8, which `whole` has.
        places: parameter -> its place, None for an identity.
        factors: weight's key -> that of its factor, of scaled fp8.
    """

    part: Part
    whole: Part
    model: nn.Module
    places: Mapping[str, Place | None]
    factors: Mapping[str, str]


def plan_part(part: Part) -> Planned:
    """Build a component and find its every parameter in the file.

    Args:
        part: a transformer's without its gates, see `split_gates`.

    Raises:
        ConfigError: a sentence naming file, key and what was expected.
    """
    if any(map(is_gguf, part.files)):
        check_package()
    model = build(part.component, part.config)
    bare, factors = split_factors(part)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Planned(bare, part, model, plan(bare, expected), factors)


def load_part(part: Part, dtype: torch.dtype, device: str) -> nn.Module:
    """Build a component and fill it, see `plan_part` and `fill`."""
    return fill(plan_part(part), dtype, device)


def fill(planned: Planned, dtype: torch.dtype, device: str, is_mapped: bool = False) -> nn.Module:
    """Fill a component: each tensor is read, cast and moved by itself, so that the weights are never twice in the
    host's own memory.

    Args:
        is_mapped: leave weights that need no cast in their files, from which the system reads what is used: for those
            that wait on the host. The files must then stay as they are.
    Raises:
        ConfigError: a file that cannot be read.
    """
    model = planned.model
    kept = getattr(model, "_keep_in_fp32_modules", None) or () if dtype is torch.float16 else ()
    linear = _packable(planned.part.component, model)
    filled: dict[str, Tensor] = {}
    with reading(planned) as read:
        for name in planned.places:
            if name == _EMBED:  # the same tensor as shared.weight, which comes before it
                continue
            wide = any(module in name.split(".") for module in kept)  # as transformers' own loader does
            filled[name] = read(name, torch.float32 if wide else dtype, device, not is_mapped, name in linear)
    put_packed(model, {name: each for name, each in filled.items() if is_packed(each)}, dtype)
    _assign(model, filled)
    _note(planned.part, dtype, scaled=bool(planned.factors))
    return model


@contextmanager
def reading(planned: Planned) -> Iterator[Callable[..., Tensor]]:
    """A function that reads a parameter from its file: (name, dtype, device, is it a copy of its own, may it stay
    packed as a GGUF file has it) -> the tensor."""
    shapes = {name: tuple(tensor.shape) for name, tensor in planned.model.state_dict().items()}
    with ExitStack() as stack:
        state, factors = Mapped(planned.part), _factors(planned.whole, planned.factors, stack)

        def read(
            name: str,
            dtype: torch.dtype,
            device: torch.device | str,
            is_own: bool = True,
            packed: bool = False,
        ) -> Tensor:
            place = planned.places[name]
            tensor = torch.eye(*shapes[name]) if place is None else _taken(state, place)
            if packed and is_packed(tensor):
                return tensor.to(device=device, copy=is_own)
            if place is not None and place.key in factors:
                # in place: a product of its own would be one copy more
                scaled = tensor.to(device=device, dtype=torch.float32, copy=True).mul_(factors[place.key])
                return scaled.to(dtype)
            return dense(tensor).to(device=device, dtype=dtype, copy=is_own)

        yield read


def _packable(component: str, model: nn.Module) -> set[str]:
    """Weights that can stay as a GGUF file stores them: those of the transformer's linear layers."""
    layers = model.named_modules() if component == "transformer" else ()
    return {f"{name}.weight" for name, module in layers if isinstance(module, nn.Linear)}


def plan(part: Part, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Place | None]:
    """Find every parameter in the file, by key and shape. Returns: name -> place, None for an identity.

    Args:
        expected: shape of every parameter and buffer of the model.

    Raises:
        ConfigError: a missing key, a wrong shape, or keys that are left over.
    """
    layout, places = part.layout, {}
    for name, shape in expected.items():
        place = _place(part, name)
        entry = part.entries.get(place.key)
        if entry is None and name == _PROJECTION and shape[0] == shape[1]:
            log.info("%s has no %s: the identity is used", part.files[0].name, _PROJECTION)
            places[name] = None
            continue
        if entry is None:
            raise ConfigError(f"{part.said} lacks {place.key}, {_what(layout, name, shape)}")
        if not _fits(entry.shape, shape, place):
            raise ConfigError(
                f"{entry.file}: {place.key} has shape {entry.shape}, expected {_wanted(shape, place)}"
            )
        places[name] = place
    _refuse_surplus(part, {place.key for place in places.values() if place is not None})
    return places


def _place(part: Part, name: str) -> Place:
    """Where a parameter is; T5's embedding under whichever of its two names the file has."""
    place = part.layout.place(name)
    if part.component == "text_encoder_3" and place.key not in part.entries and name in (_SHARED, _EMBED):
        return part.layout.place(_EMBED if name == _SHARED else _SHARED)
    return place


def _what(layout: Layout, name: str, shape: tuple[int, ...]) -> str:
    told = f"{name} of shape {shape}" if layout.name in ("original", "openclip") else f"of shape {shape}"
    return f"{told}, expected in {TITLES[layout.component]} of {layout.depth} blocks"


def _wanted(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
    """Shape of the file's tensor that holds a parameter of this shape."""
    shape = shape[::-1] if place.transpose else shape
    return (3 * shape[0], *shape[1:]) if place.third is not None else shape


def _fits(there: tuple[int, ...], shape: tuple[int, ...], place: Place) -> bool:
    wanted = _wanted(shape, place)
    return there == wanted or (place.flatten and there == (*wanted, *(1,) * (len(there) - len(wanted))))


def _refuse_surplus(part: Part, used: set[str]) -> None:
    """Refuse keys that no parameter takes, save those known to be harmless, which are noted."""
    left = [key for key in part.entries if key not in used]
    harmless = [key for key in left if HARMLESS.search(key)]
    surplus = [key for key in left if key not in harmless]
    if surplus:
        more = f" and {len(surplus) - 1} more" * (len(surplus) > 1)
        entry = part.entries[surplus[0]]
        raise ConfigError(
            f"{part.said} has the unknown key {surplus[0]}{more} of shape {entry.shape}: "
            f"{TITLES[part.component]} of {part.layout.depth} blocks has no place for it"
        )
    if harmless:
        log.info("%s: %s is not needed and left aside", part.files[0].name, ", ".join(harmless))


def _factors(part: Part, scaled: Mapping[str, str], stack: ExitStack) -> dict[str, float]:
    """The factor of each weight that is scaled, by the weight's key."""
    state = open_part(replace(part, entries={key: part.entries[key] for key in scaled.values()}), stack)
    return {weight: float(state[key].float().reshape(())) for weight, key in scaled.items()}


def _taken(state: Mapped, place: Place) -> Tensor:
    """The parameter, as a view where that can be."""
    tensor = state[place.key]
    if place.third is not None:
        tensor = tensor.chunk(3, dim=0)[place.third]
    if place.swap:
        tensor = torch.cat(list(tensor.chunk(2, dim=0)[::-1]))
    tensor = dense(tensor) if place.transpose or place.flatten else tensor
    tensor = tensor.T.contiguous() if place.transpose else tensor
    return tensor.flatten(1) if place.flatten else tensor


def _assign(model: nn.Module, filled: dict[str, Tensor]) -> None:
    """Put the tensors in place; T5's two embeddings become one again."""
    if _SHARED in filled:
        filled[_EMBED] = filled[_SHARED]
    model.load_state_dict(filled, strict=True, assign=True)
    if _SHARED in filled:
        model.encoder.embed_tokens.weight = model.shared.weight
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise ConfigError(f"{left[0]} has no weights in the file")


def _note(part: Part, dtype: torch.dtype, scaled: bool) -> None:
    """Tell of weights that lost precision before they came here."""
    stored = stored_dtypes(part.entries.values())
    if "float8" in stored:
        log.warning(
            "%s is stored as %s%s: cast to %s, which brings back no precision",
            part.files[0].name, stored, " (scaled)" * scaled, str(dtype).removeprefix("torch."),
        )  # fmt: skip


def provenance(part: Part) -> dict[str, object]:
    """What the store keeps of a component: where it came from, its layout, and its files' size and sha256."""
    return {
        "source": str(part.path),
        "layout": part.layout.name,
        "stored_dtype": stored_dtypes(part.entries.values()),
        "files": told_of(part.files),
    }
