"""Which tiers a store holds, and the command line that captures it again with those that it lacks."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from sd35h5.errors import StoreError
from sd35h5.store.showable import acts

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

#: options of capture_cli.py that decide the data, in the order of its help; the names of a stored config
FLAGS = (
    "model_id", "transformer", "dit_path", "clip_l_path", "clip_g_path", "t5xxl_path", "vae_path",
    "vae_is_sd3",
    "variant", "tokenizer_path", "no_t5", "offload", "compile", "gates", "lora", "device", "dtype",
    "negative_prompt", "num_images", "seed",
    "batch_size",
    "steps", "guidance", "height", "width", "max_sequence_length", "apply_lg_attn_mask", "apply_t5_attn_mask",
    "maps", "words", "map_steps", "map_layers", "map_heads", "map_pool", "topk", "top_steps", "branches",
    "no_unconditional", "text_queries", "rows", "atlas", "raw", "precision", "no_images",
    "gate_type", "gate_target", "gate_layers", "gate_activation", "gate_zero_rows", "gate_init", "gate_override",
    "attn2_layout", "intervene", "control",
)  # fmt: skip
#: what a prompt may say for itself -> where a stored config has them all
OWN = {"negative_prompt": "negative_prompts", "seed": "seeds", "tags": "tags"}
PROMPTS_FILE = "prompts.json"
_DEEPEST = 50  # cuts behind each other that are looked at
MOST_PROMPTS = 12  # on a command line; more are read from a file


@dataclass(frozen=True)
class Tier:
    """A part of a capture: what it is, the variable that shows that it is there, and the options that ask for it."""

    name: str
    what: str
    variable: str
    options: Mapping[str, Any]


TIERS = (
    Tier("sinks", "mass of every text token, group masses, entropy over text", "sinks/mass_group", {}),
    Tier("topk", "the heaviest keys of each head, wherever they are", "topk/top_index", {"topk": 16}),
    Tier("maps", "where the image looks at a token, mean over heads", "maps/image_to_text", {"maps": "words"}),
    Tier("maps, per head", "the same for every head", "maps/image_to_text_per_head",
         {"maps": "words", "map_heads": "all"}),
    Tier("rows", "where chosen queries look", "rows/to_image", {"rows": ["centre"]}),
    Tier("text", "how the text looks at every token", "sinks/mass_text", {"text_queries": True}),
    Tier("atlas", "mass of every image patch, entropy over all keys", "atlas/mass_patch", {"atlas": True}),
    Tier("raw", "unpooled probabilities of chosen layers and steps", "raw/probability",
         {"raw": ["steps=0", "layers=0"]}),
    Tier("images", "the generated images", "images/image", {"no_images": False}),
)  # fmt: skip


def tiers(store: Store) -> pd.DataFrame:
    """Return what the store holds of each tier: columns tier, held (bool), what."""
    rows = [(tier.name, tier.variable in store, tier.what) for tier in TIERS]
    return pd.DataFrame(rows, columns=["tier", "held", "what"])


def left_out(store: Store) -> dict[str, str]:
    """Return the tiers that are not in a slice, or in a merge of slices, but in what it was cut from: tier -> the name
    of that file, or of several, as `provenance/origin` tells it."""
    found: dict[str, str] = {}
    cuts = list(_cuts(store.provenance.get("origin")))
    for tier in TIERS:
        if tier.variable not in store:
            names = [name for name, variables in cuts if tier.variable in variables]
            found |= {tier.name: ", ".join(dict.fromkeys(names))} if names else {}
    return found


def _cuts(origin: Any, deep: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The slices that a file comes from. Yields: what each was cut from, and what it left out."""
    if not isinstance(origin, dict) or deep > _DEEPEST:
        return
    sources = origin.get("of") if isinstance(origin.get("of"), list) else [origin.get("of")]
    for source in [each for each in sources if isinstance(each, dict)]:
        absent = origin.get("left_out")
        if isinstance(absent, dict) and isinstance(source.get("file"), str):
            yield source["file"], absent
        yield from _cuts(source.get("origin"), deep + 1)


def capture_command(store: Store, names: Iterable[str], out: str) -> str:
    """Return the command line that captures the store again, with these tiers in addition.

    Every option is written, also where it is the default. Values come from a file: they are quoted, and one that
    could be read as another option is refused. Prompts with names of their own, and many, are read from a file
    (see `prompts_file`).
    Raises: StoreError where the configuration was not made by the command line, or is another tool's, or where a slice
        left out what the file that it was cut from holds.
    """
    config = dict(store.config)
    if config.get("imported"):
        raise StoreError(
            f"{store.name} was imported from another tool, which kept neither queries nor keys nor how it drew: what "
            "is missing takes a capture of its own, with capture_cli.py"
        )
    if cut := {name: file for name, file in left_out(store).items() if name in names}:
        told = "; ".join(
            f"{', '.join(name for name in cut if cut[name] == file)}: in {file}"
            for file in dict.fromkeys(cut.values())
        )
        raise StoreError(
            f"{store.name} is a slice, or made of slices, that left out {told}: cut it from there again"
        )
    if config.get("offload") is True:  # it had one form once
        config["offload"] = "model"
    for tier in TIERS:
        if tier.name in names:
            config |= tier.options
    if not config.get("model_id"):
        raise StoreError(f"{store.name} was captured from Python: give the options to sd35h5.capture there")
    words = ["python", "capture_cli.py"]
    for flag in FLAGS:
        words += _option(flag, config.get(flag))
    prompts = prompts_file(store)
    words += ["--prompts_json", PROMPTS_FILE] if prompts else _option("prompt", config.get("prompts"))
    return shlex.join([*words, *_option("out", out)])


def prompts_file(store: Store) -> list[dict[str, Any]] | None:
    """Return what --prompts_json has to hold; None where the prompts can stand on the command line."""
    if isinstance(store.config.get("prompts"), str):  # too many for the configuration, which has their hash
        return _of_samples(store)
    texts, names = _texts(store.config.get("prompts")), _texts(store.config.get("prompt_ids"))
    if not texts:
        raise StoreError(f"{store.name} does not tell its prompts in its configuration")
    usual = [f"p{number:03d}" for number in range(len(texts))]
    own = {name: store.config.get(held) for name, held in OWN.items()}
    own = {
        name: values for name, values in own.items() if isinstance(values, list) and len(values) == len(texts)
    }
    short = len(texts) <= MOST_PROMPTS and not any(text.startswith("-") or acts(text) for text in texts)
    if names in ([], usual) and short and not own:
        return None
    names = names if len(names) == len(texts) else usual
    entries = [{"id": name, "prompt": text} for name, text in zip(names, texts, strict=True)]
    for name, values in own.items():
        entries = [e | ({} if v is None else {name: v}) for e, v in zip(entries, values, strict=True)]
    return entries


def _of_samples(store: Store) -> list[dict[str, Any]]:
    """The prompts of the samples that are there, each with its seed, and what else it may say for itself."""
    first = store.samples.sort_values(["prompt_index", "image_index"]).drop_duplicates("prompt_index")
    common = str(store.config.get("negative_prompt") or "")
    entries = []
    for row in first.to_dict("records"):
        entry = {"id": row["prompt_id"], "prompt": row["prompt"]}
        entry |= {"seed": int(row["seed"])} if row["seed"] >= 0 else {}
        entry |= {"negative_prompt": row["negative_prompt"]} if row["negative_prompt"] != common else {}
        entries.append(entry | ({"tags": row["tags"]} if row["tags"] else {}))
    return entries


def _option(flag: str, value: Any) -> list[str]:
    """Return the words of an option, none where it was not given."""
    if value is None or value is False or value == "" or value == []:
        return []
    if value is True:
        return [f"--{flag}"]
    words = _texts(value) if isinstance(value, list) else [str(value)]
    if not isinstance(value, str | int | float | list) or any(
        word.startswith("-") or acts(word) for word in words
    ):
        raise StoreError(f"its configuration has a {flag} that cannot stand on a command line")
    return [f"--{flag}", *words]


def _texts(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []
