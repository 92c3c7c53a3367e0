"""A training loop that a GPU runs without waiting for Python: one CUDA graph a step, everything else on the device."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


class Schedule:
    """The step counter and the learning-rate factor, both tensors on the device: warm-up, then cosine to zero."""

    def __init__(self, steps: int, device: torch.device, warmup: int = 200):
        step = torch.arange(steps + 1, dtype=torch.float64)
        factor = 0.5 * (1 + torch.cos(math.pi * step / steps))
        self.table = (factor * ((step + 1) / min(warmup, steps)).clamp(max=1)).float().to(device)
        self.steps = steps
        self.step = torch.zeros(1, dtype=torch.long, device=device)

    def factor(self) -> Tensor:
        """Return the factor of the current step, a scalar tensor (indexing by a 0-d tensor would ask the host)."""
        return self.table[self.step].squeeze()


def run(
    schedule: Schedule,
    step: Callable[[], Tensor],
    state: Callable[[], dict],
    checkpoint: Path,
    log: Path,
    seconds: float = math.inf,
    until: int | None = None,
    save_every: float = 120.0,
    report_every: int = 250,
) -> bool:
    """Call `step` until step number `until` (the schedule's end by default) or until the time is up.

    Returns True if `until` was reached. A new call captures a new graph, so phases may differ in shape.

    Args:
        step: one optimiser step with static inputs, returns the loss; captured in a CUDA graph where there is CUDA.
        state: what a checkpoint must hold beside the step counter.
        log: JSON lines {"step", "loss", "seconds"}, appended.
    """
    device, begin = schedule.step.device, time.monotonic()
    done, losses, saved = int(schedule.step), [], time.monotonic()
    until = schedule.steps if until is None else until
    if done >= until:
        return True
    replay, loss = _capture(step) if device.type == "cuda" else (None, None)
    while done < until and time.monotonic() - begin < seconds:
        if replay is None:
            loss = step()
        else:
            replay()
        schedule.step += 1
        done += 1
        losses.append(loss.detach().clone())
        if done % report_every == 0 or done == until:
            mean = torch.stack(losses).mean().item()
            losses.clear()
            entry = {"step": done, "loss": round(mean, 5), "seconds": round(time.monotonic() - begin, 1)}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(
                f"{log.stem}: step {done}/{schedule.steps}, loss {mean:.4f}, {entry['seconds']} s", flush=True
            )
            if time.monotonic() - saved > save_every:
                _save(checkpoint, schedule, state())
                saved = time.monotonic()
    _save(checkpoint, schedule, state())
    return done >= until


def _capture(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Take three real steps, during which lazy set-up and compilation happen, then capture one step."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    return graph.replay, loss


def _save(checkpoint: Path, schedule: Schedule, state: dict) -> None:
    """Write atomically, so that a killed run finds a whole checkpoint."""
    partial = checkpoint.with_suffix(".partial")
    torch.save({"step": int(schedule.step), "state": state}, partial)
    partial.replace(checkpoint)


def resume(schedule: Schedule, checkpoint: Path) -> dict | None:
    """Set the schedule's step from the checkpoint and return the saved state, or None if there is none."""
    if not checkpoint.exists():
        return None
    saved = torch.load(checkpoint, map_location=schedule.step.device, weights_only=True)
    schedule.step.fill_(saved["step"])
    return saved["state"]
