"""`fovea predict`: a model by any of its names, on a file or a folder, with or without an overlay."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.settings import Settings
from training.core.config import DataConfig
from training.core.decode import count_packets
from training.core.decode_rungs import video_stream
from training.core.overlay import Track, Written, write_overlay
from training.core.registration import Registry
from training.core.sampling import frame_positions
from training.core.serving import Result, VideoClassifier, model_folder

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


def predict(classifier: VideoClassifier, videos: list[Path], top: int) -> Iterator[Result]:
    """Yield the result of each video; a broken one is a result with an error, and the others go on."""
    for video in videos:
        yield classifier.classify(video, top)


def predict_overlay(
    classifier: VideoClassifier,
    video: Path,
    target: Path,
    *,
    top: int,
    ffmpeg_program: str,
    on_frame: Callable[[int, int], None] | None = None,
) -> tuple[Result, Written]:
    """Predict one video and write a copy of it with the answer and, where the model has them, the chosen patches.

    A model that looks at patches says so in `Prediction.extras`: `origins` (B,T,2), the corner (y, x) in pixels
    of the network input per sampled frame, and `patch` (B,), its side.

    Raises:
        OverlayError: the copy cannot be written.
        Exception: what the decoder raises for a file that it cannot read.
    """
    from training.core.transforms import source_rectangle

    prediction, batch = classifier.forward(video)
    scores = prediction.scores_BK[0].float().cpu().numpy()
    order = np.argsort(-scores, kind="stable")[: max(1, top)]
    result = Result(str(video), tuple(classifier.classes[i] for i in order), tuple(float(scores[i]) for i in order))
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
        ffmpeg_program=ffmpeg_program,
        on_frame=on_frame,
    )
    return result, written


def picture_size(video: Path) -> tuple[int, int]:
    """Return height and width as the loader's decoders give them (rotation applied)."""
    import av

    with av.open(str(video), metadata_errors="ignore") as container:
        frame = next(container.decode(video_stream(container)))
        turned = abs(int(getattr(frame, "rotation", 0) or 0)) % 180 == 90
        return (frame.width, frame.height) if turned else (frame.height, frame.width)


def frame_times(video: Path) -> list[float]:
    """Return the time of every frame from the first one, seconds, in display order."""
    import av

    with av.open(str(video), metadata_errors="ignore") as container:
        times = [float(frame.time or 0.0) for frame in container.decode(video_stream(container))]
    return [time - times[0] for time in times] if times else []


def _sampled(video: Path, config: DataConfig, num_frames: int) -> NDArray[np.int64]:
    """Return the frames that the loader took: it counts packets, and decodes only where these promise too many."""
    frames = frame_positions(count_packets(video), config, train=False, seed=0)
    return frames if int(frames.max()) < num_frames else frame_positions(num_frames, config, train=False, seed=0)
