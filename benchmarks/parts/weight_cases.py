"""Components in every layout, and transformers with every form of gates, as files that `load_matrix.py` loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from making import weights
from safetensors.torch import load_file
from torch import Tensor, nn

from sd35h5.gates.forms import fuse_gates, separate_gates
from sd35h5.gates.modules import build_gates, install_gates, save_gates
from sd35h5.weights.sources import OPTIONS

WIDTH = 320  # channels of the small transformer: 5 MB a layer, so that a second copy would show


@dataclass(frozen=True)
class Case:
    """One row: a component in a layout.

    Args:
        gates: `none`, or form and type: `a headwise`.
        expected: the output of the original.
    """

    component: str
    layout: str
    gates: str
    path: Path
    expected: Tensor


def transformer_cases(folder: Path) -> Iterator[Case]:
    """MMDiT and MMDiT-X with all gate forms, and MMDiT without norms of q and k, in all layouts."""
    models = {
        "": {"width": WIDTH},
        "MMDiT-X: ": {"dual": (0, 1), "width": WIDTH},
        "no q/k norms: ": {"qk_norm": None},
    }
    for number, (name, changes) in enumerate(models.items()):
        model, place = weights.small_pipeline(**changes).transformer, folder / str(number)
        for layout, path in _layouts("transformer", model, place):
            yield Case("transformer", name + layout, "none", path, weights.output("transformer", model))
        if changes.get("qk_norm", True):
            yield from gated_cases(place, model, name)


def gated_cases(folder: Path, model: nn.Module, name: str) -> Iterator[Case]:
    """A transformer with gates of both types on every attention, in all forms; puts gates on it."""
    state = weights.original_mmdit(model)
    for gate_type in ("headwise", "elementwise"):
        gates = build_gates(model, gate_type, target="all")
        for _, _, gate in gates.all():
            for parameter in gate.parameters():
                nn.init.normal_(parameter, std=0.5)
        file = folder / f"{gate_type}.safetensors"
        save_gates(file, gates, torch.float32)
        install_gates(model, gates)
        expected, held = weights.output("transformer", model), load_file(file)
        for prefix in ("", weights.DIT):
            base = {prefix + key: tensor for key, tensor in state.items()}
            told = f"{name}original{', prefixed' * bool(prefix)}"
            for form, fuse in (("a", fuse_gates), ("b", separate_gates)):
                path = folder / f"{gate_type}-{form}-{bool(prefix)}.safetensors"
                weights.save(path, fuse(base, held))
                yield Case("transformer", told, f"{form} {gate_type}", path, expected)
        own = {**weights.plain_state(model), **held}
        path = weights.save(folder / f"{gate_type}-c.safetensors", own)
        yield Case("transformer", f"{name}diffusers file", f"c {gate_type}", path, expected)


def other_cases(folder: Path) -> Iterator[Case]:
    """Text encoders and VAE in all layouts, CLIP-G also in OpenCLIP's, all out of one file, and fp8."""
    pipe = weights.small_pipeline()
    for component in ("text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        model = getattr(pipe, component)
        for layout, path in _layouts(component, model, folder / component):
            yield Case(component, layout, "none", path, weights.output(component, model))
    yield from openclip_cases(folder, pipe.text_encoder_2)
    single = weights.save(folder / "all.safetensors", weights.all_in_one(pipe))
    for component in OPTIONS:
        yield Case(
            component, "all-in-one", "none", single, weights.output(component, getattr(pipe, component))
        )
    yield from fp8_cases(folder, pipe)


def openclip_cases(folder: Path, model: nn.Module) -> Iterator[Case]:
    """CLIP-G as OpenCLIP released it, alone and within an all-in-one file."""
    for told, prefix in (("OpenCLIP", ""), ("OpenCLIP, prefixed", "text_encoders.clip_g.")):
        path = weights.save(folder / f"openclip-{bool(prefix)}.safetensors", weights.openclip(model, prefix))
        yield Case("text_encoder_2", told, "none", path, weights.output("text_encoder_2", model))


def fp8_cases(folder: Path, pipe: StableDiffusion3Pipeline) -> Iterator[Case]:
    """T5 cast to fp8, and T5 and the transformer in ComfyUI's scaled fp8; changes the pipeline's weights."""
    t5 = pipe.text_encoder_3
    for stored in (torch.float8_e4m3fn, torch.float8_e5m2):
        state = {key: tensor.to(stored) for key, tensor in weights.plain_state(t5).items()}
        name = str(stored).removeprefix("torch.")
        path = weights.save(folder / f"{name}.safetensors", state)
        t5.load_state_dict({key: tensor.float() for key, tensor in state.items()}, strict=False)
        yield Case("text_encoder_3", name, "none", path, weights.output("text_encoder_3", t5))
    big = weights.small_pipeline(width=WIDTH).transformer
    joined = weights.original_mmdit(big)  # one factor for q, k and v, which diffusers' own converter parts
    for names in weights.FACTORS:
        for component, model, state in (
            ("text_encoder_3", t5, weights.plain_state(t5)), ("transformer", big, joined)
        ):  # fmt: skip
            held, meant = weights.scaled_fp8(state, names)
            convert = convert_sd3_transformer_checkpoint_to_diffusers if model is big else dict
            model.load_state_dict(convert(meant), strict=False)
            prefixed = {weights.PREFIXES[component] + key: tensor for key, tensor in held.items()}
            path = weights.save(folder / f"{component}-{names[0]}.safetensors", prefixed)
            expected = weights.output(component, model)
            yield Case(component, f"scaled fp8 ({names[0]}), prefixed", "none", path, expected)
            marked = weights.marked(prefixed, {"format": "float8_e4m3fn"})
            if len(marked) > len(prefixed):
                path = weights.save(folder / f"{component}-marked.safetensors", marked)
                yield Case(component, "fp8 with marks (comfy_quant), prefixed", "none", path, expected)


def _layouts(component: str, model: nn.Module, folder: Path) -> Iterator[tuple[str, Path]]:
    folder.mkdir()
    state, prefix = weights.original_state(component, model), weights.PREFIXES[component]
    original = "original" if component in ("transformer", "vae") else "transformers file"
    yield original, weights.save(folder / "alone.safetensors", state)
    prefixed = {prefix + key: tensor for key, tensor in state.items()}
    yield f"{original}, prefixed", weights.save(folder / "prefixed.safetensors", prefixed)
    if component in ("transformer", "vae"):
        yield "diffusers file", weights.save(folder / "own.safetensors", weights.plain_state(model))
    model.save_pretrained(folder / "folder")
    yield "folder", folder / "folder"
    model.save_pretrained(folder / "sharded", max_shard_size="2MB" if component == "transformer" else "100KB")
    yield "sharded folder", folder / "sharded"
    model.save_pretrained(
        folder / "variant", variant="fp16", max_shard_size="2MB" if component == "transformer" else "100KB"
    )
    yield "sharded variant", folder / "variant"
    beside = {f"module.{key}": tensor for key, tensor in state.items()} | {"model_ema.decay": torch.ones(())}
    yield "wrapped, EMA beside", weights.save(folder / "trained.safetensors", beside)
