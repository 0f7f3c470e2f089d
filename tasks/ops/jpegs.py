"""Makes the `jpgs` representation: a fixed number of frames, sampled uniformly, as JPEG files.

ffmpeg decodes, brings to constant rate, picks and scales; simplejpeg encodes (ffmpeg's own JPEG encoder knows no
quality from 1 to 100). Which frames to pick depends on how many there are, which only decoding tells for sure: the
count is predicted from the container, the same process counts, and only a wrong prediction costs a second run.

The sound, if it is kept, is an `m4a` member (AAC); `separate` gives `wav` as well. See `data_specs.jpgs` for the
layout of the member.
"""

from pathlib import Path

import ffmpeg
import numpy as np

from data_specs.jpgs import pack_jpgs
from data_specs.schema import ClipPolicy, RejectReason
from tasks.ops.clips import (
    Clip,
    Cut,
    check_log,
    compile_command,
    exact,
    scaled,
    sound_options,
    source_streams,
    takes_sound,
    wav_output,
)
from tasks.ops.encoder import EncoderLog, run_ffmpeg
from tasks.ops.probe import RejectedError, VideoInfo


def sample_uniformly(num_frames: int, total: int) -> tuple[int, ...]:
    """Return the middle frame of each of `num_frames` equal segments; short clips repeat frames."""
    return tuple((2 * i + 1) * total // (2 * num_frames) for i in range(num_frames))


def encode_jpgs(path: Path, info: VideoInfo, cut: Cut, policy: ClipPolicy, program: str, folder: Path) -> Clip:
    """Encode a source into `jpgs`, with `m4a` and `wav` as the policy says.

    Args and errors are those of `tasks.ops.clips.encode_mp4`.
    """
    if policy.num_frames is None:
        raise ValueError("clip.num_frames must be given for representation jpgs")
    total = cut.expected_frames
    for _ in range(2):
        index = sample_uniformly(policy.num_frames, total)
        log = _run(path, info, cut, policy, program, folder, sorted(set(index)))
        found = log.outputs.get(1, 0)
        check_log(log, info, cut, found)
        if sample_uniformly(policy.num_frames, found) == index:
            break
        total = found
    else:
        raise RejectedError(
            RejectReason.CORRUPT, f"two runs of the decoder gave different numbers of frames ({total}, then {found})"
        )
    jpegs = _encode(log.stdout, cut, sorted(set(index)), policy.jpeg_quality)
    members = {"jpgs": pack_jpgs([jpegs[i] for i in index])}
    for name in ("m4a", "wav"):
        file = folder / f"clip.{name}"
        if file.exists():
            members[name] = file.read_bytes()
    return Clip(
        members=members,
        num_frames=found,
        fps=float(cut.rate),
        width=cut.width,
        height=cut.height,
        duration_s=float(found / cut.rate),
        has_audio="m4a" in members,
        frame_index=index,
    )


def _run(
    path: Path, info: VideoInfo, cut: Cut, policy: ClipPolicy, program: str, folder: Path, chosen: list[int]
) -> EncoderLog:
    """Run ffmpeg: chosen frames to its standard output, all frames counted, sound into files."""
    sound = takes_sound(info, policy)
    source, picture = source_streams(path, info, cut, keep_sync=sound)
    branches = picture.filter_multi_output("split")
    expression = "+".join(f"eq(n,{i})" for i in chosen)
    picked = scaled(branches[0].filter("select", expression), cut, full_range=True)
    outputs = [
        ffmpeg.output(picked, "pipe:1", format="rawvideo", fps_mode="passthrough", threads=1),
        ffmpeg.output(branches[1], "-", format="null", fps_mode="passthrough", threads=1),
    ]
    if sound:
        options = exact(**sound_options(info, cut), format="mp4", movflags="+faststart")
        outputs.append(ffmpeg.output(source[str(info.audio_stream)], f"file:{folder / 'clip.m4a'}", **options))
        if policy.audio == "separate":
            outputs.append(wav_output(source, info, folder / "clip.wav"))
    return run_ffmpeg(compile_command(program, outputs, policy.timeout_s), policy.timeout_s)


def _encode(raw: bytes, cut: Cut, chosen: list[int], quality: int) -> dict[int, bytes]:
    """Encode raw 4:2:0 frames and return them by frame number."""
    import simplejpeg

    luma, chroma = cut.width * cut.height, cut.width * cut.height // 4
    size = luma + 2 * chroma
    if len(raw) != size * len(chosen):
        raise RejectedError(
            RejectReason.ENCODE_FAILED, f"ffmpeg gave {len(raw)} bytes for {len(chosen)} frames of {size} bytes"
        )
    planes = np.frombuffer(raw, np.uint8).reshape(len(chosen), size)
    half = (cut.height // 2, cut.width // 2)
    return {
        number: simplejpeg.encode_jpeg_yuv_planes(
            frame[:luma].reshape(cut.height, cut.width),
            frame[luma : luma + chroma].reshape(half),
            frame[luma + chroma :].reshape(half),
            quality=quality,
        )
        for number, frame in zip(chosen, planes, strict=True)
    }
