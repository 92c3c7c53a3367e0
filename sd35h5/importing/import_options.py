"""What an import is asked for, and what its source does not tell. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from sd35h5.errors import ConfigError
from sd35h5.planning.options import Tiers
from sd35h5.planning.prompts import MAX_SEED
from sd35h5.store.showable import forbidden


@dataclass(frozen=True)
class ImportOptions:
    """An import, as it was asked for.

    Args:
        prompts: of the folders that have no tokens.json, in order.
        seeds: one a sample, or one for a single sample; () where they are not known.
        t5_length: T5's tokens, 0 for a pipeline without T5; None leaves it to the dump.
        tiers: which maps are kept, of which branches, how exactly; the rest of it is off.
    """

    out: Path
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    model_id: str = ""
    seeds: tuple[int, ...] = ()
    guidance: float | None = None
    t5_length: int | None = None
    tokenizer_path: str = ""
    tiers: Tiers = field(default_factory=lambda: Tiers(topk=0))
    overwrite: bool = False

    def __post_init__(self) -> None:
        for option, texts in (("--prompt", self.prompts), ("--negative_prompt", (self.negative_prompt,)),
                              ("--model_id", (self.model_id,))):  # fmt: skip
            if found := next(filter(None, map(forbidden, texts)), ""):
                raise ConfigError(f"{option}: {found} is a character that no file can hold: take it out")
        if wrong := [seed for seed in self.seeds if not 0 <= seed <= MAX_SEED]:
            raise ConfigError(f"--seed {wrong[0]} is outside 0..2**63 - 1")
        if self.guidance is not None and (not math.isfinite(self.guidance) or self.guidance < 0):
            raise ConfigError(f"--guidance {self.guidance} is no guidance scale: use 0 or more")
        if self.tiers.words and self.tiers.maps != "words":
            raise ConfigError(f"--words goes with --maps words, not with --maps {self.tiers.maps}")

    def unknown(self) -> list[str]:
        """What neither the older tool's files nor the options tell of how the pictures were drawn."""
        told = {"model_id": self.model_id, "seed": self.seeds, "guidance": self.guidance is not None}
        never = ("model_revision", "scheduler", "gate_type", "encoder_masks", "intervention")
        return [name for name, known in told.items() if not known] + list(never)
