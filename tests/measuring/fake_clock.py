"""Time that passes only when a test tells it to, and who listens to what is told of it."""

from __future__ import annotations


class Clock:
    """In the place of time.perf_counter."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def silent(phase: str, done: int, of: int) -> None:
    """Nobody watches."""
