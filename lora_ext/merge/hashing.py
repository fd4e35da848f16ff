"""sha256 of large files, computed beside the work that reads them anyway."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lora_ext.protocols import UserError

_BLOCK = 2**20  # bytes


@contextmanager
def hashes_beside(paths: Sequence[Path]) -> Iterator[Callable[[Path], str]]:
    """Gives a function that waits for the sha256 of one of the files, in hex digits; a thread computes them meanwhile.

    What is not done at the end of the block is given up. The function raises UserError where a file cannot be read.
    """
    given_up = threading.Event()
    with ThreadPoolExecutor(1, "hashes") as pool:
        hashes = {path: pool.submit(_sha256, path, given_up) for path in paths}
        try:
            yield lambda path: hashes[path].result()
        finally:
            given_up.set()


def _sha256(path: Path, given_up: threading.Event) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while not given_up.is_set() and (block := file.read(_BLOCK)):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): check that the file is there") from error
    return digest.hexdigest()
