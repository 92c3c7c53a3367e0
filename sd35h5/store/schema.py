"""The file format as data: every name, dimension, dtype, chunk, unit and version, written only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType

from sd35h5.errors import StoreError

SCHEMA_NAME = "sd35h5"
SCHEMA_VERSION = "1.1"
SUFFIX = ".h5"
SUFFIXES = (SUFFIX, ".hdf5")  # what others call a file of ours
PARTS_SUFFIX = ".parts"
METADATA_BLOCK_BYTES = 256 << 10  # of a packed file: its list takes few requests from afar
LIBVER = ("v110", "v114")  # ("latest", "latest") under HDF5 2.0 cannot be read by HDF5 1.10
MANTISSA_BITS = 10
MAX_SCORE_NAME = 64
GZIP_LEVEL = 1

BRANCHES = ("cond", "uncond", "skip")
QUERIES = ("image", "text")
GROUPS = (
    "clip_bos",
    "clip_word",
    "clip_eos",
    "clip_pad",
    "t5_word",
    "t5_eos",
    "t5_pad",
    "t5_absent",
    "image",
)
ENCODERS = ("clip_l", "clip_g", "t5")
TOKEN_ENCODERS = ("clip", "t5", "absent")

KINDS = ("sample", "run", "slice", "merge")
STATUSES = ("capturing", "complete")
FILE_ATTRIBUTES = (
    "Conventions", "schema_name", "schema_version", "min_reader", "kind", "status",
    "file_uuid", "created_utc", "writer",
)  # fmt: skip
IMAGE_ATTRIBUTES = {  # of images/image: HDF5's image specification, by which H5Web draws it in true colour
    "CLASS": "IMAGE", "IMAGE_VERSION": "1.2", "IMAGE_SUBCLASS": "IMAGE_TRUECOLOR",
    "INTERLACE_MODE": "INTERLACE_PIXEL", "DISPLAY_ORIGIN": "UL",
}  # fmt: skip
MODEL_ATTRIBUTES = (
    "model_id", "model_revision", "model_shape",
    "gate_type", "gate_activation", "gate_target", "gate_layers", "gate_override", "gate_weights", "attn2_layout",
    "intervention", "intervention_control",
)  # fmt: skip
PROVENANCE = ("config", "schema", "environment", "components", "events", "origin")
SEAL = "provenance/seal"  # of the file, which is no provenance: store/seals makes it
IMPORTED = "import"  # `kind` of the origin of what another tool dumped
UNKNOWN_SEED = -1

NO_FILL = None
_FILLS = {"float32": float("nan"), "int16": -1, "int32": -1, "int64": -1, "uint8": 255, "str": NO_FILL}
_LONE_DIMS = frozenset({"sample", "branch", "query"})  # chunk 1 unless a variable says otherwise


@dataclass(frozen=True)
class Scale:
    """A root dataset that names the positions of one dimension (`dim == name`) or tells more about them."""

    name: str
    dtype: str
    long_name: str
    units: str = "1"
    dim: str = ""
    labels: tuple[str, ...] = ()
    cap: int = 1 << 20  # the longest that a reader accepts

    @property
    def along(self) -> str:
        return self.dim or self.name

    @property
    def is_dimension(self) -> bool:
        return self.along == self.name


@dataclass(frozen=True)
class Variable:
    """One dataset of the file: `group/name`, its dimensions and how it is stored."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    long_name: str
    units: str = "1"
    chunk: Mapping[str, int] = field(default_factory=dict)  # dim -> length; absent: 1 or whole
    rounded: bool = False
    fill: float | int | None = NO_FILL
    labels: tuple[str, ...] = ()
    required: bool = False

    @property
    def group(self) -> str:
        return self.name.split("/")[0]

    @property
    def short_name(self) -> str:
        return self.name.split("/")[1]

    @property
    def is_table(self) -> bool:
        return self.group in ("samples", "scores")

    @property
    def is_text(self) -> bool:
        return self.dtype == "str"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Lengths of the dimensions in a file with these sizes."""
        return tuple(sizes[dim] for dim in self.dims)

    def chunks(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of one chunk: 1 along sample, branch, query; whole elsewhere unless `chunk` says otherwise.

        The small tables of one value a sample (`samples/`, `scores/`) are one chunk.
        """
        alone = frozenset() if self.is_table else _LONE_DIMS
        lengths = (self.chunk.get(dim, 1 if dim in alone else sizes[dim]) for dim in self.dims)
        return tuple(max(1, min(length, sizes[dim])) for dim, length in zip(self.dims, lengths, strict=True))


def _scale(name: str, dtype: str, long_name: str, **more: object) -> tuple[str, Scale]:
    return name, Scale(name, dtype, long_name, **more)


def _variable(
    name: str, dims: str, dtype: str, long_name: str, units: str = "1", **more: object
) -> tuple[str, Variable]:
    more.setdefault("fill", _FILLS[dtype])
    return name, Variable(name, tuple(dims.split()), dtype, long_name, units, **more)


SCALES: Mapping[str, Scale] = MappingProxyType(
    dict(
        [
            _scale("sample", "int32", "index of the sample in the capture", cap=1_000_000),
            _scale("branch", "uint8", "row of the guided batch", labels=BRANCHES, cap=8),
            _scale("step", "int32", "index of the denoising step", cap=10_000),
            _scale("timestep", "float32", "timestep of the scheduler, 0..1000", dim="step"),
            _scale("sigma", "float32", "noise level of the scheduler, 0..1", dim="step"),
            _scale("layer", "int32", "index of the transformer block", cap=512),
            _scale("head", "int32", "index of the attention head", cap=512),
            _scale("head_attn2", "int32", "index of the head of an attn2 in sd-scripts' layout", cap=512),
            _scale(
                "token", "int32", "position on the text axis: CLIP positions, then T5 positions", cap=8192
            ),
            _scale(
                "token_encoder", "uint8", "encoder of the text position", dim="token", labels=TOKEN_ENCODERS
            ),
            _scale("query", "uint8", "stream of the queries", labels=QUERIES, cap=8),
            _scale("group", "uint8", "group of keys", labels=GROUPS, cap=64),
            _scale("top_step", "int32", "step index of the heaviest keys", cap=10_000),
            _scale("map_step", "int32", "step index of the maps", cap=10_000),
            _scale("rank", "int32", "rank by mass, 0 is the heaviest", cap=4096),
            _scale("map_token", "int32", "position in the list of mapped tokens", cap=8192),
            _scale("row", "int32", "position in the list of chosen queries", cap=4096),
            _scale("y", "float32", "patch row at the centre of a map cell, 0 is the top", cap=4096),
            _scale(
                "x",
                "float32",
                "patch column at the centre of a map cell, 0 is the left",
                cap=4096,
            ),
            _scale("patch_y", "int32", "patch row, unpooled, 0 is the top", cap=4096),
            _scale("patch_x", "int32", "patch column, unpooled, 0 is the left", cap=4096),
            _scale("pixel_y", "int32", "pixel row, 0 is the top", cap=32_768),
            _scale("pixel_x", "int32", "pixel column, 0 is the left", cap=32_768),
            _scale("rgb", "uint8", "colour channel", labels=("red", "green", "blue"), cap=3),
            _scale("encoder", "uint8", "text encoder", labels=ENCODERS, cap=8),
            _scale("raw_step", "int32", "step index of raw probabilities", cap=10_000),
            _scale("raw_layer", "int32", "layer index of raw probabilities", cap=512),
            _scale("raw_head", "int32", "head index of raw probabilities", cap=512),
            _scale("raw_token", "int32", "text position of raw probabilities", cap=8192),
        ]
    )
)

_SHARE = "share of attention, 0..1"
_STEPS = "sample branch query step layer head"
_TOPS = "sample branch query top_step layer head"
_TOKENS = "sample branch step layer head token"
_GROUPED = "sample branch query group step layer head"
_TOKEN_CHUNK = {"step": 1, "token": 32}
_SAMPLE_FILLS = {**_FILLS, "int32": NO_FILL, "int64": NO_FILL}

GATE_STATISTICS = ("mean", "std", "min", "max", "below_0_1", "below_0_5")
_GATES = [
    _variable("gates/mean", _STEPS, "float32", "mean of the gate over queries (and channels)"),
    _variable("gates/std", _STEPS, "float32", "standard deviation of the gate over queries (and channels)"),
    _variable("gates/min", _STEPS, "float32", "smallest gate"),
    _variable("gates/max", _STEPS, "float32", "largest gate"),
    _variable("gates/below_0_1", _STEPS, "float32", "share of gates below 0.1"),
    _variable("gates/below_0_5", _STEPS, "float32", "share of gates below 0.5"),
]
_TOPK = [
    _variable("topk/top_stream", f"{_TOPS} rank", "uint8", "stream of the key", labels=QUERIES),
    _variable(
        "topk/top_index",
        f"{_TOPS} rank",
        "int32",
        "position of the key in its stream: patch row-major, or token",
    ),
    _variable("topk/top_mass", f"{_TOPS} rank", "float32", f"mass of the key: {_SHARE}"),
    _variable("topk/top_value_norm", f"{_TOPS} rank", "float32", "Euclidean norm of the key's value vector"),
]
_ENTROPY_TEXT = _variable(
    "sinks/entropy_text", _STEPS, "float32", "mean entropy of attention over text keys, renormalised, in nats"
)
_ENTROPY_ALL = _variable(
    "sinks/entropy_all", _STEPS, "float32", "mean entropy of attention over all keys, in nats"
)
_MASS_PATCH = _variable(
    "atlas/mass_patch", f"{_TOPS} patch_y patch_x", "float32", f"mass of an image patch: {_SHARE}",
    chunk={"top_step": 1, "layer": 1}, rounded=True,
)  # fmt: skip


_CONTRIBUTION = _variable(
    "gates/contribution", f"{_TOPS} rank", "float32", "norm of what the key adds to the output after the gate"
)
_ALTERED_MASS = _variable(
    "sinks/altered_mass", _STEPS, "float32",
    f"mass of the keys that an intervention alters, before it alters them: {_SHARE}",
)  # fmt: skip


_OF_ATTENTION = (*_TOPK[1:], _ENTROPY_ALL, _MASS_PATCH, _ALTERED_MASS, _CONTRIBUTION)


def _attn2(
    group: str, first: Sequence[tuple[str, Variable]], head: str = "head"
) -> list[tuple[str, Variable]]:
    """The same names for MMDiT-X's second, image-only attention; fill where a layer has none."""
    second = [
        replace(
            v,
            name=f"{group}/{v.short_name}",
            dims=tuple(head if dim == "head" else dim for dim in v.dims),
            long_name=f"attn2: {v.long_name}",
        )
        for _, v in first
    ]
    return [(spec.name, spec) for spec in second]


def _sample(short_name: str, dtype: str, long_name: str, dims: str = "sample") -> tuple[str, Variable]:
    return _variable(
        f"samples/{short_name}", dims, dtype, long_name, fill=_SAMPLE_FILLS[dtype], required=True
    )


def _token(short_name: str, dtype: str, long_name: str, **more: object) -> tuple[str, Variable]:
    return _variable(f"tokens/{short_name}", "sample branch token", dtype, long_name, **more)


def _large(name: str, dims: str, long_name: str, **chunk: int) -> tuple[str, Variable]:
    return _variable(name, dims, "float32", f"{long_name}: {_SHARE}", chunk=chunk, rounded=True)


VARIABLES: Mapping[str, Variable] = MappingProxyType(
    dict(
        [
            _sample("sample_id", "str", "name of the sample"),
            _sample("prompt_id", "str", "name of the prompt"),
            _sample("prompt", "str", "prompt, whole"),
            _sample("negative_prompt", "str", "negative prompt, whole"),
            _sample("pairing_key", "str", "hash of what must be equal for two samples to be compared"),
            _sample("tags", "str", "words to filter by, separated by commas"),
            _sample("prompt_index", "int32", "index of the prompt"),
            _sample("image_index", "int32", "index of the image of its prompt"),
            _sample("seed", "int64", f"seed of the noise, {UNKNOWN_SEED} where it is not known"),
            _variable(
                "samples/sealed", "sample", "uint8", "the sample is whole",
                fill=NO_FILL, labels=("no", "yes"), required=True,
            ),
            _sample("content_sha256", "str", "SHA-256 of the sample's values"),
            _sample("row_sum_error", "float32", "largest |sum of an attention row - 1| at step 0"),
            _sample("kept_chars", "int32", "characters that truncation left", "sample branch encoder"),
            _token("token_text", "str", "text of the token"),
            _token("token_group", "uint8", "group of the token", labels=GROUPS),
            _token("token_word", "int16", "index of the word in the prompt, -1 for none"),
            _token("token_char_start", "int32", "first character of the token in the prompt, -1 for none"),
            _token("token_char_end", "int32", "character after the token in the prompt, -1 for none"),
            _variable(
                "tokens/token_id", "sample branch encoder token", "int32",
                "id in the encoder's vocabulary, -1 where it has none",
            ),
            _large("sinks/mass_image", _TOKENS, "mean over image queries of attention to it", **_TOKEN_CHUNK),
            _large("sinks/mass_text", _TOKENS, "mean over text queries of attention to it", **_TOKEN_CHUNK),
            _variable(
                "sinks/mass_group", _GROUPED, "float32", f"sum over a group's keys of their mass: {_SHARE}",
                chunk={"group": 1},
            ),
            _ENTROPY_TEXT,
            _ENTROPY_ALL,
            _ALTERED_MASS,
            *_TOPK,
            _variable("maps/map_token_index", "sample branch map_token", "int16", "token of the map"),
            _large(
                "maps/image_to_text", "sample branch map_step map_token layer y x",
                "attention of an image patch to a token, mean over heads", map_step=1, map_token=1,
            ),
            _large(
                "maps/image_to_text_per_head", "sample branch map_step map_token layer head y x",
                "attention of an image patch to a token", map_step=1, map_token=1, layer=4,  # 0.6 MB at 38 heads
            ),
            _variable("rows/query_index", "sample branch row", "int32", "position of the query"),
            _variable("rows/query_stream", "sample branch row", "uint8", "its stream", labels=QUERIES),
            _large(
                "rows/to_image", "sample branch map_step row layer y x",
                "attention of the query to image patches, mean over heads", map_step=1, row=1,
            ),
            _large(
                "rows/to_text", "sample branch map_step row layer token",
                "attention of the query to tokens, mean over heads", map_step=1, row=1,
            ),
            _MASS_PATCH,
            *_GATES,
            _variable(
                "gates/group_mean", _GROUPED, "float32", "mean of the gate over the queries of a group",
                chunk={"group": 1},
            ),
            _CONTRIBUTION,
            *_attn2("attn2", (*_OF_ATTENTION[:3], *_GATES, *_OF_ATTENTION[3:])),
            *_attn2("attn2_regrouped", _OF_ATTENTION, "head_attn2"),
            _large(
                "raw/probability", "sample branch raw_step raw_layer raw_head raw_token patch_y patch_x",
                "attention of an image patch to a token", raw_step=1, raw_layer=1, raw_head=1, raw_token=32,
            ),
            _variable(
                "images/image", "sample pixel_y pixel_x rgb", "uint8", "generated image",
                fill=NO_FILL, chunk={"pixel_y": 256, "pixel_x": 256},
            ),
        ]
    )
)  # fmt: skip

#: what attn2 measures -> the same where its heads are its own, as in sd-scripts' layout
REGROUPED: Mapping[str, str] = MappingProxyType(
    {f"attn2/{v.short_name}": name for name, v in VARIABLES.items() if v.group == "attn2_regrouped"}
)
#: means over all samples of a file: derived, no variables of a sample
SUMMARIES: Mapping[str, Variable] = MappingProxyType(
    dict(
        [
            _variable(
                "summary/mass_group", "branch query group step layer head", "float32",
                f"mean over samples of sinks/mass_group: {_SHARE}", chunk={"group": 1},
            ),
            _variable(
                "summary/text_fraction", "branch group step layer head", "float32",
                "mean over samples of a group's part of the mass on text, image queries: 0..1", chunk={"group": 1},
            ),
            _variable(
                "summary/entropy_text", "branch query step layer head", "float32",
                "mean over samples of sinks/entropy_text, in nats",
            ),
        ]
    )
)  # fmt: skip
SUMMARY_SOURCES = {  # mean -> what it is made of
    "summary/mass_group": "sinks/mass_group",
    "summary/text_fraction": "sinks/mass_group",
    "summary/entropy_text": "sinks/entropy_text",
}
REQUIRED = tuple(name for name, v in VARIABLES.items() if v.required)
VARIABLE_GROUPS = tuple(dict.fromkeys(v.group for v in VARIABLES.values())) + ("scores",)


def is_sample_column(name: str) -> bool:
    """Whether the table of samples has a column of that name, which no score may take from it."""
    return name == "sample" or f"samples/{name}" in VARIABLES


def is_score(name: str) -> bool:
    """Whether `scores/NAME` may have that name."""
    return name.isidentifier() and len(name) <= MAX_SCORE_NAME and not is_sample_column(name)


def variable(name: str) -> Variable:
    """The variable or mean of that name; `scores/NAME` is any float32 joined to the samples later.

    Raises: StoreError naming the closest known names.
    """
    if name in VARIABLES or name in SUMMARIES:
        return VARIABLES.get(name) or SUMMARIES[name]
    group, _, short = name.partition("/")
    if group == "scores" and is_score(short):
        return Variable(name, ("sample",), "float32", f"score: {short}", fill=_FILLS["float32"])
    close = get_close_matches(name, VARIABLES, n=2)
    hint = f": did you mean {' or '.join(close)}?" if close else ""
    raise StoreError(f"'{name}' is no variable of the format (schema {SCHEMA_VERSION}){hint}")
