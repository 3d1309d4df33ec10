"""The lives of a comparison's processes: how often they start anew, and what was heard from them over all that.

A process is a little quicker or slower than another of the same run, all its life: its luck with memory, a few percent.
No number of calls within one life shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def shared_out(pairs: int, lives: int) -> list[int]:
    """How many pairs each life plays. They come by twos, an order and its reverse, so lives are at most half of them.

    An odd pair is the last life's.
    """
    lives = most_lives(pairs, lives)
    twos, more = divmod(pairs // 2, lives)
    sizes = [2 * (twos + (number < more)) for number in range(lives)]
    sizes[-1] += pairs % 2
    return sizes


def most_lives(pairs: int, lives: int) -> int:
    """So many lives, or as many as the pairs allow."""
    return min(lives, max(1, pairs // 2))


@dataclass
class Heard:
    """What one player's processes said of themselves, life after life.

    ready: what the first one said before its turns, with the distance from A's pictures of the first one that had them,
        and the notices of all.
    ended: what they said when they were done: the largest memory, all graphs, and whether each drew its first picture
        again at last. Empty until one did.
    identical: whether every one of them drew A's pictures exactly; None if that isn't known.
    """

    ready: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)
    identical: bool | None = None

    def started(self, ready: Mapping[str, Any]) -> None:
        """A process is warm."""
        quality = ready["quality"]
        self.ready = self.ready or {**ready, "notices": []}
        known = self.ready["notices"]
        known += [text for text in ready["notices"] if text not in known]
        if self.ready["quality"]["ssim"] is None:
            self.ready["quality"] = quality
        if quality["identical"] is not None:
            self.identical = quality["identical"] and self.identical is not False

    def stopped(self, ended: Mapping[str, Any]) -> None:
        """A process has said its last word."""
        if not self.ended:
            self.ended = dict(ended)
            return
        before = self.ended
        self.ended = {
            "peak_memory_bytes": {
                kind: max(filter(None, (before["peak_memory_bytes"][kind], size)), default=None)
                for kind, size in ended["peak_memory_bytes"].items()
            },
            "graphs_while_timing": before["graphs_while_timing"] + ended["graphs_while_timing"],
            "same_picture": before["same_picture"] and ended["same_picture"],
        }
