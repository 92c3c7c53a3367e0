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
from making import weights
from parts.machine import RESULTS, machine
from parts.weight_cases import Case, other_cases, transformer_cases
from torch import nn

from sd35h5.capturing.pipeline import quiet
from sd35h5.errors import Sd35h5Error
from sd35h5.gates.decision import decide
from sd35h5.gates.gate_files import make_gates
from sd35h5.gates.gate_options import GateOptions
from sd35h5.gates.modules import install_gates, sizes_of
from sd35h5.planning.options import Model
from sd35h5.weights.configs import COMPONENT_CONFIGS, TRANSFORMERS
from sd35h5.weights.loading import load_part, split_gates
from sd35h5.weights.sources import OPTIONS, Part, find_part

SLACK = 8e6  # bytes of the process that have nothing to do with weights


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
