"""The list of rejected videos: `quarantine.csv`, one line per video with reason and the command that shows it."""

import csv
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data_specs.schema import QUARANTINE_COLUMNS, RejectReason, Strict


class QuarantineRow(Strict):
    """One rejected video."""

    key: str
    source: str
    part: str
    split: str
    reason: RejectReason
    detail: str
    command: str


class TooManyRejectsError(RuntimeError):
    """More videos were rejected than the data set allows."""


def write_quarantine(path: Path, rows: Iterable[QuarantineRow]) -> None:
    """Write the list, sorted by part and key, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, QUARANTINE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in sorted(rows, key=lambda r: (r.part, r.key)):
            writer.writerow(row.model_dump(mode="json"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_quarantine(path: Path) -> list[QuarantineRow]:
    """Read `quarantine.csv`.

    Raises:
        ValueError: other columns than `QUARANTINE_COLUMNS`.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != QUARANTINE_COLUMNS:
            raise ValueError(f"{path}: columns {reader.fieldnames}, expected {list(QUARANTINE_COLUMNS)}")
        return [QuarantineRow.model_validate(row) for row in reader]


def count_reasons(rows: Iterable[QuarantineRow]) -> dict[str, int]:
    """Return reason → number of videos, most frequent first."""
    counts = Counter(row.reason.value for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def check_share(rejects: dict[str, int], listed: int, cap: float, path: Path, dataset: str) -> None:
    """Refuse a data set of which too much is rejected.

    Args:
        rejects: reason → number of videos.
        listed: number of videos that the sources list.
        cap: `max_reject_share` of the data set.
        path: where the list of rejects was written.
        dataset: name of the data set.

    Raises:
        TooManyRejectsError: the share is above the cap; names the counts and the list.
    """
    total = sum(rejects.values())
    if total <= cap * listed:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejects.items())
    raise TooManyRejectsError(
        f"data set {dataset!r}: {total} of {listed} videos rejected ({total / listed:.1%}), allowed is "
        f"max_reject_share = {cap:g} ({reasons}). The list with a command for each is {path}; mend the sources, or "
        "raise max_reject_share in the data set's specification"
    )
