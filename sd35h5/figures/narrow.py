"""A chart in a narrow column: legends in as many columns, and titles in as many lines, as there is room for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sd35h5.figures.scales import wrapped

LETTER = 6.8  # pixels of a letter of a title, on average
SYMBOL, LETTER_OF_LEGEND = 24, 7.0  # pixels of a legend's symbol with the room beside it, and of a letter
_COLORS = ("color", "fill", "stroke", "shape")
_WHOLE = "(containerSize()[0] || width + 100)"  # pixels that the chart has with its axes


def fitting(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the Vega-Lite of a chart of one view so that it fits into whatever width the page gives it.

    A browser knows that width, the server does not: what depends on it is an expression of Vega's signal `width`, the
    pixels between the axes. Charts of several views have none and stay as they are.
    """
    if "mark" not in spec and "layer" not in spec:
        return spec
    widest = 0.0
    for encoding in _encodings(spec):
        _fit_title(encoding.get("x"))
        widest = max(widest, *(_fit_legend(encoding.get(channel)) for channel in _COLORS))
    if widest:  # a legend on top that is wider than the plot goes on over its axis, not out of the chart
        config = spec.setdefault("config", {})
        anchor = {"signal": f"width < {widest:.0f} ? 'end' : 'start'"}
        config["legend"] = {**config.get("legend", {}), "layout": {"top": {"anchor": anchor}}}
    return spec


def _encodings(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if isinstance(encoding := spec.get("encoding"), dict):
        yield encoding
    for layer in spec.get("layer", ()):
        yield from _encodings(layer)


def _fit_title(x: dict[str, Any] | None) -> None:
    """Break the title of an x axis into lines, which end where the axis does if they are wider than it."""
    if not isinstance(x, dict) or not x.get("title") or x.get("axis", ...) is None:
        return
    lines = wrapped(x["title"]) if isinstance(x["title"], str) else x["title"]
    anchor = f"width < {LETTER * max(map(len, lines)):.0f} ? 'end' : 'middle'"
    x["title"] = lines if len(lines) > 1 else lines[0]
    x["axis"] = {**x.get("axis", {}), "titleAnchor": {"expr": anchor}}


def _fit_legend(channel: dict[str, Any] | None) -> float:
    """Give a legend as many columns, or pixels, as there is room for. Returns: the pixels of all its columns."""
    if not isinstance(channel, dict):
        return 0.0
    legend = channel.get("legend")
    if not isinstance(legend, dict):
        return _fit_legend(channel.get("condition"))
    if "gradientLength" in legend:
        legend["gradientLength"] = {"expr": f"min({legend['gradientLength']}, max(80, width - 10))"}
        if isinstance(legend.get("title"), str):
            legend["title"] = wrapped(legend["title"])
    elif isinstance(columns := legend.get("columns"), int):
        names = channel.get("scale", {}).get("domain", ())
        longest = SYMBOL + LETTER_OF_LEGEND * max((len(str(name)) for name in names), default=1)
        legend["columns"] = {"expr": f"max(1, min({columns}, floor({_WHOLE} / {longest:.0f})))"}
        return columns * longest
    return 0.0
