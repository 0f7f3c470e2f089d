"""What a search has seen so far: all that an engine may look at when it proposes a candidate."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from training.autovideo.search.space_tree import Choices

SeenStatus = Literal["running", "finished", "stopped", "failed", "refused", "invalid"]

Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Seen:
    """A candidate, and what is known of it."""

    choices: Choices
    status: SeenStatus
    """`refused`: costs more than the limits; `invalid`: no valid pipeline; neither is ever trained."""
    value: float | None = None
    """The metric; larger is better. Of a stopped one the last."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """gmac, params, and whatever else was known beforehand or came out."""
    excess: float = 0.0
    """Of a refused one: how far above its limits, as a share of them."""
    steps: int = 0
    """Of a stopped one: how far it came."""


class History:
    """Candidates in the order in which they were thought of, and in that in which they ended."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._ended: list[int] = []

    def add(self, seen: Seen) -> int:
        """Add a candidate; return its number."""
        self.seen.append(seen)
        if seen.status != "running":
            self._ended.append(len(self.seen) - 1)
        return len(self.seen) - 1

    def end(self, number: int, seen: Seen) -> None:
        """Replace a running candidate by what became of it."""
        self.seen[number] = replace(seen, choices=self.seen[number].choices)
        self._ended.append(number)

    def finished(self) -> list[Seen]:
        """Return finished candidates with a value in the order in which they ended."""
        ended = (self.seen[number] for number in self._ended)
        return [seen for seen in ended if seen.status == "finished" and seen.value is not None]

    def with_more(self, more: list[Seen]) -> "History":
        """Return a copy with some candidates added."""
        copy = History()
        copy.seen, copy._ended = list(self.seen), list(self._ended)
        for seen in more:
            copy.add(seen)
        return copy
