"""Check, page and init of data sets with boxes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_specs.boxes import BOXES_MEMBER, BoxTrack, ClipBoxes
from data_specs.load import class_names, load_spec
from data_specs.schema import ClipRecord, read_index
from infra.settings import Settings
from tasks.ops.box_checks import box_problem, count_objects, draw_boxes
from tasks.ops.encoder import encoder_of
from tasks.ops.init import InitError, Proposal, Request, propose, write_proposal
from tasks.ops.init_guess import Options
from tasks.ops.listing import manifest_bytes, read_manifest, write_manifest
from tasks.ops.page import write_page
from tasks.ops.plan import plan_shards
from tasks.ops.sample import context_of
from tasks.ops.shard_reader import stored_samples
from tasks.ops.shards import ShardJob, assemble, write_shard
from tasks.ops.validate import check_dataset

SPEC = """\
name: tiny
version: "1"
licence: none
labels: [dog, car]
parts:
  - {name: main, source: {kind: imagenet_vid, root: ILSVRC}, split: official}
clip: {representation: mp4, short_side: 48, fps: null, audio: drop, preset: ultrafast, crf: 8}
shards: {samples_per_shard: 8, seed: 0}
max_reject_share: 0.5
"""


@pytest.fixture
def project(vid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project whose data set `tiny`, with boxes, is listed and stored."""
    monkeypatch.setenv("FOVEA_ROOT", str(tmp_path))
    monkeypatch.setenv("FOVEA_PROGRESS", "false")
    folder = tmp_path / "data_specs" / "datasets"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(SPEC)
    settings, spec = Settings(), load_spec("tiny")
    encoder, classes = encoder_of(settings, "mp4"), class_names(spec)
    plan = plan_shards(spec, read_manifest(write_manifest(spec, settings)), encoder, classes)
    context = context_of(spec, spec.parts[0], encoder, settings, classes)
    store = settings.work / "shards"
    stored = [write_shard(ShardJob(shard, context, store, settings.work / "tmp")) for shard in plan.shards]
    assemble(plan, stored, store, settings.shards / "tiny")
    return settings


def told(settings: Settings, **options: bool) -> dict[str, str]:
    return {f"{r.level} {r.check}": r.detail for r in check_dataset("tiny", settings, **options)}  # type: ignore[arg-type]


def test_check_passes(project: Settings) -> None:
    found = told(project, all_bytes=True)
    assert not [name for name in found if name.startswith("fail")]
    assert found["ok boxes"] == "the boxes of 3 stored clips lie inside of pictures and frames"
    assert found["ok sources"] == "3 sampled videos open and decode"


def test_check_finds_samples_without_boxes(project: Settings) -> None:
    path = project.manifests / "tiny.csv"
    rows = read_manifest(path)
    path.write_bytes(manifest_bytes([rows[0]._replace(boxes=""), *rows[1:]]))
    assert re.search(r"1 samples are stored without the boxes .*or the other way round", told(project)["fail boxes"])


def test_check_finds_broken_members(project: Settings) -> None:
    tar = next((project.shards / "tiny").glob("*val*.tar"))
    data = tar.read_bytes()
    tar.unlink()
    tar.write_bytes(data.replace(b'"label":0', b'"label":7'))
    assert "has class 7, the data set has 2" in told(project)["fail boxes"]
    tar.write_bytes(data.replace(b'"tracks":[{', b'"tracks":{{'))
    assert "boxes.json: " in told(project)["fail boxes"]


RECORD = ClipRecord(
    key="a", source="a", part="p", split="train", group="a", label=(0, 1), num_frames=3, fps=25, width=64, height=48,
    duration_s=0.12, has_audio=False,
)  # fmt: skip


def boxes(**fields: object) -> ClipBoxes:
    tracks = [
        {"track": 0, "label": 0, "frames": (0, 2), "boxes": ((0, 0, 64, 48), (1, 1, 2, 2))},
        {"track": 1, "label": 1, "frames": (1,), "boxes": ((5, 5, 9.5, 9),)} | fields,
    ]
    return ClipBoxes(tracks=tuple(BoxTrack.model_validate(track) for track in tracks))


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (boxes(), None),
        (boxes(frames=(3,)), "its boxes name frame 3, its record says 3 frames"),
        (
            boxes(boxes=((5, 5, 64.5, 9),)),
            "track 1 of its boxes leaves the picture in frame 1: (5, 5, 64.5, 9)",
        ),
        (boxes(boxes=((-1, 5, 6, 9),)), "leaves the picture in frame 1"),
        (boxes(label=2), "has class 2, the data set has 2"),
        (boxes(label=0), "its boxes are of classes [0], its record says [0, 1]"),
        (boxes().model_copy(update={"labelled": (0, 1, 2, 3)}), "its boxes name frame 3"),
        (boxes().model_copy(update={"subsets": {"hard": (0, 4)}}), "its boxes name frame 4"),
        (boxes().model_copy(update={"subsets": {"hard": (2, 1)}}), "subset 'hard' of its boxes do not increase"),
    ],
)
def test_problems_of_boxes(found: ClipBoxes, problem: str | None) -> None:
    told = box_problem(found, RECORD, 2)
    assert told is None if problem is None else problem in str(told)


def test_page_shows_boxes(project: Settings) -> None:
    path = write_page(load_spec("tiny"), project)
    text = path.read_text(encoding="utf-8")
    assert "Boxes of 3 stored clips; 11 of their 11 frames are labelled." in text
    rows = re.findall(r"<tr><td>(\w+)</td><td class=\"wide\"></td>(.*?)</tr>", text)
    counts = {name: [int(n) for n in re.findall(r">(\d+)<", cells)] for name, cells in rows}
    assert counts == {"dog": [2, 2, 9], "car": [1, 1, 3], "all": [3, 3, 12]}
    assert "imagenet" not in text
    with Image.open(next(path.parent.rglob("ilsvrc2015_train*.jpg"))) as image:
        pixels = np.asarray(image.convert("RGB"), int)
    reddest = (pixels[..., 0] - pixels[..., 1]).max()
    assert reddest > 100  # the line of a dog's box; the pictures themselves are grey


def test_page_before_the_ingest_shows_the_frames(project: Settings) -> None:
    (project.shards / "tiny" / "index.json").unlink()
    path = write_page(load_spec("tiny"), project)
    text = path.read_text(encoding="utf-8")
    assert "cannot be decoded" not in text
    assert "cannot be used" not in text
    assert len(list(path.parent.rglob("*.webp"))) == 3
    assert "Objects" not in text
    assert re.search(r"<td>frames</td><td class=\"n\">3</td>", text)


def test_counts_and_data_without_boxes(project: Settings) -> None:
    folder = project.shards / "tiny"
    samples = stored_samples(folder, read_index(folder))
    found = count_objects(samples, ("dog", "car"))
    assert found is not None
    assert (found.clips, found.frames, found.labelled) == (3, 11, 11)
    bare = [
        sample._replace(
            entry=sample.entry.model_copy(
                update={"members": {n: m for n, m in sample.entry.members.items() if n != BOXES_MEMBER}}
            )
        )
        for sample in samples
    ]
    assert count_objects(bare, ("dog", "car")) is None


def test_boxes_are_drawn_on_their_own_pixels() -> None:
    track = BoxTrack(track=0, label=0, frames=(1,), boxes=((10, 5, 20, 15),))
    for frame in (0, 1):
        image = draw_boxes(Image.new("RGB", (64, 48)), frame, ClipBoxes(tracks=(track,)), 64)
        drawn = np.argwhere(np.asarray(image).any(2))
        assert len(drawn) == 0 if frame == 0 else (drawn.min(0).tolist(), drawn.max(0).tolist()) == ([5, 10], [14, 19])


# --- init --------------------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "params" / "templates").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("datasets: []\nadafocus: []\n")
    (tmp_path / "params" / "templates" / "adafocus.yaml").write_text("stage: {x: 1}\n")
    monkeypatch.setenv("FOVEA_ROOT", str(tmp_path))
    return Settings(progress=False)


def run(target: Path, settings: Settings, name: str, **options: object) -> Proposal:
    proposal = propose(Request(target, name, Options(**options), 0.25, 0.25, 0), settings)  # type: ignore[arg-type]
    write_proposal(proposal, settings)
    assert load_spec(name) == proposal.spec
    return proposal


def test_init_of_a_vid_root(vid: Path, empty: Settings) -> None:
    proposal = run(vid, empty, "mine")
    part = proposal.spec.parts[0]
    assert (part.source.kind, part.split) == ("imagenet_vid", "official")
    assert len(proposal.spec.labels) == 30
    assert (proposal.spec.clip.fps, proposal.spec.clip.audio) == (None, "drop")
    assert {fact.container for fact in proposal.facts} == {"frames"}
    assert sorted(row.label for row in proposal.listing.rows) == ["", "car|dog", "dog"]
    assert proposal.sizes is not None
    assert "with boxes nothing else, since it keeps all frames" in proposal.spec_text


@pytest.mark.parametrize("first", [0, 1])
def test_init_of_a_json_file(tmp_path: Path, empty: Settings, draw: Callable[..., bytes], first: int) -> None:
    images = []
    for number in range(4):
        for frame in range(2):
            folder = tmp_path / "raw" / f"v{number}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{frame}.jpg").write_bytes(draw(frame))
            file = f"v{number}/{frame}.jpg"
            images.append({"id": len(images), "file_name": file, "video_id": number, "frame_id": frame + first})
    data = {
        "videos": [{"id": number, "name": f"v{number}"} for number in range(4)],
        "images": images,
        "annotations": [{"id": i, "image_id": i, "category_id": 2, "bbox": [1, 1, 9, 9]} for i in range(8)],
        "categories": [{"id": 2, "name": "cat"}, {"id": 1, "name": "axe"}],
    }
    file = tmp_path / "raw" / "boxes.json"
    file.write_text(json.dumps(data))
    proposal = run(file, empty, "mine")
    source = proposal.spec.parts[0].source
    assert (source.kind, source.root, source.file) == ("coco_video", "raw", "raw/boxes.json")  # type: ignore[union-attr]
    assert (source.fps, source.frames_from) == (25.0, first)  # type: ignore[union-attr]
    assert proposal.spec.labels == ("axe", "cat")
    assert len(proposal.listing.rows) == 4
    with pytest.raises(InitError, match=r"neither frame 'v0/0\.jpg' nor video 'v0' is in .*; say with --root"):
        run(file, empty, "other", root=tmp_path)
    file.write_text("{}")
    with pytest.raises(InitError, match="has not the lists videos, images"):
        run(file, empty, "other")
