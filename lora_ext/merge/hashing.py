"""sha256 of large files, computed beside the work that reads them anyway."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lora_ext.networks.file import sha256_from
from lora_ext.protocols import Cancelled


@contextmanager
def hashes_beside(paths: Sequence[Path]) -> Iterator[Callable[[Path], str]]:
    """Gives a function that waits for the sha256 of one of the files, in hex digits; a thread computes them meanwhile.

    What is not done at the end of the block is given up. The function raises UserError where a file cannot be read.
    """
    given_up = threading.Event()

    def proceed() -> None:
        if given_up.is_set():
            raise Cancelled

    with ThreadPoolExecutor(1, "hashes") as pool:
        hashes = {path: pool.submit(sha256_from, path, 0, proceed) for path in paths}
        try:
            yield lambda path: hashes[path].result()
        finally:
            given_up.set()
