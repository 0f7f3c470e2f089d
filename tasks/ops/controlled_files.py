"""Writes the videos of a controlled task as a folder that `fovea data init` takes as it is.

<out>/<split>/<class>/<number>.mp4     real H.264 files
<out>/truth.csv                        what is known about each video: class, place of the sprite, timing
<out>/task.json                        the configuration that made them
"""

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_specs.schema import SPLITS
from tasks.ops.controlled import NEEDS, ControlledConfig, class_names
from tasks.ops.controlled_render import Fact, render
from tasks.ops.synthetic import encode_frames

TASK_FILE = "task.json"
TRUTH_FILE = "truth.csv"


def write_task(
    out: Path, config: ControlledConfig, force: bool = False, progress: Callable[[int, int], None] | None = None
) -> int:
    """Render and encode all videos; the folder appears when it is complete.

    Args:
        out: Folder that is made.
        config: What to make.
        force: Replace a folder that this function made.
        progress: Called with (done, total) after each video.

    Returns:
        The number of videos.

    Raises:
        FileExistsError: `out` exists, and `force` was not given or it is something else.
    """
    out = out.resolve()
    if out.exists():
        if not force:
            raise FileExistsError(f"{out} exists; give another folder, or --force to replace it")
        if not (out / TASK_FILE).is_file():
            raise FileExistsError(f"{out} has no {TASK_FILE}, so it is no controlled task and is not replaced")
    counts = dict(zip(SPLITS, (config.num_train, config.num_val, config.num_test), strict=True))
    jobs = [(split, number) for split, count in counts.items() for number in range(count)]
    names = class_names(config.task)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{out.name}-", dir=out.parent))
    temporary.chmod(0o755)

    def one(job: tuple[str, int]) -> dict[str, Fact]:
        split, number = job
        frames, label, facts = render(config, split, number)
        path = f"{split}/{names[label]}/{number:05d}.mp4"
        encode_frames(frames, temporary / path, config.fps)
        return {"path": path, "class": names[label], **facts}

    try:
        rows = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for done, row in enumerate(pool.map(one, jobs), start=1):
                    rows.append(row)
                    if progress is not None:
                        progress(done, len(jobs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        with (temporary / TRUTH_FILE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        about = {
            "config": config.model_dump(mode="json"),
            "classes": names,
            "needs": NEEDS[config.task],
            "sprite_side": config.side,
            "truth": TRUTH_FILE,
        }
        (temporary / TASK_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        _put(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(jobs)


def _put(new: Path, out: Path) -> None:
    """Rename a finished folder to its place; what was there goes when the new one is in place."""
    if not out.exists():
        new.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".old-{out.name}-", dir=out.parent))
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old)
