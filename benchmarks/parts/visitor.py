"""A visitor of the dashboard without a browser: changes widgets over Streamlit's socket, times the answers."""

from __future__ import annotations

import json
import time
from typing import Any

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.sync.client import connect

WIDGETS = ("slider", "selectbox", "button_group", "vega_lite_chart", "bidi_component")


class Session:
    """One visit of a page.

    Args: address: http://HOST:PORT; page: the page's name in its URL.
    """

    def __init__(self, address: str, page: str) -> None:
        url = f"{address.replace('http', 'ws', 1)}/_stcore/stream"
        self._socket = connect(url, subprotocols=["streamlit"], max_size=None)
        self._page = page
        self._states: dict[str, WidgetState] = {}
        self._widgets: dict[str, Any] = {}  # by label; a chart by the key that ends its id

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *raised: object) -> None:
        self._socket.close()

    def rerun(self) -> float:
        """Send what is chosen. Returns: seconds until the script has ended and all of its messages are here.

        Raises: RuntimeError where the page shows a traceback.
        """
        asked = BackMsg()
        asked.rerun_script.page_name = self._page
        asked.rerun_script.widget_states.widgets.extend(self._states.values())
        begin = time.perf_counter()
        self._socket.send(asked.SerializeToString())
        while True:
            message = ForwardMsg()
            message.ParseFromString(self._socket.recv())
            if message.WhichOneof("type") == "script_finished":
                return time.perf_counter() - begin
            self._take(message.delta.new_element)

    def slide(self, label: str, low: int, high: int) -> float:
        """Set the ends of a slider. Returns: as `rerun`."""
        return self._change(label, double_array_value={"data": (low, high)})

    def choose(self, label: str, place: int) -> float:
        """Choose an option of a box by its place. Returns: as `rerun`."""
        return self._change(label, string_value=self._widgets[label].options[place])

    def press(self, label: str, place: int) -> float:
        """Press one of a row of buttons by its place. Returns: as `rerun`."""
        value = self._widgets[label].options[place].content
        return self._change(label, string_array_value={"data": [value]})

    def pin(self, figure: str, layer: int, head: int) -> float:
        """Pin a cell of a linked figure, as its component tells it once. Returns: as `rerun`."""
        own = self._widgets[figure].id
        # as a browser has it: without, the figure's key is unknown
        self._states[own] = WidgetState(id=own, json_value="{}")
        name = f"$$STREAMLIT_INTERNAL_KEY_{own}__events"
        event = {"event": "rested", "value": {"pinned": [layer, head], "x": "step"}}
        self._states[name] = WidgetState(id=name, json_trigger_value=json.dumps([event]))
        try:
            return self.rerun()
        finally:
            del self._states[name]

    def _change(self, label: str, **value: Any) -> float:
        name = self._widgets[label].id
        self._states[name] = WidgetState(id=name, **value)
        return self.rerun()

    def _take(self, element: Any) -> None:
        kind = element.WhichOneof("type")
        if kind == "exception":
            raise RuntimeError(element.exception.message)
        if kind in WIDGETS:
            widget = getattr(element, kind)
            label = getattr(widget, "label", "") or widget.id.split("-", 2)[-1]
            self._widgets[label] = widget
