"""The prompts of a capture: from the command line or a JSON file, each with its id and its seeds. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sd35h5.errors import ConfigError
from sd35h5.planning.options import Prompts

IMAGE_SEED_STRIDE = 1_000_000
MAX_SEED = 2**63 - 1  # int64 in the file


@dataclass(frozen=True)
class Prompt:
    """One prompt of a capture."""

    id: str
    text: str


def load_prompts(options: Prompts) -> list[Prompt]:
    """Read the prompts from the command line or from a JSON file.

    Raises:
        ConfigError: none, both, an unreadable file, an empty prompt, or an id that comes twice.
    """
    if options.prompt and options.prompts_json:
        raise ConfigError("give --prompt or --prompts_json, not both")
    if not options.prompt and not options.prompts_json:
        raise ConfigError('there is nothing to draw: give --prompt "…", --prompts_json FILE, or try --demo')
    entries: Sequence[object] = (
        _read_json_list(options.prompts_json) if options.prompts_json else options.prompt
    )
    prompts = [_as_prompt(number, entry) for number, entry in enumerate(entries)][: options.limit]
    if not prompts:
        raise ConfigError(f"--prompts_json {options.prompts_json} is an empty list: there is nothing to draw")
    ids = [prompt.id for prompt in prompts]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise ConfigError(f"--prompts_json {options.prompts_json}: the id {twice!r} comes twice")
    return prompts


def _read_json_list(name: str) -> list[object]:
    try:
        entries = json.loads(Path(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--prompts_json {name}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts_json {name} cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise ConfigError(
            f'--prompts_json {name} is no list: write ["a red apple", …] or [{{"id": "…", "prompt": "…"}}, …]'
        )
    return entries


def _as_prompt(number: int, entry: object) -> Prompt:
    text = entry.get("prompt") if isinstance(entry, Mapping) else entry
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(
            f"prompt {number} is empty or no text: {json.dumps(entry, ensure_ascii=False)[:80]}"
        )
    name = entry.get("id", f"p{number:03d}") if isinstance(entry, Mapping) else f"p{number:03d}"
    return Prompt(str(name), text)


def sample_seed(seed: int, prompt_index: int, image_index: int) -> int:
    """Seed of one sample: seed + its position in the prompt list, plus 1,000,000 an image."""
    return seed + prompt_index + IMAGE_SEED_STRIDE * image_index
