"""Looks at source videos before and beside the ingest: what they are, and what storing them would cost.

Probes are kept in `.work/probes-<dataset>.jsonl` by place, size and checksum, so a data page costs them once.
Sources in a bucket are not probed here: that would download them.
"""

import json
import logging
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from data_specs.box_sources import nominal_rate
from data_specs.schema import ClipPolicy, DatasetSpec, ListedVideo, RejectReason
from infra.settings import Settings
from tasks.ops import acquire
from tasks.ops.clips import encode_mp4, plan_cut
from tasks.ops.encoder import EncoderError, ffmpeg_path
from tasks.ops.frames import fetch_frames, in_order, numbering_problem, remux
from tasks.ops.jpegs import encode_jpgs
from tasks.ops.probe import RejectedError, VideoInfo, probe

log = logging.getLogger(__name__)

_THREADS = 4


class VideoFacts(NamedTuple):
    """What the probe says about one source video; empty but for `reason` and `detail` when it rejects it."""

    path: str
    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    fps: float
    duration_s: float
    audio: str
    """Codec of the sound; empty when there is none."""
    reason: str
    """Why it would be rejected; empty when it would not."""
    detail: str


def pick(rows: Sequence[ListedVideo], limit: int, seed: int = 0) -> list[ListedVideo]:
    """Return at most `limit` rows, chosen by the seed, in the order of `rows`."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[number] for number in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def local_rows(rows: Sequence[ListedVideo], roots: Mapping[str, str]) -> list[ListedVideo]:
    """Return the rows whose file lies on this machine."""
    return [r for r in rows if r.size is not None and not acquire.is_remote(acquire.join(roots[r.part], r.path))]


def survey(
    dataset: str,
    rows: Sequence[ListedVideo],
    roots: Mapping[str, str],
    settings: Settings,
    progress: Callable[[int, int], None] | None = None,
    rates: Mapping[str, float] | None = None,
) -> list[VideoFacts]:
    """Probe the files of some rows (each file once).

    Args:
        dataset: Name, for the file in which probes are kept.
        rows: Rows of local files (`local_rows`).
        roots: Part → its root.
        settings: Settings of the project.
        progress: Called with (done, total).
        rates: Part → rate of its frame folders (`frame_rates`).

    Returns:
        One entry per file, in the order of `rows`.
    """
    cache_path = settings.work / f"probes-{dataset}.jsonl"
    known: dict[tuple[str, str], VideoFacts] = {}
    if cache_path.exists():
        with cache_path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    place, checksum, *facts = json.loads(line)
                    known[place, checksum] = VideoFacts(*facts)
                except (ValueError, TypeError):
                    continue  # torn line of a killed run, or another version's
    files = {acquire.join(roots[r.part], r.path): r for r in rows}
    todo = [(place, row) for place, row in files.items() if (place, row.checksum) not in known]
    if todo:
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        with cache_path.open("a", encoding="utf-8") as file, ThreadPoolExecutor(_THREADS) as pool:
            results = pool.map(
                lambda entry: look_at(
                    acquire.local_path(entry[0]), entry[1].path, rates.get(entry[1].part) if rates else None
                ),
                todo,
            )
            for done, ((place, row), facts) in enumerate(zip(todo, results, strict=True), start=1):
                known[place, row.checksum] = facts
                file.write("\n" + json.dumps([place, row.checksum, *facts]))
                if progress is not None:
                    progress(done, len(todo))
    return [known[place, row.checksum] for place, row in files.items()]


def frame_rates(spec: DatasetSpec) -> dict[str, float]:
    """Return part → frame rate of its frame folders and pictures; parts of video files are not in it."""
    rates = {part.name: nominal_rate(part.source) for part in spec.parts}
    return {name: rate for name, rate in rates.items() if rate is not None}


def _probe_frames(place: Path, rate: float) -> VideoInfo:
    """Probe the first picture of a folder of frames (or the picture at that place) and count the others."""
    names = in_order(os.listdir(place)) if place.is_dir() else [place.name]
    if not names:
        raise RejectedError(RejectReason.EMPTY, "the folder has no pictures")
    problem = numbering_problem(names)
    if problem:
        raise RejectedError(RejectReason.BAD_FRAMES, problem)
    first = (place / names[0]) if place.is_dir() else place
    with tempfile.TemporaryDirectory(prefix="fovea-frame-") as folder:
        video = Path(folder) / "frame.mov"
        remux([(names[0], first.read_bytes())], video, rate)
        info = probe(video)
    return replace(info, container="frames", frames=len(names), duration_s=len(names) / rate)


def look_at(path: Path, shown: str, rate: float | None = None) -> VideoFacts:
    """Probe one file, or with a rate one folder of frames; a reject is an answer here, not an error."""
    try:
        info = probe(path) if rate is None else _probe_frames(path, rate)
    except RejectedError as error:
        return VideoFacts(shown, "", "", "", 0, 0, 0.0, 0.0, "", error.reason.value, error.detail)
    except OSError as error:
        return VideoFacts(shown, "", "", "", 0, 0, 0.0, 0.0, "", "missing", str(error))
    return VideoFacts(
        shown,
        info.container,
        info.codec,
        info.pix_fmt,
        info.width,
        info.height,
        round(float(info.rate), 3),
        round(info.duration_s, 3),
        info.audio_codec or "",
        "",
        "",
    )


class SizeEstimate(NamedTuple):
    """Bytes of all samples, extrapolated from a few that were really encoded."""

    mp4: float
    jpgs: float
    jpgs_frames: int
    sampled: int
    """Videos that were encoded for it."""


def estimate_sizes(
    rows: Sequence[ListedVideo],
    roots: Mapping[str, str],
    policy: ClipPolicy,
    settings: Settings,
    sample: int = 6,
    frames: int = 16,
    rates: Mapping[str, float] | None = None,
) -> SizeEstimate | None:
    """Encode a few videos both ways and extrapolate to all of them.

    Args:
        rows: Rows of local files.
        roots: Part → its root.
        policy: Size, rate and quality to encode with; its own representation plays no role.
        settings: Settings of the project.
        sample: How many videos to encode.
        frames: Frames per sample of the `jpgs` representation, where the policy names no number.
        rates: Part → rate of its frame folders (`frame_rates`).

    Returns:
        The estimate, or None when none of the sample can be encoded.
    """
    frames = policy.num_frames or frames
    mp4_policy = policy.model_copy(update={"representation": "mp4", "num_frames": None})
    jpgs_policy = policy.model_copy(update={"representation": "jpgs", "num_frames": frames})
    program = ffmpeg_path(settings)
    mp4: list[int] = []
    jpgs: list[int] = []
    for row in pick(rows, sample, seed=1):
        path = acquire.local_path(acquire.join(roots[row.part], row.path))
        rate = rates.get(row.part) if rates else None
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fovea-estimate-"))
            try:
                if rate is not None:
                    fetched = fetch_frames(str(path), Path(folder), row.size or 0, row.checksum, rate)
                    path = stack.enter_context(fetched).path
                info = probe(path)
                cut = plan_cut(info, mp4_policy, row.start_s, row.end_s)
                one = encode_mp4(path, info, cut, mp4_policy, program, Path(folder))
                other = encode_jpgs(path, info, cut, jpgs_policy, program, Path(folder))
            except (RejectedError, EncoderError, acquire.SourceChangedError) as error:
                log.info("%s is left out of the estimate of sizes: %s", row.path, error)
                continue
        mp4.append(sum(map(len, one.members.values())))
        jpgs.append(sum(map(len, other.members.values())))
    if not mp4:
        return None
    return SizeEstimate(sum(mp4) / len(mp4) * len(rows), sum(jpgs) / len(jpgs) * len(rows), frames, len(mp4))
