"""What a check finds in a network: how bad it is, what it is in words, and the verdict over all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_ext.merge.work import Verdict

Severity = Literal["note", "doubtful", "damaged"]

_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """Something worth telling of a file. `kind` is its name for programs, `text` says what it is and what to do.

    `names` are the modules or tensors that it is about. A note is no reason to doubt the file.
    """

    severity: Severity
    kind: str
    text: str
    names: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"severity": self.severity, "kind": self.kind, "text": self.text, "names": list(self.names)}


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """The worst of the findings; healthy where there are none but notes."""
    severities = {finding.severity for finding in findings}
    return "damaged" if "damaged" in severities else "doubtful" if "doubtful" in severities else "healthy"


def some_of(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def modules_words(count: int) -> str:
    """`1 module`, `12 modules`."""
    return f"{count} module{'' if count == 1 else 's'}"
