"""Navigation and the shared sidebar, nothing else: streamlit run dashboard/app.py [-- PATH …]."""

import sys
from importlib import import_module
from pathlib import Path
from threading import Thread

import streamlit as st

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # streamlit puts dashboard/ there, not the checkout
    sys.path.insert(0, str(ROOT))

from dashboard import run_list, server_process  # noqa: E402
from dashboard.choosing import watching  # noqa: E402

server_process.return_memory()
# the tab's icon is a character: one by name, as the pages below have, the browser would fetch from fonts.gstatic.com
st.set_page_config(page_title="sd35h5", page_icon="👁️", layout="wide")
# the first visitor waits for the libraries and for the check of the files, which other processes do: for both at once
libraries = Thread(target=import_module, args=("dashboard.exports",))
libraries.start()
arguments = tuple(sys.argv[1:])
there = watching.look(arguments, ROOT)  # before: what comes while files are checked is seen by the watch
found = run_list.find(arguments, ROOT)
libraries.join()

from dashboard import cached_reads, exports, starring  # noqa: E402
from dashboard.choosing import sidebar  # noqa: E402

views = ROOT / "dashboard" / "views"
pages = [
    st.Page(views / "overview.py", title="Overview", icon=":material/grid_view:", default=True),
    st.Page(views / "sinks.py", title="Sinks", icon=":material/filter_center_focus:"),
    st.Page(views / "tokens.py", title="Tokens", icon=":material/segment:"),
    st.Page(views / "maps.py", title="Maps", icon=":material/image_search:"),
    st.Page(views / "gates.py", title="Gates", icon=":material/valve:"),
    st.Page(views / "compare.py", title="Compare", icon=":material/compare:"),
    st.Page(views / "evidence.py", title="Evidence", icon=":material/fact_check:"),
    st.Page(views / "findings.py", title="Findings", icon=":material/star:"),
    st.Page(views / "files.py", title="Files", icon=":material/description:"),
]
page = st.navigation(pages)
wanted = st.session_state.pop(
    "page_to_open", None
)  # by a sentence's link, which cannot from where it is clicked
if other := next((one for one in pages if one.url_path == wanted and one != page), None):
    st.switch_page(other)
st.session_state["found"] = found
view = st.session_state["view"] = sidebar.choose(found.runs)
watching.watch(arguments, ROOT, there)  # before the page, which ends the script where there is no run
with cached_reads.sentence(*(() if view is None else (view.run, *view.others))):
    page.run()
starring.offer(page)
exports.offer(page.title)
server_process.leave_libraries_alone()
