"""Plans the shards of a data set from its listing, before anything is decoded.

A reject therefore makes its shard smaller and moves no other sample, and videos of a new part make new shards: the
shards of earlier parts keep their bytes. Within a part and split, samples lie in the order of hash(seed, key).

The plan digest of a shard covers everything that its bytes follow from; a stored shard of that digest is the shard.
"""

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from data_specs.load import clip_against_boxes
from data_specs.schema import KEY_PATTERN, SHARD_FORMAT, SPLITS, DatasetSpec, Encoder, ListedVideo

_HELD_OUT_FIRST = {"test": 0, "val": 1, "train": 2}


class PlanError(ValueError):
    """The listing does not fit the data set's specification."""


class PlannedVideo(NamedTuple):
    """A listed video with what only the whole listing can say about it."""

    video: ListedVideo
    label: int | tuple[int, ...] | None
    duplicate_of: str
    """Key of the sample with the same bytes under another split or label; empty for none."""


class ShardPlan(NamedTuple):
    """One shard to be made."""

    name: str
    part: str
    split: str
    digest: str
    videos: tuple[PlannedVideo, ...]


class IngestPlan:
    """All shards of a data set.

    Not a dataclass: an orchestrator that looks for futures inside its arguments would walk through every row.
    """

    __slots__ = ("classes", "encoder", "listed", "shards", "spec")

    def __init__(
        self,
        spec: DatasetSpec,
        encoder: Encoder,
        classes: tuple[str, ...],
        shards: tuple[ShardPlan, ...],
        listed: dict[str, int],
    ) -> None:
        self.spec = spec
        self.encoder = encoder
        self.classes = classes
        self.shards = shards
        self.listed = listed

    @property
    def num_videos(self) -> int:
        """Number of listed videos."""
        return sum(self.listed.values())


def resolve_label(label: str, classes: dict[str, int], key: str) -> int | tuple[int, ...] | None:
    """Return the class index of a label, several for `a|b`, None for an empty one.

    Raises:
        PlanError: no such class.
    """
    if not label:
        return None
    if label in classes:
        return classes[label]
    names = label.split("|")
    for name in names:
        if name not in classes:
            raise PlanError(
                f"sample {key!r}: label {name!r} is not among the {len(classes)} classes of the data set; "
                "add it to `labels` or correct the annotation"
            )
    return tuple(sorted(classes[name] for name in names))


def _overlap(a: ListedVideo, b: ListedVideo) -> bool:
    """Tell whether two spans of the same bytes share time."""
    inf = float("inf")
    a_end, b_end = (inf if end is None else end for end in (a.end_s, b.end_s))
    return (a.start_s or 0.0) < b_end and (b.start_s or 0.0) < a_end


def find_duplicates(videos: Sequence[ListedVideo], part_order: dict[str, int]) -> dict[int, str]:
    """Find samples whose bytes also stand under another split (leakage) or another label (contradiction).

    One of each group stays: that of the earliest part (its shards exist already), within a part of the held-out
    split (the training set loses the copy), then of the smallest key. Equal bytes under the same split and label are
    left alone, and so are different spans of one video with different labels.

    Args:
        videos: the whole listing.
        part_order: name of part → position in the specification.

    Returns:
        Position in `videos` → key of the sample that stays.
    """
    first: dict[str, int] = {}
    groups: dict[str, list[int]] = {}
    for position, video in enumerate(videos):
        if not video.checksum or not video.size:
            continue
        earlier = first.setdefault(video.checksum, position)
        if earlier != position:
            groups.setdefault(video.checksum, [earlier]).append(position)
    duplicates: dict[int, str] = {}
    for positions in groups.values():
        positions.sort(
            key=lambda p: (part_order[videos[p].part], _HELD_OUT_FIRST.get(videos[p].split, 3), videos[p].key)
        )
        kept: list[ListedVideo] = []
        for position in positions:
            video = videos[position]
            for other in kept:
                same_span = (video.start_s, video.end_s) == (other.start_s, other.end_s)
                leak = video.split != other.split and _overlap(video, other)
                if leak or (same_span and (video.label, video.boxes) != (other.label, other.boxes)):
                    duplicates[position] = other.key
                    break
            else:
                kept.append(video)
    return duplicates


def _check(videos: Iterable[ListedVideo], parts: dict[str, int], dataset: str) -> None:
    """Check keys, parts and splits of a listing."""
    pattern = re.compile(KEY_PATTERN)
    keys: set[str] = set()
    for video in videos:
        if not pattern.fullmatch(video.key):
            raise PlanError(f"key {video.key!r} of {video.path!r} must consist of a-z, 0-9, _ and -")
        if video.key in keys:
            raise PlanError(f"key {video.key!r} is listed twice (second: {video.path!r} of part {video.part!r})")
        if video.part not in parts:
            raise PlanError(f"sample {video.key!r}: part {video.part!r} is not declared by data set {dataset!r}")
        if video.split not in SPLITS:
            raise PlanError(f"sample {video.key!r}: split {video.split!r} is none of {', '.join(SPLITS)}")
        keys.add(video.key)


def _check_boxes(spec: DatasetSpec, videos: Iterable[ListedVideo]) -> None:
    """Check that clips with boxes keep the frames that the boxes are numbered by."""
    with_boxes = next((video for video in videos if video.boxes), None)
    if with_boxes is None:
        return
    wrong = clip_against_boxes(spec.clip)
    if wrong is not None:
        raise PlanError(f"sample {with_boxes.key!r} has boxes, so clip.{wrong[0]} of data set {spec.name!r} {wrong[1]}")
    cut = next((v for v in videos if v.boxes and (v.start_s is not None or v.end_s is not None)), None)
    if cut is not None:
        raise PlanError(
            f"sample {cut.key!r} has boxes and a start or end: boxes are numbered by the frames of the whole video"
        )


def _order(seed: int, key: str) -> bytes:
    """Return the sort key of a sample within its part and split."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()[:12]


def plan_shards(
    spec: DatasetSpec, videos: Sequence[ListedVideo], encoder: Encoder, classes: tuple[str, ...]
) -> IngestPlan:
    """Plan all shards of a data set.

    Args:
        spec: the data set.
        videos: its whole listing.
        encoder: program that will make the clips.
        classes: class names in index order.

    Raises:
        PlanError: the listing is empty or does not fit the specification.
    """
    parts = {part.name: number for number, part in enumerate(spec.parts)}
    if not videos:
        raise PlanError(f"data set {spec.name!r}: its sources list no videos; look at the roots of its parts")
    _check(videos, parts, spec.name)
    _check_boxes(spec, videos)
    index = {name: number for number, name in enumerate(classes)}
    duplicates = find_duplicates(videos, parts)
    groups: dict[tuple[str, str], list[int]] = {}
    for position, video in enumerate(videos):
        groups.setdefault((video.part, video.split), []).append(position)
    common = {
        "format": SHARD_FORMAT,
        "clip": spec.clip.model_dump(mode="json"),
        "encoder": encoder.model_dump(mode="json"),
        "audio_required": spec.audio_required,
    }
    shards = []
    for part, split in sorted(groups, key=lambda group: (parts[group[0]], SPLITS.index(group[1]))):
        order = sorted(groups[part, split], key=lambda p: _order(spec.shards.seed, videos[p].key))
        for number, start in enumerate(range(0, len(order), spec.shards.samples_per_shard)):
            planned = tuple(
                PlannedVideo(
                    videos[p],
                    resolve_label(videos[p].label, index, videos[p].key),
                    duplicates.get(p, ""),
                )
                for p in order[start : start + spec.shards.samples_per_shard]
            )
            name = f"{part}-{split}-{number:05d}.tar"
            digest = _digest(common, name, planned)
            shards.append(ShardPlan(name, sys.intern(part), sys.intern(split), digest, planned))
    listed = Counter(video.split for video in videos)
    return IngestPlan(
        spec, encoder, classes, tuple(shards), {split: listed[split] for split in SPLITS if listed[split]}
    )


def _digest(common: dict[str, object], name: str, planned: tuple[PlannedVideo, ...]) -> str:
    """Return the plan digest of one shard."""
    head = json.dumps(common | {"name": name}, sort_keys=True, separators=(",", ":"))
    # Named tuples become lists in the order of their fields. `boxes` comes last and only where there are some: shards
    # that were made before rows had the field keep their digests.
    plain = [(p.video if p.video.boxes else p.video[:-1], p.label, p.duplicate_of) for p in planned]
    rows = json.dumps(plain, separators=(",", ":"))
    return hashlib.sha256(f"{head}\n{rows}".encode()).hexdigest()
