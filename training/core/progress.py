"""A bar for work that goes on in other processes: they write a small file, the driver draws it."""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path


def write_progress(path: Path, step: int, steps: int | None, values: dict[str, float], unit: str = "step") -> None:
    """Write a file for `progress_bar`, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps({"step": step, "steps": steps, "values": values, "unit": unit}))
    os.replace(temporary, path)


@contextlib.contextmanager
def progress_bar(path: Path, title: str, enabled: bool) -> Iterator[None]:
    """Draw a progress file as a bar, or as a line every 10 s where stderr is no terminal.

    Where a search's end is not known, the bar has no end either.
    """
    if not enabled:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    console = Console(stderr=True)
    stop = threading.Event()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )

    def follow() -> None:
        task = bar.add_task(title, total=1, note="starting workers")
        last_line, last_step = time.monotonic(), 0
        while not stop.wait(0.5):
            try:
                state = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            count = f"{state['step']}/{state['steps']}" if state["steps"] else f"{state['step']}"
            shown = " ".join(f"{k.split('/')[-1]} {v:.4g}" for k, v in state["values"].items())
            bar.update(task, total=state["steps"], completed=state["step"], note=f"{count} {shown}")
            if not console.is_terminal and state["step"] > last_step and time.monotonic() - last_line > 10:
                last_line, last_step = time.monotonic(), state["step"]
                print(f"{title}: {state['unit']} {count} {shown}", file=sys.stderr, flush=True)

    with bar:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
