"""What drawing takes of a device's memory, by a simple model, and what would fit where it was not enough. Torch-free.

    memory = weights + samples of a call × the larger of a call of the transformer and the decoding of a picture

Weights follow from the number and width of the blocks. A call keeps some 28 numbers for each channel of each token of
each branch, a decoding some 1,500 for each pixel: by these SD3.5-Large at 1024 × 1024 pixels takes 1.2 and 2.9 GiB a
sample beside its weights, as was measured on an H100 in bfloat16. It is a rule of thumb: libraries take workspaces as
they like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sd35h5.planning.job import Job
from sd35h5.planning.plan import in_bytes

_OF_TRANSFORMER, _OF_DECODER = 28, 1500
_OF_BLOCK, _OF_SECOND = (
    36,
    7,
)  # weights of a joint block, and more of one with attn2, by the square of its width
_OF_VAE = 84_000_000  # weights of SD3's
_USABLE = 0.92  # of the memory that is there: the rest is the libraries' and lost between pieces
MOST_SAMPLES = 16  # of a call: more fill no GPU better, and more are lost when it is stopped
_SIDE = 64  # pixels: sizes are proposed in multiples of it


@dataclass(frozen=True)
class Needs:
    """What a call of the pipeline needs.

    Args:
        transformer, vae: bytes of their weights.
        call: bytes that each sample adds while the transformer computes. decoding: the same while the VAE does.
        offload: as the option.
    """

    transformer: int
    vae: int
    call: int
    decoding: int
    offload: str | None = None

    def of(self, samples: int) -> int:
        """Bytes of a call with so many samples."""
        if self.offload is None:
            return self.transformer + self.vae + samples * max(self.call, self.decoding)
        held = 0 if self.offload == "sequential" else 1
        return max(held * self.transformer + samples * self.call, held * self.vae + samples * self.decoding)

    def most(self, there: int) -> int:
        """How many samples of a call fit into so many bytes; 0 if none does."""
        fitting = (count for count in range(1, MOST_SAMPLES + 1) if self.of(count) <= _USABLE * there)
        return max(fitting, default=0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it tells that a device's memory, or the host's, was not enough."""
    said = "DefaultCPUAllocator", "CUDA out of memory", "cudaErrorMemoryAllocation"
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's
    return is_named or any(each in str(error) for each in said)


def needs_of(job: Job, item: int) -> Needs:
    """What the job's calls need.

    Args:
        item: bytes of a number of the dtype that it computes in.
    """
    sizes, facts = job.plan.sizes, job.facts
    width = facts.heads * facts.head_dim
    transformer = width**2 * (_OF_BLOCK * facts.layers + _OF_SECOND * len(facts.second_layers)) * item
    pixels = sizes["pixel_y"] * sizes["pixel_x"]
    tokens = sizes["patch_y"] * sizes["patch_x"] + sizes["token"]
    call = sizes["branch"] * tokens * width * item * _OF_TRANSFORMER
    return Needs(transformer, _OF_VAE * item, call, pixels * item * _OF_DECODER, job.config.model.offload)


def told_as_full(job: Job, item: int, there: int, is_cuda: bool, is_begun: bool, cause: str) -> str:
    """The sentence on a device or host whose memory was not enough, with what would fit.

    Args:
        item: as `needs_of`.
        there: bytes that this process can have.
        is_begun: samples are sealed, with which other options do not go on.
        cause: what the library said.
    """
    needs, samples = needs_of(job, item), int(job.config.sampling.batch_size)
    height, width = job.plan.sizes["pixel_y"], job.plan.sizes["pixel_x"]
    calls = (
        f"{samples} samples a call of {height} × {width} pixels"
        if samples > 1
        else f"{height} × {width} pixels"
    )
    fitting = _same_data(needs, there) if is_cuda else []
    others = _other_data(job, needs, samples, there)
    if others:
        fitting.append(" or ".join(others) + " into another --out" * is_begun)
    told = f"{' or '.join(fitting)} would fit" if fitting else "nothing less is known to fit"
    return (
        f"out of memory ({cause}): {calls} need about {in_bytes(needs.of(samples))}, {in_bytes(there)} can be had; "
        f"by a rule of thumb {told}. What is sealed stays"
    )


def _same_data(needs: Needs, there: int) -> list[str]:
    """Options that fit and change no number."""
    ways = {None: ("model", "sequential"), "model": ("sequential",), "sequential": ()}[needs.offload]
    fitting = (way for way in ways if replace(needs, offload=way).most(there))
    return [f"--offload {way}" for way in fitting][:1]


def _other_data(job: Job, needs: Needs, samples: int, there: int) -> list[str]:
    """Options that fit, of another capture."""
    if fewer := min(
        needs.most(there), samples // 2
    ):  # at most half: by the model, all of them would have fitted
        return [f"--batch_size {fewer}"]
    size = _smaller(job, needs, there) if samples == 1 else ""
    return [size] if size else []


def _smaller(job: Job, needs: Needs, there: int) -> str:
    """The largest smaller size of about the same form that fits, as flags, or nothing."""
    height, width = job.plan.sizes["pixel_y"], job.plan.sizes["pixel_x"]
    for side in range(max(height, width) - 1, _SIDE - 1, -1):
        if side % _SIDE:
            continue
        scale = side / max(height, width)
        size = [max(_SIDE, math.floor(each * scale / _SIDE) * _SIDE) for each in (height, width)]
        share = math.prod(size) / (height * width)
        less = replace(needs, call=round(needs.call * share), decoding=round(needs.decoding * share))
        if less.most(there):
            return f"--height {size[0]} --width {size[1]}"
    return ""
