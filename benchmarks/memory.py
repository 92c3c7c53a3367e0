"""What a capture takes of a GPU's and the host's memory at full size, and in time, against the whole pipeline there.

    python benchmarks/memory.py

Writes 27 GB of random weights in the layout in which SD3.5-Large is published, T5-XXL included, then draws two samples
of 28 steps from that folder in processes of their own, in turns: with the plain pipeline, all of it on the GPU;
captured with all of it on the GPU (`sd35h5.capture`); and with the command line, as it is and with `--offload model`.
A process is timed from its start to its end. The pictures must be the plain pipeline's to the bit. Takes some 7 minutes
on an H100, 30 GB of disk and of host memory. Prints its table and writes it to benchmarks/results/memory.md and .json;
exits with 1 if a picture is another. `--size tiny --device cpu` does the same in small.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np
import torch
from parts.machine import RESULTS, machine
from parts.random_folder import write_model

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "accelerate")
PROMPTS = (
    "a red apple left of a grey cat on a wooden chair, soft light from a window",
    "three paper boats on a pond at dusk, one of them yellow, reeds in front",
)
GUIDANCE, SEED, TOKENS = 4.5, 0, 256
STEPS = {"large": 28, "tiny": 2}
WAYS = {  # name -> what it is
    "plain": "plain pipeline, all on the device",
    "beside": "captured, all on the device",
    "captured": "command line",
    "offload": "command line, `--offload model`",
}
ENOUGH = 500  # seconds after which no further round is begun


def main() -> int:
    """Write the model, run every way in turns, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(STEPS), default="large", help="of the model")
    parser.add_argument("--device", default="cuda", help="`cuda` or `cpu`, where nothing can be offloaded")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each way; the quickest counts")
    parser.add_argument("--folder", type=Path, help="keep the model here, or use the one that is here")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for memory.md and memory.json")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)  # of a process of its own
    asked = parser.parse_args()
    if asked.way:
        run_here(asked.way, asked.folder, asked.out, asked.size, asked.device)
        return 0
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary) / "model"
        dtype = torch.bfloat16 if asked.device == "cuda" else torch.float32
        if not (folder / "model_index.json").is_file():
            say("writing the model", begin)
            written = write_model(folder, asked.size, torch.device(asked.device), dtype)
            say(f"{written / 1e9:.1f} GB written", begin)
        runs = rounds(asked, folder, Path(temporary), begin)
    facts = {
        **machine(PACKAGES, torch.get_num_threads()), "size": asked.size, "steps": STEPS[asked.size],
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else "CPU",
    }  # fmt: skip
    text = table(runs, facts)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "memory.md").write_text(text, encoding="utf-8")
    (asked.out / "memory.json").write_text(
        json.dumps({**facts, "runs": runs}, indent=1) + "\n", encoding="utf-8"
    )
    print(text, end="")
    return int(not all(run["same_pictures"] for each in runs.values() for run in each))


def rounds(
    asked: argparse.Namespace, folder: Path, work: Path, begin: float
) -> dict[str, list[dict[str, float]]]:
    """Run every way in turns. Returns: way -> what each of its runs took."""
    ways = [way for way in WAYS if asked.device == "cuda" or way != "offload"]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    longest = 0.0
    for number in range(asked.rounds):
        started = time.perf_counter()
        if number and started - begin + longest > ENOUGH:
            say(f"no time for round {number + 1}", begin)
            break
        for way in ways:
            out = work / f"{way}{number}"
            out.mkdir()
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                "--way",
                way,
                "--out",
                str(out),
                "--size",
                asked.size,
            ]
            since = time.perf_counter()
            subprocess.run(
                [*command, "--folder", str(folder), "--device", asked.device], check=True, cwd=ROOT
            )
            told = {"seconds": time.perf_counter() - since, **json.loads((out / "told.json").read_text())}
            plain, pictures = (np.load(each / "pictures.npy") for each in (work / "plain0", out))
            runs[way].append({**told, "same_pictures": bool(np.array_equal(plain, pictures))})
            say(f"round {number + 1}, {WAYS[way]}: {told['seconds']:.1f} s", begin)
        longest = time.perf_counter() - started
    return runs


def run_here(way: str, folder: Path, out: Path, size: str, device: str) -> None:
    """Draw two samples in this process, and write the pictures and what they took of memory."""
    with Watched() as watched:
        draw = {"plain": plain_pictures, "beside": pictures_beside}.get(way)
        if draw is None:
            offload = ["--offload", "model"] if way == "offload" else []
            pictures = pictures_of_command(folder, out, STEPS[size], device, offload)
        else:
            pictures = draw(folder, out, STEPS[size], device)
    np.save(out / "pictures.npy", pictures)
    told = {"host_peak": _status("VmHWM"), "host_own": watched.most}
    if device == "cuda":
        told |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    (out / "told.json").write_text(json.dumps(told))


def plain_pictures(folder: Path, out: Path, steps: int, device: str) -> np.ndarray:
    """As one draws with diffusers alone, its weights read straight to the device."""
    from diffusers import StableDiffusion3Pipeline

    on_gpu = {"torch_dtype": torch.bfloat16, "device_map": "cuda"} if device == "cuda" else {}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **on_gpu)
    pipe.set_progress_bar_config(disable=True)
    return np.stack([np.asarray(pipe(**call).images[0]) for call in _calls(steps)])


def pictures_beside(folder: Path, out: Path, steps: int, device: str) -> np.ndarray:
    """Captured, with the text encoders beside the transformer."""
    import sd35h5
    from sd35h5.capturing.pipeline import load
    from sd35h5.weights.model_facts import read_facts
    from sd35h5.weights.model_options import Model

    model = Model(model_id=str(folder), device=device)
    pipe = load(model, read_facts(model)).pipe
    pipe.set_progress_bar_config(disable=True)
    with sd35h5.capture(pipe, out / "run.h5") as generate:
        return np.stack([np.asarray(generate(**call).images[0]) for call in _calls(steps)])


def pictures_of_command(folder: Path, out: Path, steps: int, device: str, more: list[str]) -> np.ndarray:
    """By the command line."""
    import capture_cli
    from sd35h5 import open_store

    flags = f"--steps {steps} --guidance {GUIDANCE} --seed {SEED} --max_sequence_length {TOKENS} --device {device}"
    command = ["--model_id", str(folder), "--out", str(out / "run.h5"), *flags.split(), *more]
    if capture_cli.main([*command, "--prompt", *PROMPTS]) != 0:
        raise SystemExit("the capture failed")
    with open_store(out / "run.h5") as store:
        return np.stack([store.image(sample) for sample in range(len(PROMPTS))])


def _calls(steps: int) -> list[dict[str, object]]:
    return [
        {
            "prompt": prompt, "num_inference_steps": steps, "guidance_scale": GUIDANCE, "max_sequence_length": TOKENS,
            "generator": torch.Generator("cpu").manual_seed(SEED + place),
        }
        for place, prompt in enumerate(PROMPTS)
    ]  # fmt: skip


class Watched:
    """The most memory of its own (RssAnon, without mapped files) that this process has, in bytes."""

    def __enter__(self) -> Watched:
        self.most, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, _status("RssAnon"))


def _status(name: str) -> int:
    """Bytes that the system tells of this process."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def table(runs: Mapping[str, list[dict[str, float]]], facts: Mapping[str, object]) -> str:
    """The results as Markdown."""
    lines = [
        "# What a capture takes of memory",
        "",
        "| two samples | in all, s | × plain | × captured beside | GPU, GiB | GPU reserved, GiB | host peak, GiB | "
        "host, own, GiB | same pictures |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    seconds = {way: min(run["seconds"] for run in each) for way, each in runs.items()}
    for way, each in runs.items():
        most = [
            f"{max(run[name] for run in each) / 2**30:.1f}" if name in each[0] else "–"
            for name in ("allocated", "reserved", "host_peak", "host_own")
        ]
        ratios = [f"{seconds[way] / seconds[other]:.2f}" for other in ("plain", "beside")]
        same = "yes" if all(run["same_pictures"] for run in each) else "**no**"
        lines.append(f"| {WAYS[way]} | {seconds[way]:.1f} | {' | '.join([*ratios, *most])} | {same} |")
    told = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    return "\n".join([
        *lines,
        "",
        f"Two samples of {facts['steps']} steps with random weights ({facts['size']}), a process each from start to "
        f"end, loading and packing counted; the quickest of {len(runs['plain'])} rounds in turns, the most memory of "
        "all. Host peak counts what is mapped from the files (VmHWM), own does not (RssAnon).",
        f"{facts['device']}; {facts['cpu']}, {facts['cores']} cores; {facts['system']}, {told}. {facts['date']}.",
        "Made by `python benchmarks/memory.py`.",
    ]) + "\n"  # fmt: skip


def say(text: str, begin: float) -> None:
    """Print how far it is."""
    print(f"{time.perf_counter() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
