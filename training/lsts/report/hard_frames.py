"""Frames in which one detector finds what another misses, and how they are shown."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.decode import decode_clip
from training.core.sample_reader import read_samples
from training.lsts.report.findings import Detector
from training.lsts.schedule import blocks_of

__all__ = ["Comparison", "HardFrame", "compare", "pictures_of", "shot"]

APART = 10
"""Frames of one video that are shown are at least so far from one another."""

TALLEST = 480
"""Pictures are stored with at most so many lines."""


@dataclass(frozen=True)
class HardFrame:
    """A frame in which one detector is better than another."""

    video: int
    """Place in `Predictions.key`."""
    frame: int
    """Number in the video."""
    place: int
    """Among the labelled frames."""
    gained: int
    """Objects that only the better one found."""
    lost: int
    """Objects that only the other one found."""


@dataclass(frozen=True)
class Comparison:
    """What one detector finds and another misses, each at its own best threshold."""

    frames: tuple[HardFrame, ...]
    """Best first; the largest gain in objects, then in score; the best of each video before a second one of any."""
    objects_more: int
    """Objects that only the first one found."""
    objects_less: int
    frames_more: int
    """Frames in which it found more objects than the other."""
    frames_less: int


def compare(one: Detector, other: Detector, most: int) -> Comparison:
    """Compare two detectors of the same truth, object by object.

    An object is found when a detection of its class overlaps it by 0.5 and has at least the score `Detector.sure`.

    Args:
        one: the detector whose gains are looked for.
        other: what it is compared with.
        most: frames to name.
    """
    objects = one.matched.objects
    count = len(objects.first_F) - 1
    (mine_M, score_M), (theirs_M, other_M) = _found(one), _found(other)
    gained_F = np.bincount(objects.frame_M[mine_M & ~theirs_M], minlength=count)
    lost_F = np.bincount(objects.frame_M[theirs_M & ~mine_M], minlength=count)
    score_F = np.bincount(objects.frame_M, weights=score_M - other_M, minlength=count)
    net_F = gained_F - lost_F
    labelled_M2 = one.evaluated.boxes.truth.labelled_M2
    order = np.lexsort((np.arange(count), -score_F, -net_F))
    ranked = [
        HardFrame(int(labelled_M2[f, 0]), int(labelled_M2[f, 1]), int(f), int(gained_F[f]), int(lost_F[f]))
        for f in order.tolist()
        if net_F[f] > 0
    ]
    return Comparison(
        frames=tuple(_spread(ranked, most)),
        objects_more=int(gained_F.sum()),
        objects_less=int(lost_F.sum()),
        frames_more=int((net_F > 0).sum()),
        frames_less=int((net_F < 0).sum()),
    )


def _spread(ranked: Sequence[HardFrame], most: int) -> list[HardFrame]:
    """Return the best frame of each video, then further ones that are not close to those."""
    picked: list[HardFrame] = []
    for again in (False, True):
        for frame in ranked:
            if len(picked) == most:
                return picked
            near = [each for each in picked if each.video == frame.video]
            if not near or (again and min(abs(each.frame - frame.frame) for each in near) >= APART):
                picked.append(frame)
    return picked


def _found(detector: Detector) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which objects were found, and with which score, 0 where not."""
    matched = detector.matched
    hit_N = matched.plain_N >= 0
    score_M = np.zeros(len(matched.objects))
    score_M[matched.plain_N[hit_N]] = matched.ranked.score_N[hit_N]
    score_M[score_M < detector.sure] = 0
    return score_M > 0, score_M


# --- pictures -----------------------------------------------------------------------------------


def pictures_of(
    shards: Path, split: str, keys: Sequence[str], frames: Sequence[HardFrame], decoder: str
) -> list[NDArray[np.uint8]]:
    """Return the pictures of frames, (H,W,3) RGB as stored.

    Raises:
        KeyError: a video is not in the shards.
        DecodeError: one cannot be decoded.
    """
    samples = read_samples(shards, [keys[frame.video] for frame in frames], split)
    return [decode_clip(samples[keys[frame.video]]["mp4"], np.array([frame.frame]), decoder)[0] for frame in frames]


def shot(picture: NDArray[np.uint8], detector: Detector, frame: HardFrame, classes: Sequence[str]) -> str:
    """Return a frame as an image with true boxes, and a detector's boxes from its best threshold on.

    Args:
        picture: (H,W,3) RGB.
        detector: whose boxes are shown.
        frame: which one it is.
        classes: names.
    """
    matched = detector.matched
    objects, ranked = matched.objects, matched.ranked
    height, width = picture.shape[:2]
    here_N = np.flatnonzero((ranked.frame_N == frame.place) & (ranked.score_N >= detector.sure))
    seen = set(matched.plain_N[here_N].tolist())
    size = max(height, width) / 21
    parts = [f'<image href="{_data(picture)}" width="{width}" height="{height}"/>']
    for m in range(int(objects.first_F[frame.place]), int(objects.first_F[frame.place + 1])):
        name = classes[int(objects.label_M[m])]
        kind = "true" if m in seen else "true missed"
        words = name if m in seen else f"{name}: missed"
        parts.append(_rect(objects.box_M4[m], kind, words))
        if m not in seen:
            parts.append(_words(objects.box_M4[m], words, "missed", size, (width, height), below=True))
    for n in here_N[np.argsort(ranked.score_N[here_N], kind="stable")].tolist():
        kind = "right" if matched.plain_N[n] >= 0 else "wrong"
        words = f"{classes[int(ranked.label_N[n])]} {ranked.score_N[n]:.0%}"
        parts.append(_rect(ranked.box_N4[n], kind, f"{words}, {kind}"))
        parts.append(_words(ranked.box_N4[n], words, kind, size, (width, height)))
    label = escape(f"frame {frame.frame} with boxes of {detector.name}", quote=True)
    return f'<svg class="shot" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _data(picture: NDArray[np.uint8]) -> str:
    import cv2

    scale = TALLEST / picture.shape[0]
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, content = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not done:
        raise RuntimeError("OpenCV could not encode a frame as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()


def _rect(box: NDArray[Any], kind: str, words: str) -> str:
    x0, y0, x1, y1 = (float(edge) for edge in box)
    return (
        f'<rect class="{kind}" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}">'
        f"<title>{escape(words)}</title></rect>"
    )


def _words(box: NDArray[Any], words: str, kind: str, size: float, picture: tuple[int, int], below: bool = False) -> str:
    """Write above a box, or below it; inside where there is no room. What would not fit ends at the right edge."""
    width, height = picture
    x0, y0, _, y1 = (float(edge) for edge in box)
    line = y1 + 1.05 * size if below else y0 - 0.3 * size
    if line > height - 2:
        line = y1 - 0.4 * size
    elif line < size:
        line = y0 + 1.05 * size
    wide = 0.66 * size * len(words)
    x, anchor = (width - 1, "end") if max(1.0, x0) + wide > width else (max(1.0, x0), "start")
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{line:.1f}" text-anchor="{anchor}" style="font-size:{size:.1f}px">'
        f"{escape(words)}</text>"
    )


def from_key(frame: HardFrame, detector: Detector) -> str:
    """Return how far a frame is from its key frame, in words; nothing where scene cuts decide that, too."""
    method = detector.evaluated.method
    if method.scene_cut is not None:
        return ""
    count = int(detector.evaluated.extra("frames")[frame.video])
    block = next(b for b in blocks_of(count, method.interval, method.schedule) if frame.frame in b.frames)
    distance = frame.frame - block.key
    if distance == 0:
        return "a key frame"
    return (
        f"{abs(distance)} frame{'s' if abs(distance) > 1 else ''} {'after' if distance > 0 else 'before'} its key frame"
    )
