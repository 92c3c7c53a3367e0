"""Every layout of every component, and every gate form: loaded at small size and compared with the original.

    python benchmarks/load_matrix.py

A row passes if the loaded component gives, bit for bit, the output of the diffusers model from which the file
was made, and if loading took no second copy of the weights in the process's own memory. The second table plans
the four published models on the meta device, from key lists that follow their architecture: every key must
find its place and every parameter its key. Needs the dev extras, since it makes its files as the tests do.
Prints its tables and writes them to benchmarks/results/load_matrix.md and .json; exits with 1 if a row fails.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import torch
from demo_cost import PACKAGES
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from making import weights
from parts.machine import RESULTS, machine
from safetensors.torch import load_file
from torch import Tensor, nn

from sd35h5.capturing.pipeline import quiet
from sd35h5.errors import Sd35h5Error
from sd35h5.gates.decision import decide
from sd35h5.gates.forms import fuse_gates, separate_gates
from sd35h5.gates.gate_files import make_gates
from sd35h5.gates.gate_options import GateOptions
from sd35h5.gates.modules import build_gates, install_gates, save_gates, sizes_of
from sd35h5.planning.options import Model
from sd35h5.weights.configs import COMPONENT_CONFIGS, TRANSFORMERS
from sd35h5.weights.loading import load_part, split_gates
from sd35h5.weights.sources import OPTIONS, Part, find_part

WIDTH = 320  # channels of the small transformer: 5 MB a layer, so that a second copy would show
SLACK = 8e6  # bytes of the process that have nothing to do with weights


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


@dataclass(frozen=True)
class Row:
    """What came of a case. `problem` is empty if it passed."""

    component: str
    layout: str
    gates: str
    seconds: float
    weights_mb: float
    peak_mb: float
    problem: str


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


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The most memory of its own (RssAnon, without mapped files) that the process gained, in MB."""

    def own() -> int:
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    gc.collect()
    with suppress(OSError):  # memory that earlier rows freed would hide what this one takes
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, gained, ended = own(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            gained[0] = max(gained[0], (own() - before) / 1000)
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield gained
    finally:
        ended.set()
        thread.join()
        gained[0] = max(gained[0], (own() - before) / 1000)


def run(case: Case) -> Row:
    """Load a case, and compare."""
    problem, model = "", None
    with peak_memory() as peak:
        begin = time.perf_counter()
        try:
            part = find_part(case.component, Model(**{OPTIONS[case.component]: str(case.path)}), None)
            if part.derived and "eos_token_id" in part.config:  # as from the tokenizer, whose last word it is
                part.config["eos_token_id"] = part.config["vocab_size"] - 1
            model = _loaded(part)
        except Sd35h5Error as error:
            problem = str(error)
        seconds = time.perf_counter() - begin
    size = 0
    if model is not None:
        size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        if not torch.equal(weights.output(case.component, model), case.expected):
            problem = "another output"
        if peak[0] * 1e6 > 1.3 * size + SLACK:
            problem = f"took {peak[0]:.1f} MB for {size / 1e6:.1f} MB of weights"
    return Row(case.component, case.layout, case.gates, seconds, size / 1e6, peak[0], problem)


def _loaded(part: Part) -> nn.Module:
    if part.component != "transformer":
        return load_part(part, torch.float32, "cpu")
    base, held = split_gates(part)
    model = load_part(base, torch.float32, "cpu")
    if held is not None:
        answers = GateOptions(attn2_layout="diffusers" if sizes_of(model).second_layers else None)
        install_gates(model, make_gates(held, model, decide(sizes_of(model), held.held, answers)))
    return model


def audits() -> Iterator[dict[str, object]]:
    """Plan every published component. Yields: a row each."""
    parts = [(name, "transformer", shapes) for name, shapes in weights.REAL_TRANSFORMERS.items()]
    parts += [("all four", component, shapes) for component, shapes in weights.REAL_OTHERS.items()]
    for name, component, shapes in parts:
        prefixed = {weights.PREFIXES[component] + key: shape for key, shape in shapes.items()}
        row = {"model": name, "component": component, "keys": len(shapes), "problem": "", "shape": ""}
        row["parameters"] = sum(torch.Size(shape).numel() for shape in shapes.values())
        try:
            config = weights.audit(component, prefixed).config
            known = TRANSFORMERS.get(name) or COMPONENT_CONFIGS[component]
            differ = [field for field in known if config.get(field) != known[field]]
            row["problem"] = f"config differs in {', '.join(differ)}" if differ else ""
            if component == "transformer":
                row["shape"] = (
                    f"{config['num_layers']} layers, {config['num_attention_heads']} heads of "
                    f"{config['attention_head_dim']}, {len(config['dual_attention_layers'])} with attn2"
                )
        except Sd35h5Error as error:
            row["problem"] = str(error)
        yield row


def tables(rows: list[Row], audited: list[dict], facts: dict) -> str:
    """Both tables as Markdown."""
    lines = ["# Every layout of every component", ""]
    lines += ["| component | layout | gates | | load, s | weights, MB | peak host memory, MB |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        sizes = f"{row.seconds:.3f} | {row.weights_mb:.1f} | {row.peak_mb:.1f}"
        lines.append(f"| {row.component} | {row.layout} | {row.gates} | {_verdict(row.problem)} | {sizes} |")
    lines += ["", "# The published models' keys and shapes, on the meta device", ""]
    lines += [
        "| model | component | keys | parameters, M | | shape |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in audited:
        size = f"{row['keys']} | {row['parameters'] / 1e6:.0f}"
        cells = (row["model"], row["component"], size, _verdict(row["problem"]), row["shape"])
        lines.append(f"| {' | '.join(cells)} |")
    failed = sum(bool(row.problem) for row in rows) + sum(bool(row["problem"]) for row in audited)
    told = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    return "\n".join([
        *lines, "",
        f"{len(rows) + len(audited)} rows, {failed} failed. Random weights, float32, on the CPU; a pass is an output "
        "equal bit for bit, in less than 1.3 times the weights (and 8 MB) of memory. Peak: growth of the process's "
        "own memory while loading (RssAnon: mapped files can be dropped and do not count), every half millisecond.",
        f"{facts['cpu']}, {facts['cores']} cores, shared, load before the rows {facts['load_before']:.2f}; "
        f"{facts['system']}, {told}. {facts['date']}.",
        "Made by `python benchmarks/load_matrix.py`.",
    ]) + "\n"  # fmt: skip


def _verdict(problem: str) -> str:
    return f"FAIL: {problem}" if problem else "pass"


def main() -> int:
    """Load, compare, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for load_matrix.md and .json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine(PACKAGES, torch.get_num_threads())
    with tempfile.TemporaryDirectory() as temporary, quiet():
        folder = Path(temporary)
        rows = [run(case) for cases in (transformer_cases, other_cases) for case in cases(folder)]
    audited = list(audits())
    text = tables(rows, audited, facts)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "load_matrix.md").write_text(text, encoding="utf-8")
    told = {**facts, "rows": [asdict(row) for row in rows], "audits": audited}
    (asked.out / "load_matrix.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(text, end="")
    return int(any(row.problem for row in rows) or any(row["problem"] for row in audited))


if __name__ == "__main__":
    sys.exit(main())
