"""An operation's wall time, and the anonymous memory that it takes at most; imports nothing but the standard library.

Both sides use it: it also runs in sd-scripts' interpreter.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

_INTERVAL = 0.02  # seconds: looking more often takes a tenth of the processor


def anonymous_bytes() -> int:
    """What this process has taken now, without files that are mapped (Linux)."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def timed(operation: Callable[[], object]) -> dict[str, float]:
    """Do it; {"seconds", "processor", "anonymous_mb"}: the most memory beyond that before it, looked at every 20 ms."""
    before = anonymous_bytes()
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_INTERVAL):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begin, processor = time.perf_counter(), time.process_time()
    try:
        operation()
    finally:
        seconds, processor = time.perf_counter() - begin, time.process_time() - processor
        peak = max(peak, anonymous_bytes())
        done.set()
        watcher.join()
    return {"seconds": seconds, "processor": processor, "anonymous_mb": (peak - before) / 1e6}
