"""Writes the videos of `moving_sprites` with their boxes, and the specification of the data set.

<out>/<split>/<number>.mp4     real H.264 files
<out>/<split>.json             boxes in the layout of COCO-video, one file per split; see `annotation`
<out>/train_all.json           training videos with all frames labelled, where `train.json` has only some of them
<out>/truth.csv                per video: objects, and strings of 0 and 1, a digit per frame (read them as text): which
                               frames are degraded, which are labelled
<out>/task.json                the configuration that made them
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_specs.schema import NAME_PATTERN, SPLITS
from infra.settings import Settings
from tasks.ops.controlled_files import each_video, task_folder, write_truth
from tasks.ops.controlled_render import Fact
from tasks.ops.init import PARAMS_HEAD, add_dataset, add_systems
from tasks.ops.init_text import samples_per_shard
from tasks.ops.listing import write_atomically
from tasks.ops.moving_sprites import MovingSpritesConfig
from tasks.ops.moving_sprites_plan import VideoPlan
from tasks.ops.moving_sprites_render import render_sprites
from tasks.ops.synthetic import encode_frames

__all__ = ["annotation", "check_name", "set_up", "write_sprites"]

_DIGITS = 4
"""Decimals of a box: a ten-thousandth of a pixel."""


class _Made(NamedTuple):
    split: str
    path: str
    plan: VideoPlan


def write_sprites(
    out: Path,
    config: MovingSpritesConfig,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Render and encode all videos and write their boxes; the folder appears when it is complete.

    Args:
        out: Folder that is made.
        config: What to make.
        force: Replace a folder of a controlled task.
        progress: Called with (done, total) after each video.

    Returns:
        The number of videos.

    Raises:
        FileExistsError: `out` exists, and `force` was not given or it is something else.
    """

    def one(folder: Path, split: str, number: int) -> _Made:
        frames, plan = render_sprites(config, split, number)
        path = f"{split}/{number:05d}.mp4"
        encode_frames(frames, folder / path, config.fps)
        return _Made(split, path, plan)

    with task_folder(out, config, force) as folder:
        made = list(each_video(partial(one, folder), config, progress))
        for split in SPLITS:
            videos = [(path, plan) for where, path, plan in made if where == split]
            _write_json(folder / f"{split}.json", annotation(config, videos))
            if split == "train":
                _write_json(folder / "train_all.json", annotation(config, videos, everything=True))
        return write_truth(folder, (_facts(path, plan) for _, path, plan in made))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _digits(flags: Iterable[object]) -> str:
    return "".join("01"[bool(flag)] for flag in flags)


def _facts(path: str, plan: VideoPlan) -> dict[str, Fact]:
    """Return a row of `truth.csv`."""
    return {
        "path": path,
        "objects": len(plan.sprites),
        "motions": " ".join(sprite.kind for sprite in plan.sprites),
        "degraded": _digits(bad is not None for bad in plan.degraded),
        "labelled": _digits(plan.labelled_T),
    }


def annotation(
    config: MovingSpritesConfig, videos: Sequence[tuple[str, VideoPlan]], everything: bool = False
) -> dict[str, Any]:
    """Return boxes in the layout of COCO-video.

    `images` has every frame of the files, `frame_id` from 0 (`file_name` is a name, no file); `is_vid_train_frame` says
    that its objects are known, and `subsets` is either `clean` or `degraded`. `bbox` is x, y, width, height, edges in
    pixels, clipped to the frame; `centre` is that of the whole object, so that the difference between two frames is its
    true displacement; `visible` is the share of it in the frame and not behind other objects' boxes. An object that
    left the frame and came back is another instance. Numbers of images, videos, instances and annotations count through
    the file, from 1.

    Args:
        config: The set they belong to.
        videos: Path below the folder, and what it shows.
        everything: Label all frames.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    size = {"width": config.size, "height": config.size}
    instances = 0
    for video, (path, plan) in enumerate(videos, start=1):
        first_image = len(images) + 1
        known = np.ones_like(plan.labelled_T) if everything else plan.labelled_T
        for frame, (labelled, bad) in enumerate(zip(known.tolist(), plan.degraded, strict=True)):
            subsets = ["clean" if bad is None else "degraded"]
            images.append(
                {"id": first_image + frame, "video_id": video, "frame_id": frame, "file_name": f"{path}#{frame}"}
                | size
                | {"is_vid_train_frame": labelled, "subsets": subsets}
            )
        boxes: list[tuple[int, dict[str, Any]]] = []
        for sprite in plan.sprites:
            rounds = sorted(set(sprite.round_T[sprite.shown_T].tolist()))
            for frame in np.flatnonzero(sprite.shown_T & known).tolist():
                x0, y0, x1, y1 = sprite.box_T4[frame].tolist()
                visible = sprite.inside_T[frame] * (1 - sprite.hidden_T[frame])
                boxes.append(
                    (
                        frame,
                        {
                            "image_id": first_image + frame,
                            "video_id": video,
                            "instance_id": instances + 1 + rounds.index(sprite.round_T[frame]),
                            "category_id": sprite.label + 1,
                            "bbox": [round(value, _DIGITS) for value in (x0, y0, x1 - x0, y1 - y0)],
                            "area": round((x1 - x0) * (y1 - y0), _DIGITS),
                            "iscrowd": 0,
                            "centre": [round(value, _DIGITS) for value in sprite.centre_T2[frame].tolist()],
                            "visible": round(float(visible), _DIGITS),
                        },
                    )
                )
            instances += len(rounds)
        boxes.sort(key=lambda entry: entry[0])
        annotations += [{"id": len(annotations) + 1 + at, **box} for at, (_, box) in enumerate(boxes)]
    return {
        "info": {"description": "moving_sprites"},
        "videos": [
            {"id": video, "name": path} | size | {"fps": config.fps, "length": config.num_frames}
            for video, (path, _) in enumerate(videos, start=1)
        ],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(config.classes, start=1)],
    }


# --- the data set ------------------------------------------------------------------------------------------


def check_name(folder: Path, settings: Settings, force: bool) -> str:
    """Return the name of the data set that a folder becomes; nothing is written, so that errors come before the work.

    Raises:
        ValueError: the folder's name is none for a data set.
        FileExistsError: there is a specification of this name, and `force` was not given.
        InitError: params.yaml cannot be extended safely.
    """
    name = re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")
    if not re.match(NAME_PATTERN, name):
        raise ValueError(f"folder {folder.name!r}: its name becomes that of the data set and must start with a letter")
    spec = _spec_file(name, settings)
    if spec.exists() and not force:
        raise FileExistsError(f"{spec} exists; give another folder, or --force to replace it")
    matrix = settings.root / "params.yaml"
    if matrix.exists():
        add_dataset(matrix.read_text(encoding="utf-8"), name, matrix)
    return name


def _spec_file(name: str, settings: Settings) -> Path:
    return settings.root / "data_specs" / "datasets" / f"{name}.yaml"


def set_up(name: str, folder: Path, config: MovingSpritesConfig, settings: Settings) -> list[Path]:
    """Write the data set's specification and an empty params file, and add it to the list of params.yaml.

    Args:
        name: Of the data set.
        folder: With the videos.
        config: That made them.
        settings: Where the project is.

    Returns:
        The files written or changed.

    Raises:
        InitError: params.yaml cannot be extended safely.
    """
    spec, params = _spec_file(name, settings), settings.root / "params" / f"{name}.yaml"
    write_atomically(spec, _spec_text(name, folder, config, settings).encode("utf-8"))
    written = [spec]
    if not params.exists():
        write_atomically(params, PARAMS_HEAD.format(name=name).encode("utf-8"))
        written.append(params)
    return [*written, *add_systems(name, (), settings)]


def _spec_text(name: str, folder: Path, config: MovingSpritesConfig, settings: Settings) -> str:
    full, root = folder.resolve(), settings.root.resolve()
    shown = full.relative_to(root).as_posix() if full.is_relative_to(root) else full.as_posix()
    quoted = json.dumps(shown, ensure_ascii=False)
    lines = [
        f"# Data set {name}, written by `fovea data synth {config.task}`; settings: task.json beside the videos.",
        f"name: {name}",
        'version: "1"',
        f"description: Procedural videos of moving objects; motion {config.motion}, degraded frames {config.regime}.",
        "licence: CC0-1.0",
        "labels:",
        *(f"  - {label}" for label in config.classes),
        "parts:",
    ]
    for split in SPLITS:
        lines += [
            f"  - name: {split}",
            "    source:",
            "      kind: coco_video",
            f"      root: {quoted}",
            f"      file: {json.dumps(f'{shown}/{split}.json', ensure_ascii=False)}",
        ]
        if split == "train" and config.label_every > 1:
            lines.append("      labelled: train  # every few frames; file train_all.json has all, without this line")
        lines.append(f"    split: {split}")
    total = config.num_train + config.num_val + config.num_test
    lines += [
        "clip:",
        "  representation: mp4",
        f"  short_side: {config.size}  # boxes are in pixels of the videos",
        "  fps: null  # boxes belong to the frames of the videos",
        "  audio: drop",
        "  crf: 12  # what makes frames bad shall be the task's, not the encoder's",
        "shards:",
        f"  samples_per_shard: {samples_per_shard(total)}",
        "  seed: 0",
        "max_reject_share: 0",
    ]
    return "\n".join(lines) + "\n"
