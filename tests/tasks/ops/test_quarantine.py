import pytest

from data_specs.schema import QUARANTINE_COLUMNS, RejectReason
from tasks.ops.quarantine import (
    QuarantineRow,
    TooManyRejectsError,
    check_share,
    count_reasons,
    read_quarantine,
    write_quarantine,
)


def row(key: str, reason: RejectReason = RejectReason.EMPTY, **fields: str) -> QuarantineRow:
    given = {"source": f'a "{key}", b\n.mp4', "part": "p", "split": "train", "detail": "0 bytes", "command": "ls"}
    return QuarantineRow(key=key, reason=reason, **(given | fields))


def test_round_trip_is_sorted_and_complete(tmp_path):
    rows = [row("b"), row("a", RejectReason.CORRUPT), row("a", part="o")]
    path = tmp_path / "new" / "quarantine.csv"
    write_quarantine(path, rows)
    assert read_quarantine(path) == [rows[2], rows[1], rows[0]]
    assert path.read_text().splitlines()[0] == ",".join(QUARANTINE_COLUMNS)
    assert [p.name for p in path.parent.iterdir()] == ["quarantine.csv"]


def test_foreign_columns_are_refused(tmp_path):
    path = tmp_path / "quarantine.csv"
    path.write_text("key,why\na,b\n")
    with pytest.raises(ValueError, match="columns"):
        read_quarantine(path)


def test_counts_are_by_frequency():
    rows = [row("a"), row("b", RejectReason.CORRUPT), row("c", RejectReason.CORRUPT), row("d", RejectReason.TIMEOUT)]
    assert list(count_reasons(rows).items()) == [("corrupt", 2), ("empty", 1), ("timeout", 1)]


def test_cap(tmp_path):
    check_share({"empty": 2}, 20, 0.1, tmp_path, "d")
    check_share({}, 20, 0.0, tmp_path, "d")
    with pytest.raises(TooManyRejectsError, match=r"3 of 20 videos rejected \(15.0%\).*corrupt 2, empty 1.*list.csv"):
        check_share({"corrupt": 2, "empty": 1}, 20, 0.1, tmp_path / "list.csv", "d")
