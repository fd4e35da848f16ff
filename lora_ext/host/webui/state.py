"""What lives as long as the WebUI's process: the host and the runner of trainings.

The WebUI's "Reload UI" runs the entry script anew, but leaves imported modules as they are.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from lora_ext.host.webui.host import WebUIHost

if TYPE_CHECKING:
    from lora_ext.jobs.runner import JobRunner

_lock = threading.RLock()
_host: WebUIHost | None = None
_runner: JobRunner | None = None


def get_host() -> WebUIHost:
    """The host, one in a process."""
    global _host
    with _lock:
        if _host is None:
            _host = WebUIHost()
        return _host


def get_runner() -> JobRunner:
    """The runner of trainings, one in a process; the WebUI's interrupt stops what it runs."""
    global _runner
    with _lock:
        if _runner is None:
            from lora_ext.jobs.registry import RunRegistry
            from lora_ext.jobs.runner import JobRunner

            host = get_host()
            _runner = JobRunner(host, RunRegistry(host.folders().runs))
            host.watch(_runner)
        return _runner


def close_runner() -> None:
    """Stop a training in order, keep what is trained, and wait for that."""
    with _lock:
        runner = _runner
    if runner is not None:
        runner.close(timeout=None)
