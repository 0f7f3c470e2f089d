"""Small data sets with boxes, drawn so that the pixels say what the annotation must say."""

import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_specs.boxes import BOXES_MEMBER, ClipBoxes
from data_specs.schema import DatasetSpec, RejectReason
from infra.settings import Settings
from tasks.ops.encoder import encoder_of
from tasks.ops.listing import Listing, build_listing
from tasks.ops.plan import IngestPlan, plan_shards
from tasks.ops.probe import Reject
from tasks.ops.sample import Sample, context_of, make_sample

DOG, CAR, OTHER = "n02084071", "n02958343", "n00000001"
Box = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax: first and last pixel, as the XML files have it."""


def picture(number: int, boxes: Sequence[Box] = (), size: tuple[int, int] = (64, 48), kind: str = "JPEG") -> bytes:
    """A grey picture whose level says its number (modulo 40), with bright rectangles."""
    pixels = np.full((size[1], size[0], 3), 20 + 4 * (number % 40), np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0 : y1 + 1, x0 : x1 + 1] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return out.getvalue()


def xml(objects: Sequence[tuple[int | None, str, Box]], size: tuple[int, int] = (64, 48), head: str = "") -> str:
    """An annotation in ImageNet's layout."""
    parts = []
    for track, name, (x0, y0, x1, y1) in objects:
        trackid = "" if track is None else f"<trackid>{track}</trackid>"
        corners = f"<xmax>{x1}</xmax><xmin>{x0}</xmin><ymax>{y1}</ymax><ymin>{y0}</ymin>"
        parts.append(f"<object>{trackid}<name>{name}</name>\n<bndbox>{corners}</bndbox><occluded>0</occluded></object>")
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"{head}<annotation>\n<folder>x</folder>{shape}\n{''.join(parts)}\n</annotation>\n"


def write_video(
    root: Path,
    name: str,
    frames: Mapping[int, Sequence[tuple[int | None, str, Box]] | None],
    size: tuple[int, int] = (64, 48),
) -> Path:
    """Write frames and annotations of one video in ImageNet VID's layout; None: a frame without annotation."""
    folder = root / "Data/VID" / name
    notes = root / "Annotations/VID" / name
    folder.mkdir(parents=True)
    notes.mkdir(parents=True)
    for number, objects in frames.items():
        drawn = [box for _, _, box in objects or ()]
        (folder / f"{number:06d}.JPEG").write_bytes(picture(number, drawn, size))
        if objects is not None:
            (notes / f"{number:06d}.xml").write_text(xml(objects, size))
    return folder


@pytest.fixture(scope="session")
def draw() -> Callable[..., bytes]:
    return picture


@pytest.fixture(scope="session")
def write_xml() -> Callable[..., str]:
    return xml


@pytest.fixture(scope="session")
def add_video() -> Callable[..., Path]:
    return write_video


@pytest.fixture
def vid(tmp_path: Path) -> Path:
    """A VID root: a dog that moves through 6 frames, a car and a dog in 3 frames, and a video of another class."""
    root = tmp_path / "ILSVRC"
    moving = {i: [(0, DOG, (4 + 8 * i, 10, 15 + 8 * i, 29))] for i in range(6)}
    write_video(root, "train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000", moving)
    two = {i: [(3, CAR, (0, 0, 11, 11)), (7, DOG, (40, 20, 63, 47))] for i in range(3)}
    write_video(root, "val/ILSVRC2015_val_00000000", two)
    write_video(root, "val/ILSVRC2015_val_00000001", {0: [(0, OTHER, (4, 4, 9, 9))], 1: []})
    return root


def dataset(*parts: dict[str, Any], split: str = "official", **fields: Any) -> DatasetSpec:
    clip = {"representation": "mp4", "short_side": 48, "fps": None, "audio": "drop", "preset": "ultrafast", "crf": 8}
    return DatasetSpec.model_validate(
        {
            "name": "tiny",
            "version": "1",
            "licence": "none",
            "labels": ("dog", "car"),
            "parts": [{"name": f"part{i}", "source": source, "split": split} for i, source in enumerate(parts)],
            "clip": clip | fields.pop("clip", {}),
            "shards": {"samples_per_shard": 2, "seed": 0},
            "max_reject_share": 1.0,
            **fields,
        }
    )


@pytest.fixture(scope="session")
def box_spec() -> Callable[..., DatasetSpec]:
    """A data set of the classes dog and car; one source per part."""
    return dataset


class Ingest:
    """Listing, plan and samples of one data set, through the real functions."""

    def __init__(self, spec: DatasetSpec, settings: Settings) -> None:
        self.spec = spec
        self.settings = settings
        self.encoder = encoder_of(settings, "mp4")
        self.listing: Listing = build_listing(spec, settings)

    @property
    def plan(self) -> IngestPlan:
        return plan_shards(self.spec, self.listing.rows, self.encoder, tuple(self.spec.labels))

    def sample(self, path: str, **context: Any) -> Sample | Reject:
        """Make the sample of the listed video whose path ends so."""
        planned = next(p for s in self.plan.shards for p in s.videos if p.video.path.endswith(path))
        part = next(part for part in self.spec.parts if part.name == planned.video.part)
        found = replace(context_of(self.spec, part, self.encoder, self.settings, tuple(self.spec.labels)), **context)
        folder = self.settings.root / "tmp"
        folder.mkdir(exist_ok=True)
        made = make_sample(planned, found, folder)
        assert list(folder.iterdir()) == []
        shutil.rmtree(folder)
        return made

    def good(self, path: str) -> Sample:
        made = self.sample(path)
        assert isinstance(made, Sample), made
        return made

    def reject(self, path: str, reason: RejectReason) -> str:
        made = self.sample(path)
        assert isinstance(made, Reject)
        assert made.reason == reason, made
        return made.detail


@pytest.fixture
def ingest(ingest_settings: Settings) -> Callable[..., Ingest]:
    """List a data set given by its specification, or by the sources of its parts."""

    def make(*parts: DatasetSpec | dict[str, Any], settings: Settings | None = None, **fields: Any) -> Ingest:
        spec = parts[0] if isinstance(parts[0], DatasetSpec) else dataset(*parts, **fields)  # type: ignore[arg-type]
        return Ingest(spec, settings or ingest_settings)

    return make


@pytest.fixture(scope="session")
def decoded() -> Callable[[Sample], NDArray[np.float64]]:
    """Levels (T,H,W) of the stored clip."""

    def read(made: Sample) -> NDArray[np.float64]:
        with av.open(io.BytesIO(made.members["mp4"])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames).mean(3)

    return read


@pytest.fixture(scope="session")
def numbers(decoded: Callable[[Sample], NDArray[np.float64]]) -> Callable[[Sample], list[int]]:
    """Numbers of the stored frames, as `draw` wrote them (lower left corner, where no box lies)."""
    return lambda made: [round((level - 20) / 4) for level in decoded(made)[:, -3:, :3].mean((1, 2))]


@pytest.fixture(scope="session")
def boxes_of() -> Callable[[Sample], ClipBoxes]:
    return lambda made: ClipBoxes.model_validate_json(made.members[BOXES_MEMBER])
