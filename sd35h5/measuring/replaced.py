"""What stands in the place of diffusers' joint attention, past which nothing could look on: refused by its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from diffusers.models import attention_processor
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import nn

from sd35h5.errors import CaptureError
from sd35h5.gates.attention import JointAttention
from sd35h5.measuring.compiled import bare

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

_WRAPPERS = ("accelerate.hooks", "diffusers.hooks.")  # which call the forward that was there, or do not
_WAY_OUT = {  # how the name of a processor begins -> how it is taken off
    "XFormers": "call pipe.disable_xformers_memory_efficient_attention()",
    "Fused": "call pipe.transformer.unfuse_qkv_projections()",
    "SD3IPAdapter": "an IP-Adapter attends to a picture that is none of the file's keys: call pipe.unload_ip_adapter()",
}


def check_attentions(transformer: SD3Transformer2DModel) -> None:
    """Refuse attention that is not diffusers' own: the probe computes that, and would draw another picture.

    Raises:
        CaptureError: naming the attention and what is there.
    """
    for name, processor in transformer.attn_processors.items():
        kind = type(processor)
        if kind not in (JointAttnProcessor2_0, JointAttention):
            other = "call pipe.transformer.set_attn_processor(JointAttnProcessor2_0())"
            out = next((how for begin, how in _WAY_OUT.items() if kind.__name__.startswith(begin)), other)
            raise CaptureError(
                f"{name} is a {kind.__name__}, which a capture would replace by something else: only "
                f"JointAttnProcessor2_0 and sd35h5's JointAttention are known; {out}"
            )
        if kind is JointAttnProcessor2_0 and not _is_diffusers(kind.__call__):
            raise CaptureError(
                f"JointAttnProcessor2_0.__call__ was replaced by {named(kind.__call__)}, which a capture would not "
                "call: put diffusers' own back, or start Python anew"
            )
        attention = name.removesuffix(".processor")
        for forward in forwards_of(bare(transformer).get_submodule(attention)):
            if not _is_diffusers(forward):
                raise CaptureError(
                    f"{attention}.forward was replaced by {named(forward)}, past which nothing can look on: take it "
                    "off; a hook of register_forward_hook or register_forward_pre_hook is captured"
                )


def forwards_of(module: nn.Module) -> Iterator[object]:
    """What a module runs: its class's forward or what was put in its place, through hooks of offloads and caches."""
    own = vars(module)
    yield type(module).forward
    registry = own.get("_diffusers_hook")
    references = registry._fn_refs if registry is not None else []
    inner = [each for one in references for each in (one.forward, getattr(one, "original_forward", None))]
    for forward in (own.get("forward"), own.get("_old_forward"), *inner):
        if forward is not None and not module_of(forward).startswith(_WRAPPERS):
            yield forward


def _plain(function: object) -> object:
    """The function within a partial or a bound method."""
    return getattr(function, "func", getattr(function, "__func__", function))


def module_of(function: object) -> str:
    """Name of the module that a function was written in, "" where it is not known."""
    return getattr(_plain(function), "__module__", None) or ""


def _is_diffusers(function: object) -> bool:
    code = getattr(_plain(function), "__code__", None)
    return code is not None and code.co_filename == attention_processor.__file__


def named(function: object) -> str:
    """A function's name with that of its module."""
    plain = _plain(function)
    return f"{module_of(function)}.{getattr(plain, '__qualname__', type(plain).__name__)}"
