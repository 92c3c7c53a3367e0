"""What becomes of the steps of one sample: which branches each draws, at which scale, and what does not run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Course:
    """What became of the steps of one sample.

    Args:
        expected: the guidance scale that the call asked for; None without guidance.
        branches: those that the file has.
        scales: guidance scale of each step so far. drawn: branches that each drew.
        rested: step -> layers that did not run, of the branch that is compared with others.
    """

    expected: float | None
    branches: Sequence[str]
    scales: list[object] = field(default_factory=list)
    drawn: list[set[str]] = field(default_factory=list)
    rested: dict[int, set[int]] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The step under way."""
        return len(self.drawn) - 1

    def take(self, rows: Sequence[str], scale: object) -> bool:
        """Take a call of the transformer. Returns: whether a step begins with it: a branch is drawn once in a step."""
        begins = rows != ("skip",) and (not self.drawn or bool(self.drawn[-1] & set(rows)))
        if begins:
            self.drawn.append(set())
            self.scales.append(scale)
        self.drawn[-1] |= set(rows)
        return begins

    @property
    def guidance(self) -> list[object]:
        """Guidance scale of each step, None where there was no unconditional branch."""
        pairs = zip(self.scales, self.drawn, strict=True)
        return [scale if "uncond" in drawn else None for scale, drawn in pairs]

    @property
    def is_guided_otherwise(self) -> bool:
        """Whether guidance was not throughout what the call asked for."""
        return any(each != self.expected for each in self.guidance)

    def key(self, key: str) -> str:
        """The pairing key, with a second part if guidance changed on the way."""
        if not self.is_guided_otherwise:
            return key
        return f"{key}-{hashlib.sha256(json.dumps(self.guidance).encode()).hexdigest()[:8]}"

    def events(self, sample_id: str) -> list[dict[str, object]]:
        """What the file is to tell of it."""
        events: list[dict[str, object]] = []
        if self.is_guided_otherwise:
            there = (
                "it has values only where a step has a scale"
                if "uncond" in self.branches
                else "it is not kept"
            )
            note = f"guidance changed on the way; null: a step without the branch uncond; {there}"
            events.append(
                {"event": "guidance", "sample_id": sample_id, "scale_of_steps": self.guidance, "note": note}
            )
        if self.rested:
            layers = {str(step): sorted(each) for step, each in self.rested.items()}
            note = "a cache gave back what these layers computed before: they have no values in these steps"
            events.append(
                {"event": "layers that did not run", "sample_id": sample_id, "steps": layers, "note": note}
            )
        return events
