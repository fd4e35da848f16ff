"""sha256 of checkpoint files; those of large files are remembered by path, size and time."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20
REMEMBERED_FROM_BYTES = 64 << 20


def sha256_of(path: Path) -> str:
    """Hex digits of the file's sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _read_cache(cache_file: Path) -> dict[str, Any]:
    """What is remembered; nothing where the file is missing or damaged, since it can be made again."""
    try:
        content = json.loads(cache_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def cached_sha256(path: Path, cache_file: Path | None) -> str:
    """sha256 of `path`, computed once for each size and modification time of a file of 64 MB and more."""
    status = path.stat()
    if cache_file is None or status.st_size < REMEMBERED_FROM_BYTES:
        return sha256_of(path)
    key = str(path.resolve())
    identity = [status.st_size, status.st_mtime_ns]
    remembered = _read_cache(cache_file)
    entry = remembered.get(key)
    if isinstance(entry, dict) and entry.get("identity") == identity and isinstance(entry.get("sha256"), str):
        return str(entry["sha256"])
    digest = sha256_of(path)
    remembered[key] = {"identity": identity, "sha256": digest}
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache_file.with_name(f"{cache_file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(remembered, indent=1), encoding="utf-8")
    os.replace(temporary, cache_file)
    return digest
