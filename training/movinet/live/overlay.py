"""A video of what was seen and answered, written while it happens.

Frames go with their times through a pipe to ffmpeg. Times lie on the grid of the source's rate, so a source of
constant rate gives a file of constant rate; where frames are missing the one before stays on the screen. It is not
encoded again: when frames are dropped because the machine is too slow, repeating them would make it slower still.
The file appears under its name when it is complete, after an interruption too: ending the pipe ends the file properly.
"""

import contextlib
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.overlay import COLOUR, OverlayError, draw_label, output_size
from training.movinet.live.reader import Frame
from training.movinet.live.session import Answer

__all__ = ["LiveOverlay", "draw_answer", "draw_bars"]


def draw_bars(frame: NDArray[np.uint8], classes: tuple[str, ...], scores: tuple[float, ...]) -> None:
    """Draw one bar per class into the upper left corner of an RGB frame (H,W,3), in place; scores are in [0, 1]."""
    import cv2

    height, width = frame.shape[:2]
    high = max(10, height // 18)
    wide = width // 3
    scale = high / 30
    thick = max(1, round(scale * 1.5))
    for row, (name, score) in enumerate(zip(classes, scores, strict=True)):
        top = 4 + row * (high + 3)
        frame[top : top + high, 4 : 4 + wide] //= 4
        length = round(wide * min(1.0, max(0.0, score)))
        frame[top : top + high, 4 : 4 + length] = COLOUR
        text = f"{name} {score:.0%}".encode("ascii", "replace").decode()
        place = (7, top + round(high * 0.75))
        for colour, width_px in (((0, 0, 0), thick + 2), ((255, 255, 255), thick)):
            cv2.putText(frame, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, width_px, cv2.LINE_AA)


def draw_answer(frame: NDArray[np.uint8], time_s: float, answer: Answer | None, dropped: int) -> None:
    """Draw time, newest answer, bars of its best three classes and the dropped frames into an RGB frame, in place."""
    said = "no answer yet" if answer is None else f"{answer.classes[0]} {answer.scores[0]:.0%}"
    draw_label(frame, f"{time_s:.1f} s  {said}  dropped {dropped}")
    if answer is not None:
        draw_bars(frame, answer.classes[:3], answer.scores[:3])


class LiveOverlay:
    """Writes an `.mp4`; use as a context manager and give it every frame that was read."""

    def __init__(self, target: Path, ffmpeg_program: str) -> None:
        """Prepare; nothing is written before the first frame.

        Args:
            target: an `.mp4` to write.
            ffmpeg_program: path of ffmpeg.

        Raises:
            OverlayError: another ending.
        """
        if target.suffix.lower() != ".mp4":
            raise OverlayError(f"{target}: the overlay is written as .mp4; name it so")
        self.target = target
        self.rate = 0.0
        """Steps per second of the file's times."""
        self.written = 0
        """Pictures in the file."""
        self.merged = 0
        """Frames without a picture of their own: two at the same step."""
        self._program = ffmpeg_program
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup = contextlib.ExitStack()
        self._pipe: Any = None
        self._stream: Any = None
        self._size = (0, 0)
        self._step_s = Fraction(1, 25)
        self._first: int | None = None
        self._last = -1

    def write(self, frame: Frame, answer: Answer | None, dropped: int, rate: float) -> None:
        """Write a frame with the newest answer.

        Args:
            frame: in order of time; another size than the first one's is resized to it.
            answer: newest answer; None before the first one.
            dropped: frames dropped so far.
            rate: frames per second of the source; the first call's is the file's.

        Raises:
            OverlayError: ffmpeg has failed.
        """
        import cv2

        source = frame.pixels
        if self._process is None:
            self._start(source.shape[1], source.shape[0], rate)
        step = round(frame.time_s * self.rate)
        self._first = step if self._first is None else self._first
        step -= self._first
        if step <= self._last:
            self.merged += 1
            return
        if source.shape[1::-1] == self._size:
            picture = source.copy()
        else:
            enlarging = source.shape[0] <= self._size[1] and source.shape[1] <= self._size[0]
            scaling = cv2.INTER_NEAREST if enlarging else cv2.INTER_AREA
            picture = np.asarray(
                cv2.resize(np.ascontiguousarray(source), self._size, interpolation=scaling), dtype=np.uint8
            )
        draw_answer(picture, frame.time_s, answer, dropped)
        self._send(picture, step)
        self._last = step
        self.written += 1

    def finish(self) -> None:
        """End the file and give it its name. Without a frame there is no file.

        Raises:
            OverlayError: ffmpeg has failed; the message has its last line.
        """
        import av

        process, self._process = self._process, None
        if process is None or self._folder is None:
            return
        with self._cleanup:
            ends: tuple[Any, Any] = (self._pipe, process.stdin)
            for end in ends:
                # What went wrong is in ffmpeg's log.
                with contextlib.suppress(OSError, av.FFmpegError):
                    end.close()
            if process.wait() != 0:
                lines = (self._folder / "log").read_text(errors="replace").strip().splitlines()
                raise OverlayError(f"{self.target}: ffmpeg could not write it: {lines[-1] if lines else 'no message'}")
            (self._folder / "live.mp4").replace(self.target)

    def __enter__(self) -> "LiveOverlay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        # What was seen until the failure is worth keeping; the failure itself is what must be reported.
        with contextlib.suppress(OverlayError, OSError):
            self.finish()

    def _start(self, width: int, height: int, rate: float) -> None:
        import av
        import ffmpeg

        self._size = output_size(width, height)
        self.rate = rate
        self.target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=self.target.parent, prefix=".overlay-")
        self._folder = Path(self._cleanup.enter_context(temporary))
        command = (
            ffmpeg.input("pipe:", format="nut")
            .output(
                str(self._folder / "live.mp4"),
                vcodec="libx264",
                pix_fmt="yuv420p",
                crf=20,
                preset="superfast",
                fps_mode="passthrough",
                enc_time_base="demux",
            )
            .global_args("-v", "error")
            .overwrite_output()
            .compile(cmd=self._program)
        )
        log = self._cleanup.enter_context((self._folder / "log").open("wb"))
        # A session of its own: Ctrl-C in the terminal must reach only us, who then end the pipe.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
        )

        # NUT is FFmpeg's own container: raw pictures with times.
        self._pipe = av.open(self._process.stdin, "w", format="nut")
        grid = Fraction(rate).limit_denominator(1001)
        self._step_s = 1 / grid
        self._stream = self._pipe.add_stream("rawvideo", rate=grid)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"

    def _send(self, picture: NDArray[np.uint8], step: int) -> None:
        import av
        import cv2

        # Half the bytes of RGB in the pipe.
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
        frame.pts, frame.time_base = step, self._step_s
        try:
            self._pipe.mux(self._stream.encode(frame))
        except (OSError, av.FFmpegError):
            # `finish` knows what ffmpeg said.
            self.finish()
            raise OverlayError(f"{self.target}: ffmpeg stopped writing it") from None
