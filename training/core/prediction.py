"""`fovea predict`: a model by any of its names, on a file or a folder, with or without an overlay."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.settings import Settings
from training.core.answers import LEAST_SCORE, Result, choices_of
from training.core.config import DataConfig
from training.core.decode import count_packets, frame_times
from training.core.decode_rungs import video_stream
from training.core.overlay import Track, Written, write_overlay
from training.core.overlay_boxes import write_boxes
from training.core.overlay_timeline import Timeline, clip_times
from training.core.registration import Registry
from training.core.sampling import clip_positions, frame_positions
from training.core.serving import VideoClassifier, model_folder

if TYPE_CHECKING:
    from training.core.system import Prediction

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".gif", ".3gp", ".ts", ".flv")


class PredictError(ValueError):
    """Nothing can be predicted: no such file, or a folder without videos."""


@dataclass(frozen=True)
class ModelRef:
    """A model that was found."""

    folder: Path
    """With `model.safetensors` and `model.json`."""
    name: str
    """`adafocus-demo/3 (champion, passed)`, or the path."""


def find_model(settings: Settings, model: str, download: Path) -> ModelRef:
    """Find a model by registered name, alias, version, `models:/…` or path of a model folder.

    Args:
        settings: where the registry is.
        model: the name; a bare registered name means its champion.
        download: folder for the files of a model in a remote store.

    Raises:
        RegistryError: nothing of that name.
    """
    for folder in (Path(model), Path(model) / "model"):
        if (folder / "model.json").is_file():
            return ModelRef(folder, str(folder))
    registry = Registry.open(settings)
    version = registry.resolve(model)
    saved = registry.fetch_model(version, download)
    aliases = ", ".join((*version.aliases, version.gate))
    return ModelRef(model_folder(saved), f"{version} ({aliases})")


def videos_of(path: Path) -> list[Path]:
    """Return a file as it is, or the videos below a folder in order of their paths.

    Raises:
        PredictError: no such path, or no video in the folder.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise PredictError(f"{path} does not exist")
    videos = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in VIDEO_EXTENSIONS)
    if not videos:
        raise PredictError(f"{path} has no videos (looked for {', '.join(VIDEO_EXTENSIONS)})")
    return videos


def predict(
    classifier: VideoClassifier, videos: list[Path], top: int, least_score: float = LEAST_SCORE
) -> Iterator[Result]:
    """Yield the result of each video; a broken one is a result with an error, and the others go on."""
    for video in videos:
        yield classifier.classify(video, top, least_score)


def predict_overlay(
    classifier: VideoClassifier,
    video: Path,
    target: Path,
    *,
    top: int,
    least_score: float = LEAST_SCORE,
    ffmpeg_program: str,
    on_frame: Callable[[int, int], None] | None = None,
) -> tuple[Result, Written]:
    """Predict one video and write a copy of it with the answer and, where the model has them, what it chose.

    A model that looks at patches says so in `Prediction.extras`: `origins` (B,T,2), the corner (y, x) in pixels
    of the network input per sampled frame, and `patch` (B,), its side. One that chooses what to use of each of S clips
    has `choices` (B,S,R), maybe `available` of the same shape, and `System.choice_names`: these are drawn below.
    Of one that finds objects, those of at least `least_score` are drawn.

    Raises:
        OverlayError: the copy cannot be written.
        Exception: what the decoder raises for a file that it cannot read.
    """
    from training.core.transforms import source_rectangle

    if classifier.finds_objects:
        return _objects_overlay(
            classifier, video, target, top=top, least_score=least_score, program=ffmpeg_program, on_frame=on_frame
        )
    prediction, batch = classifier.forward(video)
    result = classifier.result(str(video), prediction, top)
    track = None
    origins, patch = prediction.extras.get("origins"), prediction.extras.get("patch")
    if origins is not None and patch is not None:
        side = float(patch[0])
        height, width = picture_size(video)
        boxes = []
        for y, x in origins[0].tolist():
            top_, left, high, wide = source_rectangle(batch, 0, float(y), float(x), side, side)
            boxes.append([top_ / height, left / width, (top_ + high) / height, (left + wide) / width])
        times = frame_times(video)
        frames = _sampled(video, classifier.model.data_config(), len(times))
        track = Track(np.array([times[i] for i in frames]), np.clip(np.array(boxes), 0.0, 1.0))
    written = write_overlay(
        video,
        target,
        label=f"{result.classes[0]} {result.scores[0]:.0%}",
        track=track,
        timeline=_timeline(classifier, prediction, video),
        ffmpeg_program=ffmpeg_program,
        on_frame=on_frame,
    )
    return result, written


def _objects_overlay(
    classifier: VideoClassifier,
    video: Path,
    target: Path,
    *,
    top: int,
    least_score: float,
    program: str,
    on_frame: Callable[[int, int], None] | None,
) -> tuple[Result, Written]:
    """Find a video's objects, and write a copy with them."""
    from training.core.data import video_blocks

    result = classifier.find(str(video), video, top, least_score)
    assert result.watched is not None
    # Read as the model read it: its frame numbers are these pictures'.
    blocks = video_blocks(
        video, classifier.model.data_config(), decoder=classifier.model.decoder, num_frames=result.watched.frames
    )
    pictures = (picture for block in blocks for picture in block.frames_BTHWC[0].numpy())
    written = write_boxes(
        video,
        target,
        pictures=pictures,
        watched=result.watched,
        least_score=least_score,
        ffmpeg_program=program,
        on_frame=on_frame,
    )
    return result, written


def _timeline(classifier: VideoClassifier, prediction: "Prediction", video: Path) -> Timeline | None:
    """Return what was used of each clip and when these are; None for a model that does not choose."""
    chosen = choices_of(prediction, classifier.model.system.choice_names)
    if not chosen:
        return None
    used_SR = np.array(list(chosen.values()), dtype=bool).T
    available = prediction.extras.get("available")
    times = np.array(frame_times(video))
    frames_S = clip_frames(video, classifier.model.data_config(), len(times), len(used_SR))
    available_SR = None if available is None else available[0].bool().cpu().numpy()
    return Timeline(tuple(chosen), clip_times(frames_S, times), used_SR, available_SR)


def clip_frames(video: Path, config: DataConfig, num_frames: int, clips: int) -> list[NDArray[np.int64]]:
    """Return the frame numbers that each of several clips of a video spans, at evaluation.

    Args:
        video: the file.
        config: of the loader.
        num_frames: how many frames can be decoded.
        clips: S, how many clips the model says it saw.

    Raises:
        ValueError: the loader's frames are not those of so many clips.
    """
    if config.sampling == "clips":
        count = count_packets(video)
        positions_ST = clip_positions(count, config, train=False, seed=0)
        if int(positions_ST.max()) >= num_frames:
            positions_ST = clip_positions(num_frames, config, train=False, seed=0)
        # Of each position a stack of frames, or of flow between them, is seen.
        reach = np.minimum(positions_ST.max(axis=1) + config.stack - 1, num_frames - 1)
        frames = [np.append(row, end) for row, end in zip(positions_ST, reach, strict=True)]
    else:
        flat = _sampled(video, config, num_frames)
        frames = np.split(flat, clips) if clips and len(flat) % clips == 0 else []
    if len(frames) != clips:
        raise ValueError(f"the model chose for {clips} clips, the loader reads {config.eval_clips} of each video")
    return frames


def picture_size(video: Path) -> tuple[int, int]:
    """Return height and width as the loader's decoders give them (rotation applied)."""
    import av

    with av.open(str(video), metadata_errors="ignore") as container:
        frame = next(container.decode(video_stream(container)))
        turned = abs(int(getattr(frame, "rotation", 0) or 0)) % 180 == 90
        return (frame.width, frame.height) if turned else (frame.height, frame.width)


def _sampled(video: Path, config: DataConfig, num_frames: int) -> NDArray[np.int64]:
    """Return the frames that the loader took: it counts packets, and decodes only where these promise too many."""
    frames = frame_positions(count_packets(video), config, train=False, seed=0)
    return frames if int(frames.max()) < num_frames else frame_positions(num_frames, config, train=False, seed=0)
