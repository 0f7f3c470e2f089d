"""Makes one sample from one listed video, or says why not.

`python -m tasks.ops.sample <dataset> <key> [<folder>]` does it for a single video of a data set, outside of any
shard, and writes its members into the folder: the command that worker errors and quarantine lines point to.
"""

import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from data_specs.box_sources import BoxSource, ImagenetVidSource, nominal_rate
from data_specs.boxes import BOXES_MEMBER
from data_specs.schema import ClipPolicy, ClipRecord, DatasetSpec, Encoder, Part, RejectReason
from infra.settings import Settings
from tasks.ops.acquire import Fetched, changed, fetch, is_remote, join
from tasks.ops.boxes import Annotation, check_picture, member_bytes, stored_boxes
from tasks.ops.clips import Clip, encode_mp4, plan_cut
from tasks.ops.encoder import encoder_of, ffmpeg_path
from tasks.ops.frames import fetch_frames
from tasks.ops.jpegs import encode_jpgs
from tasks.ops.listing import listed_annotation, part_root
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
    source: BoxSource | None = None
    """Source of the part, where its videos have boxes."""
    classes: tuple[str, ...] = ()
    """Class names in index order, which boxes refer to."""


@dataclass(frozen=True)
class Sample:
    """A finished sample."""

    record: ClipRecord
    members: dict[str, bytes]
    """Extension → content, without the record itself."""


def context_of(
    spec: DatasetSpec, part: Part, encoder: Encoder, settings: Settings, classes: tuple[str, ...]
) -> SampleContext:
    """Return what the samples of a part have in common.

    Args:
        spec: Data set.
        part: One of its parts.
        encoder: Program that the shards were planned for.
        settings: Roots.
        classes: Class names in index order.
    """
    source = part.source if isinstance(part.source, BoxSource) else None
    return SampleContext(
        dataset=spec.name,
        root=part_root(part, settings),
        policy=spec.clip,
        encoder=encoder,
        audio_required=spec.audio_required,
        settings=settings,
        source=source,
        classes=classes if source is not None else (),
    )


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


def read_annotation(planned: PlannedVideo, context: SampleContext) -> Annotation | None:
    """Return the boxes of a listed video in pixels of the source; None where it has none.

    Raises:
        SourceChangedError: the annotation is not the one that was listed.
        ReaderError: it cannot be read any more.
    """
    video = planned.video
    if not video.boxes:
        return None
    if context.source is None:
        raise ValueError(f"{video.key} is listed with boxes, its part {video.part!r} has a source without; list again")
    annotation = listed_annotation(context.source, context.root, context.settings.root, context.classes, video.path)
    found = "" if annotation is None else annotation.sha256
    if found != video.boxes:
        raise changed(
            f"the annotation of {video.path}", f"its boxes have checksum {found[:12]}…, listed is {video.boxes[:12]}…"
        )
    return annotation


@contextmanager
def fetched(location: str, planned: PlannedVideo, context: SampleContext, folder: Path) -> Iterator[Fetched]:
    """Give a listed video as a checked file on this machine: itself, or one made of its frames.

    Errors are those of `acquire.fetch`, and of `frames.fetch_frames` where it is a folder of frames.
    """
    video, endpoint = planned.video, context.settings.s3_endpoint_url
    assert video.size is not None  # a missing video is a reject
    rate = nominal_rate(context.source)
    if rate is None:
        with fetch(location, folder, video.size, video.checksum, endpoint_url=endpoint) as source:
            yield source
        return
    first = 0 if isinstance(context.source, ImagenetVidSource) else None
    with fetch_frames(location, folder, video.size, video.checksum, rate, first, endpoint) as source:
        yield source


def _encode(
    path: Path, planned: PlannedVideo, annotation: Annotation | None, context: SampleContext, folder: Path
) -> Clip:
    """Probe and encode a fetched file."""
    video, policy = planned.video, context.policy
    if context.isolate:
        _isolated_probe(path)
    info = probe(path)
    if context.audio_required and info.audio_stream is None:
        raise RejectedError(RejectReason.NO_AUDIO, "the data set requires sound, the video has none")
    cut = plan_cut(info, policy, video.start_s, video.end_s)
    if annotation is not None:
        check_picture(annotation, info)
        cut = replace(cut, each_frame=True)
    encode = encode_mp4 if policy.representation == "mp4" else encode_jpgs
    clip = encode(path, info, cut, policy, ffmpeg_path(context.settings), folder)
    if clip.num_frames < policy.min_frames:
        raise RejectedError(RejectReason.TOO_SHORT, f"{clip.num_frames} frames, the least is {policy.min_frames}")
    if annotation is None:
        return clip
    boxes = stored_boxes(annotation, clip.num_frames, (info.width, info.height), (clip.width, clip.height))
    return replace(clip, members=clip.members | {BOXES_MEMBER: member_bytes(boxes)})


def make_sample(planned: PlannedVideo, context: SampleContext, folder: Path) -> Sample | Reject:
    """Make the sample of one listed video.

    Args:
        planned: the video and its label.
        context: root, policy, encoder.
        folder: temporary folder for this task; a folder per sample is made and removed in it.

    Returns:
        The sample, or why there is none. A reject follows from the video's bytes (or its time limit) alone.

    Raises:
        SampleError: source or annotation changed, or not reachable, program killed, disk full: nothing that says
            anything about the video.
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
            fetched(location, planned, context, Path(own)) as source,
        ):
            annotation = read_annotation(planned, context)
            clip = _encode(source.path, planned, annotation, context, Path(own))
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
    from tasks.ops.listing import read_manifest
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
    context = context_of(spec, part, encoder, settings, class_names(spec))
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
