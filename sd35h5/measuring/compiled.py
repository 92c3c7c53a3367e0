"""Attention under torch.compile: the traced call that gives the log-sum-exp, and an operator that lets a probe look on.

What a pass measures changes from step to step, so it must not be part of the graph: the graph holds an opaque operator,
and whoever measures is found when it runs, by the number in its layer's slot. Each layer holds a slot of its own, so
that one graph serves them all: an integer attribute would be compiled in, once for each layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from sd35h5.errors import CaptureError
from sd35h5.gates.attention import JointQKV
from sd35h5.measuring.attend import attend_by, chosen_backend

Measure = Callable[[JointQKV, Tensor | None, tuple[Tensor, Tensor | None] | None], None]

# An operator takes numbers and tensors only, so what they stand for has to be known outside of any object.
# Entries live as long as the processor of a capture is installed.
_LOOKING: dict[int, Measure] = {}
_NUMBERS = count()
_MORE_GRAPHS = 16
log = logging.getLogger("sd35h5")
_SOME_TOKENS = 1024
_SCHEMA = (
    "(Tensor(a!) slot, Tensor query, Tensor key, Tensor value, Tensor? lse, SymInt image_tokens, "
    "Tensor? image_gate, Tensor? text_gate) -> ()"
)


def _look(
    slot: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor | None, image_tokens: int,
    image_gate: Tensor | None, text_gate: Tensor | None,
) -> None:  # fmt: skip
    measure = _LOOKING.get(int(slot))
    if measure is not None:  # a graph that outlives its capture looks at nothing
        gates = None if image_gate is None else (image_gate, text_gate)
        measure(JointQKV(query, key, value, image_tokens), lse, gates)


# the slot is said to be written to, or the operator, which returns nothing, would be dropped from the graph
look = torch.library.custom_op("sd35h5::look", _look, mutates_args=("slot",), schema=_SCHEMA)
look.register_fake(lambda *_: None)


def new_slot(measure: Measure) -> Tensor:
    """A number, on the host so that it is read without waiting for a device, by which `look` finds `measure`."""
    number = next(_NUMBERS)
    _LOOKING[number] = measure
    return torch.tensor(number)


def free_slot(slot: Tensor) -> None:
    """Forget who measures there."""
    _LOOKING.pop(int(slot), None)


@torch.compiler.assume_constant_result
def _backend(heads: int, width: int, dtype: torch.dtype, device: torch.device) -> str:
    """Which backend attends for tensors of this kind: asked of real ones while the graph is traced.

    Batch and tokens can be symbols of the graph, and do not decide it.
    """
    some = torch.empty((2, heads, _SOME_TOKENS, width), dtype=dtype, device=device)
    return chosen_backend(some, some, some)


def traced_attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """As `attend.attend`, inside a graph."""
    backend = _backend(query.shape[1], query.shape[3], query.dtype, query.device)
    return attend_by(backend, query, key, value)


def bare(module: nn.Module) -> nn.Module:
    """The module that `torch.compile(module)` or peft's `get_peft_model(module)` wraps, or the module itself."""
    inner = getattr(module, "_orig_mod", module)
    return inner.get_base_model() if hasattr(type(inner), "get_base_model") else inner


def compiled_how(transformer: nn.Module) -> dict[str, Any]:
    """How a transformer is compiled: `whole`, `blocks` or "", with the settings that decide its kernels.

    Raises:
        CaptureError: a mode whose graphs replay without running an operator of ours, or other parts compiled.
    """
    blocks = list(bare(transformer).transformer_blocks)
    contexts = {"whole": [_context(transformer)], "blocks": [_context(block) for block in blocks]}
    known = {id(bare(each)) for each in (transformer, *blocks)} | {
        id(each) for each in (transformer, *blocks)
    }
    for name, module in bare(transformer).named_modules():
        if id(module) not in known and _context(module) is not None:
            raise CaptureError(
                f"{name} alone is compiled: a capture follows a transformer that is compiled whole or by block"
            )
    found = {how: [each for each in those if each is not None] for how, those in contexts.items()}
    if not any(found.values()):
        return {}
    how = "whole" if found["whole"] else "blocks"
    settings = [_settings(context) for context in found[how]]
    if any(each.get("triton.cudagraphs") for each in settings):
        raise CaptureError(
            'the transformer is compiled with CUDA graphs (mode="reduce-overhead" or "max-autotune"), whose replays '
            'run no operator that could measure: use the default mode or "max-autotune-no-cudagraphs"'
        )
    told = {"compiled": how, **settings[0]}
    return told if how == "whole" or len(settings) == len(blocks) else told | {"blocks": len(settings)}


def _context(module: nn.Module) -> Any:
    """What torch.compile keeps of its settings: on a wrapper, or in the call that `Module.compile` puts in place."""
    if "_orig_mod" in module._modules:
        return module.dynamo_ctx
    if module._compiled_call_impl is None:
        return None
    cells = [cell.cell_contents for cell in module._compiled_call_impl.__closure__ or ()]
    return next((each for each in cells if hasattr(each, "callback")), module._compiled_call_impl)


def _settings(context: Any) -> dict[str, Any]:
    """The backend's name and the options of inductor that were set."""
    each = getattr(context, "callback", None)
    for _ in range(5):  # wrappers around the backend
        if hasattr(each, "config") or not hasattr(each, "_torchdynamo_orig_backend"):
            break
        each = each._torchdynamo_orig_backend
    name = getattr(each, "compiler_name", None) or getattr(each, "__name__", type(each).__name__)
    options = {str(key): value for key, value in getattr(each, "config", {}).items()}
    return {"backend": name, **{key: options[key] for key in sorted(options)}}


@contextmanager
def room_for_graphs(compiled: bool) -> Iterator[None]:
    """Let dynamo keep the graphs of a capture beside those of the plain pipeline: batch sizes come and go with
    skip-layer guidance, and together they exceed what it keeps of one function. Says what falls back to eager."""
    if not compiled:
        yield
        return
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    before = sum(counters["graph_break"].values())
    with config.patch(recompile_limit=config.recompile_limit + _MORE_GRAPHS):
        yield
    if broken := sum(counters["graph_break"].values()) - before:
        log.warning(
            "torch.compile broke its graphs in %d places, which ran eager in between: they are measured, too, and "
            "compiling with fullgraph=True tells where", broken,
        )  # fmt: skip


@contextmanager
def followed(
    transformer: nn.Module, before: Callable[..., None], after: Callable[..., None]
) -> Iterator[None]:
    """Call `before(module, args, kwargs)` and `after(module, args, output)` around each call of the transformer,
    outside of what is compiled: hooks of a module that is compiled in place would be traced with it."""
    inner = transformer._compiled_call_impl
    if inner is None:
        hooks = [
            transformer.register_forward_pre_hook(before, with_kwargs=True),
            transformer.register_forward_hook(after),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        return

    def call(*args: object, **kwargs: object) -> object:
        before(transformer, args, kwargs)
        output = inner(*args, **kwargs)
        after(transformer, args, output)
        return output

    transformer._compiled_call_impl = call
    try:
        yield
    finally:
        transformer._compiled_call_impl = inner
