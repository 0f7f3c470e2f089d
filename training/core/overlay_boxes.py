"""Draw the objects that a model found onto the video in which it found them, and its key frames; the sound is kept.

Pictures are those that the model saw, by number, and each is written at its own time: frame i of the copy is frame i
of the source, with the boxes of frame i, also where the frame rate varies.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.core.answers import FoundObject, Watched
from training.core.overlay import OverlayError, Written, add_sound, output_size
from training.core.overlay_timeline import GROUND, LINES, PRESENT, WORDS

__all__ = ["KEY", "PALETTE", "Strip", "colour_of", "draw_objects", "strength", "write_boxes"]

Picture = NDArray[np.uint8]
RGB = tuple[int, int, int]

PALETTE: tuple[RGB, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
"""Colours that people with any colour vision tell apart (Okabe and Ito), without black."""

KEY: RGB = (255, 255, 255)
"""Frame around a key frame, and its mark in the strip."""

FAINTEST = 0.45
"""Opacity of a box with the least score."""

SURE = 0.8
"""Score from which on a box is opaque."""

LANES = 6
"""Tracks that have a row of their own in the strip, the longest ones."""

TIME_BASE = Fraction(1, 90_000)


def colour_of(found: FoundObject, classes: Sequence[str]) -> RGB:
    """Return the colour of an object: its track's, and without tracks its class's."""
    number = classes.index(found.label) if found.track is None else found.track
    return PALETTE[number % len(PALETTE)]


def strength(score: float, least: float) -> float:
    """Return the opacity of a box, `FAINTEST` at the least score that is drawn to 1 at `SURE`."""
    span = max(SURE - least, 1e-6)
    return FAINTEST + (1 - FAINTEST) * min(1.0, max(0.0, (score - least) / span))


def draw_objects(
    picture: Picture, objects: Sequence[FoundObject], classes: Sequence[str], *, factor: int, least_score: float
) -> None:
    """Draw the objects of a frame into an RGB picture (H,W,3), in place, the surest on top.

    Args:
        picture: enlarged by `factor`.
        objects: of this frame.
        classes: names that objects without tracks take their colours from.
        factor: pixels of the picture per pixel of the video.
        least_score: of the objects that are drawn.
    """
    for found in sorted(objects, key=lambda each: each.score):
        number = "" if found.track is None else f" {found.track}"
        _draw_box(
            picture,
            [edge * factor for edge in found.box],
            f"{found.label}{number} {found.score:.0%}",
            colour_of(found, classes),
            strength(found.score, least_score),
        )


def _draw_box(picture: Picture, box: Sequence[float], text: str, colour: RGB, opacity: float) -> None:
    """Draw one box (x0, y0, x1, y1, edges) with its words above it, or inside where there is no room above."""
    import cv2

    height, width = picture.shape[:2]
    x0, x1 = (min(width - 1, max(0, round(x))) for x in (box[0], box[2] - 1))
    y0, y1 = (min(height - 1, max(0, round(y))) for y in (box[1], box[3] - 1))
    thick = max(1, min(height, width) // 160)
    scale = min(0.7, max(0.36, min(height, width) / 900))
    text = text.encode("ascii", "replace").decode()
    (wide, high), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    top = y0 - high - base - 4
    top = top if top >= 0 else min(y0 + thick, height - high - base - 4)
    left = max(0, min(x0, width - wide - 6))
    # Only the part of the picture that changes is mixed.
    part = (
        slice(max(0, min(y0, top) - thick), max(y1, top + high + base + 4) + thick + 1),
        slice(max(0, min(x0, left) - thick), max(x1, left + wide + 6) + thick + 1),
    )
    before = picture[part].astype(np.float32)
    # The line lies inside the box, as an edge does.
    for depth in range(thick):
        corner, other = (x0 + depth, y0 + depth), (max(x0 + depth, x1 - depth), max(y0 + depth, y1 - depth))
        cv2.rectangle(picture, corner, other, colour)
    cv2.rectangle(picture, (left, max(0, top)), (left + wide + 5, top + high + base + 3), colour, -1)
    ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
    cv2.putText(picture, text, (left + 3, top + high + 2), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
    mixed = opacity * picture[part].astype(np.float32) + (1 - opacity) * before
    picture[part] = mixed.round().astype(np.uint8)


def mark_key_frame(picture: Picture) -> None:
    """Draw a border and the word "key" into a picture, in place."""
    import cv2

    height, width = picture.shape[:2]
    thick = max(3, min(height, width) // 90)
    for side in (picture[:thick], picture[-thick:], picture[:, :thick], picture[:, -thick:]):
        side[:] = KEY
    scale = min(0.7, max(0.4, min(height, width) / 800))
    (wide, high), base = cv2.getTextSize("key", cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    left, low = width - thick - wide - 6, thick + high + base + 2
    picture[:low, left:] = KEY
    cv2.putText(picture, "key", (left + 3, low - base), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)


class Strip:
    """What lies below the pictures: key frames, scene cuts, and when the longest tracks are seen; a column per frame.

    Args:
        watched: of the video.
        width: of the pictures, pixels.
        height: of the pictures, pixels.
    """

    def __init__(self, watched: Watched, width: int, height: int) -> None:
        self.frames = max(1, watched.frames)
        self.width = width
        self.row = max(12, min(26, min(width, height) // 22))
        self.pad = 5
        self.rows: list[tuple[str, RGB, set[int]]] = [("key frames", KEY, set(watched.key_frames))]
        if watched.cuts:
            self.rows.append(("scene cuts", (240, 110, 110), set(watched.cuts)))
        self.rows += _lanes(watched)
        # Even, as 4:2:0 needs.
        self.height = (2 * self.pad + self.row * len(self.rows) + 1) // 2 * 2
        self.scale, self.left = self._words()
        self._still = self._draw()

    def cell(self, frame: int, row: int) -> tuple[int, int, int, int]:
        """Return y0, x0, y1, x1 (exclusive) of a frame's place in a row of the strip, pixels."""
        x0, x1 = self._x(frame), self._x(frame + 1)
        top = self.pad + row * self.row
        return top + 2, x0, top + self.row - 2, max(x0 + 2, x1)

    def at(self, frame: int) -> Picture:
        """Return the strip (height, width, 3) RGB at a frame."""
        strip = self._still.copy()
        x = min(self.width - 2, (self._x(frame) + self._x(frame + 1)) // 2)
        strip[:, max(0, x - 1) : x + 2] = 0
        strip[:, x] = PRESENT
        return strip

    def _x(self, frame: int) -> int:
        return round(self.left + (self.width - 4 - self.left) * frame / self.frames)

    def _words(self) -> tuple[float, int]:
        """Return size of the letters and where the columns begin: the names get a third of the width at most."""
        import cv2

        scale = self.row / 40
        while True:
            wide = max(cv2.getTextSize(_ascii(row[0]), cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] for row in self.rows)
            if wide <= self.width // 3 - 10 or scale < 0.2:
                return scale, min(wide + 10, self.width // 3)
            scale *= 0.92

    def _draw(self) -> Picture:
        import cv2

        strip = np.empty((self.height, self.width, 3), np.uint8)
        strip[:] = GROUND
        strip[0] = LINES
        for number, (name, colour, frames) in enumerate(self.rows):
            base = self.pad + number * self.row + self.row
            _, high = cv2.getTextSize(_ascii(name), cv2.FONT_HERSHEY_SIMPLEX, self.scale, 1)[0]
            names = strip[:, : self.left - 2]  # what does not fit is cut off there
            place = (4, base - (self.row - high) // 2)
            cv2.putText(names, _ascii(name), place, cv2.FONT_HERSHEY_SIMPLEX, self.scale, WORDS, 1, cv2.LINE_AA)
            strip[base - 1, self.left :] = tuple(value // 2 for value in LINES)
            for frame in frames:
                y0, x0, y1, x1 = self.cell(frame, number)
                strip[y0:y1, x0:x1] = colour
        return strip


def _lanes(watched: Watched) -> list[tuple[str, RGB, set[int]]]:
    """Return name, colour and frames of the longest tracks, those that come first on top."""
    frames: dict[int, set[int]] = {}
    labels: dict[int, str] = {}
    for found in watched.objects:
        if found.track is not None:
            frames.setdefault(found.track, set()).add(found.frame)
            labels.setdefault(found.track, found.label)
    longest = sorted(frames, key=lambda track: (-len(frames[track]), track))[:LANES]
    first = sorted(longest, key=lambda track: (min(frames[track]), track))
    return [(f"{labels[track]} {track}", PALETTE[track % len(PALETTE)], frames[track]) for track in first]


def write_boxes(
    source: Path,
    target: Path,
    *,
    pictures: Iterable[Picture],
    watched: Watched,
    least_score: float,
    ffmpeg_program: str,
    on_frame: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a copy of a video with its objects drawn; the file appears only when it is complete.

    Args:
        source: the video, whose sound is taken over.
        target: an `.mp4` to write.
        pictures: (H,W,3) uint8 RGB, frame by frame as the model saw them; they may be drawn into.
        watched: what was found.
        least_score: of the objects that are drawn; those below it are left out.
        ffmpeg_program: path of ffmpeg.
        on_frame: called with (frames done, frames expected) for progress.

    Raises:
        OverlayError: another ending than .mp4, other pictures than those that were watched, or the video could not be
            written.
    """
    if target.suffix.lower() != ".mp4":
        raise OverlayError(f"{target}: the overlay is written as .mp4; name it so")
    by_frame: dict[int, list[FoundObject]] = {}
    for found in watched.objects:
        if found.score >= least_score:
            by_frame.setdefault(found.frame, []).append(found)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".overlay-") as temporary:
        silent = Path(temporary) / "silent.mp4"
        count = _write(silent, pictures, watched, by_frame, least_score, on_frame)
        if count != watched.frames:
            raise OverlayError(f"{source}: {count} pictures for {watched.frames} frames that the model saw")
        whole, sound = add_sound(silent, source, Path(temporary), ffmpeg_program)
        whole.replace(target)
    return Written(count, sound)


def _write(
    silent: Path,
    pictures: Iterable[Picture],
    watched: Watched,
    by_frame: dict[int, list[FoundObject]],
    least_score: float,
    on_frame: Callable[[int, int], None] | None,
) -> int:
    """Encode the pictures with what is drawn, each at its time; return how many."""
    import av

    classes = sorted({found.label for found in watched.objects})
    keys = set(watched.key_frames)
    stream = strip = None
    size, factor, count, last = (0, 0), 1, 0, -1
    try:
        with av.open(str(silent), "w") as container:
            for picture in pictures:
                if strip is None:
                    size = output_size(picture.shape[1], picture.shape[0])
                    factor = max(1, size[0] // picture.shape[1])
                    strip = Strip(watched, *size)
                    stream = container.add_stream("libx264", rate=_rate(watched.times))
                    stream.width, stream.height, stream.pix_fmt = size[0], size[1] + strip.height, "yuv420p"
                    stream.options = {"crf": "20", "preset": "veryfast"}
                    stream.codec_context.time_base = TIME_BASE
                assert stream is not None
                drawn = _fitted(picture, factor, size)
                draw_objects(drawn, by_frame.get(count, ()), classes, factor=factor, least_score=least_score)
                if count in keys:
                    mark_key_frame(drawn)
                frame = av.VideoFrame.from_ndarray(np.concatenate([drawn, strip.at(count)]), format="rgb24")
                last = max(last + 1, round(watched.times[min(count, watched.frames - 1)] / TIME_BASE))
                frame.pts, frame.time_base = last, TIME_BASE
                container.mux(stream.encode(frame))
                count += 1
                if on_frame is not None:
                    on_frame(count, watched.frames)
            if stream is not None:
                container.mux(stream.encode())
    except av.FFmpegError as error:
        raise OverlayError(f"the overlay cannot be written: {error}") from error
    return count


def _rate(times: Sequence[float]) -> Fraction:
    """Return the mean rate of the frames per second; the encoder asks for one."""
    if len(times) < 2 or times[-1] <= 0:
        return Fraction(25)
    return Fraction((len(times) - 1) / times[-1]).limit_denominator(1001)


def _fitted(picture: Picture, factor: int, size: tuple[int, int]) -> Picture:
    """Return a picture enlarged by a whole number and cut to even sides; at least two pixels wide and high."""
    width, height = size
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else picture
    short = max(0, height - large.shape[0]), max(0, width - large.shape[1])
    if any(short):
        large = np.pad(large, ((0, short[0]), (0, short[1]), (0, 0)), mode="edge")
    return np.array(large[:height, :width])


def _ascii(text: str) -> str:
    """Return what the built-in font can show."""
    return text.encode("ascii", "replace").decode()
