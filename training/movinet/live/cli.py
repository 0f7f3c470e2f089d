"""`fovea stream`: the running answer of a streaming network on a file, a URL or a camera."""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from infra.environment import apply_defaults
from infra.settings import Settings
from infra.startup import tame_collector
from training.movinet.live.reader import LiveError, LiveReader
from training.movinet.live.session import Answer, LiveSession, StreamModel, Summary, resident_bytes
from training.movinet.live.timeline import Timeline, page_path, read_names, read_segments, run_facts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

FAMILY = "movinet"
"""The family whose networks can stream."""


class Printer:
    """Prints answers: JSON lines, one line that is renewed (terminal), or a line per change or second (elsewhere)."""

    def __init__(self, out: TextIO, as_json: bool) -> None:
        self._out = out
        self._json = as_json
        self._renewing = not as_json and out.isatty()
        self._last: Answer | None = None

    def answer(self, answer: Answer) -> None:
        """Print an answer, or pass over it where a line per answer would be too many."""
        if self._json:
            self._line(json.dumps(answer.as_dict()))
        elif self._renewing:
            width = shutil.get_terminal_size().columns - 1
            self._out.write(f"\r{_text(answer)[:width]}\x1b[K")
            self._out.flush()
        elif self._last is None or answer.classes[0] != self._last.classes[0] or answer.time_s >= self._last.time_s + 1:
            self._last = answer
            self._line(_text(answer))

    def summary(self, summary: Summary, overlay: dict[str, Any] | None, timeline: dict[str, Any] | None) -> None:
        """Print the summary, as the last line or lines."""
        if self._json:
            self._line(json.dumps(summary.as_dict() | {"overlay": overlay, "timeline": timeline}))
            return
        if self._renewing:
            self._line("")
        for line in summary_lines(summary):
            self._line(line)
        if overlay is not None:
            self._line(
                f"{overlay['path']}: {overlay['pictures']} pictures at {overlay['rate']:.4g}/s"
                + (f", {overlay['merged']} frames between two of them not shown" if overlay["merged"] else "")
            )
        if timeline is not None:
            self._line(timeline_line(timeline))

    def _line(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()


def _text(answer: Answer) -> str:
    named = ", ".join(f"{name} {score:.0%}" for name, score in zip(answer.classes, answer.scores, strict=True))
    return (
        f"{answer.time_s:8.1f} s  {named}  "
        f"[{answer.answers_per_s:.1f}/s, {answer.latency_ms:.0f} ms, dropped {answer.dropped}]"
    )


def summary_lines(summary: Summary) -> list[str]:
    """Return the summary for people."""
    lines = [
        f"{summary.ended} after {summary.seconds:.1f} s: {summary.read} frames read, {summary.selected} seen by the "
        f"network, {summary.dropped} dropped, {summary.corrupt} corrupt, {summary.gaps} gaps, "
        f"{summary.resets} resets, {summary.reconnects} reconnects"
    ]
    if summary.slower_than_model:
        lines.append(
            f"the source has {summary.source_rate:.3g} frames/s, fewer than the {summary.model_rate:.3g} that the "
            "network was trained at: each frame was seen once"
        )
    if summary.latency_ms_p50 is not None and summary.latency_ms_p95 is not None:
        lines.append(
            f"latency p50 {summary.latency_ms_p50:.1f} ms, p95 {summary.latency_ms_p95:.1f} ms; "
            f"{summary.answers_per_s:.1f} answers/s"
        )
    memory = f"state {summary.state_bytes / 1e6:.2f} MB"
    if summary.rss_growth_bytes is not None and summary.rss_peak_growth_bytes is not None:
        memory += (
            f"; memory since the first answer {summary.rss_growth_bytes / 1e6:+.1f} MB, "
            f"at most {summary.rss_peak_growth_bytes / 1e6:+.1f} MB"
        )
    return [*lines, memory]


def timeline_line(timeline: dict[str, Any]) -> str:
    """Return the metrics of a timeline for people."""
    found = f"none of {timeline['frames']:.0f} answers lies in a segment whose label is a class of the model"
    if "frame_top1" in timeline:
        found = (
            f"{timeline['frame_top1']:.1%} of {timeline['labelled_frames']:.0f} labelled frames right, mean over "
            f"classes {timeline['frame_mean_class']:.1%}; the commonest class would get {timeline['majority_top1']:.1%}"
        )
    return f"{timeline['page']}: {found}"


@app.command()
def stream(
    model: Annotated[
        str, typer.Argument(help="Registered name (its champion), name@alias, name/version, or a folder.")
    ],
    source: Annotated[
        str, typer.Argument(help="A video, a URL (udp://, tcp://, http://, rtsp://), or a camera (untested).")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to name.")] = 3,
    chunk: Annotated[int, typer.Option(min=1, help="Frames per step: more are cheaper and answer later.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Frames per second that the net sees; default: the source's, by its stride."),
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="The answer is about this many last frames; without it, about all.")
    ] = None,
    reset_every: Annotated[
        float | None, typer.Option(min=0.001, help="Forget everything each SECONDS of the source.")
    ] = None,
    reset_on_gap: Annotated[
        float | None, typer.Option(min=0.001, help="Forget everything when frames are more than SECONDS apart.")
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Play a file at its own speed; drop what comes too fast.")
    ] = False,
    overlay: Annotated[Path | None, typer.Option(help="Write the video with the answers drawn, as .mp4.")] = None,
    segments: Annotated[
        Path | None, typer.Option(help="Labelled segments, JSON in ActivityNet's layout: accuracy, and a page.")
    ] = None,
    video: Annotated[str | None, typer.Option(help="The source's key in --segments, if it has several.")] = None,
    names: Annotated[
        Path | None, typer.Option(help="YAML table `label: class` for labels of --segments that are named otherwise.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="The page of --segments; default: <source>.timeline.html. A .json is beside it.")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.0, help="Stop after SECONDS of the source.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default as FOVEA_DEVICE says, else cpu.")] = None,
    format: Annotated[
        str | None, typer.Option(help="FFmpeg's input format, for cameras (v4l2, avfoundation, dshow; untested).")
    ] = None,
    option: Annotated[
        list[str], typer.Option(help="key=value for FFmpeg's input, e.g. framerate=30; repeatable.")
    ] = [],  # noqa: B006 -- typer reads the default once
    timeout: Annotated[float, typer.Option(min=0.1, help="Give a silent source up after SECONDS.")] = 10.0,
    reconnect: Annotated[int, typer.Option(min=0, help="Open a lost live source again, so often in a row.")] = 0,
    queue: Annotated[int, typer.Option(min=1, help="Frames that may wait before the oldest is dropped.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object per answer; the last one sums up.")] = False,
) -> None:
    """Say what happens in a video while it runs. Ctrl-C ends it; what was written until then stays."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_user_errors())
        if segments is None and (video, names, page) != (None, None, None):
            raise LiveError("--video, --names and --page go with --segments")
        settings = Settings()
        reader = LiveReader(
            source,
            realtime=realtime,
            format=format,
            options=_options(option),
            timeout_s=timeout,
            reconnect=reconnect,
            queue=queue,
        )
        writer = None
        if overlay is not None:
            from imageio_ffmpeg import get_ffmpeg_exe

            from training.movinet.live.overlay import LiveOverlay

            writer = LiveOverlay(overlay, settings.ffmpeg or get_ffmpeg_exe())
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network, name = load_stream(settings, model, temporary, device or settings.device or "cpu", window)
        timeline = None
        if segments is not None:
            table = {} if names is None else read_names(names, network.classes)
            timeline = Timeline(network.classes, read_segments(segments, video, network.classes, table))
            page = page_path(page, source, [segments, Path(source)])
        session = LiveSession(
            network,
            stack.enter_context(reader),
            chunk=chunk,
            top=top,
            rate=rate,
            reset_every_s=reset_every,
            reset_on_gap_s=reset_on_gap,
            max_seconds=max_seconds,
            on_frame=None
            if writer is None
            else lambda frame, answer, dropped: writer.write(frame, answer, dropped, reader.rate),
        )
        printer = Printer(sys.stdout, as_json)
        failure: Exception | None = None
        with _interruptible(session), writer or contextlib.nullcontext():
            try:
                for answer in session.answers():
                    printer.answer(answer)
                    if timeline is not None:
                        timeline.note(answer, resident_bytes())
            except (LiveError, BrokenPipeError) as error:
                failure = error
        written = None
        if writer is not None and writer.written:
            written = {"path": str(overlay), "pictures": writer.written, "rate": writer.rate, "merged": writer.merged}
        summary, judged = session.summary(), None
        if timeline is not None and page is not None and timeline.seen:
            timeline.write(
                page, title=f"Timeline of {Path(source).name or source}", facts=run_facts(name, source, window, summary)
            )
            judged = {"page": str(page), **timeline.metrics()}
        printer.summary(summary, written, judged)
        if failure is not None:
            raise failure


def load_stream(
    settings: Settings, model: str, download: Path, device: str, window: int | None
) -> tuple[StreamModel, str]:
    """Find a model and make it ready to stream; return it and its name.

    Args:
        settings: where the registry is.
        model: see `find_model`.
        download: folder for the files of a model in a remote store.
        device: where it runs.
        window: frames that an answer is about; None: all since the last reset.

    Raises:
        RegistryError: nothing of that name.
        LiveError: a model whose family sees whole clips.
        ConfigError: a model of the family that does.
    """
    from training.core.checkpoint import read_model_info
    from training.core.prediction import find_model
    from training.movinet.stream import open_stream

    found = find_model(settings, model, download)
    stage = str(read_model_info(found.folder)["stage"])
    if not stage.startswith(f"{FAMILY}_"):
        raise LiveError(
            f"{found.name} is a model of stage {stage}, which sees whole clips; `fovea stream` needs one of the family "
            f"{FAMILY}. `fovea predict` classifies a finished video with it"
        )
    print(f"model: {found.name}", file=sys.stderr)
    return open_stream(found.folder, device, window), found.name


def _options(items: list[str]) -> dict[str, str]:
    options = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator:
            raise LiveError(f"--option {item!r} must look like key=value")
        options[key] = value
    return options


@contextlib.contextmanager
def _interruptible(session: LiveSession) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the session after the current frame; a second one acts as usual."""
    usual = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]

    def restore() -> None:
        for number, handler in usual:
            signal.signal(number, handler)

    def handle(_number: int, _frame: object) -> None:
        session.interrupt()
        restore()

    for number, _ in usual:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one line and exit code 1."""
    from training.core.checkpoint import CheckpointError
    from training.core.config import ConfigError
    from training.core.overlay import OverlayError
    from training.core.registration import RegistryError

    try:
        yield
    except (LiveError, RegistryError, OverlayError, ConfigError, CheckpointError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except BrokenPipeError:
        # Who read our lines has enough (`… | head`); Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def main() -> int:
    """Run `fovea stream`."""
    apply_defaults()
    tame_collector()
    app(prog_name="fovea stream", standalone_mode=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
