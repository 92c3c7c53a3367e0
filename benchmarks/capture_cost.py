"""What a capture costs: each tier's seconds a step over those of the stock pipeline, and errors against float64.

    python benchmarks/capture_cost.py                                  SD3.5-Large's shape on CUDA, 28 steps
    python benchmarks/capture_cost.py --shape medium --rows sinks default
    python benchmarks/capture_cost.py --shape emoji --device cpu

The weights are random, which cost what real ones cost. The benchmark checks itself first: the latents with a
capture are the plain ones to the bit, and every reduction is compared with float64 on the same query and key.
Runs of a row and of the stock pipeline take turns; a ratio is the median over turns, with its smallest and
largest. Each row is printed and written to benchmarks/results/capture_cost_SHAPE.md and .json as soon as it is
measured, so that a run that is cut off keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from parts.capture_checks import attentions, largest_errors, same_to_the_bit
from parts.capture_runs import Bench, Row, Run, resident_bytes
from parts.machine import RESULTS, machine
from parts.rivals import ATTENTION_MAP_DIFFUSERS, attention_map_diffusers, eager
from parts.shapes import SHAPES

import sd35h5
from sd35h5.measuring.reducer import reducer_for
from sd35h5.store.bounded_queue import half_of_the_cores

PACKAGES = ("torch", "triton", "diffusers", "numpy", "h5py", "isal", "attention-map-diffusers")
SHORT = "a red apple left of a cat"
LONG = (  # words enough for all 24 places of maps
    "a drawing of an umbrella, a red apple and a banana, the umbrella on the left of the red apple, "
    "the banana to the right of the red apple with a yellow background"
)
REACH_ERROR, REACH_GROWTH_GIB, REACH_FILE_MB = 1e-5, 0.2, 60
REACH_GPU_GIB = {"default": 0.3, "atlas": 0.5}
SAMPLES = 6  # of the capture whose memory is watched
FEW = 3  # steps of what is slow
AUTOTUNED = {"compiled": True, "mode": "max-autotune-no-cudagraphs"}


def rows(steps: int) -> list[Row]:
    """All timed rows, the most wanted first."""
    every = {"map_heads": "all", "map_steps": "all", "topk": 0}
    maps, short = {"maps": "words", "map_pool": 2, **every}, min(steps, 12)
    per_head = "maps/image_to_text_per_head"
    found = [
        Row("stock again", None, steps=short),
        Row("sinks", {"maps": "off", "topk": 0}, 1.02, steps=short),
        Row("default", {}, 1.04, steps=short),
        Row("maps of 24 tokens", maps, 1.02, steps=short),
        Row("atlas", {"maps": "off", "topk": 0, "atlas": True, "top_steps": "all"}, 1.06, steps=short),
        Row("default, whole", {}, 1.05, True, steps),
        Row("maps of 24 tokens, whole", maps, 1.04, True, steps),
        Row("raw, pool 2", {"maps": "all", "map_pool": 2, **every}, steps=min(steps, 2 * FEW), values=per_head),
        Row(
            "raw, pool 1", {"maps": "off", "topk": 0, "raw": ("steps=all",)}, steps=min(steps, FEW),
            values="raw/probability",
        ),
        Row("compiled, against eager", None, steps=short, compiled=True, against_eager=True),
        Row("compiled: sinks", {"maps": "off", "topk": 0}, 1.03, steps=short, compiled=True),
        Row("compiled: default", {}, 1.05, steps=short, compiled=True),
        Row("compiled: default, whole, against eager", {}, 0.75, True, steps, compiled=True, against_eager=True),
        Row("compiled: default, whole", {}, None, True, steps, compiled=True),
        Row("autotuned, against eager", None, steps=short, **AUTOTUNED, against_eager=True),
        Row("autotuned: sinks", {"maps": "off", "topk": 0}, 1.03, steps=short, **AUTOTUNED),
        Row("autotuned: default", {}, 1.05, steps=short, **AUTOTUNED),
        Row("autotuned: default, whole, against eager", {}, 0.75, True, steps, **AUTOTUNED, against_eager=True),
        Row("eager softmax", None, steps=min(steps, FEW), within=eager),
    ]  # fmt: skip
    if find_spec("attention_map_diffusers"):
        for name, settings in ATTENTION_MAP_DIFFUSERS.items():
            within = partial(attention_map_diffusers, settings=settings)
            found.append(Row(name, None, steps=min(steps, FEW), within=within))
    return found


def measure(bench: Bench, row: Row, runs: int) -> dict[str, object]:
    """Turns of stock and row. Returns: seconds of each, their ratios, and what else the row tells."""
    stock = Row(
        "stock", None, whole=row.whole, steps=row.steps, compiled=row.compiled and not row.against_eager,
        mode=row.mode,
    )  # fmt: skip
    begin = time.perf_counter()
    if not row.values:
        bench.run(row, LONG)  # kernels are compiled and memory is reserved: does not count
    first = time.perf_counter() - begin
    if row.compiled:
        bench.run(stock, LONG)
    turns = 1 if row.values or row.within else runs  # what is many times slower needs no second look
    turns = [(bench.run(stock, LONG), bench.run(row, LONG)) for _ in range(turns)]
    what = "seconds" if row.whole else "step_seconds"
    seconds = [(getattr(plain, what), getattr(taken, what)) for plain, taken in turns]
    ratios = [taken / plain for plain, taken in seconds]
    last: Run = turns[-1][1]
    told = {
        "reach": row.reach, "whole": row.whole, "steps": row.steps, "ratio": statistics.median(ratios),
        "ratios": ratios, "seconds_stock_and_row": seconds, "file_mb": last.file_bytes / 1e6,
        "extra_gpu_gib": (max(run.peak_bytes for _, run in turns) - max(run.peak_bytes for run, _ in turns)) / 2**30,
    }  # fmt: skip
    if row.compiled:  # what the first run took beyond the others: compiling
        told["first_run_seconds"] = first
    return told | ({"rates": bench.rates(last, row.values)} if row.values else {})


def growth(bench: Bench, steps: int) -> dict[str, float]:
    """Host memory and file sizes of one capture of several samples, the first ones of a short prompt."""
    ends, first = [], []
    with sd35h5.capture(bench.pipe, bench.out, overwrite=True) as generate:
        for number in range(SAMPLES):
            resident: list[int] = []

            def after_step(pipe: object, step: int, at: object, tensors: dict, into: list = resident) -> dict:
                into.append(resident_bytes())
                return {}

            prompt = SHORT if number < SAMPLES - 1 else " ".join([LONG] * 12)  # more than 300 tokens: cut off
            generate(prompt, seed=number, **bench.call(steps), callback_on_step_end=after_step)
            first.append(resident[min(5, steps - 1)])
            ends.append(resident[-1])
        parts = sorted(Path(f"{bench.out}.parts").glob("*.h5"))
        sizes = [part.stat().st_size / 1e6 for part in parts]
    return {
        "growth_within_a_sample_gib": (ends[1] - first[1]) / 2**30,
        "growth_of_samples_gib": (ends[-1] - ends[1]) / 2**30,
        "file_mb_short": sizes[0], "file_mb_long": sizes[-1],
    }  # fmt: skip


def check(bench: Bench) -> dict[str, object]:
    """The self check: equal latents, and the largest error of each reduction over three layers."""
    call = bench.call(2)
    errors: dict[str, float] = {}
    reducer = reducer_for(bench.device)
    for joint, lse in attentions(bench.pipe, LONG, bench.call(1)).values():
        for name, error in largest_errors(reducer, joint, lse, bench.patches).items():
            errors[name] = max(errors.get(name, 0.0), error)
    return {
        "bit_identical": same_to_the_bit(bench.pipe, LONG, call),
        "reducer": reducer.name,
        "errors": errors,
    }


def line(name: str, told: dict[str, object]) -> str:
    """One row of the table."""
    low, high = min(told["ratios"]), max(told["ratios"])
    unit = "s a run" if told["whole"] else "ms a step"
    scale = 1 if told["whole"] else 1e3
    plain, taken = (
        statistics.median(side) * scale for side in zip(*told["seconds_stock_and_row"], strict=True)
    )
    reach = f"≤ {told['reach']}" if told["reach"] else "printed"
    notes = [f"{told['file_mb']:.1f} MB file"] if told["file_mb"] else []
    if told["extra_gpu_gib"] > 0:
        limit = f" (≤ {REACH_GPU_GIB[name]})" if name in REACH_GPU_GIB else ""
        notes.append(f"{told['extra_gpu_gib']:.2f} GiB more on the GPU{limit}")
    if "first_run_seconds" in told:
        notes.append(f"the first run, which compiles, took {told['first_run_seconds']:.0f} s")
    if rates := told.get("rates"):
        limits = {part: rate for part, rate in rates.items() if part != "reached"}
        binds = min(limits, key=limits.get)
        alone = ", ".join(f"{part} {rate:.0f}" for part, rate in limits.items())
        notes.append(
            f"{rates['reached']:.0f} MB/s of values; alone: {alone}; "
            f"{binds} binds, {rates['reached'] / limits[binds]:.2f} of it reached"
        )
    return (
        f"| {name} | **{told['ratio']:.3f}** ({low:.3f}–{high:.3f}) | {reach} "
        f"| {taken:.4g} against {plain:.4g} {unit} | {'; '.join(notes)} |"
    )


def table(results: dict[str, dict], facts: dict[str, object]) -> str:
    """What is measured so far as Markdown."""
    checked, watched = results.get("check"), results.get("growth")
    lines = [f"# What a capture costs: shape {facts['shape']} on {facts['device']}", ""]
    if checked:
        same = "bit-identical" if checked["bit_identical"] else "**not bit-identical**"
        lines += [f"Latents with a capture: {same}. Largest relative errors against float64 (reach ≤ {REACH_ERROR:g}), "
                  f"{checked['reducer']} reductions, three layers:",
                  ", ".join(f"{name} {error:.1e}" for name, error in checked["errors"].items()) + ".", ""]  # fmt: skip
    lines += ["| row | ratio to stock (spread) | reach | median | also |", "| --- | --- | --- | --- | --- |"]
    lines += [line(name, told) for name, told in results.items() if name not in ("check", "growth")]
    if watched:
        within, over = watched["growth_within_a_sample_gib"], watched["growth_of_samples_gib"]
        lines += [
            "",
            f"Host memory grew by {within:.2f} GiB from step 5 to the last, by {over:.2f} GiB from sample 2 "
            f"to {SAMPLES} (reach ≤ {REACH_GROWTH_GIB} each).",
            f"A sample takes {watched['file_mb_short']:.1f} MB with a short prompt, {watched['file_mb_long']:.1f} MB "
            f"with a long one (reach ≤ {REACH_FILE_MB} at the large shape).",
        ]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return "\n".join([
        *lines, "",
        f"Random weights, {facts['dtype']}, {facts['patches'][0]} × {facts['patches'][1]} patches, "
        f"{facts['tokens']} text tokens, guidance; {facts['steps']} steps; {facts['runs']} turns of stock and row; "
        f"{facts['deflating']} deflating threads.",
        f"{facts['gpu'] or 'no GPU'}; {facts['cpu']}, {facts['cores']} cores, load before the runs "
        f"{facts['load_before']:.2f}; {facts['system']}, {versions}. {facts['date']}.",
        f"Made by `python benchmarks/capture_cost.py --shape {facts['shape']} --device {facts['device']} "
        f"--steps {facts['steps']}`.",
    ]) + "\n"  # fmt: skip


def gpu(device: torch.device) -> str:
    """Name of the GPU, its driver and CUDA; empty without one."""
    if device.type != "cuda":
        return ""
    version = Path("/proc/driver/nvidia/version")
    words = version.read_text().split("Kernel Module")[-1].split() if version.is_file() else []
    driver = next((word for word in words if word[0].isdigit()), "unknown")
    return f"{torch.cuda.get_device_name(device)}, driver {driver}, CUDA {torch.version.cuda}"


def main() -> int:
    """Check, measure, print and write row by row."""
    asked = _arguments()
    device = torch.device(asked.device)
    facts = machine(PACKAGES, torch.get_num_threads()) | {
        "shape": asked.shape, "device": asked.device, "steps": asked.steps, "runs": asked.runs, "gpu": gpu(device),
        "deflating": half_of_the_cores(),
    }  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict] = {}

    def keep(name: str, told: dict) -> None:
        results[name] = told
        path = asked.out / f"capture_cost_{asked.shape}{asked.suffix and '_'}{asked.suffix}"
        path.with_suffix(".md").write_text(table(results, facts), encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
        print(json.dumps(told) if name in ("check", "growth") else line(name, told), flush=True)

    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        bench = Bench(asked.shape, device, Path(folder))
        facts |= {"dtype": str(bench.pipe.transformer.dtype).removeprefix("torch."), "patches": bench.patches,
                  "tokens": 77 + bench.shape.t5_tokens}  # fmt: skip
        keep("check", check(bench))
        for row in rows(asked.steps):
            if not asked.rows or row.name in asked.rows:
                keep(row.name, measure(bench, row, asked.runs))
            if row.name == "default, whole" and (not asked.rows or "growth" in asked.rows):
                keep("growth", growth(bench, asked.steps))
    passed = results["check"]["bit_identical"] and max(results["check"]["errors"].values()) <= REACH_ERROR
    return 0 if passed else 1


def _arguments() -> argparse.Namespace:
    names = [row.name for row in rows(28)] + ["growth"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", choices=list(SHAPES), default="large", help="of the transformer and picture"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="where to draw")
    parser.add_argument("--steps", type=int, default=28, help="denoising steps of a whole run")
    parser.add_argument("--runs", type=int, default=3, help="turns of stock and row")
    parser.add_argument("--rows", nargs="+", choices=names, help="only these rows, after the self check")
    parser.add_argument(
        "--suffix", default="", help="of the results' names: chosen rows beside the whole table"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to write the captures; the system's default otherwise"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the table and its JSON")
    asked = parser.parse_args()
    if asked.steps < 1 or asked.runs < 1:
        parser.error("--steps and --runs are 1 or more")
    if asked.folder is not None and not asked.folder.is_dir():
        parser.error(f"--folder {asked.folder}: there is no such folder")
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here: give --device cpu, with --shape emoji or tiny")
    return asked


if __name__ == "__main__":
    sys.exit(main())
