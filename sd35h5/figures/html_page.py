"""The shell of a self-contained HTML page: no scripts, no links to other files, and a policy that allows neither."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from sd35h5.store.showable import seen

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.6rem} h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
figure{margin:1.5rem 0} img{max-width:min(100%,720px);height:auto} img.wide{max-width:100%}
figure svg{max-width:100%;height:auto}
figcaption{color:#555;font-size:.9rem} .scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;margin:1rem 0}
th,td{text-align:left;padding:.25rem .7rem .25rem 0;border-bottom:1px solid #e5e5e5;vertical-align:top}
td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums} td.long{overflow-wrap:anywhere}
.answer{background:#f4f6f8;padding:.8rem 1.2rem;border-left:4px solid #0072B2}
pre{background:#f4f6f8;padding:.8rem 1rem;overflow-x:auto;font-size:.85rem}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """Return the page; `title` is text and is escaped, `parts` are HTML and must have been. What would act in a text in
    place of being seen, such as an override of its direction, is written out."""
    return seen(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
