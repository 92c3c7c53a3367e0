"""An adapter as a set of changes to weights: products of small matrices, by their shapes. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sd35h5.weights.adapters.adapter_places import Target
from sd35h5.weights.checkpoints import Entry


@dataclass(frozen=True)
class Change:
    """What an adapter adds to the weights of one target: a product of small matrices.

    Args:
        name: under which the file has it.
        kind: `LoRA`, `LoHa` or `LoKr`.
        tensors: `down` and `up`, or as LyCORIS calls them; and, if they are there, `alpha`, LyCORIS' `dora_scale` or
            peft's `magnitude_vector`.
        alpha: as a config tells it; None where only a tensor, or nothing, tells it.
        by_root: it is divided by the root of the rank.
    """

    target: Target
    name: str
    kind: str
    tensors: Mapping[str, Entry]
    alpha: float | None = None
    by_root: bool = False

    @property
    def rank(self) -> int | None:
        """Of the matrices that it is a product of; None where none is a product of others."""
        one = next(
            (each for each in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if each in self.tensors), None
        )
        return None if one is None else self.tensors[one].shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of what it adds."""
        if self.kind == "LoKr":
            first, second = self._factor("lokr_w1"), self._factor("lokr_w2")
            return first[0] * second[0], first[1] * second[1]
        return self._product("down", "up") if self.kind == "LoRA" else self._factor("hada_w1")

    @property
    def is_whole(self) -> bool:
        """Whether its matrices fit each other, and what stands beside them fits what it adds."""
        products = [("up", "down")] if self.kind == "LoRA" else []
        products += [(name, f"{name[:-1]}b") for name in self.tensors if name.endswith("_a")]
        if any(self._flat(left)[1] != self._flat(right)[0] for left, right in products):
            return False
        if self.kind == "LoHa" and self._factor("hada_w1") != self._factor("hada_w2"):
            return False
        rows, columns = self.shape
        sizes = {"alpha": {1}, "magnitude_vector": {rows}, "dora_scale": {rows, columns}}
        return all(
            math.prod(self.tensors[name].shape) in fitting
            for name, fitting in sizes.items()
            if name in self.tensors
        )

    @property
    def title(self) -> str:
        """Its kind with DoRA's, which scales the rows or columns of the sum."""
        if not {"dora_scale", "magnitude_vector"} & self.tensors.keys():
            return self.kind
        return "DoRA" if self.kind == "LoRA" else f"{self.kind} with DoRA"

    def _factor(self, name: str) -> tuple[int, int]:
        return self._flat(name) if name in self.tensors else self._product(f"{name}_b", f"{name}_a")

    def _product(self, right: str, left: str) -> tuple[int, int]:
        return self._flat(left)[0], self._flat(right)[1]

    def _flat(self, name: str) -> tuple[int, int]:
        """A tensor's shape as a matrix: convolutions are flattened."""
        rows, *rest = self.tensors[name].shape or (1,)
        return rows, math.prod(rest)


@dataclass(frozen=True)
class Adapter:
    """An adapter in a file, and how much of it is added."""

    said: str
    file: Path
    scale: float
    changes: tuple[Change, ...]

    @property
    def kind(self) -> str:
        """`LoRA`, `DoRA`, `LoHa` or `LoKr`; several with `and`."""
        return " and ".join(sorted({change.title for change in self.changes}))

    @property
    def stays_apart(self) -> bool:
        """Whether peft adds it beside the weights as it is; else it is merged into them.

        Not so: LyCORIS' own matrices, which peft has in fewer shapes; DoRA's norms over columns, or of a part of the
        layers; convolutions, whose matrices some trainers flatten.
        """
        plain = all(
            change.kind == "LoRA" and "dora_scale" not in change.tensors
            and change.target.modules != ("pos_embed.proj",)
            for change in self.changes
        )  # fmt: skip
        for component in self.components:
            own = [change for change in self.changes if change.target.component == component]
            plain &= len({"magnitude_vector" in change.tensors for change in own}) == 1
            plain &= len({change.by_root for change in own}) == 1
        return plain

    @property
    def said_in_short(self) -> str:
        """File, kind, rank and scale, for a plan."""
        ranks = sorted({change.rank for change in self.changes if change.rank is not None})
        rank = f" of rank {' and '.join(map(str, ranks))}" if 0 < len(ranks) < 3 else ""
        how = "beside the weights" if self.stays_apart else "merged into the weights"
        return f"{self.file.name}, {self.kind}{rank} at {self.scale:g}, {how}"

    @property
    def components(self) -> tuple[str, ...]:
        """Those that it changes."""
        return tuple(dict.fromkeys(change.target.component for change in self.changes))

    def told(self, component: str) -> dict[str, object]:
        """What the store keeps of it beside its file's hash; the same as `held_adapters.adapters_of` tells of one that
        stays apart."""
        own = [change for change in self.changes if change.target.component == component]
        ranks = sorted({change.rank for change in own if change.rank is not None})
        return {
            "file": self.file.name, "kind": " and ".join(sorted({change.title for change in own})),
            "rank": ranks[0] if len(ranks) == 1 else ranks or None, "scale": self.scale,
            "state": "active" if self.stays_apart else "merged",
            "layers": sum(len(change.target.modules) for change in own),
        }  # fmt: skip
