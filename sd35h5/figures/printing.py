"""A chart for paper: on white, with larger type, as PNG or SVG rendered by vl-convert, without a browser."""

from __future__ import annotations

import altair as alt


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

    return vl_convert.vegalite_to_png(_specification(chart), scale=scale)


def svg(chart: alt.TopLevelMixin) -> str:
    """Return the chart as SVG on white."""
    import vl_convert

    return vl_convert.vegalite_to_svg(_specification(chart))


def _specification(chart: alt.TopLevelMixin) -> str:
    with alt.data_transformers.enable("default", max_rows=None):  # all rows: they are not sent to a browser
        return for_print(chart).to_json()
