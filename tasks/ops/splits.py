"""Divides samples into train, val and test: whole groups, stratified by class, decided by the seed alone.

The order in which groups are looked at is that of hash(seed, group), so neither the order of files nor that
of rows matters. The division is made within one part of a data set; parts are append-only, so a later part
never changes the split of an earlier one.
"""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data_specs.schema import SPLITS, SplitPolicy

_SEARCH_GROUPS = 200
"""Up to this many groups, moves between splits are searched; above it the greedy division is near enough."""
_THOROUGH_GROUPS = 40
"""Up to this many, all restarts are made: with few large groups the shares are hard to meet as well."""
_RESTARTS = 24
_ROUNDS = 20


@dataclass(frozen=True)
class SplitReport:
    """What a division came to."""

    counts: Mapping[str, Mapping[str, int]]
    """Class → split → number of samples."""
    groups: Mapping[str, int]
    """Split → number of groups."""
    absent: tuple[tuple[str, str], ...]
    """(class, split) pairs without a sample, of the splits that were asked for."""
    warnings: tuple[str, ...] = field(default=())


def _rank(seed: int, group: str) -> bytes:
    """Return what orders groups: a hash of seed and name."""
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()


def assign_splits(
    groups: Sequence[str],
    labels: Sequence[str],
    policy: SplitPolicy,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assign each group to a split.

    Args:
        groups: Group of each sample.
        labels: Class of each sample; samples of several classes give them joined, as one stratum.
        policy: Shares and seed.
        fixed: Groups whose split is already decided (by earlier parts); they count towards the shares.

    Returns:
        Group → split, for each group that occurs.

    Raises:
        ValueError: the two sequences differ in length.
    """
    if len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups but {len(labels)} labels")
    shares = {s: float(getattr(policy, s)) for s in SPLITS if getattr(policy, s) > 0}
    content: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        content[group][label] += 1
    result = {group: fixed[group] for group in content if fixed and group in fixed}
    free = sorted((g for g in content if g not in result), key=lambda g: _rank(policy.seed, g))
    tally = _Tally(content, shares)
    for group, split in result.items():
        tally.add(group, split)
    _greedy(free, tally, result)
    if len(free) <= _SEARCH_GROUPS and len(shares) > 1:
        _improve(free, tally, result, policy.seed)
    return result


class _Tally:
    """Samples per class and split, and how far they are from what is wanted; moves cost only what they touch."""

    def __init__(self, content: Mapping[str, Counter[str]], shares: Mapping[str, float]) -> None:
        self.content = content
        self.shares = shares
        self.totals: Counter[str] = Counter()
        for classes in content.values():
            self.totals.update(classes)
        self.size = self.totals.total()
        self.cells: dict[str, Counter[str]] = {label: Counter() for label in self.totals}
        self.filled: Counter[str] = Counter()

    def add(self, group: str, split: str, sign: int = 1) -> None:
        """Put a group into a split, or take it out (sign -1)."""
        for label, count in self.content[group].items():
            self.cells[label][split] += sign * count
            self.filled[split] += sign * count

    def class_cost(self, label: str) -> tuple[int, float]:
        """Return (splits without this class, squared deviation from the shares)."""
        total, counts = self.totals[label], self.cells[label]
        empty = sum(counts[split] <= 0 for split in self.shares)
        return empty, sum((counts[split] / total - share) ** 2 for split, share in self.shares.items())

    def cost(self, labels: Iterable[str]) -> tuple[int, float]:
        """Return the cost of some classes and of the sizes of the splits."""
        parts = [self.class_cost(label) for label in labels]
        sizes = sum((self.filled[split] / self.size - share) ** 2 for split, share in self.shares.items())
        return sum(p[0] for p in parts), round(sum(p[1] for p in parts) + len(self.totals) * sizes, 9)


def _greedy(free: Sequence[str], tally: _Tally, result: dict[str, str]) -> None:
    """Give groups to splits, rarest class first, each to the split that lacks most of that class.

    The first groups of a class go one to each split, so that a class with enough groups is in all of them.
    """
    shares, holders = tally.shares, defaultdict[str, list[str]](list)
    for group in free:
        for label in tally.content[group]:
            holders[label].append(group)
    for label in sorted(holders, key=lambda name: (len(holders[name]), name)):
        counts, total = tally.cells[label], tally.totals[label]
        for group in holders[label]:
            if group in result:
                continue
            chosen = max(
                shares,
                key=lambda split: (
                    counts[split] == 0,
                    shares[split] * total - counts[split],
                    shares[split] * tally.size - tally.filled[split],
                ),
            )
            result[group] = chosen
            tally.add(group, chosen)


def _climb(free: Sequence[str], tally: _Tally, trial: dict[str, str]) -> None:
    """Move single groups as long as that fills empty cells or comes nearer to the shares (in place)."""
    for _ in range(_ROUNDS):
        moved = False
        for group in free:
            labels, home = tally.content[group], trial[group]
            best = (tally.cost(labels), home)
            tally.add(group, home, -1)
            for split in tally.shares:
                if split != home:
                    tally.add(group, split)
                    cost = tally.cost(labels)
                    tally.add(group, split, -1)
                    if cost < best[0]:
                        best = (cost, split)
            trial[group] = best[1]
            tally.add(group, best[1])
            moved = moved or best[1] != home
        if not moved:
            return


def _improve(free: Sequence[str], tally: _Tally, result: dict[str, str], seed: int) -> None:
    """Search a better division than the greedy one.

    Groups that hold several classes (a performer, a day of recording) are a covering problem that greed
    alone solves badly; seeded restarts find a division where each class is everywhere, if there is one.
    """
    holders: Counter[str] = Counter()
    for classes in tally.content.values():
        holders.update(classes.keys())
    unavoidable = sum(max(0, len(tally.shares) - count) for count in holders.values())
    names, weights = list(tally.shares), list(tally.shares.values())
    choice = random.Random(seed)
    best: tuple[tuple[int, float], dict[str, str]] | None = None
    for attempt in range(_RESTARTS):
        if attempt:
            for group in free:
                tally.add(group, result[group], -1)
                result[group] = choice.choices(names, weights)[0]
                tally.add(group, result[group])
        _climb(free, tally, result)
        cost = tally.cost(tally.totals)
        if best is None or cost < best[0]:
            best = (cost, dict(result))
        if best[0][0] <= unavoidable and len(free) > _THOROUGH_GROUPS:
            break
    assert best is not None
    result.update(best[1])


def report_splits(
    groups: Sequence[str], labels: Sequence[str], splits: Sequence[str], wanted: Sequence[str] = SPLITS
) -> SplitReport:
    """Count a division and say which classes are absent where.

    Args:
        groups: Group of each sample.
        labels: Class of each sample (classes joined by `|` count for each).
        splits: Split of each sample.
        wanted: Splits in which every class is expected.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    members: dict[str, set[str]] = {split: set() for split in SPLITS}
    holders: dict[str, set[str]] = defaultdict(set)
    for group, label, split in zip(groups, labels, splits, strict=True):
        members[split].add(group)
        for name in label.split("|") if label else ():
            counts[name][split] += 1
            holders[name].add(group)
    absent = tuple((name, split) for name in sorted(counts) for split in wanted if counts[name][split] == 0)
    warnings = []
    for split in wanted:
        missing = [name for name, where in absent if where == split]
        if missing:
            few = [name for name in missing if len(holders[name]) < len(wanted)]
            reason = f"; {len(few)} of them have fewer than {len(wanted)} groups" if few else ""
            shown = ", ".join(missing[:8]) + (" …" if len(missing) > 8 else "")
            warnings.append(f"split {split}: no sample of {len(missing)} of {len(counts)} classes ({shown}){reason}")
    return SplitReport(
        counts={name: {s: counts[name][s] for s in SPLITS} for name in sorted(counts)},
        groups={split: len(members[split]) for split in SPLITS},
        absent=absent,
        warnings=tuple(warnings),
    )
