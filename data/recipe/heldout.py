"""Write data/scenes_heldout.json: 300 held-out scenes with captions, boxes and background.

python data/recipe/heldout.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data.recipe.scenes import Scene, heldout_scene, novelty
from data.recipe.sprites import box

HELDOUT = ROOT / "data/scenes_heldout.json"
COUNT = 300


def entry(scene: Scene) -> dict:
    """Return a scene as JSON holds it; `novel` says what of it training never saw: "pair", "relation" or null."""
    return {
        "seed": scene.seed,
        "caption": scene.caption,
        "background": scene.background,
        "objects": [
            {
                "kind": placed.kind,
                "size": placed.size or "medium",
                "centre": [placed.x, placed.y],
                "box": list(box(placed)),
            }
            for placed in scene.objects
        ],
        "relations": [list(relation) for relation in scene.relations],
        "novel": novelty([placed.kind for placed in scene.objects], list(scene.relations)),
    }


def document() -> str:
    """Return the whole file: one scene a line. Boxes are left, top, right, bottom in px of a 256 x 256 image."""
    lines = [json.dumps(entry(heldout_scene(index))) for index in range(COUNT)]
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    HELDOUT.write_text(document())
    print(f"wrote {COUNT} scenes to {HELDOUT.relative_to(ROOT)}")
