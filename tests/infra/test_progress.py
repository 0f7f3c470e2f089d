"""The progress line of an installation, from pip's own words."""

import io

from infra.progress import show

LINES = [
    "Looking in indexes: somewhere",
    "Collecting a (from fovea)",
    "  Downloading a-1.whl (2 kB)",
    "Processing /wheels/b-2.whl (from fovea)",
    "Installing collected packages: a, b",
    "ERROR: no matching distribution",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_moving_line() -> None:
    out = Terminal()
    show(LINES, out, total=4)
    text = out.getvalue()
    assert "[########" in text
    assert " 2/4 installing" in text
    assert text.count("\n") == 3  # around the error, and at the end
    assert "ERROR: no matching distribution" in text


def test_a_log_gets_few_lines() -> None:
    out = io.StringIO()
    show([f"Collecting p{i}" for i in range(60)] + LINES[-2:], out, total=60)
    assert out.getvalue().count("\n") == 5
    assert "25/60" in out.getvalue()
    assert "ERROR" in out.getvalue()
