"""Synthetic but consistent stores for tests, made by the real writer from a real softmax."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

import numpy as np

from sd35h5.store import schema
from sd35h5.store.writer import Header, SampleWriter, begin_run, pack

CLIP_LENGTH = 77
PATCH = 16  # pixels a patch
PROMPTS = ("a red apple left of a cat", "a blue car", "two small dogs on a green hill")
TOP_K = 5
MAP_TOKENS = 4


def _made_once(write: Callable[..., Path]) -> Callable[..., Path]:
    """Write a packed file once and copy it whenever equal arguments come again: the tests make hundreds."""
    made: dict[str, bytes] = {}

    @wraps(write)
    def make(path: Path, *arguments: object, packed: bool = True, **named: object) -> Path:
        path, key = Path(path), repr((arguments, sorted(named.items())))
        is_new = not path.exists()  # to one that is there, samples are added
        if not (packed and is_new and key in made):
            written = write(path, *arguments, packed=packed, **named)
            if packed and is_new:
                made.setdefault(key, path.read_bytes())
            return written
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made[key])
        return path

    return make


@_made_once
def make_store(
    path: Path,
    samples: int = 2,
    layers: int = 3,
    heads: int = 2,
    steps: int = 4,
    height: int = 96,
    width: int = 64,
    seed: int = 0,
    *,
    t5_length: int = 16,
    branches: Sequence[str] = ("cond", "uncond"),
    token_branches: Sequence[str] = ("cond",),
    prompts: Sequence[str] = PROMPTS,
    every: int = 2,
    pool: int = 1,
    sink: float | np.ndarray = 3.0,
    gates: bool = False,
    atlas: bool = False,
    second: bool = False,
    second_heads: int = 0,
    rows: Sequence[tuple[int, int]] = (),
    without: Sequence[str] = (),
    nan: str = "",
    packed: bool = True,
    planned: int | None = None,
    precision: str = "rounded",
    **changes: str,
) -> Path:
    """Write a store whose numbers come from one softmax. Returns: the packed file, or its parts folder.

    Args:
        seed: of the random attention; samples have seeds 0, 1, ... as a capture would give them.
        token_branches: those with mass_image; NaN in the others, as in a default capture.
        every: top-k and maps at every so many steps.
        sink: what the start token's logits have more than the others, also of each head: (layer, head, 1).
        rows: (stream, position) of chosen queries: 0 the image, row-major patches; 1 the text.
        without: how the names of variables begin that are left out, as in a capture without those tiers.
        nan: "some": what was measured is NaN in the first layer and at the last steps; "all": everywhere.
        atlas: keep the mass of every patch and the entropy over all keys, as with --atlas.
        second: give all layers but the last an image-only attn2, as MMDiT-X has it; second_heads: the same with so
            many heads of its own, as sd-scripts has it.
        packed: False leaves the sealed files in `PATH.parts`: with a larger `planned`, a running capture.
        changes: model attributes (`model_id="other"`) and sample values (`negative_prompt="blurry"`).
    """
    path = Path(path)
    text = CLIP_LENGTH + t5_length
    some_steps = np.arange(0, steps, every)
    header = Header(
        attributes={
            "model_id": "synthetic", "model_revision": "0", "model_shape": f"{layers} x {heads}",
            "gate_type": "headwise" if gates else "none",
            **{name: value for name, value in changes.items() if name in schema.MODEL_ATTRIBUTES},
        },
        scales={
            "branch": np.array([schema.BRANCHES.index(b) for b in branches]),
            "step": np.arange(steps),
            "timestep": np.linspace(1000, 1000 / steps, steps),
            "sigma": np.linspace(1, 1 / steps, steps),
            "layer": np.arange(layers), "head": np.arange(heads), "token": np.arange(text),
            "token_encoder": np.r_[np.zeros(CLIP_LENGTH), np.ones(t5_length)].astype(int),
            "top_step": some_steps, "map_step": some_steps,
            "rank": np.arange(TOP_K), "map_token": np.arange(MAP_TOKENS),
            "y": np.arange(height // PATCH // pool) * pool + (pool - 1) / 2,
            "x": np.arange(width // PATCH // pool) * pool + (pool - 1) / 2,
            "pixel_y": np.arange(height), "pixel_x": np.arange(width),
            **({"row": np.arange(len(rows))} if rows else {}),
            **({"head_attn2": np.arange(second_heads)} if second_heads else {}),
            **({"patch_y": np.arange(height // PATCH), "patch_x": np.arange(width // PATCH)} if atlas else {}),
        },
        provenance={"config": json.dumps({"steps": steps, "height": height, "width": width, "seed": 0})},
        precision=precision,
    )  # fmt: skip
    if "images/" in without:
        header.scales.pop("pixel_y"), header.scales.pop("pixel_x")
    parts = begin_run(path, json.loads(header.provenance["config"]), planned or samples)
    for index in range(samples):
        prompt = prompts[index % len(prompts)]
        _write_sample(
            Partial(parts, index, header, without, nan),
            prompt, branches, token_branches, pool, sink, gates, rows, seed, changes,
            second or second_heads > 0,
        )  # fmt: skip
    return pack(parts, path, keep_parts=False) if packed else parts


class Partial(SampleWriter):
    """A writer that leaves out the variables of some tiers, or values of all."""

    def __init__(self, parts: Path, index: int, header: Header, without: Sequence[str], nan: str) -> None:
        super().__init__(parts, index, header)
        self.index, self.header, self.without, self.nan = index, header, tuple(without), nan

    def put(self, name: str, values: object, **at) -> None:
        """Write values of a variable, unless it is one of those that are left out."""
        if name.startswith(self.without):
            return
        spec = schema.variable(name)
        if self.nan and spec.dtype == "float32" and "layer" in spec.dims:
            values = np.array(values, float)
            layer = [dim for dim in spec.dims if dim != "sample" and dim not in at].index("layer")
            last = any(at.get(dim) == self.sizes[dim] - 1 for dim in ("step", "top_step", "map_step"))
            np.moveaxis(values, layer, 0)[: None if last or self.nan == "all" else 1] = np.nan
        super().put(name, values, **at)


def _write_sample(writer, prompt, branches, token_branches, pool, sink, gates, rows, seed, changes, second):
    index, header, sizes = writer.index, writer.header, writer.sizes
    rng = np.random.default_rng([seed, index])
    negative = changes.get("negative_prompt", "")
    texts = {"cond": prompt, "uncond": negative, "skip": prompt}
    key = f"{prompt}|{negative}|{index}|{sizes['step']}|{sizes.get('pixel_y')}x{sizes.get('pixel_x')}"
    values = {
        "sample_id": f"{index:06d}", "prompt_id": f"p{index}", "prompt": prompt, "negative_prompt": negative,
        "tags": "", "pairing_key": hashlib.sha256(key.encode()).hexdigest(),
        "prompt_index": index, "image_index": 0, "seed": index,
        "row_sum_error": 1e-6, "kept_chars": np.array([[len(texts[b])] * 3 for b in branches]),
    }  # fmt: skip
    for name, value in values.items():
        writer.put(f"samples/{name}", changes.get(name, value))
    tables = [token_table(texts[b], sizes["token"] - CLIP_LENGTH) for b in branches]
    for name in tables[0]:
        writer.put(f"tokens/{name}", np.stack([table[name] for table in tables]))
    for branch, table in enumerate(tables):
        for step in range(sizes["step"]):
            tokens_too = branches[branch] in token_branches
            _write_step(
                writer, rng, branch, step, table["token_group"], header, pool, sink, gates, tokens_too, rows
            )
            if second and branch == 0 and step in header.scales["top_step"]:
                _write_second(writer, np.random.default_rng([seed, index, step]), step, header)
    tokens = np.flatnonzero(np.isin(tables[0]["token_group"][:CLIP_LENGTH], (0, 1)))[:MAP_TOKENS]
    writer.put(
        "maps/map_token_index", np.pad(tokens, (0, MAP_TOKENS - len(tokens)), constant_values=-1), branch=0
    )
    if rows:
        streams, positions = np.array(rows).T
        writer.put("rows/query_stream", streams, branch=0)
        writer.put("rows/query_index", positions, branch=0)
    shape = (sizes.get("pixel_y", 1), sizes.get("pixel_x", 1), 3)
    writer.put("images/image", rng.integers(0, 256, shape, np.uint8))
    writer.seal()


def _write_step(writer, rng, branch, step, token_group, header, pool, sink, gates, tokens_too, row_queries):
    """One step of one branch: attention over [tokens | patches] of both streams, reduced for the file."""
    sizes = writer.sizes
    rows, columns = sizes["y"] * pool, sizes["x"] * pool
    text, image, layers, heads = sizes["token"], rows * columns, sizes["layer"], sizes["head"]
    group = np.r_[token_group, np.full(image, schema.GROUPS.index("image"))]
    where = {"branch": branch, "step": step}
    for query, queries in enumerate((image, text)):
        logits = rng.normal(size=(layers, heads, queries, text + image))
        logits[..., 0] += sink
        attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        mass = attention.mean(2)  # (L, H, keys)
        sums = np.stack([mass[..., group == g].sum(-1) for g in range(len(schema.GROUPS))])
        writer.put("sinks/mass_group", sums, query=query, **where)
        share = attention[..., :text] / attention[..., :text].sum(-1, keepdims=True)
        writer.put("sinks/entropy_text", -(share * np.log(share)).sum(-1).mean(-1), query=query, **where)
        if gates:
            gate = 1 / (1 + np.exp(-rng.normal(size=(queries, layers, heads))))
            statistics = {"mean": gate.mean(0), "std": gate.std(0), "min": gate.min(0), "max": gate.max(0)}
            statistics |= {"below_0_1": (gate < 0.1).mean(0), "below_0_5": (gate < 0.5).mean(0)}
            for name, value in statistics.items():
                writer.put(f"gates/{name}", value, query=query, **where)
            of_query = group[:text] if query else group[text:]
            means = [gate[of_query == g].mean(0) if (of_query == g).any() else np.full((layers, heads), np.nan)
                     for g in range(len(schema.GROUPS))]  # fmt: skip
            writer.put("gates/group_mean", np.stack(means), query=query, **where)
        if query == 0 and tokens_too:
            writer.put("sinks/mass_image", mass[..., :text], **where)
        if branch == 0 and step in (steps := header.scales["top_step"].tolist()):
            at = steps.index(step)
            where_top = {"branch": branch, "query": query, "top_step": at}
            for place, (stream, position) in enumerate(row_queries):
                if stream == query and position >= 0:  # else a word that the prompt does not have
                    of_query = attention[:, :, position].mean(1)  # (L, keys)
                    cells = (
                        of_query[:, text:].reshape(layers, sizes["y"], pool, sizes["x"], pool).mean((2, 4))
                    )
                    where_row = {"branch": branch, "map_step": at, "row": place}
                    writer.put("rows/to_image", cells, **where_row)
                    writer.put("rows/to_text", of_query[:, :text], **where_row)
            _write_top(writer, mass, rng, text, gate.mean(0) if gates else None, **where_top)
            if "patch_y" in sizes:
                entropy = -(attention * np.log(attention)).sum(-1).mean(-1)
                writer.put("sinks/entropy_all", entropy, query=query, **where)
                writer.put(
                    "atlas/mass_patch", mass[..., text:].reshape(layers, heads, rows, columns), **where_top
                )
            if query == 0:
                tokens = np.flatnonzero(np.isin(token_group[:CLIP_LENGTH], (0, 1)))[:MAP_TOKENS]
                maps = np.full((MAP_TOKENS, layers, sizes["y"], sizes["x"]), np.nan)
                chosen = np.moveaxis(attention.mean(1)[..., tokens], -1, 0)  # (map_token, L, patches)
                cells = chosen.reshape(len(tokens), layers, sizes["y"], pool, sizes["x"], pool)
                maps[: len(tokens)] = cells.mean((3, 5))
                writer.put("maps/image_to_text", maps, branch=branch, map_step=at)


def _write_top(writer, mass, rng, text, gate, **at):
    order = np.argsort(-mass, -1, kind="stable")[..., :TOP_K]
    is_text = order < text
    writer.put("topk/top_stream", np.where(is_text, 1, 0), **at)
    writer.put("topk/top_index", np.where(is_text, order, order - text), **at)
    writer.put("topk/top_mass", np.take_along_axis(mass, order, -1), **at)
    norm = rng.uniform(1, 9, order.shape)
    writer.put("topk/top_value_norm", norm, **at)
    if gate is not None:
        writer.put("gates/contribution", np.take_along_axis(mass, order, -1) * norm * gate[..., None], **at)


def _write_second(writer, rng, step, header):
    """attn2 of one step, cond and image queries: attention of patches over patches, none in the last layer."""
    sizes = writer.sizes
    rows, columns = (sizes[f"pixel_{axis}"] // PATCH for axis in "yx")
    group, heads = ("attn2_regrouped", "head_attn2") if "head_attn2" in sizes else ("attn2", "head")
    logits = rng.normal(size=(sizes["layer"], sizes[heads], rows * columns, rows * columns))
    attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    attention[-1] = np.nan
    mass = attention.mean(2)
    where = {"branch": 0, "query": 0}
    writer.put(f"{group}/entropy_all", -(attention * np.log(attention)).sum(-1).mean(-1), step=step, **where)
    where["top_step"] = header.scales["top_step"].tolist().index(step)
    order = np.argsort(-mass, -1, kind="stable")[..., :TOP_K]
    writer.put(f"{group}/top_index", np.where(np.isfinite(mass[..., :1]), order, -1), **where)
    writer.put(f"{group}/top_mass", np.take_along_axis(mass, order, -1), **where)
    writer.put(f"{group}/top_value_norm", np.take_along_axis(mass, order, -1) * 0 + 1, **where)
    if "patch_y" in sizes:
        writer.put(f"{group}/mass_patch", mass.reshape(*mass.shape[:2], rows, columns), **where)


def token_table(prompt: str, t5_length: int) -> dict[str, np.ndarray]:
    """The token table of a prompt in which every word is one token of each encoder."""
    spans, start = [], 0
    for word in prompt.split():
        start = prompt.index(word, start)
        spans.append((word, start, start + len(word)))
        start += len(word)
    rows = []  # text, group, word, start, end, ids of clip_l, clip_g, t5
    rows.append(("<|startoftext|>", "clip_bos", -1, -1, -1, 998, 998, -1))
    rows += [
        (f"{word}</w>", "clip_word", i, a, b, 10 + i, 10 + i, -1) for i, (word, a, b) in enumerate(spans)
    ]
    rows.append(("<|endoftext|>", "clip_eos", -1, -1, -1, 999, 999, -1))
    rows += [("<|endoftext|>", "clip_pad", -1, -1, -1, 999, 0, -1)] * (CLIP_LENGTH - len(rows))
    t5 = [(f"▁{word}", "t5_word", i, a, b, -1, -1, 20 + i) for i, (word, a, b) in enumerate(spans)][
        : t5_length - 1
    ]
    t5.append(("</s>", "t5_eos", -1, -1, -1, -1, -1, 1))
    rows += t5 + [("<pad>", "t5_pad", -1, -1, -1, -1, -1, 0)] * (t5_length - len(t5))
    text, group, word, start, end, *ids = zip(*rows, strict=True)
    return {
        "token_text": np.array(text, object),
        "token_group": np.array([schema.GROUPS.index(g) for g in group]),
        "token_word": np.array(word), "token_char_start": np.array(start), "token_char_end": np.array(end),
        "token_id": np.array(ids),
    }  # fmt: skip
