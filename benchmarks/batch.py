"""A hundred long prompts on workers that are killed; samples an hour with and without capture; two GPUs against one.

    python benchmarks/batch.py                        the bundled models on two CPU workers with 20 SIGKILLs
    python benchmarks/batch.py --limit 3 --kills 1    the same in small
    python benchmarks/batch.py --rate                 one GPU, SD3.5-Large's shape, random weights
    python benchmarks/batch.py --gpus 0,1             the same on two GPUs of one host against one

The first draws each variant in one process and with workers, one of which is killed in the middle of a sample again
and again, and compares every array of the two files. Memory is that of the one process and its writer, from its tenth
sample to its last. Prints its table and writes it to benchmarks/results/: batch.md, batch_rate.md or batch_gpus.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in one process and in workers: last bits depend on it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import psutil
from making.equal_arrays import arrays, differing
from making.worker_kills import workers_killed
from parts.machine import RESULTS, machine

PROMPTS = ROOT / "data" / "prompts" / "long.json"
PACKAGES = ("torch", "diffusers", "distributed", "numpy", "h5py")
FIRST = 10  # sample from which memory is to stay as it is
MAX_GROWTH, LEAST_RATE, LEAST_SPEEDUP = 50e6, 0.955, 1.95


def command(model: Path | str, out: Path, limit: int, steps: int, *more: str) -> list[str]:
    """The command line of a capture of long prompts."""
    flags = f"--prompts_json {PROMPTS} --limit {limit} --max_sequence_length 512 --steps {steps} --out {out}"
    return [sys.executable, str(ROOT / "capture_cli.py"), "--model_id", str(model), *flags.split(), *more]


def watched(line: list[str], parts: Path, kills: int = 0, every: int = 1) -> dict[str, object]:
    """Run a capture. Returns: its seconds, the kills, and host bytes of it and its children by samples sealed."""
    begin, memory = time.perf_counter(), {}
    with (parts.parent / "said.txt").open("wb") as said:
        process = subprocess.Popen(line, cwd=ROOT, stderr=said, stdout=said)
        with workers_killed(parts, kills, every, process.pid) as killed:
            while process.poll() is None:
                memory[len(list(parts.glob("*.h5")))] = resident(process.pid)  # the last look at each count
                time.sleep(0.1)
    if process.returncode:
        raise SystemExit((parts.parent / "said.txt").read_text(errors="replace")[-2000:])
    return {"seconds": time.perf_counter() - begin, "kills": len(killed), "memory": memory}


def resident(pid: int) -> int:
    """Host bytes of a process and all below it."""
    try:
        process = psutil.Process(pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.Error:  # it ends
        return 0


def on_workers(folder: Path, variant: str, limit: int, steps: int, kills: int) -> dict[str, object]:
    """One process, then two workers with kills; what differs."""
    model = ROOT / "data" / "models" / "emoji"
    own = ("--device", "cpu", "--transformer", variant)
    one, many = folder / "one.h5", folder / "many.h5"
    alone = watched(command(model, one, limit, steps, *own), folder / "one.h5.parts")
    line = command(model, many, limit, steps, *own, "--workers", "2")
    every = max(1, limit // max(1, kills))
    spread = watched(line, folder / "many.h5.parts", kills, every)
    memory = {count: size for count, size in alone["memory"].items() if min(FIRST, limit) <= count}
    told = {
        "seconds": (alone["seconds"], spread["seconds"]), "kills": spread["kills"],
        "differs": differing(one, many), "arrays": len(arrays(one)),
        "growth": memory[max(memory)] - memory[min(memory)] if memory else float("nan"),
    }  # fmt: skip
    one.unlink()
    many.unlink()
    return told


def batch_table(args: argparse.Namespace, folder: Path) -> tuple[str, list[str]]:
    """Rows of the CPU's table, and what missed its aim."""
    lines = [
        "| model | samples | one process | two workers | workers killed | arrays that differ | host memory, sample "
        f"{FIRST} to the last |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    missed = []
    for variant in args.variants:
        told = on_workers(folder, variant, args.limit, args.steps, args.kills)
        alone, spread = told["seconds"]
        lines.append(
            f"| {variant} | {args.limit} | {alone:.0f} s | {spread:.0f} s | {told['kills']} | "
            f"{len(told['differs'])} of {told['arrays']} | {told['growth'] / 1e6:+.0f} MB |"
        )
        print(lines[-1], flush=True)  # the next takes half an hour
        missed += [f"{variant}: {name} differs" for name in told["differs"]]
        if told["kills"] < args.kills:
            missed.append(f"{variant}: {told['kills']} of {args.kills} kills came in time")
        if told["growth"] > MAX_GROWTH:
            missed.append(f"{variant}: {told['growth'] / 1e6:.0f} MB more at the end")
    return "\n".join(lines), missed


def rate_table(args: argparse.Namespace, folder: Path) -> tuple[str, list[str]]:
    """Samples an hour with default tiers, sealed and packed, over those of the same pipeline without capture."""
    import torch
    from parts.shapes import SHAPES, make_pipeline

    import sd35h5

    device = torch.device(args.device)
    pipe = make_pipeline(
        SHAPES[args.shape], device, torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    shape = SHAPES[args.shape]
    call = {"num_inference_steps": args.steps, "guidance_scale": 4.5, "height": shape.height, "width": shape.width,
            "max_sequence_length": shape.t5_tokens}  # fmt: skip
    prompts = [each["prompt"] for each in json.loads(PROMPTS.read_text(encoding="utf-8"))[: args.limit]]

    def plain() -> None:
        for seed, prompt in enumerate(prompts):
            pipe(prompt, generator=torch.Generator("cpu").manual_seed(seed), **call)

    def captured() -> None:
        with sd35h5.capture(pipe, folder / "run.h5", overwrite=True) as generate:
            for seed, prompt in enumerate(prompts):
                generate(prompt, seed=seed, **call)

    seconds: dict[str, list[float]] = {"plain": [], "captured": []}
    plain()  # warms up
    captured()
    for _ in range(args.runs):
        for name, draw in (("plain", plain), ("captured", captured)):
            begin = time.perf_counter()
            draw()
            seconds[name].append(time.perf_counter() - begin)
    hours = {name: args.limit * 3600 / float(np.median(each)) for name, each in seconds.items()}
    ratio = hours["captured"] / hours["plain"]
    text = (
        "| shape | samples of a run | runs | samples an hour, plain pipeline | with default tiers, sealed and packed | "
        "ratio |\n| --- | --- | --- | --- | --- | --- |\n"
        f"| {args.shape}, {args.steps} steps | {args.limit} | {args.runs} | {hours['plain']:.0f} | "
        f"{hours['captured']:.0f} | **{ratio:.3f}** |"
    )
    return text, [f"the ratio {ratio:.3f} is below {LEAST_RATE}"] * (ratio < LEAST_RATE)


def gpus_table(args: argparse.Namespace, folder: Path) -> tuple[str, list[str]]:
    """Samples an hour of one worker, and of as many as there are GPUs, each drawing as many samples; once they draw."""
    model = args.model or _written(args.shape, folder / "model")
    chosen = args.gpus.split(",")
    rates = {}
    for gpus in (chosen[0], args.gpus):
        count = len(gpus.split(","))
        out = folder / f"on{count}.h5"
        sealed = _seals(
            command(model, out, args.limit * count, args.steps, "--gpus", gpus), Path(f"{out}.parts")
        )
        inner = sealed[2 * count : -count]  # all workers draw
        rates[count] = 3600 * np.polyfit(inner, np.arange(len(inner)), 1)[0]
        out.unlink()
    speedup = rates[len(chosen)] / rates[1]
    least = LEAST_SPEEDUP / 2 * len(chosen)
    text = "| shape | GPUs | samples an hour | × one |\n| --- | --- | --- | --- |\n" + "\n".join(
        f"| {args.shape}, {args.steps} steps | {count} | {rate:.0f} | **{rate / rates[1]:.3f}** |"
        for count, rate in rates.items()
    )
    return text, [f"{speedup:.3f} × one GPU is below {least:.3f}"] if speedup < least else []


def _seals(line: list[str], parts: Path) -> list[float]:
    """Run a capture. Returns: when each sample was seen sealed, in order, seconds."""
    seen: dict[str, float] = {}
    process = subprocess.Popen(line, cwd=ROOT)
    while process.poll() is None:
        for path in parts.glob("*.h5"):
            seen.setdefault(path.name, time.perf_counter())
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the capture ended with status {process.returncode}")
    return sorted(seen.values())


def _written(size: str, folder: Path) -> Path:
    """A whole model with random weights, T5-XXL too, in the repository's layout."""
    import torch
    from parts.random_folder import write_model

    write_model(folder, size, torch.device("cuda"), torch.bfloat16)
    torch.cuda.empty_cache()  # the workers draw on this GPU
    return folder


def main() -> int:
    """Measure, print, write. Returns: 1 if something missed its aim."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rate", action="store_true", help="samples an hour with capture over without, on one device"
    )
    parser.add_argument("--gpus", default="", help="numbers of GPUs: these against the first of them")
    parser.add_argument("--limit", type=int, default=0, help="prompts: 100, or 8 for --rate, or 20 a GPU")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--variants", nargs="+", default=["transformer", "transformer_headwise"])
    parser.add_argument("--steps", type=int, default=0, help="15, or 28 on GPUs")
    parser.add_argument("--runs", type=int, default=3, help="of each kind, for --rate")
    parser.add_argument("--shape", default="large")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--model", default="", help="a folder with weights, for --gpus; written for the run if not given"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    kind = "batch_rate" if args.rate else "batch_gpus" if args.gpus else "batch"
    args.limit = args.limit or {"batch": 100, "batch_rate": 8, "batch_gpus": 20}[kind]
    args.steps = args.steps or (15 if kind == "batch" else 28)
    facts = machine(PACKAGES, int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        measure = {"batch": batch_table, "batch_rate": rate_table, "batch_gpus": gpus_table}[kind]
        text, missed = measure(args, Path(folder))
    told = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    flags = " ".join(sys.argv[1:])
    page = "\n".join([
        "# A hundred long prompts", "", text, "",
        *(f"- missed: {each}" for each in missed), *[""] * bool(missed),
        f"{facts['cpu']}, {facts['cores']} cores, load before {facts['load_before']:.2f}; {facts['system']}, {told}. "
        f"{_gpu()}{facts['date']}.",
        f"Made by `python benchmarks/batch.py{' ' * bool(flags)}{flags}`.",
    ]) + "\n"  # fmt: skip
    print(page, end="")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{kind}.md").write_text(page, encoding="utf-8")
    return 1 if missed else 0


def _gpu() -> str:
    import torch

    return f"{torch.cuda.get_device_name(0)}. " if torch.cuda.is_available() else ""


if __name__ == "__main__":
    sys.exit(main())
