"""Pages of the dashboard by Streamlit's AppTest, and what they show, for tests."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[2]


def open_page(
    monkeypatch, *paths: Path, page: str = "overview", url: dict[str, str] | None = None, **state
) -> AppTest:
    """Start the dashboard with these paths on one of its pages, with a URL's query and a session's state."""
    monkeypatch.setattr(sys, "argv", ["app.py", *map(str, paths)])
    test = AppTest.from_file(str(ROOT / "dashboard" / "app.py"), default_timeout=60)
    for name, value in (url or {}).items():
        test.query_params[name] = value
    for name, value in state.items():
        test.session_state[name] = value
    test.switch_page(f"views/{page}.py")
    test.run()
    assert not test.exception, test.exception
    return test


def text_of(test: AppTest) -> str:
    """Return all words of the page."""
    kinds = (test.markdown, test.caption, test.info, test.warning, test.error, test.subheader)
    captions = [image.caption for pictures in test.get("image") for image in pictures.proto.imgs]
    return "\n".join([str(element.value) for kind in kinds for element in kind] + captions)


def frames_of(test: AppTest) -> list[pd.DataFrame]:
    """Return the data of each chart, as the browser gets it."""
    found = []
    for chart in test.get("vega_lite_chart"):
        for dataset in chart.proto.datasets:
            found.append(pa.ipc.open_stream(io.BytesIO(dataset.data.data)).read_pandas())
    return found


def frame_with(test: AppTest, *columns: str) -> pd.DataFrame:
    """Return the data of the first chart that has these columns."""
    return next(frame for frame in frames_of(test) if set(columns) <= set(frame.columns))
