"""Which candidates no other one beats in everything."""

from collections.abc import Sequence


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether one is nowhere smaller and somewhere larger; all objectives are maximised."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the numbers of the points that none dominates, in order; of equal points all or none.

    Args:
        points: objectives per candidate, all maximised (costs with a minus).
    """
    return [n for n, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def ranks(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the number of the front to which each point belongs when fronts are peeled off one by one, from 0."""
    found = [-1] * len(points)
    left, rank = list(range(len(points))), 0
    while left:
        peeled = {left[n] for n in front([points[n] for n in left])}
        for n in peeled:
            found[n] = rank
        left, rank = [n for n in left if n not in peeled], rank + 1
    return found
