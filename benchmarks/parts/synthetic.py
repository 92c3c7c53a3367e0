"""A run of random but possible numbers, as large as asked for, written by the writer of a capture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from sd35h5.store import schema
from sd35h5.store.runs import part_name
from sd35h5.store.schema import variable
from sd35h5.store.writer import Header, SampleWriter, begin_run, pack

SIZES = {
    "branch": 2, "step": 28, "layer": 38, "head": 38, "token": 333, "top_step": 7, "map_step": 7, "rank": 16,
    "map_token": 24, "y": 32, "x": 32, "pixel_y": 1024, "pixel_x": 1024,
}  # fmt: skip
CLIP = 77
WORDS = "a red apple left of a small cat on a wooden chair in the morning sun".split()


class _Some(SampleWriter):
    """A writer that leaves out variables whose names begin so."""

    def __init__(self, parts: Path, index: int, header: Header, without: tuple[str, ...]) -> None:
        super().__init__(parts, index, header)
        self._without = without

    def put(self, name: str, values: object, **at: object) -> None:
        """Write values of a variable, unless it is left out."""
        if not name.startswith(self._without):
            super().put(name, values, **at)


def make_run(
    path: Path,
    samples: int,
    seed: int,
    gates: bool,
    sizes: dict[str, int] | None = None,
    different: int | None = None,
    without: Sequence[str] = (),
) -> Path:
    """Write a run of random but possible numbers with the writer of a capture, and pack it.

    Args:
        different: so many samples have numbers of their own, the others repeat theirs, under names of their own.
        without: how the names of variables begin that are left out, as in a capture without their tiers.
    """
    sizes = sizes or SIZES
    scales = {name: np.arange(size) for name, size in sizes.items()}
    steps = sizes["step"]
    scales |= {
        "timestep": np.linspace(1000, 1000 / steps, steps), "sigma": np.linspace(1, 1 / steps, steps),
        "token_encoder": (np.arange(sizes["token"]) >= CLIP).astype(int),
        "top_step": np.linspace(0, steps - 1, sizes["top_step"]).astype(int),
        "map_step": np.linspace(0, steps - 1, sizes["map_step"]).astype(int),
        "y": np.arange(sizes["y"]) * 2 + 0.5, "x": np.arange(sizes["x"]) * 2 + 0.5,
    }  # fmt: skip
    config = {"model_id": "synthetic", "steps": steps, "prompts": [" ".join(WORDS)] * samples}
    attributes = {"model_id": "synthetic", "gate_type": "headwise" if gates else "none"}
    header = Header(attributes, scales, {"config": json.dumps(config)})
    parts = begin_run(path, config, samples)
    different = min(different or samples, samples)
    for index in range(different):
        writer = _Some(parts, index, header, tuple(without))
        write_sample(writer, index, np.random.default_rng([seed, index]), gates)
        print(f"{path.name}: sample {index + 1} of {samples}", file=sys.stderr)
    for index in range(different, samples):
        (parts / part_name(index)).hardlink_to(parts / part_name(index % different))
    pack(parts, path, keep_parts=False)
    if different < samples:
        name_anew(path, samples)
    return path


def name_anew(path: Path, samples: int) -> None:
    """Give each sample texts and a seed of its own, as if none was there twice."""
    with h5py.File(path, "r+", libver=schema.LIBVER, locking=False) as file:
        told = [sample_texts(index) for index in range(samples)]
        for name in told[0]:
            file[f"samples/{name}"][...] = np.array([row[name] for row in told], object)
        for name in ("seed", "prompt_index"):
            file[f"samples/{name}"][...] = np.arange(samples)


def sample_texts(index: int) -> dict[str, str]:
    """The texts of a sample's row."""
    return {"sample_id": f"{index:06d}", "prompt_id": f"p{index:03d}", "prompt": f"{' '.join(WORDS)} {index}",
            "negative_prompt": "", "tags": "", "pairing_key": f"key {index}"}  # fmt: skip


def write_sample(writer: SampleWriter, index: int, rng: np.random.Generator, gates: bool) -> None:
    """Write one sample: tables, masses, heaviest keys, maps, gates and an image."""
    sizes = writer.sizes
    texts = sample_texts(index)
    numbers = {
        "prompt_index": index,
        "image_index": 0,
        "seed": index,
        "row_sum_error": 1e-6,
        "kept_chars": 70,
    }
    for name, value in (texts | numbers).items():
        spec = variable(f"samples/{name}")
        writer.put(spec.name, np.full(spec.shape({**sizes, "sample": 1})[1:], value))
    group = write_tokens(writer)
    layer_head = (sizes["layer"], sizes["head"])
    for step in range(sizes["step"]):
        mass = rng.lognormal(-7, 1, (*layer_head, sizes["token"])).astype(np.float32)
        mass[..., 0] *= 200
        mass /= mass.sum(-1, keepdims=True) * 2  # half of the attention is on the text
        writer.put("sinks/mass_image", mass, branch=0, step=step)
        sums = np.stack([mass[..., group == g].sum(-1) for g in range(len(schema.GROUPS))])
        sums[-1] = 1 - sums.sum(0)
        for branch, query in np.ndindex(sizes["branch"], 2):
            where = {"branch": branch, "query": query, "step": step}
            writer.put("sinks/mass_group", sums, **where)
            writer.put("sinks/entropy_text", rng.uniform(0, 5, layer_head), **where)
            for name in ("mean", "std", "min", "max", "below_0_1", "below_0_5") if gates else ():
                writer.put(f"gates/{name}", rng.random(layer_head), **where)
    write_top_and_maps(writer, rng)
    pixels = rng.integers(0, 256, (sizes["pixel_y"] // 16, sizes["pixel_x"] // 16, 3), np.uint8)
    writer.put("images/image", pixels.repeat(16, 0).repeat(16, 1))
    writer.seal()


def write_tokens(writer: SampleWriter) -> np.ndarray:
    """Write the token table: a start token, words, an end token and padding of each encoder. Returns: groups."""
    names = ["clip_bos", *["clip_word"] * len(WORDS), "clip_eos"]
    names += ["clip_pad"] * (CLIP - len(names)) + ["t5_word"] * len(WORDS) + ["t5_eos"]
    names += ["t5_pad"] * (writer.sizes["token"] - len(names))
    words, place = [], {"clip_word": iter(range(len(WORDS))), "t5_word": iter(range(len(WORDS)))}
    words = [next(place[name]) if name in place else -1 for name in names]
    group = np.array([schema.GROUPS.index(name) for name in names])
    text = [WORDS[word] if word >= 0 else f"<{name}>" for name, word in zip(names, words, strict=True)]
    starts = [sum(len(one) + 1 for one in WORDS[:word]) if word >= 0 else -1 for word in words]
    ends = [start + len(WORDS[word]) if word >= 0 else -1 for start, word in zip(starts, words, strict=True)]
    table = {"token_text": np.array(text, object), "token_group": group, "token_word": np.array(words),
             "token_char_start": np.array(starts), "token_char_end": np.array(ends)}  # fmt: skip
    branches = writer.sizes["branch"]
    for name, column in table.items():
        writer.put(f"tokens/{name}", np.stack([column] * branches))
    ids = np.arange(len(names))
    writer.put("tokens/token_id", np.tile(ids, (branches, len(schema.ENCODERS), 1)))
    return group


def write_top_and_maps(writer: SampleWriter, rng: np.random.Generator) -> None:
    """Write the heaviest keys and the maps of the cond branch."""
    sizes = writer.sizes
    shape = (sizes["layer"], sizes["head"], sizes["rank"])
    for query, step in np.ndindex(2, sizes["top_step"]):
        where = {"branch": 0, "query": query, "top_step": step}
        stream = rng.integers(0, 2, shape)
        patches = 4 * sizes["y"] * sizes["x"]  # maps are pooled two by two
        index = np.where(stream == 1, rng.integers(0, sizes["token"], shape), rng.integers(0, patches, shape))
        writer.put("topk/top_stream", stream, **where)
        writer.put("topk/top_index", index, **where)
        writer.put("topk/top_mass", -np.sort(-rng.random(shape) / 10, axis=-1), **where)
        writer.put("topk/top_value_norm", rng.uniform(1, 9, shape), **where)
    writer.put("maps/map_token_index", np.arange(sizes["map_token"]), branch=0)
    for step, token in np.ndindex(sizes["map_step"], sizes["map_token"]):
        maps = rng.lognormal(-6, 0.5, (sizes["layer"], sizes["y"], sizes["x"]))
        writer.put("maps/image_to_text", maps, branch=0, map_step=step, map_token=token)
