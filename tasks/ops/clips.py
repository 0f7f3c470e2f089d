"""Makes the members of a sample from a source video: cut, scale, re-encode, take the sound.

One ffmpeg process per video, also when picture and sound become different members. ffmpeg-python builds the
command; nothing here goes through a shell.

Rules
- Picture: H.264 4:2:0 8 bit, limited range, square pixels, upright, constant frame rate. Alpha is dropped.
- Size: the short side becomes `short_side` if it was larger; both sides are even.
- A span takes the frames nearest to its start and up to its end: frame round(start × rate) comes first.
- Sound: AAC as it is where the source has AAC and nothing is cut, else AAC at 128 kbit/s; `wav` is 16-bit PCM at
  the source's sample rate and channels. Sound and picture keep their distance in time.
- Same source, policy and program give the same bytes: no dates, versions or random numbers in the output.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg

from data_specs.flows import FLOW_MEMBER
from data_specs.schema import ClipPolicy, RejectReason
from tasks.ops.encoder import EncoderLog, run_ffmpeg
from tasks.ops.flow_member import flow_member
from tasks.ops.probe import RejectedError, VideoInfo

LONG_GOP_FRAMES = 120
"""Clips up to this length are one group of pictures: they are read whole or sparsely, and that is fastest."""
SHORT_GOP = 12

SPAN_SLACK_S = 1.0
"""Annotated ends may lie this much (seconds) behind the last frame: they are rounded to seconds in the wild."""

_TRUNCATED_S = 0.5
_TRUNCATED_SHARE = 0.1
"""More than both of these missing at the end is a truncated video."""


@dataclass(frozen=True)
class Cut:
    """What to take of a source, and how large and fast it becomes."""

    start_s: float | None
    """None takes the whole video."""
    duration_s: float
    width: int
    height: int
    rate: Fraction
    """Frames per second of the stored clip."""
    each_frame: bool = False
    """Every decoded frame becomes one of the clip, whatever the time stamps say: boxes are numbered by frames."""

    @property
    def expected_frames(self) -> int:
        """Frames of the clip if the source keeps what its container promises."""
        return max(1, round(self.duration_s * self.rate))


@dataclass(frozen=True)
class Clip:
    """An encoded clip."""

    members: dict[str, bytes]
    """Extension → content."""
    num_frames: int
    """Length of the clip; of `jpgs` only those of `frame_index` are in the members."""
    fps: float
    width: int
    height: int
    duration_s: float
    has_audio: bool
    frame_index: tuple[int, ...] | None = None


def target_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the even size of the stored clip: never larger than the source, ratio kept to the pixel."""
    scale = min(1.0, short_side / min(width, height))

    def even(side: int) -> int:
        return max(2, min(2 * round(side * scale / 2), side - side % 2))

    return even(width), even(height)


def gop_length(policy: ClipPolicy, frames: int) -> int:
    """Return the frames between key frames for a clip of `frames` frames."""
    if policy.gop != "auto":
        return policy.gop
    return LONG_GOP_FRAMES if frames <= LONG_GOP_FRAMES else SHORT_GOP


def plan_cut(info: VideoInfo, policy: ClipPolicy, start_s: float | None, end_s: float | None) -> Cut:
    """Decide what to take, before anything is decoded.

    Raises:
        RejectedError: the span does not lie inside the video, or what it takes is too short or too long.
    """
    start, end = start_s or 0.0, info.duration_s if end_s is None else end_s
    if start < 0 or end <= start:
        raise RejectedError(RejectReason.BAD_SPAN, f"start {start:g} s, end {end:g} s")
    if start >= info.duration_s or end > info.duration_s + SPAN_SLACK_S:
        raise RejectedError(RejectReason.BAD_SPAN, f"{start:g} s to {end:g} s of a video of {info.duration_s:.2f} s")
    duration = min(end, info.duration_s) - start
    if duration < policy.min_duration_s:
        raise RejectedError(RejectReason.TOO_SHORT, f"{duration:.3f} s, the least is {policy.min_duration_s:g} s")
    if duration > policy.max_duration_s:
        raise RejectedError(RejectReason.TOO_LONG, f"{duration:.1f} s, the most is {policy.max_duration_s:g} s")
    width, height = target_size(info.width, info.height, policy.short_side)
    rate = info.rate if policy.fps is None else Fraction(policy.fps).limit_denominator(1001)
    whole = start_s is None and end_s is None
    return Cut(None if whole else start, duration, width, height, rate)


def source_streams(path: Path, info: VideoInfo, cut: Cut, keep_sync: bool) -> tuple[Any, Any]:
    """Return the input and its picture at constant rate, as ffmpeg-python nodes.

    Args:
        path: source video.
        info: what the probe found.
        cut: what to take.
        keep_sync: pad a picture that starts after the sound, so that both start at 0.
    """
    options: dict[str, object] = {"threads": 1}
    if cut.start_s is not None:
        # Half a frame earlier: a time stamp rounded up or down by the container must not cost or add a frame.
        start = max(0.0, cut.start_s - float(1 / (2 * info.rate)))
        options |= {"ss": f"{start:.6f}", "t": f"{cut.start_s + cut.duration_s - start:.6f}"}
    source = ffmpeg.input(f"file:{path.absolute()}", **options)
    picture = source[str(info.stream)]
    rate = f"{cut.rate.numerator}/{cut.rate.denominator}"
    if cut.start_s is not None:
        picture = picture.filter("setpts", "PTS-STARTPTS").filter("fps", fps=rate)
        return source, picture.filter("trim", end_frame=cut.expected_frames)
    if cut.each_frame:
        return source, picture.filter("setpts", f"N/({rate})/TB").filter("fps", fps=rate)
    if keep_sync:
        return source, picture.filter("fps", fps=rate, start_time=0)
    return source, picture.filter("setpts", "PTS-STARTPTS").filter("fps", fps=rate)


def scaled(picture: Any, cut: Cut, full_range: bool = False) -> Any:
    """Return the picture in the stored size and pixel format; `full_range` as JPEG wants it."""
    matrix = {"out_color_matrix": "bt601"} if full_range else {}
    flags = "bicubic+accurate_rnd+bitexact"  # the same pixels on every processor
    picture = picture.filter(
        "scale", cut.width, cut.height, flags=flags, out_range="pc" if full_range else "tv", **matrix
    )
    return picture.filter("setsar", 1).filter("format", "yuv420p")


def exact(**options: object) -> dict[str, object]:
    """Return output options with those that keep dates, versions and foreign metadata out."""
    fixed = {"fflags": "+bitexact", "map_metadata": -1, "map_chapters": -1, "threads": 1}
    return fixed | options


def sound_options(info: VideoInfo, cut: Cut) -> dict[str, object]:
    """Return the options for an AAC stream: copied when that is possible without a cut."""
    if info.audio_codec == "aac" and cut.start_s is None:
        return {"c:a": "copy"}
    return {"c:a": "aac", "b:a": "128k", "flags:a": "+bitexact"}


def compile_command(program: str, outputs: list[Any], timeout_s: float) -> list[str]:
    """Return the command of one process for all outputs."""
    node = ffmpeg.merge_outputs(*outputs).global_args(
        "-hide_banner",
        "-nostdin",
        "-nostats",
        *("-loglevel", "level+verbose"),
        *("-filter_complex_threads", "1"),
        *("-timelimit", str(math.ceil(timeout_s) + 5)),  # ends an orphan whose parent cannot kill it any more
    )
    command: list[str] = ffmpeg.compile(node, cmd=program, overwrite_output=True)
    return command


def mp4_command(path: Path, info: VideoInfo, cut: Cut, policy: ClipPolicy, program: str, folder: Path) -> list[str]:
    """Return the one command that writes `clip.mp4`, and `clip.wav` for separate sound, into a folder."""
    sound = takes_sound(info, policy)
    source, picture = source_streams(path, info, cut, keep_sync=sound)
    streams = [scaled(picture, cut)]
    options: dict[str, object] = {
        "c:v": "libx264",
        "preset": policy.preset,
        "tune": "fastdecode",
        "crf": policy.crf,
        "g": gop_length(policy, cut.expected_frames),
        "flags:v": "+bitexact",
        "fps_mode": "passthrough",
        "movflags": "+faststart",
        "format": "mp4",
    }
    if sound:
        streams.append(source[str(info.audio_stream)])
        options |= sound_options(info, cut)
    outputs = [ffmpeg.output(*streams, f"file:{folder / 'clip.mp4'}", **exact(**options))]
    if sound and policy.audio == "separate":
        outputs.append(wav_output(source, info, folder / "clip.wav"))
    return compile_command(program, outputs, policy.timeout_s)


def encode_mp4(path: Path, info: VideoInfo, cut: Cut, policy: ClipPolicy, program: str, folder: Path) -> Clip:
    """Encode a source into `mp4`, `wav` when the policy separates the sound, and `flow` when it asks for that.

    Args:
        path: source video.
        info: what the probe found.
        cut: what to take, of `plan_cut`.
        policy: clip policy, representation `mp4`.
        program: ffmpeg.
        folder: the caller's own temporary folder.

    Raises:
        RejectedError: the source cannot become a clip.
        EncoderError: ffmpeg failed for another reason.
    """
    log = run_ffmpeg(mp4_command(path, info, cut, policy, program, folder), policy.timeout_s)
    check_log(log, info, cut, log.outputs.get(0, 0))
    clip = _read_clip(folder / "clip.mp4", folder / "clip.wav", cut, takes_sound(info, policy), log)
    if policy.flow is None:
        return clip
    flow = flow_member(clip.members["mp4"], clip.num_frames, policy.flow)
    return replace(clip, members=clip.members | {FLOW_MEMBER: flow})


def takes_sound(info: VideoInfo, policy: ClipPolicy) -> bool:
    """Tell whether the sample gets sound."""
    return policy.audio != "drop" and info.audio_stream is not None


def wav_output(source: Any, info: VideoInfo, wav: Path) -> Any:
    """Return the output node of the `wav` member."""
    options = exact(**{"c:a": "pcm_s16le", "flags:a": "+bitexact", "format": "wav"})
    return ffmpeg.output(source[str(info.audio_stream)], f"file:{wav}", **options)


def check_log(log: EncoderLog, info: VideoInfo, cut: Cut, frames: int) -> None:
    """Judge a run of ffmpeg by its log.

    Args:
        log: of the run.
        info: what the probe found.
        cut: what was to be taken.
        frames: at constant rate, that came out.

    Raises:
        RejectedError: the source is damaged, cut off, or cannot be decoded or encoded.
    """
    stream = log.streams.get(info.stream)
    if log.returncode:
        if any("decoder" in line.lower() and "not found" in line.lower() for line in log.errors):
            raise RejectedError(RejectReason.UNSUPPORTED_CODEC, f"codec {info.codec}: {log.first_error}")
        if stream is None or not stream.frames:
            raise RejectedError(RejectReason.CORRUPT, f"no frame can be decoded: {log.first_error}")
        raise RejectedError(RejectReason.ENCODE_FAILED, log.first_error)
    if not frames:
        if stream is not None and stream.frames and cut.duration_s * cut.rate < 1:
            raise RejectedError(
                RejectReason.TOO_SHORT, f"{cut.duration_s:.3f} s is less than a frame at {float(cut.rate):g} fps"
            )
        if cut.start_s is not None and not log.errors:
            raise RejectedError(RejectReason.BAD_SPAN, f"no frames from {cut.start_s:g} s on")
        raise RejectedError(RejectReason.CORRUPT, f"no frame can be decoded: {log.first_error}")
    missing_s = cut.duration_s - float(frames / cut.rate)
    if missing_s > max(_TRUNCATED_S, _TRUNCATED_SHARE * cut.duration_s):
        raise RejectedError(
            RejectReason.TRUNCATED,
            f"the last {missing_s:.2f} s of {cut.duration_s:.2f} s have no frames"
            + (f" ({log.first_error})" if log.errors else ""),
        )
    # Behind a seek a decoder may begin between key frames: damaged frames before the cut say nothing.
    damaged = log.corrupt_frames if cut.start_s is None else 0
    if stream is not None and (stream.errors or damaged):
        raise RejectedError(
            RejectReason.CORRUPT,
            f"{max(stream.errors, damaged)} of {stream.packets} packets do not decode cleanly: {log.first_error}",
        )


def _read_clip(mp4: Path, wav: Path, cut: Cut, sound: bool, log: EncoderLog) -> Clip:
    """Read the written files back and describe what they really contain."""
    import av

    with av.open(str(mp4)) as container:
        stream = container.streams.video[0]
        frames = stream.frames
        size = (stream.codec_context.width, stream.codec_context.height)
        audio = bool(container.streams.audio) and container.streams.audio[0].frames > 0
    if not frames or size != (cut.width, cut.height):
        raise RejectedError(
            RejectReason.ENCODE_FAILED,
            f"the encoded clip has {frames} frames of {size[0]}x{size[1]}, wanted {cut.width}x{cut.height}",
        )
    if sound and not audio:
        raise RejectedError(RejectReason.CORRUPT, f"the sound cannot be decoded: {log.first_error}")
    members = {"mp4": mp4.read_bytes()}
    if wav.exists():
        members["wav"] = wav.read_bytes()
    return Clip(
        members=members,
        num_frames=frames,
        fps=float(cut.rate),
        width=size[0],
        height=size[1],
        duration_s=float(frames / cut.rate),
        has_audio=audio,
    )
