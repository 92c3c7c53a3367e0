"""The HTML, script and style of a published page, and the policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from pathlib import Path

from sd35h5.figures.linked_view import linked_figure
from sd35h5.reports.publishing.joined_modules import joined
from sd35h5.reports.publishing.places import MARK

HERE = Path(__file__).parent
PAGE, VENDOR = HERE / "page", HERE / "vendor"
READER, NOTICE = "flechette.min.js", "flechette-LICENSE.txt"
#: pages by their place in the URL, as the dashboard has them; the first is at the root
PAGES = {
    "": "Overview", "sinks": "Sinks", "tokens": "Tokens", "maps": "Maps", "compare": "Compare", "files": "Files",
}  # fmt: skip
ASIDE = (
    "A folder is shown by a server: run `python -m http.server` in it and open http://localhost:8000. "
    "`python -m sd35h5 publish … --single` makes one file that opens without one."
)


@cache
def script() -> str:
    """Return the script of the page, with the reader of Arrow before it and its licence."""
    notice = (VENDOR / NOTICE).read_text(encoding="utf-8").replace("*/", "* /")
    reader = (VENDOR / READER).read_text(encoding="utf-8")
    modules = {path.name: path.read_text(encoding="utf-8") for path in PAGE.glob("*.js")}
    own = joined("main.js", {**modules, "linked_view.js": linked_figure.script()})
    return f"/*! @uwdata/flechette, which reads Apache Arrow:\n{notice}*/\n{reader}\n{own}"


@cache
def style() -> str:
    """Return the style of the page."""
    return linked_figure.style() + (PAGE / "site.css").read_text(encoding="utf-8")


def folder_page(title: str, page: str) -> str:
    """Return a page of the folder: it loads what lies beside it, and nothing from elsewhere."""
    root = "../" if page else ""
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = f'<link rel="stylesheet" href="{root}site.css"><script defer src="{root}site.js"></script>'
    return _document(title, policy, head, root, ())


def single_head(title: str) -> tuple[str, str]:
    """Return the beginning and the end of the page that holds everything, between which its data belong."""
    own, look = script(), style()
    policy = (
        f"default-src 'none'; script-src {_source(own)}; style-src {_source(look)}; img-src data: blob:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )
    mark = "<!--data-->"
    whole = _document(title, policy, f"<style>{look}</style>", None, (mark, f"<script>{own}</script>"))
    first, _, last = whole.partition(mark)
    return first, last


def _document(title: str, policy: str, head: str, root: str | None, behind: tuple[str, ...]) -> str:
    where = "" if root is None else f' data-root="{root}"'
    aside = "" if root is None else f"<p>{escape(ASIDE)}</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        + MARK.decode()
        + f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><link rel='icon' href='data:,'>{head}</head>"
        f'<body><div id="site"{where}><noscript><p>This page needs JavaScript.</p></noscript>'
        f'<div class="aside">{aside}</div></div>{"".join(behind)}</body></html>\n'
    )


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
