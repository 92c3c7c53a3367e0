"""Start the dashboard from wherever it is installed: python -m dashboard [PATH …]."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run the app under Streamlit; the arguments are files or folders to show."""
    from streamlit.web.cli import main as streamlit

    sys.argv = ["streamlit", "run", str(Path(__file__).with_name("app.py")), "--", *sys.argv[1:]]
    streamlit()


if __name__ == "__main__":
    main()
