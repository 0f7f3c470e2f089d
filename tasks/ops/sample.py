"""Makes one sample from one listed video, or says why not.

`python -m tasks.ops.sample <dataset> <key> [<folder>]` does it for a single video of a data set, outside of any
shard, and writes its members into the folder: the command that worker errors and quarantine lines point to.
"""

import shlex
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from data_specs.schema import ClipPolicy, ClipRecord, Encoder, RejectReason
from infra.settings import Settings
from tasks.ops.acquire import fetch, is_remote, join
from tasks.ops.clips import Clip, encode_mp4, plan_cut
from tasks.ops.encoder import encoder_of, ffmpeg_path
from tasks.ops.jpegs import encode_jpgs
from tasks.ops.plan import PlannedVideo
from tasks.ops.probe import Reject, RejectedError, probe
from tasks.ops.quarantine import QuarantineRow

PROBE_TIMEOUT_S = 60.0


class SampleError(RuntimeError):
    """A sample could not be made for a reason that is not the video's; names sample and command."""


@dataclass(frozen=True)
class SampleContext:
    """What all samples of a part have in common; travels to the workers."""

    dataset: str
    root: str
    """Folder or URL that the part's paths are relative to."""
    policy: ClipPolicy
    encoder: Encoder
    audio_required: bool
    settings: Settings
    isolate: bool = False
    """Probe in a process of its own: for shards whose worker died, perhaps of a file that crashes the decoder."""


@dataclass(frozen=True)
class Sample:
    """A finished sample."""

    record: ClipRecord
    members: dict[str, bytes]
    """Extension → content, without the record itself."""


def shown_location(location: str, settings: Settings) -> str:
    """Return a source's location as it is written into outputs: relative to the project if it lies there.

    Outputs must not depend on where the project lies on this machine.
    """
    if is_remote(location):
        return location
    path, root = Path(location).absolute(), settings.root.absolute()
    shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return f"./{shown}" if shown.startswith("-") else shown


def check_encoder(context: SampleContext) -> None:
    """Refuse to encode with another program than the one that the shards were planned for.

    Raises:
        SampleError: this machine's ffmpeg, JPEG encoder or OpenCV is another one.
    """
    here = encoder_of(context.settings, context.policy.representation, context.policy.flow)
    if here != context.encoder:
        raise SampleError(
            f"this machine encodes with {here.name} {here.version}, the shards were planned for {context.encoder.name} "
            f"{context.encoder.version}; install the same versions on all machines"
        )


def _isolated_probe(path: Path) -> None:
    """Run the probe in another process first, so that a crash becomes a reject."""
    command = [sys.executable, "-m", "tasks.ops.probe", str(path.absolute())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RejectedError(RejectReason.TIMEOUT, f"probe did not end within {PROBE_TIMEOUT_S:g} s") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise RejectedError(RejectReason.CORRUPT, f"the decoder crashes on it ({name})")


def _encode(path: Path, planned: PlannedVideo, context: SampleContext, folder: Path) -> Clip:
    """Probe and encode a fetched file."""
    video, policy = planned.video, context.policy
    if context.isolate:
        _isolated_probe(path)
    info = probe(path)
    if context.audio_required and info.audio_stream is None:
        raise RejectedError(RejectReason.NO_AUDIO, "the data set requires sound, the video has none")
    cut = plan_cut(info, policy, video.start_s, video.end_s)
    encode = encode_mp4 if policy.representation == "mp4" else encode_jpgs
    clip = encode(path, info, cut, policy, ffmpeg_path(context.settings), folder)
    if clip.num_frames < policy.min_frames:
        raise RejectedError(RejectReason.TOO_SHORT, f"{clip.num_frames} frames, the least is {policy.min_frames}")
    return clip


def make_sample(planned: PlannedVideo, context: SampleContext, folder: Path) -> Sample | Reject:
    """Make the sample of one listed video.

    Args:
        planned: the video and its label.
        context: root, policy, encoder.
        folder: temporary folder for this task; a folder per sample is made and removed in it.

    Returns:
        The sample, or why there is none. A reject follows from the video's bytes (or its time limit) alone.

    Raises:
        SampleError: source changed or not reachable, program killed, disk full: nothing that says anything about
            the video.
    """
    video = planned.video
    location = join(context.root, video.path)
    shown = shlex.quote(shown_location(location, context.settings))
    by_hand = f"python -m tasks.ops.sample {context.dataset} {video.key}"
    look = f"aws s3 ls {shown}" if is_remote(location) else f"ls -l {shown}"
    if video.size is None:
        return Reject(RejectReason.MISSING, "listed by the annotation, not found at the source", look)
    if video.size == 0:
        return Reject(RejectReason.EMPTY, "file has 0 bytes", look)
    if planned.duplicate_of:
        same = f"same bytes as sample {planned.duplicate_of} under another split or label"
        listing = f"data/manifests/{context.dataset}.csv"
        return Reject(RejectReason.DUPLICATE, same, f"grep {video.checksum} {listing}")
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix="sample-") as own,
            fetch(
                location, Path(own), video.size, video.checksum, endpoint_url=context.settings.s3_endpoint_url
            ) as source,
        ):
            clip = _encode(source.path, planned, context, Path(own))
            sha256 = source.sha256
    except RejectedError as reject:
        return Reject(reject.reason, reject.detail, by_hand)
    except Exception as error:
        raise SampleError(
            f"sample {video.key!r} ({shown}): {type(error).__name__}: {error}; to see it: {by_hand}"
        ) from error
    record = ClipRecord(
        key=video.key,
        source=video.path,
        part=video.part,
        split=video.split,
        group=video.group,
        label=planned.label,
        start_s=video.start_s or 0.0,
        end_s=video.end_s,
        num_frames=clip.num_frames,
        fps=clip.fps,
        width=clip.width,
        height=clip.height,
        duration_s=clip.duration_s,
        has_audio=clip.has_audio,
        frame_index=clip.frame_index,
        source_sha256=sha256,
    )
    return Sample(record, clip.members)


def quarantine_row(planned: PlannedVideo, reject: Reject) -> QuarantineRow:
    """Return the line of `quarantine.csv` for a reject."""
    video = planned.video
    return QuarantineRow(
        key=video.key,
        source=video.path,
        part=video.part,
        split=video.split,
        reason=reject.reason,
        detail=reject.detail,
        command=reject.command,
    )


def main(arguments: list[str]) -> int:
    """Make one sample by hand and print its record or the reject."""
    from data_specs.load import class_names, load_spec
    from tasks.ops.listing import part_root, read_manifest
    from tasks.ops.plan import plan_shards

    if len(arguments) not in (2, 3):
        print("usage: python -m tasks.ops.sample <dataset> <key> [<folder>]", file=sys.stderr)
        return 2
    settings = Settings()
    spec = load_spec(arguments[0])
    encoder = encoder_of(settings, spec.clip.representation, spec.clip.flow)
    plan = plan_shards(spec, read_manifest(settings.manifests / f"{spec.name}.csv"), encoder, class_names(spec))
    found = [p for shard in plan.shards for p in shard.videos if p.video.key == arguments[1]]
    if not found:
        print(f"data set {spec.name!r} lists no sample {arguments[1]!r}", file=sys.stderr)
        return 2
    part = next(part for part in spec.parts if part.name == found[0].video.part)
    context = SampleContext(spec.name, part_root(part, settings), spec.clip, encoder, spec.audio_required, settings)
    with tempfile.TemporaryDirectory(prefix="fovea-") as folder:
        made = make_sample(found[0], context, Path(folder))
    if isinstance(made, Reject):
        print(f"{made.reason}: {made.detail}", file=sys.stderr)
        return 1
    print(made.record.model_dump_json(indent=2))
    if len(arguments) == 3:
        target = Path(arguments[2])
        target.mkdir(parents=True, exist_ok=True)
        for extension, content in made.members.items():
            (target / f"{made.record.key}.{extension}").write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
