"""How a page's URL says what is shown: the names of its parameters, which the dashboard and published pages share."""

from __future__ import annotations

RUN, WITH = "run", "with"  # the run, and those beside it
SAMPLES, SAMPLE, TAGS, FIND = "samples", "sample", "tags", "find"
BRANCH, TARGET, METRIC, CELL = "branch", "target", "metric", "cell"
LAYERS, HEADS, STEPS = "layers", "heads", "steps"
SPANS = {"layer": LAYERS, "head": HEADS, "step": STEPS}
X_AXIS, TOKENS, TOP, LOG, WORDS = "x", "tokens", "top", "log", "words"
WORD, LAYER, AT, SHEET, OPACITY, SMOOTH, STRETCH = (
    "word",
    "layer",
    "at",
    "sheet",
    "opacity",
    "smooth",
    "stretch",
)
REGION_Y, REGION_X = "region_y", "region_x"  # rows and columns of patches
NONE = "-"  # an empty list: browsers and servers drop names without a value

#: what published pages read, by the name that their code knows it under
PARAMETERS = {
    "run": RUN, "others": WITH, "samples": SAMPLES, "sample": SAMPLE, "tags": TAGS, "find": FIND, "branch": BRANCH,
    "target": TARGET, "metric": METRIC, "cell": CELL, "layers": LAYERS, "heads": HEADS, "steps": STEPS,
    "x": X_AXIS, "tokens": TOKENS, "top": TOP, "log": LOG, "words": WORDS, "word": WORD, "layer": LAYER,
    "at": AT, "sheet": SHEET, "opacity": OPACITY, "smooth": SMOOTH, "stretch": STRETCH,
}  # fmt: skip
