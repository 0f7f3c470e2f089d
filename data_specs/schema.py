"""Types of the shard contract: what a data set is, what a sample is, how shards are indexed.

Writers live in `tasks`, readers in `training`; neither imports the other. Everything here is frozen
and refuses unknown keys, so a typo in a YAML file or a foreign shard fails with the field's name.

Layout of one data set, `data/shards/<dataset>/`:

    <part>-<split>-<number>.tar   samples in order of hash(seed, key); members `<key>.<extension>`
    <part>-<split>-<number>.idx   JSON lines, one `IndexEntry` per sample: offsets into the tar
    labels.txt                    class names, one per line, line number = class index
    quarantine.csv                one line per rejected video (columns: `QUARANTINE_COLUMNS`)
    index.json                    `ShardIndex`; written last, so its existence means completeness
"""

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from data_specs.box_sources import BoxSource
from data_specs.strict import Strict as Strict

SHARD_FORMAT = 1
"""Raised when a reader of the previous format could misread a shard."""

KEY_PATTERN = r"^[a-z0-9_-]+$"
"""No dots: webdataset takes everything after the first dot as the extension."""

NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
"""Data sets, parts and splits: usable in file names, DVC stage names and model names alike."""

SPLITS = ("train", "val", "test")
QUARANTINE_COLUMNS = ("key", "source", "part", "split", "reason", "detail", "command")


class RejectReason(StrEnum):
    """Why a source video did not become a sample."""

    MISSING = "missing"
    """Listed by the annotation, not found at the source."""
    EMPTY = "empty"
    """Zero bytes."""
    NOT_A_VIDEO = "not_a_video"
    """No container that the probe can open."""
    NO_VIDEO_STREAM = "no_video_stream"
    NO_AUDIO = "no_audio"
    """The data set requires sound (`audio_required`) and the video has none."""
    CORRUPT = "corrupt"
    """Opens, but packets or frames cannot be decoded."""
    TRUNCATED = "truncated"
    """Ends well before the length that its container promises."""
    TOO_SHORT = "too_short"
    TOO_SMALL = "too_small"
    TOO_LONG = "too_long"
    BAD_SPAN = "bad_span"
    """The annotated start and end do not lie inside the video."""
    UNSUPPORTED_CODEC = "unsupported_codec"
    DUPLICATE = "duplicate"
    """Same bytes as another sample of the same data set under another split or label."""
    TIMEOUT = "timeout"
    ENCODE_FAILED = "encode_failed"
    BAD_FRAMES = "bad_frames"
    """A folder of frames with a gap in its numbers, or with pictures of different sizes or formats."""
    BOXES_MISMATCH = "boxes_mismatch"
    """The annotated boxes are of other pictures: another number of frames, another size, turned or stretched."""


# --- data set specification -------------------------------------------------------------------


class SplitPolicy(Strict):
    """How samples without an official split are divided: seeded, whole groups, stratified by class."""

    train: float = Field(ge=0, le=1)
    val: float = Field(ge=0, le=1)
    test: float = Field(ge=0, le=1)
    seed: int
    group: str = "source"
    """`source`: by source video; `regex:<pattern>`: first group of the pattern on the file name;
    `column:<name>`: a column of the csv."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> "SplitPolicy":
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train + val + test must be 1, got {self.train + self.val + self.test}")
        return self


class FolderSource(Strict):
    """`<root>/<class>/<video>`; with `splits_in_path`, `<root>/<split>/<class>/<video>`."""

    kind: Literal["folder"] = "folder"
    root: str
    splits_in_path: bool = False
    extensions: tuple[str, ...] = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".gif")


class CsvSource(Strict):
    """A csv or tsv with one row per sample. Column names are those of the file.

    A file without header is read by numbers as names (`path: "0"`). `path` may be a template (`"{id}.webm"`).
    """

    kind: Literal["csv"] = "csv"
    root: str
    file: str
    path: str = "path"
    label: str = "label"
    start: str | None = None
    end: str | None = None
    split: str | None = None
    group: str | None = None
    where: dict[str, str] = Field(default_factory=dict)
    """Keep only rows whose column has this value."""
    ignore: tuple[str, ...] = ()
    """Columns of the file that are known and not used; `("*",)` ignores all others."""


class KineticsSource(Strict):
    """Kinetics csv: label, youtube_id, time_start, time_end, split[, is_cc]."""

    kind: Literal["kinetics"] = "kinetics"
    root: str
    file: str
    trimmed: bool = True
    """Videos are already cut: `<id>_<start:06>_<end:06>.mp4`; otherwise `<id>.mp4` is cut."""


class Ucf101Source(Strict):
    """UCF101: classInd.txt, trainlistNN.txt, testlistNN.txt."""

    kind: Literal["ucf101"] = "ucf101"
    root: str
    lists: str
    split_number: Literal[1, 2, 3] = 1


class Hmdb51Source(Strict):
    """HMDB51: `<class>_test_split<N>.txt`, 1 = train, 2 = test, 0 = unused."""

    kind: Literal["hmdb51"] = "hmdb51"
    root: str
    lists: str
    split_number: Literal[1, 2, 3] = 1


Source = Annotated[
    FolderSource | CsvSource | KineticsSource | Ucf101Source | Hmdb51Source | BoxSource, Field(discriminator="kind")
]


class Part(Strict):
    """One append-only portion of a data set; its shards never change when later parts are added."""

    name: str = Field(pattern=NAME_PATTERN)
    source: Source
    split: SplitPolicy | Literal["train", "val", "test", "official"]
    """A policy, one split for all, or `official`: as the source's own files say."""


class ClipPolicy(Strict):
    """How a source video becomes members of a sample. All of it belongs to the shard digest, `flow` only when given."""

    representation: Literal["mp4", "jpgs"]
    """`mp4`: H.264 (+ AAC); `jpgs`: `num_frames` JPEG frames sampled uniformly (sparse sampling)."""
    short_side: int = Field(ge=16)
    """Pixels; smaller sources are not enlarged."""
    fps: float | None
    """Frames per second; None keeps the source's (constant) rate."""
    audio: Literal["keep", "drop", "separate"]
    """`keep`: AAC inside the mp4, copied where the container allows; `separate`: also a `wav` member."""
    num_frames: int | None = Field(default=None, ge=1)
    """Only for `jpgs`."""
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    crf: int = Field(default=23, ge=0, le=51)
    preset: str = "veryfast"
    gop: int | Literal["auto"] = "auto"
    """Frames between key frames; `auto`: one long GOP up to 120 frames, else 12 (limits of random access)."""
    min_duration_s: float = 0.0
    max_duration_s: float = 3600.0
    min_frames: int = 1
    timeout_s: float = 300.0
    """Per ffmpeg process."""
    flow: Literal["dis"] | None = None
    """Adds a member `flow` to each sample: optical flow of the stored clip's own frames (`data_specs.flows`), by the
    extractor of this name. Only for `mp4`. It costs time at the ingest, and several times the bytes of the clip."""

    @model_validator(mode="after")
    def _jpgs_need_count(self) -> "ClipPolicy":
        if (self.representation == "jpgs") != (self.num_frames is not None):
            raise ValueError("clip.num_frames must be given for representation jpgs, and only for it")
        if self.flow is not None and self.representation != "mp4":
            raise ValueError("clip.flow is only for representation mp4: frames of jpgs are not neighbours")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a flow that is not asked for: digests of what was made before there was one stay valid."""
        values: dict[str, Any] = handler(self)
        if values.get("flow") is None:
            values.pop("flow", None)
        return values


class ShardPolicy(Strict):
    """How samples are grouped into tar files."""

    samples_per_shard: int = Field(ge=1)
    seed: int


class DatasetSpec(Strict):
    """A data set, declared in `data_specs/datasets/<name>.yaml`."""

    name: str = Field(pattern=NAME_PATTERN)
    version: str
    description: str = ""
    licence: str
    labels: tuple[str, ...] | str
    """Class names in index order, or the name of a file in `data_specs/labels/`."""
    parts: tuple[Part, ...] = Field(min_length=1)
    clip: ClipPolicy
    shards: ShardPolicy
    max_reject_share: float = Field(ge=0, le=1)
    """The ingest stops with an error when more than this share of the listed videos is rejected."""
    expected: dict[str, int] = Field(default_factory=dict)
    """Official number of samples per split, for the coverage figure."""
    audio_required: bool = False


def digest(value: BaseModel | dict[str, object] | list[object] | str) -> str:
    """Return the sha256 (hex) of a model's normalised JSON, independent of key order."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class ListedVideo(NamedTuple):
    """One row of `data/manifests/<dataset>.csv`: a source video (or span of one) that should become a sample.

    A tuple, not a model: a listing may have 650,000 rows and planning must stay under 1 GiB.
    """

    part: str
    key: str
    path: str
    """Relative to the part's root, or a URL."""
    label: str
    """Class name; several joined by `|` for multi-label sets; empty when unknown."""
    split: str
    group: str
    start_s: float | None
    end_s: float | None
    size: int | None
    """Bytes; None when the source does not have the file."""
    checksum: str
    """sha256 of local files, etag of remote ones, for a folder of frames a sha256 of these; empty when missing."""
    boxes: str = ""
    """sha256 of the annotated boxes (`tasks.ops.boxes`); empty where the source has none."""


# --- samples and shards -----------------------------------------------------------------------


class ClipRecord(Strict):
    """The `json` member of a sample. Closed core: new information is a new member with its own type."""

    key: str = Field(pattern=KEY_PATTERN)
    source: str
    """Path of the source video relative to its part's root (or its URL)."""
    part: str
    split: str
    group: str
    """Unit that is never divided between splits (source video, performer)."""
    label: int | tuple[int, ...] | None
    """Class index; several for multi-label sets; None where the label is a track or unknown."""
    start_s: float = 0.0
    end_s: float | None = None
    """Span of the source that this sample shows; None is the end of the source."""
    num_frames: int
    """Length of the (resampled) clip, also where `jpgs` stores only some of its frames."""
    fps: float
    width: int
    height: int
    """Of the stored clip, after rotation and scaling (pixels)."""
    duration_s: float
    has_audio: bool
    frame_index: tuple[int, ...] | None = None
    """Only for `jpgs`: which frames of the (resampled) clip were stored."""
    source_sha256: str | None = None

    @model_validator(mode="after")
    def _counts_the_clip(self) -> "ClipRecord":
        """Read a record of the first `jpgs` shards, which has the number of stored frames for the clip's length.

        Of the clip's length were rate and duration, so that it follows from them. Only a clip that is stored whole
        can rightly have as many frames as are stored.
        """
        stored = self.frame_index
        if not stored:
            return self
        if self.num_frames == len(stored) and stored != tuple(range(len(stored))):
            object.__setattr__(self, "num_frames", round(self.duration_s * self.fps))
        if max(stored) >= self.num_frames:
            raise ValueError(
                f"frame_index has frame {max(stored)} of a clip of {self.num_frames} frames ({self.duration_s:g} s at "
                f"{self.fps:g} fps); run the ingest again"
            )
        return self


class IndexEntry(Strict):
    """One line of `<shard>.idx`."""

    key: str
    label: int | tuple[int, ...] | None
    num_frames: int
    """Of the clip; in the first `jpgs` shards of those that are stored, where the record says it right."""
    members: dict[str, tuple[int, int]]
    """Extension → (offset of the data in the tar, size), bytes."""


class ShardInfo(Strict):
    """One tar file."""

    name: str
    """File name, `<part>-<split>-<number>.tar`."""
    part: str
    split: str
    sha256: str
    bytes: int
    samples: int
    idx_sha256: str
    plan_digest: str
    """Digest of what the shard was planned from: listing, clip policy, encoder (D5)."""


class Encoder(Strict):
    """Program that made the clips; part of every plan digest, since it decides the pixels."""

    name: str
    version: str


class ShardIndex(Strict):
    """`index.json`."""

    format: int
    dataset: str
    spec_digest: str
    representation: Literal["mp4", "jpgs"]
    encoder: Encoder
    classes: tuple[str, ...]
    shards: tuple[ShardInfo, ...]
    rejects: dict[str, int]
    """Reason → number of quarantined videos."""
    listed: dict[str, int]
    """Split → number of videos that the sources list (before rejects)."""

    @model_validator(mode="after")
    def _known_format(self) -> "ShardIndex":
        if self.format != SHARD_FORMAT:
            raise ValueError(
                f"shard format {self.format} of data set {self.dataset!r} is not the supported {SHARD_FORMAT}; "
                "run its ingest again with this version of fovea"
            )
        return self

    def of_split(self, split: str) -> tuple[ShardInfo, ...]:
        """Return the shards of one split in file-name order."""
        return tuple(sorted((s for s in self.shards if s.split == split), key=lambda s: s.name))

    def data_digest(self, split: str | None = None) -> str:
        """Return a digest of the samples' bytes: of one split, or of all."""
        chosen = self.shards if split is None else self.of_split(split)
        return digest(sorted([s.name, s.sha256] for s in chosen))  # type: ignore[arg-type]


def read_index(folder: Path) -> ShardIndex:
    """Read `index.json` of a shard folder.

    Raises:
        FileNotFoundError: the folder has no index: the ingest did not finish or the data was not pulled.
    """
    path = folder / "index.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: the ingest of this data set has not finished; run `dvc repro shards@{folder.name}` "
            f"or `dvc pull {folder}`"
        )
    return ShardIndex.model_validate_json(path.read_text())
