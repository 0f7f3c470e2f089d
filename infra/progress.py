"""Progress line for a long installation: reads pip's output on stdin, shows one line that moves.

Standard library only, since it runs before anything is installed.
"""

import re
import sys
from collections.abc import Iterable
from typing import TextIO

STEP = re.compile(
    r"^(Collecting|Processing|Using cached|Downloading|Building|Installing collected packages|Preparing)\b:?\s*(\S*)"
)


def show(lines: Iterable[str], out: TextIO, total: int) -> None:
    """Rewrite one line with the number of packages seen; repeat errors in full."""
    seen = 0
    for line in lines:
        text = line.strip()
        match = STEP.match(text)
        fresh = match is not None and match[1] in ("Collecting", "Processing")
        seen += fresh
        if match and out.isatty():
            share = min(1.0, seen / total)
            bar = "#" * round(30 * share)
            installing = match[1].startswith("Installing")
            what = "installing, a minute or two" if installing else f"{match[1].lower()} {match[2][:48]}"
            out.write(f"\r\033[K[{bar:<30}] {seen:>3}/{total} {what}")
        elif match and (match[1].startswith("Installing") or (fresh and seen % 25 == 0)):
            out.write(f"  {seen}/{total} packages: {match[1].lower()}\n")
        elif text.startswith(("ERROR", "error")):
            out.write(f"\n{text}\n")
        out.flush()
    out.write("\n" if out.isatty() else "")


def main() -> int:
    """Read stdin, write the progress to stderr."""
    with open("constraints.txt") as file:
        total = sum("==" in line for line in file)
    show(sys.stdin, sys.stderr, total)
    return 0


if __name__ == "__main__":
    sys.exit(main())
