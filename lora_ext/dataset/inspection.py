"""Facts of pictures that are looked at again and again, while a person changes settings."""

from __future__ import annotations

import threading
from pathlib import Path

from lora_ext.dataset.images import ImageFacts, inspect_image

_MOST = 100_000
"""Pictures remembered at most; then all are forgotten."""


class RememberedFacts:
    """Gives the facts of pictures; a file whose size and time have not changed is not read again. For any thread."""

    def __init__(self) -> None:
        self._facts: dict[tuple[Path, int, int], ImageFacts] = {}
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> ImageFacts:
        """The picture's facts; BrokenImageError where it is broken."""
        try:
            found = path.stat()
        except OSError:
            return inspect_image(path)  # it says what is wrong
        key = (path, found.st_mtime_ns, found.st_size)
        with self._lock:
            facts = self._facts.get(key)
        if facts is None:
            facts = inspect_image(path)
            with self._lock:
                if len(self._facts) >= _MOST:
                    self._facts.clear()
                self._facts[key] = facts
        return facts
