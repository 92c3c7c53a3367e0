"""What a capture works with, at full size: sizes, dtypes, guidance, batches, gates, adapters, offloading, other shapes.

    python benchmarks/coverage.py                              the full shapes on CUDA, 40 GB of its memory
    python benchmarks/coverage.py --size tiny --device cpu     the same cases with three layers of two heads
    python benchmarks/coverage.py --only GGUF torchao          some cases; the table in --out keeps its others

The weights are random. For each case the pipeline draws a few steps without a capture and then with one. The
latents must be equal to the bit, rows of attention must sum to 1 and the masses of all patches to what the text
leaves of it, the file must hold the samples and branches that were drawn, and be sound (`verify --deep`). What
cannot be captured must be refused by its sentence. Inductor times reductions and chooses them anew each time that it
compiles, so that a pipeline compiled twice differs from itself: such a pipeline is compared with the same graph that
measures nothing, and with eager's kernels (aot_eager) a compiled pipeline with the plain compiled one. Prints a table
and writes it to benchmarks/results/coverage.md and .json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from capture_cost import PACKAGES, gpu
from diffusers import StableDiffusion3Pipeline
from parts.adapting import adapted
from parts.compiling import backend_on, compiled
from parts.coverage_cases import CASES, Case
from parts.coverage_table import MARKS, is_met, line, table
from parts.hanging import hung, lay, left_out
from parts.machine import RESULTS, machine
from parts.shapes import SHAPES, Shape, make_pipeline, small
from parts.ways_of_drawing import drawn_by
from torch import Tensor, nn

import sd35h5
from sd35h5.capturing.encoder_masks import masked_encoders
from sd35h5.errors import CaptureError
from sd35h5.gates.choice import choose_gates, put_gates
from sd35h5.gates.gate_options import GateOptions

PROMPTS = ("a red apple left of a cat", "a drawing of an umbrella and a banana")
TIERS = {
    "maps": "words", "map_heads": "all", "map_layers": "0-1", "map_steps": "all", "top_steps": "all", "atlas": True,
    "rows": ("centre", "token:0"), "text_queries": True, "raw": ("steps=0", "layers=1", "heads=0-1", "tokens=0-40"),
}  # fmt: skip


@contextmanager
def changed(pipe: StableDiffusion3Pipeline, case: Case, folder: Path) -> Iterator[None]:
    """The pipeline with the case's gates, adapter and what is hung into it, without T5 or compiled, as asked; as before
    afterwards."""
    transformer, third = pipe.transformer, (pipe.text_encoder_3, pipe.tokenizer_3)
    processors = dict(transformer.attn_processors)
    try:
        if case.no_t5:
            pipe.text_encoder_3 = pipe.tokenizer_3 = None
        backend = case.backend or backend_on(transformer.device)
        with ExitStack() as stack:
            if case.hang:
                stack.enter_context(hung(pipe, case.hang, folder))
            if case.gates or case.attn2 != "diffusers":
                put_random_gates(pipe, case)
            if case.adapter:
                stack.enter_context(adapted(pipe, case.adapter, case.fused))
            if case.compiled:
                stack.enter_context(compiled(pipe, case.compiled, backend, case.mode))
            yield
    finally:
        pipe.text_encoder_3, pipe.tokenizer_3 = third
        transformer.set_attn_processor(processors)
        if case.compiled and not case.refused:  # cases compile anew: together they exceed what dynamo keeps
            torch._dynamo.reset()


def put_random_gates(pipe: StableDiffusion3Pipeline, case: Case) -> None:
    """The case's attn2, and gates on every attention that differ from token to token and head to head."""
    gated = {"gate_type": case.gates, "gate_init": "neutral"} if case.gates else {}
    layout = {"attn2_layout": case.attn2} if case.shape == "medium" else {}
    choice = choose_gates(pipe.transformer, None, GateOptions(**gated, **layout))
    if choice.gates is not None:
        for _, _, gate in choice.gates.all():
            for parameter in gate.parameters():
                nn.init.normal_(parameter, std=0.02)
        choice.gates.to(pipe.transformer.device, pipe.transformer.dtype)
    put_gates(pipe.transformer, choice)


def draw(
    pipe: object, case: Case, call: dict[str, object], is_captured: bool, reset: Callable[[], None]
) -> list[Tensor]:
    """The last latents of each call; `reset` is called before each."""
    prompts = list(PROMPTS[: case.prompts]) if case.prompts > 1 else PROMPTS[0]
    latents = []
    for image in range(case.images):
        seeds = [image + place for place in range(case.prompts)]
        if is_captured:
            given = {"seed": seeds if case.prompts > 1 else image}
        else:
            given = {"generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds]}
        reset()
        latents.append(pipe(prompts, **given, **call).images)
    return latents


def measure(
    pipe: StableDiffusion3Pipeline, shape: Shape, case: Case, steps: int, out: Path, models: Path
) -> dict[str, object]:
    """Draw without and with a capture. Returns: what was compared and what the file holds, or why it was refused.

    Args:
        models: folder for models that are saved to be loaded another way.
    """
    height, width = (
        round(pixels * part / 16) * 16
        for pixels, part in zip((shape.height, shape.width), case.size, strict=True)
    )
    call = {
        "height": height, "width": width, "num_inference_steps": steps, "guidance_scale": 4.5,
        "max_sequence_length": case.tokens or shape.t5_tokens, "output_type": "latent", **case.more,
    }  # fmt: skip
    begin = time.perf_counter()
    with changed(pipe, case, models), drawn_by(pipe, case.way, call) as way:
        call |= way.call
        if case.refused:
            return {"refused": refusal(way.pipe, out)}
        timed = case.compiled and (case.backend or backend_on(pipe.device)) == "inductor"
        if not timed:
            with masked_encoders(pipe, case.masks):
                plain = draw(way.plain or way.pipe, case, call, False, way.reset)
        with sd35h5.capture(way.pipe, out, encoder_masks=case.masks, **TIERS) as generate:
            if timed:  # the same graph, past the capture: it measures nothing
                for _ in range(2):  # after the first all graphs are there, those of other batch sizes too
                    plain = draw(way.pipe, case, call, False, way.reset)
            captured = draw(generate, case, call, True, way.reset)
    same = all(torch.equal(one, other) for one, other in zip(plain, captured, strict=True))
    finite = all(bool(each.isfinite().all()) for each in plain)
    return {"latents": "equal" if same and finite else "not finite" if same else "differ"} | told_of(
        out, call
    ) | {"seconds": time.perf_counter() - begin}  # fmt: skip


def told_of(out: Path, call: dict[str, object]) -> dict[str, object]:
    """What the file holds and how it hangs together."""
    sound = sd35h5.verify(out, deep=True)
    with sd35h5.open_store(out) as store:
        whole = store.read("sinks/mass_group", branch="cond", group="image")
        patches = store.read("atlas/mass_patch", branch="cond").sum(("patch_y", "patch_x"), skipna=False)
        return {
            "patches": [call["height"] // 16, call["width"] // 16], "text_tokens": len(store.tokens(0)),
            "branches": store.labels("branch"), "samples": len(store.samples),
            "row_sum_error": float(store.samples["row_sum_error"].max()),
            "image_error": float(abs(patches - whole.values).max()), "file_mb": out.stat().st_size / 1e6,
            "sound": sound.ok, "problems": [str(problem) for problem in sound.problems],
            "holds": [group for group, name in MARKS.items() if name in store],
        }  # fmt: skip


def refusal(pipe: StableDiffusion3Pipeline, out: Path) -> str:
    """The sentence by which a capture is refused; empty if it is not."""
    try:
        with sd35h5.capture(pipe, out):
            return ""
    except CaptureError as error:
        return str(error)


def main() -> int:
    """Draw the cases, print and write each as it comes."""
    asked = _arguments()
    torch._inductor.config.deterministic = (
        True  # no timing decides about kernels whose sums differ in the last bit
    )
    device = torch.device(asked.device)
    facts = machine(PACKAGES, torch.get_num_threads()) | {
        "size": asked.size, "device": asked.device, "steps": asked.steps, "gpu": gpu(device),
    }  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    cases = [case for case in CASES if is_asked(case, asked)]
    results = kept(asked.out / "coverage.json", facts) if len(cases) < len(CASES) else {}
    with tempfile.TemporaryDirectory() as models:
        for case, told in measured(cases, asked, device, Path(models)):
            results[case.name] = told | {"date": facts["date"]}
            print(line(case, told, asked.device), flush=True)
            text = json.dumps({**facts, "results": results}, indent=1) + "\n"
            (asked.out / "coverage.json").write_text(text, encoding="utf-8")
            (asked.out / "coverage.md").write_text(table(results, facts, TIERS), encoding="utf-8")
    return 0 if all(is_met(case, results[case.name], asked.device) for case in cases) else 1


def is_asked(case: Case, asked: argparse.Namespace) -> bool:
    """Whether a case is among those of --cases and --only, or all are asked for."""
    chosen = case.name in (asked.cases or ()) or any(text in case.name for text in asked.only or ())
    return chosen or not (asked.cases or asked.only)


def kept(file: Path, facts: dict[str, object]) -> dict[str, dict]:
    """The results of an earlier run of the same kind, machine, torch and diffusers, to go on with; else none."""
    if not file.is_file():
        return {}
    earlier = json.loads(file.read_text(encoding="utf-8"))
    same = [earlier[name] == facts[name] for name in ("size", "device", "steps", "gpu")]
    same += [earlier["versions"][name] == facts["versions"][name] for name in ("torch", "diffusers")]
    return (
        {name: {"date": earlier["date"]} | told for name, told in earlier["results"].items()}
        if all(same)
        else {}
    )


def measured(
    cases: list[Case], asked: argparse.Namespace, device: torch.device, models: Path
) -> Iterator[tuple[Case, dict[str, object]]]:
    """Each case with what was measured, an error, or why it is left out here; a pipeline serves those alike."""
    made, pipe = None, None
    for case in cases:
        if reason := left_out(case.hang, case.offload, device):
            yield case, {"left_out": reason}
            continue
        shape = SHAPES[case.shape] if asked.size == "full" else small(SHAPES[case.shape])
        try:
            if made != (case.shape, case.dtype, case.offload):
                pipe, made = None, (case.shape, case.dtype, case.offload)
                gc.collect()
                pipe = make_pipeline(shape, device, getattr(torch, case.dtype))
                if case.offload:
                    lay(pipe, case.offload, device, models)
            with tempfile.TemporaryDirectory() as folder:
                told = measure(pipe, shape, case, asked.steps, Path(folder) / "run.h5", models)
        except Exception as error:  # the other cases are worth knowing
            told = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
        yield case, told


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["full", "tiny"], default="full", help="of the transformers")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="where to draw")
    parser.add_argument("--steps", type=int, default=3, help="denoising steps")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="only these")
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="only those with one of these in their names"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the table and its JSON")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here: give --device cpu --size tiny")
    return asked


if __name__ == "__main__":
    sys.exit(main())
