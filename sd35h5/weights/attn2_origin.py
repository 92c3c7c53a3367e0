"""Who wrote an MMDiT-X in the original layout, which tells how its attn2 splits channels into heads. Torch-free.

sd-scripts computes it with the number of heads as size of a head, and its files have the very keys and shapes of
Stability's own. What a file says of itself tells them apart, or its hash; else it must be asked.
"""

from __future__ import annotations

from sd35h5.gates.decision import Attn2
from sd35h5.gates.writers import attn2_layout_by_writer
from sd35h5.weights.checkpoints import sha256_of
from sd35h5.weights.configs import published_name
from sd35h5.weights.sources import Part

_STABILITY = {  # sha256 of files that hold Stability's own SD3.5-Medium
    "11fe06e22364b823dfeedc275912336b932b32a293a0b2f35ffac071990cc4de",  # sd3.5_medium
    "3bb7f21bc5fb450220f4eb78a2f276b15422309d5166a4bdeb8c3b763a3a0581",  # …_incl_clips_t5xxlfp8scaled, ComfyUI's
}


def attn2_of(part: Part) -> Attn2:
    """What a transformer's own file tells of how its second attention is computed."""
    if part.layout.name != "original" or not part.config.get("dual_attention_layers"):
        return Attn2()
    name = part.files[0].name
    if told := attn2_layout_by_writer(part.metadata):
        return Attn2(name, told)
    is_medium = "medium" in (published_name(part.config) or "")
    is_own = is_medium and sha256_of(part.files[0]) in _STABILITY
    return Attn2(name, "diffusers" if is_own else "")
