"""Writes the videos of a controlled task as a folder that `fovea data init` takes as it is.

<out>/<split>/<class>/<number>.mp4     real H.264 files; those of `sound_or_picture` have AAC beside it
<out>/truth.csv                        what is known about each video: class, and what the task adds, such as the place
                                       of the sprite, or which segments show the class (strings of 0 and 1: read them
                                       as text)
<out>/task.json                        the configuration that made them

`moving_sprites` has files of its own beside these: `tasks.ops.moving_sprites_files`.
"""

import csv
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import imageio_ffmpeg

from data_specs.schema import SPLITS
from tasks.ops.controlled import ControlledConfig
from tasks.ops.controlled_render import Fact, render
from tasks.ops.moving_sprites import MovingSpritesConfig
from tasks.ops.sound_or_picture import SAMPLE_RATE, SoundOrPictureConfig
from tasks.ops.sound_or_picture_render import Sound, render_sounding
from tasks.ops.synthetic import Frames, encode_frames

TASK_FILE = "task.json"
TRUTH_FILE = "truth.csv"

AnyConfig = ControlledConfig | SoundOrPictureConfig | MovingSpritesConfig
T = TypeVar("T")


def write_task(
    out: Path,
    config: ControlledConfig | SoundOrPictureConfig,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
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

    def one(folder: Path, split: str, number: int) -> dict[str, Fact]:
        sound = None
        if isinstance(config, SoundOrPictureConfig):
            frames, sound, label, facts = render_sounding(config, split, number)
        else:
            frames, label, facts = render(config, split, number)
        path = f"{split}/{config.classes[label]}/{number:05d}.mp4"
        if sound is None:
            encode_frames(frames, folder / path, config.fps)
        else:
            encode_sounding(frames, sound, folder / path, config.fps)
        return {"path": path, "class": config.classes[label], **facts}

    with task_folder(out, config, force) as folder:
        return write_truth(folder, each_video(partial(one, folder), config, progress))


@contextmanager
def task_folder(out: Path, config: AnyConfig, force: bool) -> Iterator[Path]:
    """Give a folder to fill, with `task.json` in it; at the end it takes its place as a whole.

    Raises:
        FileExistsError: `out` exists, and `force` was not given or it is something else.
    """
    out = out.resolve()
    if out.exists():
        if not force:
            raise FileExistsError(f"{out} exists; give another folder, or --force to replace it")
        if not (out / TASK_FILE).is_file():
            raise FileExistsError(f"{out} has no {TASK_FILE}, so it is no controlled task and is not replaced")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{out.name}-", dir=out.parent))
    temporary.chmod(0o755)
    try:
        about = {
            "config": config.model_dump(mode="json"),
            "classes": config.classes,
            "needs": config.needs,
            **config.about,
            "truth": TRUTH_FILE,
        }
        (temporary / TASK_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        yield temporary
        _put(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def each_video(
    make: Callable[[str, int], T], config: AnyConfig, progress: Callable[[int, int], None] | None
) -> Iterator[T]:
    """Make all videos of a task, several at a time, and give what is known about each, in order.

    Args:
        make: Called with split and number.
        config: Of the task.
        progress: Called with (done, total) after each video.
    """
    counts = dict(zip(SPLITS, (config.num_train, config.num_val, config.num_test), strict=True))
    jobs = [(split, number) for split, count in counts.items() for number in range(count)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done, made in enumerate(pool.map(lambda job: make(*job), jobs), start=1):
                yield made
                if progress is not None:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def write_truth(folder: Path, rows: Iterable[Mapping[str, Fact]]) -> int:
    """Write `truth.csv`, a row per video; returns how many there were."""
    known = list(rows)
    with (folder / TRUTH_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(known[0]))
        writer.writeheader()
        writer.writerows(known)
    return len(known)


def encode_sounding(frames_THWC: Frames, sound_N: Sound, path: Path, fps: int) -> None:
    """Write frames (T,H,W,3), H and W even, and one channel of sound as H.264 and AAC at 64 kbit/s; makes the folder.

    The same input gives the same bytes with the same ffmpeg. The picture is nearly lossless in luma.

    Args:
        frames_THWC: Levels 0 to 255.
        sound_N: 16-bit samples at `SAMPLE_RATE`.
        path: Of the mp4.
        fps: Frames per second.

    Raises:
        RuntimeError: ffmpeg failed; the message has its own words.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames_THWC.shape[1:3]
    # The sound waits in a file without a name: two pipes would need a thread that feeds one of them.
    with tempfile.TemporaryFile() as waiting:
        waiting.write(sound_N.astype("<i2").tobytes())
        waiting.seek(0)
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0"]
        command += ["-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", f"pipe:{waiting.fileno()}"]
        command += ["-c:v", "libx264", "-preset", "veryfast", "-crf", "10", "-pix_fmt", "yuv420p"]
        command += ["-c:a", "aac", "-b:a", "64k", "-aac_coder", "fast", "-threads", "1"]
        command += ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact", f"file:{path}"]
        done = subprocess.run(
            command,
            input=frames_THWC.tobytes(),
            pass_fds=[waiting.fileno()],
            capture_output=True,
            timeout=60,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"ffmpeg could not write {path}: {done.stderr.decode(errors='replace').strip()}")


def _put(new: Path, out: Path) -> None:
    """Rename a finished folder to its place; what was there goes when the new one is in place."""
    if not out.exists():
        new.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".old-{out.name}-", dir=out.parent))
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old)
