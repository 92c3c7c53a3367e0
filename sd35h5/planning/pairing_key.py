"""The pairing key: a hash of what must be equal for two samples to be compared. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

PAIRING_FIELDS = (
    "prompt", "negative_prompt", "seed", "steps", "scheduler", "guidance",
    "skip_layer_guidance", "height", "width",
    "max_sequence_length", "encoder_masks", "t5", "dtype", "batch_size", "model_shape",
    "attn2_layout", "other",
)  # fmt: skip


def pairing_key(fields: Mapping[str, object]) -> str:
    """Hash of what must be equal for two samples to be compared: 16 hex digits. Weights and gates are not
    in it.

    Args:
        fields: exactly PAIRING_FIELDS; `other` holds rarely used pipeline arguments.
    """
    if fields.keys() != set(PAIRING_FIELDS):
        raise ValueError(
            f"the pairing key is made of {', '.join(PAIRING_FIELDS)}, not of {', '.join(fields)}"
        )
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
