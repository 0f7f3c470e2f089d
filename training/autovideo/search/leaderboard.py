"""What a search leaves: every trial and every refused candidate, the Pareto front, the winner."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from training.autovideo.search.history import SeenStatus
from training.autovideo.search.pareto import front
from training.autovideo.search.space_tree import Choices, Space


@dataclass(frozen=True)
class Entry:
    """One trial."""

    name: str
    status: SeenStatus
    choices: Choices
    costs: Mapping[str, float]
    document: dict[str, Any]
    value: float | None = None
    error: str | None = None
    steps: int = 0
    nll: float = math.inf
    """Negative log-likelihood on the samples of the value: it still differs where few samples give equal values."""


@dataclass(frozen=True)
class Refusal:
    """A candidate that was not trained."""

    reason: Literal["limits", "invalid"]
    choices: Choices
    costs: Mapping[str, float]
    message: str
    digest: str
    """Its identity; of an invalid one, which has none, the document as text."""


def _finished(entries: Sequence[Entry]) -> list[tuple[float, Entry]]:
    return [(entry.value, entry) for entry in entries if entry.status == "finished" and entry.value is not None]


def choose_winner(entries: Sequence[Entry]) -> Entry | None:
    """Return the finished entry with the best value; of equals the cheaper, then the likelier."""
    return min((entry for _, entry in _finished(entries)), key=_place, default=None)


def _place(entry: Entry) -> tuple[float, float, float, float]:
    assert entry.value is not None
    return (-entry.value, entry.costs["gmac"], entry.costs["params"], entry.nll)


def front_members(entries: Sequence[Entry], minimise: Sequence[str]) -> list[str]:
    """Return the names of the finished entries on the Pareto front; an entry that lacks a cost cannot be compared."""
    rows = [(value, entry) for value, entry in _finished(entries) if all(name in entry.costs for name in minimise)]
    points = [(value, *(-entry.costs[name] for name in minimise)) for value, entry in rows]
    return [rows[number][1].name for number in front(points)]


def winner_yaml(winner: Entry) -> str:
    """Return the winner's document."""
    return yaml.safe_dump(json.loads(json.dumps(winner.document)), sort_keys=False, allow_unicode=True)


def leaderboard_json(
    head: Mapping[str, Any],
    space: Space,
    entries: Sequence[Entry],
    refused: Sequence[Refusal],
    members: set[str],
    winner: str,
) -> str:
    """Return the leaderboard: finished trials first, the best at the top, then the others in the order of asking.

    A row's `flat` has the columns of `Space.encode`, the same in all rows, None where a parameter does not exist.
    """
    done = [n for n, entry in enumerate(entries) if entry.status == "finished" and entry.value is not None]
    done.sort(key=lambda n: _place(entries[n]))
    order = [*done, *(n for n in range(len(entries)) if n not in set(done))]
    rows = [
        {
            "name": entry.name,
            "rank": place + 1 if place < len(done) else None,
            "status": entry.status,
            "value": entry.value,
            **dict(entry.costs),
            "front": entry.name in members,
            "winner": entry.name == winner,
            "steps": entry.steps,
            "error": entry.error,
            "error_class": entry.error.partition(":")[0] if entry.error else None,
            "choices": entry.choices,
            "flat": space.encode(entry.choices),
            "document": entry.document,
        }
        for place, entry in enumerate(entries[n] for n in order)
    ]
    not_trained = [
        {"reason": item.reason, "message": item.message, **dict(item.costs), "choices": item.choices,
         "flat": space.encode(item.choices)}
        for item in refused
    ]  # fmt: skip
    board = {"schema": "leaderboard/v1", **head, "columns": space.columns(), "trials": rows, "refused": not_trained}
    return json.dumps(board, indent=1, allow_nan=False) + "\n"
