"""Options of the WebUI that have other values in one thread alone, and are written nowhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modules import shared


class _InOneThread:
    """An attribute of the options' class: a value for the thread that has made it, the option itself for all others.

    The options' instance looks into its data only where its class has no such attribute, and writes there always.
    """

    def __init__(self, name: str, value: object) -> None:
        self._name, self._value = name, value
        self._thread = threading.get_ident()

    def __get__(self, options: Any, _: type) -> Any:
        return self._value if threading.get_ident() == self._thread else options.__getattr__(self._name)


@contextmanager
def options_in_this_thread(values: dict[str, Any]) -> Iterator[None]:
    """What this thread reads of `shared.opts` meanwhile; the WebUI's renders under its queue, one at a time.

    Pages, other threads and `config.json` have a person's own values throughout, and may change them.
    """
    kind = type(shared.opts)
    for name, value in values.items():
        setattr(kind, name, _InOneThread(name, value))
    try:
        yield
    finally:
        for name in values:
            delattr(kind, name)
