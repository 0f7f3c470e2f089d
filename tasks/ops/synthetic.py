"""Procedural videos whose answer is known: a small textured object among look-alikes.

The class is a coarse cue (colour of the object's rim) times a fine texture (direction of its stripes). At a
glance's resolution the rim can be seen and the stripes cannot, and distractors carry stripes of any direction
under a grey rim. So a classifier needs a close look at the right place: the case for which AdaFocus exists.

    <out>/<split>/<class>/<number>.mp4     real H.264 files
    <out>/truth.csv                        where the object is, per video and frame
"""

import csv
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from data_specs.schema import Strict

COLORS = {"red": (220, 50, 50), "green": (50, 190, 70), "blue": (70, 90, 230)}
DIRECTIONS = ("horizontal", "vertical", "diagonal", "antidiagonal")

Frames = NDArray[np.uint8]


class SyntheticConfig(Strict):
    """Section `synthetic` of a params file."""

    seed: int
    num_train: int = Field(ge=1)
    num_val: int = Field(ge=1)
    num_test: int = Field(ge=1)
    size: int = Field(ge=16)
    """Side of the square frames, pixels."""
    num_frames: int = Field(ge=2)
    fps: int = Field(ge=1)
    object_size: int = Field(ge=8)
    """Side of object and distractors, pixels."""
    num_distractors: int = Field(ge=0)
    speed: float = Field(ge=0)
    """Pixels per frame."""
    texture_share: float = Field(ge=0, le=1)
    """Share of frames that show the class's stripes; the others show those of a random direction."""


def class_names() -> list[str]:
    """Return the class names, `<color>_<direction>`, in index order."""
    return [f"{color}_{direction}" for color in COLORS for direction in DIRECTIONS]


def _stripes(direction: str, size: int, phase: int) -> NDArray[np.float32]:
    """Return a (size,size) pattern of 0 and 1 with a period of 4 pixels across the stripes."""
    y, x = np.mgrid[0:size, 0:size]
    # The diagonal patterns advance one pixel per row: their period along an axis is 4 as well.
    across = {"horizontal": y, "vertical": x, "diagonal": x + y, "antidiagonal": x - y}[direction]
    pattern: NDArray[np.float32] = (((across + phase) // 2) % 2).astype(np.float32)
    return pattern


def _sprite(rim: tuple[int, int, int], direction: str, size: int, phase: int) -> Frames:
    pattern = _stripes(direction, size, phase)[..., None]
    sprite = (40 + 175 * pattern).repeat(3, axis=2)
    border = np.ones((size, size), dtype=bool)
    border[2:-2, 2:-2] = False
    sprite[border] = rim
    return sprite.astype(np.uint8)


def smooth_background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return a grey background (size,size,3) of soft blotches, levels 70 to 150."""
    coarse = rng.uniform(70, 150, (size // 8 + 2, size // 8 + 2))
    grid = np.linspace(0, coarse.shape[0] - 1.001, size)
    low = grid.astype(int)
    frac = (grid - low)[:, None]
    rows = coarse[low] * (1 - frac) + coarse[low + 1] * frac
    smooth = rows[:, low] * (1 - frac.T) + rows[:, low + 1] * frac.T
    background: NDArray[np.float32] = smooth[..., None].repeat(3, axis=2).astype(np.float32)
    return background


def _path(rng: np.random.Generator, config: SyntheticConfig) -> NDArray[np.int64]:
    """Return integer top left corners (T,2) of a bouncing object with a uniform start."""
    room = config.size - config.object_size
    position = rng.uniform(0, room, 2)
    angle = rng.uniform(0, 2 * np.pi)
    steps = np.arange(config.num_frames)[:, None] * config.speed * np.array([np.sin(angle), np.cos(angle)])
    # Reflection at both borders: fold the free motion into [0, room].
    folded = np.abs((position + steps) % (2 * room) - room) if room else np.zeros((config.num_frames, 2))
    return np.rint(folded).astype(np.int64)


def render(config: SyntheticConfig, split: str, number: int) -> tuple[Frames, NDArray[np.int64], int]:
    """Render one video: frames (T,H,W,3), object corners (T,2) as (y, x), class index."""
    split_index = ("train", "val", "test").index(split)
    rng = np.random.default_rng([config.seed, split_index, number])
    label = number % len(class_names())
    color, direction = class_names()[label].split("_")
    base = smooth_background(rng, config.size)
    side = config.object_size
    sprites: list[tuple[NDArray[np.int64], tuple[int, int, int], str | None]] = [
        (_path(rng, config), (150, 150, 150), None) for _ in range(config.num_distractors)
    ]
    target = _path(rng, config)
    sprites.append((target, COLORS[color], direction))
    phases = rng.integers(0, 4, len(sprites))
    own = rng.integers(0, 4, len(sprites))
    frames = np.empty((config.num_frames, config.size, config.size, 3), dtype=np.uint8)
    for t in range(config.num_frames):
        frame = base + rng.normal(0, 4, base.shape)
        frame = frame.clip(0, 255).astype(np.uint8)
        for index, (corners, rim, shown) in enumerate(sprites):
            if shown is None:
                name = DIRECTIONS[own[index]]
            else:
                name = shown if rng.random() < config.texture_share else DIRECTIONS[rng.integers(0, 4)]
            y, x = corners[t]
            frame[y : y + side, x : x + side] = _sprite(rim, name, side, int(phases[index]))
        frames[t] = frame
    return frames, target, label


def encode_frames(frames: Frames, path: Path, fps: int) -> None:
    """Write frames (T,H,W,3), H and W even, as H.264 that is nearly lossless in luma; makes the folder.

    The same frames give the same bytes with the same ffmpeg.

    Raises:
        RuntimeError: ffmpeg failed; the message has its own words.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", str(fps), "-i", "-", "-c:v", "libx264", "-preset", "veryfast"]
    command += ["-crf", "10", "-pix_fmt", "yuv420p", "-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    done = subprocess.run([*command, str(path)], input=frames.tobytes(), capture_output=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ffmpeg could not write {path}: {done.stderr.decode(errors='replace').strip()}")


def synthesize(out: Path, config: SyntheticConfig, progress: Callable[[int, int], None] | None = None) -> int:
    """Write the data set atomically: the folder appears when it is complete.

    Returns:
        The number of videos.
    """
    jobs = [
        (split, number)
        for split, count in (("train", config.num_train), ("val", config.num_val), ("test", config.num_test))
        for number in range(count)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{out.name}-", dir=out.parent))
    temporary.chmod(0o755)

    def one(job: tuple[str, int]) -> list[list[Any]]:
        split, number = job
        frames, corners, label = render(config, split, number)
        name = f"{split}/{class_names()[label]}/{number:05d}.mp4"
        encode_frames(frames, temporary / name, config.fps)
        return [[name, t, int(y), int(x), config.object_size] for t, (y, x) in enumerate(corners)]

    rows: list[list[Any]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, part in enumerate(pool.map(one, jobs), start=1):
            rows += part
            if progress is not None:
                progress(done, len(jobs))
    with (temporary / "truth.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "frame", "y", "x", "size"])
        writer.writerows(rows)
    if out.exists():
        shutil.rmtree(out)
    temporary.rename(out)
    return len(jobs)


def read_config(params: Path) -> SyntheticConfig:
    """Read section `synthetic` of a params file.

    Raises:
        ValueError: the section is missing or not valid; the message names file and field.
    """
    values = (yaml.safe_load(params.read_text()) or {}).get("synthetic")
    if values is None:
        raise ValueError(f"{params} has no section 'synthetic'")
    try:
        return SyntheticConfig.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ValueError(f"{params}: section 'synthetic' is not valid:\n" + "\n".join(lines)) from None


def main_cli(params: Path, out: Path) -> None:
    """Make the videos that a params file describes, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    config = read_config(params)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("synthetic videos", total=None)
        synthesize(out, config, lambda done, total: bar.update(task, completed=done, total=total))
