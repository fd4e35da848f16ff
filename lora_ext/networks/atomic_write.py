"""Replacing a file so that whoever reads it finds the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from lora_ext.networks.beside import Beside, Chunk
from lora_ext.protocols import UserError

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".writing"
_MOST_WAITING = 2**26  # bytes that are not on the disk


def replace_file(path: Path, chunks: Iterable[Chunk], beginning: Callable[[], Chunk] | None = None) -> None:
    """Write `chunks` to a temporary file beside `path`, bring them to the disk, and put the file in `path`'s place.

    `beginning`, asked for after the last chunk, is written over the first bytes: what is known at the end alone.
    Temporary files that a killed process left in the folder are deleted. Raises UserError where the folder cannot be
    made, or the file not written; `path` is as it was then, and nothing is left over.
    """
    try:
        with new_folders([path.parent]), _temporary_file(path) as (temporary, file):
            with Beside(_written_through(file)) as write:
                for chunk in chunks:
                    write(chunk)
            if beginning is not None:
                file.seek(0)
                file.write(beginning())
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): free some space, allow writing there, close "
            "programs that hold the file, or choose another output folder"
        ) from error


def _written_through(file: BinaryIO) -> Callable[[Chunk], None]:
    """Writes chunks, and brings them to the disk meanwhile: all at once in the end it would take as long again."""
    waiting = 0

    def write(chunk: Chunk) -> None:
        nonlocal waiting
        file.write(chunk)
        waiting += len(chunk)
        if waiting >= _MOST_WAITING:
            file.flush()
            os.fsync(file.fileno())
            waiting = 0

    return write


@contextlib.contextmanager
def new_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Take those of `folders` and the folders above that were not there before away again where the block fails.

    One that holds something by then stays.
    """
    missing = {each for folder in folders for each in (folder, *folder.parents) if not each.exists()}
    try:
        yield
    except BaseException:
        for folder in sorted(missing, key=lambda each: len(each.parts), reverse=True):
            with contextlib.suppress(OSError):  # it holds something, or was never made
                folder.rmdir()
        raise


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path`, in a folder without leftovers; locked while open, gone afterwards unless renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_leftovers(path.parent)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
    with open(temporary, "xb") as file:
        try:
            with contextlib.suppress(OSError):  # file systems without locks: leftovers just stay there
                _lock(file)
            yield temporary, file
        finally:
            try:
                file.close()  # on a full disk this fails too: it writes what is still in the buffer
            finally:
                temporary.unlink(missing_ok=True)


def _delete_leftovers(folder: Path) -> None:
    """Delete temporary files that nobody is writing; on Windows the system refuses to delete an open one."""
    for leftover in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError), open(leftover, "rb") as file:  # held by its writer, or gone already
            _lock(file)
            file.close()
            leftover.unlink()


def _lock(file: BinaryIO) -> None:
    """Hold `file` until it is closed; raises OSError where someone else holds it."""
    if sys.platform != "win32":
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
