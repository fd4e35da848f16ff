"""How long work goes on, from what is done of it so far."""

from __future__ import annotations

_FIRST_GUESS = 1.0  # seconds


def seconds_left(seconds: float, done: int, total: int) -> float | None:
    """Seconds until all of `total` parts are done, if they take as long as the first `done`; None while unknown."""
    if done <= 0 or total <= 0 or seconds < _FIRST_GUESS:
        return None
    return seconds * max(0, total - done) / done


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "12 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{int(seconds // 3600)} h {round(seconds % 3600 / 60)} min"
