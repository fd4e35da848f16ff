"""Pages of the WebUI in Chromium."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@contextmanager
def page_closed_in_order(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page that is closed when none of its events is under way.

    gradio keeps what a page has queued when it is closed, and "Reload UI" waits for that for ever.
    """
    page = browser.new_page(**options)
    sockets: list[Any] = []
    page.on("websocket", lambda socket: sockets.append(socket))
    try:
        yield page
        quiet, deadline = 0, time.monotonic() + 10
        while quiet < 20 and time.monotonic() < deadline:
            page.wait_for_timeout(100)
            quiet = quiet + 1 if all(socket.is_closed() for socket in sockets) else 0
    finally:
        page.close()
