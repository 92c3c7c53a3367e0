"""A decision about gates made real: the modules, put on the transformer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd35h5.gates.decision import Attn2, Decision, decide
from sd35h5.gates.gate_files import GateSource, make_gates
from sd35h5.gates.gate_options import GateOptions
from sd35h5.gates.modules import Gates, build_gates, install_gates, sizes_of
from sd35h5.gates.texts import tell_forced, tell_places

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

log = logging.getLogger("sd35h5")


@dataclass(frozen=True)
class Choice:
    """What to put on the transformer: gates, the layout of attn2, and what the store should tell of them."""

    gates: Gates | None
    attn2_layout: str
    record: Mapping[str, str]


def choose_gates(
    transformer: SD3Transformer2DModel,
    source: GateSource | None,
    options: GateOptions,
    attn2: Attn2 | None = None,
) -> Choice:
    """Decide which gates the transformer draws with, and make them.

    Args:
        transformer: its sizes are asked, not its weights, so that it may be on the meta device.
        source: the gates of the model's own files or of --gates; None if there are none.
        attn2: what the transformer's own file tells of how its second attention is computed.

    Raises:
        ConfigError: a flag that contradicts what there is, or a question that only the user can answer.
    """
    held = None if source is None else source.held
    decision = decide(sizes_of(transformer), held, options, attn2)
    if decision.dropped:
        log.warning(
            "the gates of %s are left out (--gate_type none): this is not the baseline model, "
            "for it was trained with them", source.name,
        )  # fmt: skip
    gates = _made(transformer, source, decision)
    if decision.forced is not None:
        for layer, attention, gate in gates.all():
            if (layer, attention) in decision.forced_places:
                gate.forced = decision.forced
        where = tell_places(decision.forced_places)
        log.info("gates forced to %s on %s", tell_forced(decision.forced), where)
    return Choice(gates, decision.attn2_layout, decision.record)


def _made(transformer: SD3Transformer2DModel, source: GateSource | None, decision: Decision) -> Gates | None:
    if not decision.places:
        return None
    if decision.init is None:
        return make_gates(source, transformer, decision)
    return build_gates(
        transformer, decision.gate_type, decision.activation, init=decision.init, places=decision.places
    )


def put_gates(transformer: SD3Transformer2DModel, choice: Choice) -> None:
    """Put the chosen gates on the transformer, which is on its device, and say so."""
    if choice.gates is not None or choice.attn2_layout != "diffusers":
        install_gates(transformer, choice.gates, choice.attn2_layout)
    if choice.gates is not None:
        places = tell_places((layer, attention) for layer, attention, _ in choice.gates.all())
        record = choice.record
        origin = f"made anew ({record['init']})" if "init" in record else f"from {record['file']}"
        log.info("gates: %s, on %s, %s", choice.gates.gate_type, places, origin)
