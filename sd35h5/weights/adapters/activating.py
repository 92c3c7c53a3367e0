"""Adapters put beside the weights by peft, as diffusers' `load_lora_weights` does, from any spelling.

diffusers reads SD3's LoRAs in its own spelling alone, and what it does not know is passed over with a warning; its
text encoders' adapters go through transformers, which asks for a newer peft than there is. So peft is asked directly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from torch import Tensor, nn

from sd35h5.errors import CaptureError
from sd35h5.weights.adapters.adapter_changes import Adapter, Change
from sd35h5.weights.adapters.merging import ReadPart, alpha_of, reading_parts, swapped


def adapter_name(number: int) -> str:
    """The name of the so manieth adapter of a command: of no file, since names are part of a fingerprint."""
    return f"lora_{number}"


def activate(models: Mapping[str, nn.Module], adapters: Sequence[Adapter]) -> None:
    """Put adapters beside the weights of the models and scale them; those that are merged are passed over.

    Args:
        models: by component, on their devices; what is changed of others is passed over.
        adapters: all of a command, in order.

    Raises:
        CaptureError: peft has no place for a tensor.
    """
    scales = {adapter_name(number): each.scale for number, each in enumerate(adapters) if each.stays_apart}
    if not scales:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for number, adapter in enumerate(adapters):
        if adapter.stays_apart:
            with ExitStack() as stack:
                _inject(models, adapter, adapter_name(number), reading_parts(adapter, stack))
    for model in models.values():
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_adapter(list(scales))
                for name, scale in scales.items():
                    layer.set_scale(name, scale)


def _inject(models: Mapping[str, nn.Module], adapter: Adapter, name: str, read: ReadPart) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    for component in [each for each in adapter.components if each in models]:
        changes = [change for change in adapter.changes if change.target.component == component]
        state = {key: tensor for change in changes for key, tensor in _state(change, read).items()}
        ranks = {module: change.rank for change in changes for module in change.target.modules}
        alphas = {module: alpha_of(change, read) for change in changes for module in change.target.modules}
        config = LoraConfig(
            target_modules=list(ranks), use_dora=any("magnitude_vector" in change.tensors for change in changes),
            use_rslora=changes[0].by_root, init_lora_weights=False,
            **_common("r", "rank_pattern", ranks), **_common("lora_alpha", "alpha_pattern", alphas),
        )  # fmt: skip
        model = models[component]
        inject_adapter_in_model(config, model, adapter_name=name)
        if left := set_peft_model_state_dict(model, state, adapter_name=name).unexpected_keys:
            raise CaptureError(f"{adapter.said}: peft has no place for {left[0]} in {component}")
        model.eval()


def _common(name: str, pattern: str, values: Mapping[str, float]) -> dict[str, object]:
    """The commonest value as peft's default, and the others by layer."""
    common = Counter(values.values()).most_common(1)[0][0]
    others = {module: value for module, value in values.items() if value != common}
    return {name: common, pattern: {f"^{module}": value for module, value in others.items()}}


def _state(change: Change, read: ReadPart) -> dict[str, Tensor]:
    """A LoRA's matrices in peft's spelling: what changes q, k and v together is one for each, with equal down."""
    parts = {"lora_A.weight": [read(change, "down")] * len(change.target.modules)}
    rows = {"lora_B.weight": "up", "lora_magnitude_vector": "magnitude_vector"}
    for key, part in rows.items():
        if part in change.tensors:
            tensor = read(change, part)
            tensor = swapped(tensor) if change.target.swap else tensor
            parts[key] = list(tensor.chunk(len(change.target.modules)))
    return {
        f"{module}.{key}": tensors[place].contiguous()
        for key, tensors in parts.items()
        for place, module in enumerate(change.target.modules)
    }
