"""One run of the pipeline under one row's capture, timed by the step on the device's own clock."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import psutil
import torch
from parts.compiling import backend_on
from parts.shapes import SHAPES, make_pipeline

import sd35h5
from sd35h5.capturing.transfer import Transfer
from sd35h5.measuring.reducer import reducer_for
from sd35h5.store.blocks import block_hash
from sd35h5.store.bounded_queue import half_of_the_cores
from sd35h5.store.chunks import encode_chunk
from sd35h5.store.runs import part_name
from sd35h5.store.schema import PARTS_SUFFIX, Variable, variable

WARM_STEPS = 4  # before the steps that count; one of runs that are shorter
_PROBES = 5  # of which the median counts: one takes a third of a second
_PROBE_BYTES = 512 << 20  # of values or of a file: enough to tell a rate


@dataclass(frozen=True)
class Row:
    """One line of the table: what is captured, beside the stock pipeline, and how large the ratio may be."""

    name: str
    options: dict[str, object] | None  # of `sd35h5.capture`; None for no capture
    reach: float | None = None
    whole: bool = False  # time all steps, VAE decode and sealing, not steps alone
    steps: int = 12
    within: Callable[[object], AbstractContextManager] | None = None  # another tool around the pipeline
    compiled: bool = False  # with each block compiled
    mode: str | None = None  # of torch.compile
    against_eager: bool = False  # the stock pipeline beside it is the eager one
    values: str = ""  # variable whose rate into the file is compared with what may bind it


@dataclass
class Run:
    """What one run of the pipeline took."""

    step_seconds: float
    seconds: float  # from the first step to the sealed file
    peak_bytes: int  # on the GPU; 0 on the CPU
    file_bytes: int = 0
    resident: list[int] = field(default_factory=list)  # host bytes after each step


class Bench:
    """A pipeline of one shape on one device, and what it draws."""

    def __init__(self, shape: str, device: torch.device, folder: Path) -> None:
        self.shape, self.device, self.out = SHAPES[shape], device, folder / "run.h5"
        self.on_gpu = device.type == "cuda"
        dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.pipe = make_pipeline(self.shape, device, dtype)
        patch = 8 * self.pipe.transformer.config.patch_size
        self._compiled_calls: dict[str | None, list[Callable]] = {}  # of each mode
        self.patches = self.shape.height // patch, self.shape.width // patch

    def call(self, steps: int) -> dict[str, object]:
        """Arguments of the pipeline for a guided picture of this shape."""
        return {
            "num_inference_steps": steps, "guidance_scale": 4.5, "height": self.shape.height,
            "width": self.shape.width, "max_sequence_length": self.shape.t5_tokens,
        }  # fmt: skip

    def run(self, row: Row, prompt: str) -> Run:
        """Draw once as the row says."""
        marks = [self._mark()]
        resident: list[int] = []

        def after_step(pipe: object, step: int, timestep: object, tensors: dict) -> dict:
            marks.append(self._mark())
            resident.append(resident_bytes())
            return {}

        call = self.call(row.steps) | {"callback_on_step_end": after_step}
        if not row.whole:
            call["output_type"] = "latent"
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        self._compile(row.compiled, row.mode)
        with self._drawing(row) as draw:
            begin = time.perf_counter()
            draw(prompt, **call)
            self.synchronise()
            if row.options is not None:
                self._await_seal()
            seconds = time.perf_counter() - begin
        origin, *ends = self._seconds(marks)
        warm = WARM_STEPS if row.steps > WARM_STEPS + 1 else min(1, row.steps - 1)
        step_seconds = (ends[-1] - (ends[warm - 1] if warm else origin)) / (row.steps - warm)
        peak = torch.cuda.max_memory_allocated(self.device) if self.on_gpu else 0
        size = self.out.stat().st_size if row.options is not None else 0
        return Run(step_seconds, seconds, peak, size, resident)

    def _compile(self, wanted: bool, mode: str | None) -> None:
        """Have the blocks compiled, or eager again; what was compiled once is kept."""
        blocks = self.pipe.transformer.transformer_blocks
        if wanted and mode not in self._compiled_calls:
            for block in blocks:
                block.compile(
                    fullgraph=True, backend=backend_on(self.device), mode=mode if self.on_gpu else None
                )
            self._compiled_calls[mode] = [block._compiled_call_impl for block in blocks]
        calls = self._compiled_calls[mode] if wanted else [None] * len(blocks)
        for block, call in zip(blocks, calls, strict=True):
            block._compiled_call_impl = call

    @contextmanager
    def _drawing(self, row: Row) -> Iterator[Callable[..., object]]:
        """The stock pipeline, alone or within another tool, or a capture."""
        if row.options is not None:
            with sd35h5.capture(self.pipe, self.out, overwrite=True, **row.options) as generate:
                yield lambda prompt, **call: generate(prompt, seed=0, **call)
            return

        def draw(prompt: str, **call: object) -> None:
            self.pipe(prompt, generator=torch.Generator("cpu").manual_seed(0), **call)

        if row.within is None:
            yield draw
            return
        with row.within(self.pipe):
            yield draw

    def _await_seal(self) -> None:
        """Wait for the file of a capture's only sample, which is sealed in the background."""
        sealed = Path(f"{self.out}{PARTS_SUFFIX}") / part_name(0)
        while not sealed.exists():
            time.sleep(1e-3)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def _mark(self) -> torch.cuda.Event | float:
        """This point in time on the device's own clock."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, marks: list) -> list[float]:
        """Seconds of marks that the device has passed, from the first one."""
        if self.on_gpu:
            return [marks[0].elapsed_time(mark) / 1e3 for mark in marks]
        return [mark - marks[0] for mark in marks]

    def rates(self, run: Run, name: str) -> dict[str, float]:
        """MB/s of raw values: reached from the first step to the seal, and what each part would allow alone."""
        with h5py.File(self.out) as file:
            dataset = file[name]
            chunks, each = dataset.id.get_num_chunks(), 4 * int(np.prod(dataset.chunks))
            spread = np.linspace(0, chunks - 1, min(chunks, max(1, _PROBE_BYTES // each))).astype(int)
            origins = [dataset.id.get_chunk_info(int(number)).chunk_offset for number in spread]
            blocks = [
                dataset[tuple(slice(o, o + n) for o, n in zip(origin, dataset.chunks, strict=True))]
                for origin in origins
            ]
            raw, chunk = chunks * each, dataset.chunks
        stored = _head(self.out)
        return {
            "reached": raw / run.seconds / 1e6,
            "GPU and copy": self._device_rate(),
            "deflate": _deflate_rate(variable(name), blocks, chunk),
            "disk": _disk_rate(self.out.with_name("probe"), stored) * raw / run.file_bytes,
        }

    def _device_rate(self) -> float:
        """MB/s at which unpooled maps of all tokens of one layer are made, rounded and copied to the host."""
        config, tokens = self.pipe.transformer.config, 77 + self.shape.t5_tokens
        shape = (config.num_attention_heads, self.patches[0] * self.patches[1], config.attention_head_dim)
        query = torch.randn(shape, device=self.device, dtype=self.pipe.transformer.dtype)
        key, lse = query[:, :1].repeat(1, tokens, 1), torch.full(shape[:2], 9.0, device=self.device)
        reducer, seconds = reducer_for(self.device), 0.0
        for turn in range(4):
            transfer, begin = Transfer(), time.perf_counter()
            maps = reducer.attention_maps(query, key, lse, self.patches, 1)
            transfer.send({"maps": reducer.round_mantissa(maps)}, lambda arrays: None)
            transfer.finish()
            seconds += (time.perf_counter() - begin) * (turn > 0)  # the first one warms up
        return 3 * maps.nbytes / seconds / 1e6


def resident_bytes() -> int:
    """Host memory of this process and of the one that writes for it."""
    here = psutil.Process()
    return sum(process.memory_info().rss for process in (here, *here.children(recursive=True)))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_PROBE_BYTES)


def _deflate_rate(spec: Variable, blocks: list[np.ndarray], chunk: tuple[int, ...]) -> float:
    """MB/s of raw values that as many threads as a capture has hash, shuffle, deflate and check-sum."""

    def encode(block: np.ndarray) -> int:
        return len(encode_chunk(block, chunk, np.nan)) + len(block_hash(spec, block))

    seconds = []
    with ThreadPoolExecutor(half_of_the_cores()) as pool:
        for _ in range(_PROBES):
            begin = time.perf_counter()
            list(pool.map(encode, blocks))
            seconds.append(time.perf_counter() - begin)
    return sum(block.nbytes for block in blocks) / statistics.median(seconds) / 1e6


def _disk_rate(path: Path, data: bytes) -> float:
    """MB/s of bytes written and synchronised."""
    begin = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    path.unlink()
    return len(data) / seconds / 1e6
