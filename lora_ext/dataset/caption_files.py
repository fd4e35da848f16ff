"""Caption files beside pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

CAPTION_EXTENSIONS = (".txt", ".caption")
"""In the order in which they are looked for."""


class UnreadableCaptionError(Exception):
    """A caption file that is no UTF-8 text; the message is the reason and the remedy."""


@dataclass(frozen=True)
class CaptionFile:
    """The lines of a caption file that are not empty, stripped."""

    path: Path
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The caption where one line is trained: the first."""
        return self.lines[0] if self.lines else ""

    @property
    def further_lines(self) -> int:
        """How many lines follow the first."""
        return max(0, len(self.lines) - 1)


def extensions_to_read(caption_extension: str) -> tuple[str, ...]:
    """The extensions, in lower case, that the setting `caption_extension` stands for."""
    return CAPTION_EXTENSIONS if caption_extension == "auto" else (caption_extension,)


def captions_by_stem(files: Iterable[Path], caption_extension: str = "auto") -> dict[str, dict[str, Path]]:
    """Caption files by the name without extension, then by the extension in lower case.

    Those of the setting `caption_extension`, and the usual ones, are caption files.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in files:
        extension = path.suffix.lower()
        if extension in (*CAPTION_EXTENSIONS, caption_extension):
            found.setdefault(path.stem, {})[extension] = path
    return found


def caption_stems(picture: Path) -> tuple[str, ...]:
    """The names without extension under which a picture's caption may lie: its own, or without a face's four numbers.

    sd-scripts' face cropping names pictures `name_centre-x_centre-y_width_height`.
    """
    parts = picture.stem.split("_")
    return (picture.stem, "_".join(parts[:-4])) if len(parts) >= 5 else (picture.stem,)


def choose_caption_file(candidates: Mapping[str, Path], caption_extension: str) -> Path | None:
    """The file to read among those of one picture, or None."""
    return next((candidates[each] for each in extensions_to_read(caption_extension) if each in candidates), None)


def read_caption_file(path: Path) -> CaptionFile:
    """Read a caption; UnreadableCaptionError where the file is no UTF-8 text."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UnreadableCaptionError(f"cannot be read ({error.strerror}): check its permissions") from error
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in raw:
        raise UnreadableCaptionError("is not UTF-8 text (it looks like UTF-16): save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableCaptionError(f"is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    lines = (line.strip() for line in text.replace("\r", "\n").split("\n"))
    return CaptionFile(path, tuple(line for line in lines if line))
