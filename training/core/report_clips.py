"""Film strips of evaluated clips for the report: the network's input, with the patches that the model chose."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.charts import heat
from training.core.config import DataConfig
from training.core.overlay import COLOUR
from training.core.pages import markup

STRIP_HEIGHT = 112
"""Pixels of a frame in a strip; small inputs are enlarged, large ones reduced."""


@dataclass(frozen=True)
class Strip:
    """A picture with its words."""

    image: str
    """data: URI."""
    alt: str
    caption: str


def input_frames(clip: bytes, config: DataConfig, decoder: str) -> NDArray[np.uint8]:
    """Return what the network sees of a clip, (T,H,W,3): decoded, cropped, without normalisation.

    Of sampling `clips` the first frame of each of V clips, (V,H,W,3), also where the network looks at no pictures; of a
    single clip all T.
    """
    from training.core.sample_reader import load_pictures
    from training.core.transforms import ClipTransform

    transform = ClipTransform(config.transform)
    batch = transform(load_pictures(clip, pictures_of(config), decoder=decoder), train=False)
    frames: NDArray[np.uint8] = transform.to_pixels(batch.video_BCTHW)[0].cpu().numpy()
    if config.sampling == "clips" and config.eval_clips > 1:
        return frames[:: config.num_frames]
    return frames


def pictures_of(config: DataConfig) -> DataConfig:
    """Return a data block by which the pictures of a clip can be shown: the same places, without sound and flow."""
    if config.sampling != "clips":
        return config
    # The stack stays: the places depend on it.
    return config.model_copy(update={"pictures": "positions", "sound": None, "flow": False})


def film_strip(
    frames_THWC: NDArray[np.uint8],
    origin_T2: NDArray[np.generic] | None = None,
    patch: float | None = None,
    most: int = 8,
) -> str:
    """Return a row of frames as a data: URI (JPEG), with a square at each frame's patch.

    Args:
        frames_THWC: network input.
        origin_T2: (y, x) of the patch in input pixels.
        patch: its side, input pixels.
        most: frames to show, evenly spaced.
    """
    import cv2

    chosen = np.unique(np.linspace(0, len(frames_THWC) - 1, min(most, len(frames_THWC))).round().astype(int))
    scale = STRIP_HEIGHT / frames_THWC.shape[1]
    width = round(frames_THWC.shape[2] * scale)
    way = cv2.INTER_NEAREST if scale >= 1.5 else cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    gap = np.full((STRIP_HEIGHT, 3, 3), 255, np.uint8)
    parts: list[NDArray[np.uint8]] = []
    for index in chosen:
        frame = cv2.resize(frames_THWC[index], (width, STRIP_HEIGHT), interpolation=way)
        if origin_T2 is not None and patch is not None:
            y, x = (float(v) * scale for v in origin_T2[index])
            corner = (round(x), round(y)), (round(x + patch * scale) - 1, round(y + patch * scale) - 1)
            cv2.rectangle(frame, *corner, (0, 0, 0), 3)
            cv2.rectangle(frame, *corner, COLOUR, 2)
        parts += [frame, gap]
    row = np.concatenate(parts[:-1], axis=1)
    done, content = cv2.imencode(".jpg", cv2.cvtColor(row, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not done:
        raise RuntimeError("OpenCV could not encode a film strip as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()


def choose(
    label: NDArray[np.int64], scores: NDArray[np.float32], right: int, wrong: int
) -> tuple[list[int], list[int], int]:
    """Choose clips to show.

    Returns:
        right predictions, one class after the other, the surest first; wrong ones, the surest first; number of
        all wrong ones.
    """
    top = scores.argmax(axis=1)
    sure = scores[np.arange(len(top)), top]
    order = np.argsort(-sure, kind="stable")
    missed = [int(i) for i in order if top[i] != label[i]]
    hits: dict[int, list[int]] = {}
    for i in order:
        if top[i] == label[i]:
            hits.setdefault(int(label[i]), []).append(int(i))
    shown: list[int] = []
    depth = 0
    while len(shown) < right and any(len(queue) > depth for queue in hits.values()):
        shown += [queue[depth] for _, queue in sorted(hits.items()) if len(queue) > depth]
        depth += 1
    return shown[:right], missed[:wrong], len(missed)


def coverage(
    origin_NT2: NDArray[np.generic], patch_N: NDArray[np.generic], size: int, cells: int = 24
) -> NDArray[np.float64]:
    """Return, per frame, the share of clips whose patch covered each cell of the input, (T, cells, cells)."""
    edge = (np.arange(cells) + 0.5) * size / cells
    low = origin_NT2.astype(np.float64)
    high = low + patch_N.astype(np.float64).reshape(-1, 1, 1)
    rows = (edge >= low[..., :1]) & (edge < high[..., :1])
    columns = (edge >= low[..., 1:]) & (edge < high[..., 1:])
    count = len(origin_NT2)
    return np.asarray(np.einsum("nty,ntx->tyx", rows.astype(np.float64), columns.astype(np.float64)) / count)


def strips(
    chosen: list[int],
    samples: Mapping[str, Mapping[str, bytes]],
    arrays: Mapping[str, NDArray[np.generic]],
    config: DataConfig,
    decoder: str,
    most: int,
) -> list[Strip]:
    """Return a strip of at most `most` frames for each chosen row of the predictions."""
    from training.core.sample_reader import clip_of, source_name

    classes = [str(name) for name in arrays["classes"]]
    origins, patch = arrays.get("extra/origins"), arrays.get("extra/patch")
    made = []
    for i in chosen:
        key = str(arrays["key"][i])
        frames = input_frames(clip_of(samples[key], pictures_of(config)), config, decoder)
        scores = np.asarray(arrays["scores"][i], dtype=np.float64)
        order = np.argsort(-scores)[:3]
        named = ", ".join(f"{classes[k]} {scores[k]:.0%}" for k in order)
        image = film_strip(
            frames,
            None if origins is None else origins[i],
            None if patch is None else float(np.asarray(patch[i], dtype=np.float64)),
            most,
        )
        truth = classes[int(np.asarray(arrays["label"][i]))]
        made.append(Strip(image, f"frames of {key}", f"{truth}; named {named} · {source_name(samples[key]) or key}"))
    return made


def policy(arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return maps of where patches lay, of the arrays and the config of an evaluation; None without patches."""
    origins, patch = arrays.get("extra/origins"), arrays.get("extra/patch")
    if origins is None or patch is None:
        return None
    size = int(settings["data"]["transform"]["size"])
    maps_THW = coverage(origins, patch, size)
    places = len(np.unique(origins.reshape(-1, 2), axis=0))
    moved = float((np.abs(np.diff(origins.astype(np.int64), axis=1)).sum(-1) > 0).mean()) if origins.shape[1] > 1 else 0
    chosen = np.unique(np.linspace(0, len(maps_THW) - 1, min(8, len(maps_THW))).round().astype(int))
    return {
        "overall": markup(heat(maps_THW.mean(0), "patch positions, all frames", 220)),
        "frames": [markup(heat(maps_THW[t], f"patch positions, frame {t + 1}", 88)) for t in chosen],
        "patch": f"{int(patch.min())}" if patch.min() == patch.max() else f"{int(patch.min())} to {int(patch.max())}",
        "note": f"Positions chosen: {places}. From one frame to the next the patch moved in {moved:.0%} of the cases.",
    }
