"""A view of the dashboard as one self-contained HTML page: its figures, their numbers' Python, and what was chosen."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import altair as alt
import pandas as pd

from sd35h5 import __version__
from sd35h5.figures import overlays, printing
from sd35h5.figures.html_page import document

WIDTH, HEIGHT = 620, 340  # pixels of a chart that the page stretches


@dataclass(frozen=True)
class Shown:
    """One figure of a view.

    name: what it shows, as text. figure: the chart, or a picture as PNG bytes, or None for a table alone. table: the
    numbers behind it. code: Python that reads the same numbers from the file, as `table`. note, about, address: of a
    view that was kept, as text.
    """

    name: str
    figure: alt.TopLevelMixin | bytes | None
    table: pd.DataFrame
    code: str
    note: str = ""
    about: str = ""
    address: str = ""


@dataclass(frozen=True)
class Later:
    """A figure of a view as `Shown`, whose numbers are read and whose chart is made once they are asked for."""

    name: str
    read: Callable[[], pd.DataFrame]
    chart: Callable[[pd.DataFrame], alt.TopLevelMixin]
    code: str

    @property
    def table(self) -> pd.DataFrame:
        """The numbers behind the figure."""
        return self.read()

    @property
    def figure(self) -> alt.TopLevelMixin:
        """The chart."""
        return self.chart(self.read())


def svg(shown: Shown | Later) -> str:
    """Return the chart as SVG on white."""
    return printing.svg(sized(shown.figure))


def png(shown: Shown | Later) -> bytes:
    """Return the figure as PNG: a picture as it is, a chart on white at twice its size."""
    return shown.figure if isinstance(shown.figure, bytes) else printing.png(sized(shown.figure))


def sized(figure: alt.TopLevelMixin) -> alt.TopLevelMixin:
    """Give a chart that the dashboard stretches to its column a width of its own."""
    return figure if isinstance(getattr(figure, "width", None), int) else figure.properties(width=WIDTH)


def page(title: str, about: str, shown: Sequence[Shown | Later], answers: Sequence[str] = ()) -> str:
    """Return the view as HTML: everything that comes from files is escaped. Args: answers: sentences it opens with."""
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="answer">{escape(one)}</p>' for one in answers)]
    parts.append(f"<p>{escape(about)}</p>")
    for one in shown:
        parts += section(one)
    return document(title, [*parts, f"<p>sd35h5 {__version__}</p>"])


def section(one: Shown | Later) -> list[str]:
    """Return a figure with its name, what was kept of its view, and its Python, as escaped HTML."""
    parts = [f"<h2>{escape(one.name)}</h2>"]
    if isinstance(one, Shown) and one.address:
        note = escape(one.note).replace("\n", "<br>")
        parts += [f'<p class="answer">{note}</p>'] if note else []
        parts.append(f"<p>{escape(one.about)}</p><p>The view: <code>{escape(one.address)}</code></p>")
    parts.append(_figure(one))
    if one.code:
        parts.append(f"<details><summary>Python</summary><pre>{escape(one.code)}</pre></details>")
    return parts


def _figure(shown: Shown | Later) -> str:
    if shown.figure is None and isinstance(shown, Shown) and shown.address:
        return ""
    if shown.figure is None:
        return f'<div class="scroll">{shown.table.head(100).to_html(index=False, border=0)}</div>'
    if isinstance(shown.figure, bytes):
        data = base64.b64encode(shown.figure).decode()
        return f'<figure><img class="wide" src="data:image/png;base64,{data}" alt="{escape(shown.name)}"></figure>'
    # as a picture of its own: nothing in it can act in the page
    data = base64.b64encode(svg(shown).encode()).decode()
    return f'<figure><img class="wide" src="data:image/svg+xml;base64,{data}" alt="{escape(shown.name)}"></figure>'


def picture_bytes(pixels) -> bytes:
    """Return pixels (y, x, 3) or a PIL image as PNG."""
    import io

    image = pixels if isinstance(pixels, overlays.Image.Image) else overlays.Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
