"""A chart for paper: on white, with larger type, as PNG or SVG rendered by vl-convert, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from sd35h5.store.showable import acts, all_showable

FONTS, FONT = Path(__file__).with_name("fonts"), "sd35h5 Scripts"
_NEEDS_FONT = re.compile("[^\x00-\u052f\u2000-\u206f\u2190-\u22ff]")  # vl-convert itself draws the others


def for_print(chart: alt.Chart | alt.LayerChart) -> alt.Chart | alt.LayerChart:
    """Return the chart with a white ground and larger type, for a PNG that stands alone."""
    return (
        chart.properties(background="white", padding=16)
        .configure_axis(
            labelFontSize=12, titleFontSize=13, titleFontWeight="normal", grid=True, gridOpacity=0.4
        )
        .configure_legend(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", titleLimit=340)
        .configure_title(fontSize=15, anchor="start", subtitleFontSize=12, subtitleColor="#555555", offset=12)
        .configure_view(stroke=None)
    )


def png(chart: alt.TopLevelMixin, scale: float = 2.0) -> bytes:
    """Return the chart as PNG on white."""
    import vl_convert

    spec = _specification(chart)
    if _NEEDS_FONT.search(json.dumps(spec, ensure_ascii=False)):
        vl_convert.register_font_directory(str(FONTS))
        spec = _in_font(spec) | {"config": {**spec.get("config", {}), "font": FONT}}
    return vl_convert.vegalite_to_png(json.dumps(spec), scale=scale)


def svg(chart: alt.TopLevelMixin) -> str:
    """Return the chart as SVG on white."""
    import vl_convert

    return vl_convert.vegalite_to_svg(json.dumps(_specification(chart)))  # who opens it has fonts


def showable_chart(chart: alt.TopLevelMixin) -> alt.TopLevelMixin:
    """Return the chart with every character of its tables' texts seen, for pages: tables go there beside the chart."""
    changed = chart.copy(deep=False)
    if isinstance(data := getattr(chart, "data", None), pd.DataFrame):
        changed.data = showable_table(data)
    for parts in ("layer", "hconcat", "vconcat", "concat"):
        if isinstance(inner := getattr(chart, parts, None), list):
            setattr(changed, parts, [showable_chart(one) for one in inner])
    return changed


def showable_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with every character of its texts seen; itself where that is so already."""
    changed = {}
    for place, name in enumerate(table.columns):
        values = table.iloc[:, place]
        if not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values)):
            told = {one: all_showable(one) for one in values.unique() if isinstance(one, str) and acts(one)}
            if told:
                changed[name] = values.map(lambda one, told=told: told.get(one, one))
    return table.assign(**changed) if changed else table


def _specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    with alt.data_transformers.enable("default", max_rows=None):  # all rows: they are not sent to a browser
        return all_showable(for_print(chart).to_dict())  # a control character would abort the process


def _in_font(spec: Any) -> Any:
    """A specification whose own choices of a font are the bundled one."""
    if isinstance(spec, dict):
        chosen = {
            name: FONT if name == "font" and isinstance(one, str) else one for name, one in spec.items()
        }
        return {name: _in_font(one) for name, one in chosen.items()}
    return [_in_font(one) for one in spec] if isinstance(spec, list) else spec
