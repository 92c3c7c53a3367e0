"""The prompts of a capture: from the command line or a file, each with its id, its seed, its tags. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from sd35h5.errors import ConfigError
from sd35h5.planning.options import Prompts, Sampling
from sd35h5.planning.prompt_file import Entry, read_entries
from sd35h5.store.showable import forbidden, showable

IMAGE_SEED_STRIDE = 1_000_000
MAX_SEED = 2**63 - 1  # int64 in the file
_TEXTS = ("prompt", "text", "caption")  # names of the prompt in a file's objects, the first that is there
#: options of the drawing, which are the same for all; a data set's own width and height are passed over
_SHARED = {field.name for field in fields(Sampling)} - {"height", "width"}
_SHARED |= {"cfg_scale", "guidance_scale", "num_inference_steps"}


@dataclass(frozen=True)
class Prompt:
    """One prompt of a capture.

    Args:
        negative_prompt: its own; None takes --negative_prompt.
        seed: its own; None counts on from --seed.
        tags: words to filter by, separated by commas.
    """

    id: str
    text: str
    negative_prompt: str | None = None
    seed: int | None = None
    tags: str = ""


def load_prompts(options: Prompts) -> list[Prompt]:
    """Read the prompts from the command line or from a file.

    Raises:
        ConfigError: none, both, an unreadable file, an empty prompt, a value that no file can hold, or an id that
            comes twice; a sentence that says where.
    """
    if options.prompt and options.prompts_json:
        raise ConfigError("give --prompt or --prompts_json, not both")
    if not options.prompt and not options.prompts_json:
        raise ConfigError('there is nothing to draw: give --prompt "…", --prompts_json FILE, or try --demo')
    if options.prompts_json:
        entries = read_entries(options.prompts_json)
    else:
        entries = [Entry(f"prompt {number}", text) for number, text in enumerate(options.prompt)]
    entries = entries[: options.limit]
    if not entries:
        raise ConfigError(f"--prompts_json {options.prompts_json} is an empty list: there is nothing to draw")
    _check_text("--negative_prompt", options.negative_prompt)
    prompts = [_as_prompt(number, entry) for number, entry in enumerate(entries)]
    first: dict[str, str] = {}
    for prompt, entry in zip(prompts, entries, strict=True):
        if before := first.get(prompt.id):
            raise ConfigError(f"{entry.where}: the id {prompt.id!r} comes twice, it was that of {before}")
        first[prompt.id] = entry.where
    return prompts


def sample_seed(seed: int, prompt_index: int, image_index: int, own: int | None = None) -> int:
    """Seed of one sample: the prompt's own, or seed + its position in the list; plus 1,000,000 an image."""
    return (seed + prompt_index if own is None else own) + IMAGE_SEED_STRIDE * image_index


def check_seeds(prompts: Sequence[Prompt], seed: int, images: int) -> None:
    """Refuse seeds that the file cannot hold.

    Raises:
        ConfigError: naming the prompt.
    """
    for place, prompt in enumerate(prompts):
        if sample_seed(seed, place, images - 1, prompt.seed) > MAX_SEED:
            last = sample_seed(seed, place, images - 1, prompt.seed)
            whose = (
                f"--seed {seed}" if prompt.seed is None else f"the seed {prompt.seed} of prompt {prompt.id}"
            )
            raise ConfigError(
                f"{whose} is too large: the last sample's is {last}, and the file holds seeds up to 2**63 - 1"
            )


def _as_prompt(number: int, entry: Entry) -> Prompt:
    where, told = entry
    if not isinstance(told, Mapping):
        told = {"prompt": told}
    for name in told:
        if name in _SHARED:
            raise ConfigError(
                f"{where}: {name} is the same for all prompts of a capture: give it as an option"
            )
    name = next((name for name in _TEXTS if told.get(name) is not None), "prompt")
    text = told.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where} is empty or no text: {showable(told, 80)}")
    own = told.get("id", f"p{number:03d}")
    if isinstance(own, bool) or not isinstance(own, str | int) or not str(own).strip():
        raise ConfigError(f"{where}: its id is {showable(own, 40)}, and should be a text or a number")
    negative = told.get("negative_prompt")
    if not isinstance(negative, str | None):
        raise ConfigError(f"{where}: its negative_prompt is no text: {showable(negative, 40)}")
    for what, given in (("id", str(own)), (name, text), ("negative_prompt", negative or "")):
        _check_text(f"{where}, {what}", given)
    return Prompt(str(own), text, negative, _seed(where, told.get("seed")), _tags(where, told.get("tags")))


def _seed(where: str, seed: object) -> int | None:
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0):
        return seed
    raise ConfigError(f"{where}: its seed is {showable(seed, 40)}, and should be a whole number, 0 or more")


def _tags(where: str, tags: object) -> str:
    """Tags as the file holds them: each once, separated by commas."""
    if isinstance(tags, str | None):
        tags = (tags or "").split(",")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ConfigError(
            f"{where}: its tags are {showable(tags, 40)}, and should be texts in a list, or with commas"
        )
    words = [word.strip() for tag in tags for word in tag.split(",")]
    joined = ",".join(filter(None, dict.fromkeys(words)))
    _check_text(f"{where}, tags", joined)
    return joined


def _check_text(where: str, text: str) -> None:
    if found := forbidden(text):
        raise ConfigError(f"{where}: {found} is a character that no file can hold: take it out")
