"""Optical flow through the real ingest: a member beside the mp4, counted, checked and shown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import yaml

from data_specs.files import sha256_of
from data_specs.flows import dequantise, extract, pack_flow, quantise, unpack_flow
from data_specs.schema import ClipPolicy, DatasetSpec, Encoder, ListedVideo, RejectReason, ShardIndex, digest
from infra.settings import Settings
from tasks.media import all_stored, encode, store_folder
from tasks.ops.encoder import encoder_of
from tasks.ops.flow_member import flow_member
from tasks.ops.init_text import human_bytes, spec_text
from tasks.ops.page import Shards, storage_table
from tasks.ops.plan import plan_shards
from tasks.ops.probe import RejectedError
from tasks.ops.shard_reader import StoredSample, stored_samples
from tasks.ops.shards import assemble, verify_shards
from tasks.ops.synthetic import encode_frames
from tasks.ops.validate import check_shards

STEPS = {"right": (2, 0), "up": (1, -3)}


def policy(**fields: object) -> ClipPolicy:
    base = {"representation": "mp4", "short_side": 48, "fps": None, "audio": "drop", "crf": 12, "flow": "dis"}
    return ClipPolicy.model_validate(base | fields)


def write_moving(path: Path, step: tuple[int, int], count: int) -> None:
    """A textured plane of 64×48 that moves by (x, y) pixels per frame, on a torus."""
    plane = cv2.GaussianBlur(np.tile(np.random.default_rng(1).uniform(0, 255, (48, 64)), (3, 3)), (0, 0), 2)
    plane = np.interp(plane[48:96, 64:128], (plane.min(), plane.max()), (20, 235)).astype(np.uint8)
    frames = [np.roll(plane, (t * step[1], t * step[0]), (0, 1)) for t in range(count)]
    encode_frames(np.stack(frames)[..., None].repeat(3, axis=3), path, 12)


Ingest = Callable[[ClipPolicy], tuple[DatasetSpec, Path, ShardIndex]]


@pytest.fixture
def ingest(
    make_spec: Callable[..., DatasetSpec], list_video: Callable[..., ListedVideo], ingest_settings: Settings
) -> Ingest:
    """Ingest two moving planes, of 40 and 3 frames, and one of a single frame."""
    raw = ingest_settings.root / "raw"
    for (name, step), count in zip(STEPS.items(), (40, 3), strict=True):
        write_moving(raw / f"{name}.mp4", step, count)
    write_moving(raw / "still.mp4", (0, 0), 1)

    def run(clip: ClipPolicy) -> tuple[DatasetSpec, Path, ShardIndex]:
        spec = make_spec(raw, clip=clip)
        rows = [list_video(path) for path in sorted(raw.iterdir())]
        plan = plan_shards(spec, rows, encoder_of(ingest_settings, "mp4", clip.flow), spec.labels)
        encode(plan, ingest_settings, 0, lambda _: None)
        folder = ingest_settings.root / f"out-{clip.flow}"
        index = assemble(plan, all_stored(plan, ingest_settings), store_folder(ingest_settings), folder)
        return spec, folder, index

    return run


def by_key(folder: Path, index: ShardIndex) -> dict[str, StoredSample]:
    return {sample.entry.key: sample for sample in stored_samples(folder, index)}


def test_motion_of_the_source_is_in_the_member(ingest: Ingest) -> None:
    spec, folder, index = ingest(policy())
    assert verify_shards(folder) == {}
    samples = by_key(folder, index)
    assert index.rejects == {"too_short": 1}
    assert set(samples) == set(STEPS)
    for name, frames in (("right", 40), ("up", 3)):
        sample = samples[name]
        assert set(sample.entry.members) == {"json", "mp4", "flow"}
        assert sample.video == "mp4"
        flow = dequantise(unpack_flow(sample.read("flow"), range(frames - 1)))
        assert flow.shape == (frames - 1, 48, 64, 2)
        assert np.abs(np.median(flow[:, 8:-8, 8:-8], axis=(1, 2)) - STEPS[name]).max() < 0.3
    results = check_shards(spec, [], folder, 10, False)
    assert [r.detail for r in results if r.level == "fail" and r.check != "samples"] == []
    table = storage_table(spec, [], Shards(index, list(samples.values()), [], []), None)
    size = sum(len(sample.read("flow")) for sample in samples.values())
    assert ("of these optical flow", human_bytes(size), "members of 2 samples") in table


def test_without_it_nothing_changes(ingest: Ingest) -> None:
    """Negative control: no member, other plan digests, the still video is a sample; a check says what is lacking."""
    with_flow, _, other = ingest(policy())
    spec, folder, index = ingest(policy(flow=None))
    samples = by_key(folder, index)
    assert {frozenset(sample.entry.members) for sample in samples.values()} == {frozenset({"json", "mp4"})}
    assert set(samples) == {*STEPS, "still"}
    assert index.rejects == {}
    assert {s.plan_digest for s in index.shards}.isdisjoint(s.plan_digest for s in other.shards)
    assert index.encoder != other.encoder
    table = storage_table(spec, [], Shards(index, list(samples.values()), [], []), None)
    assert not [what for what, _, _ in table if "flow" in what]
    assert not [r for r in check_shards(spec, [], folder, 10, False) if r.check == "flow"]
    found = [r.detail for r in check_shards(with_flow, [], folder, 10, False) if r.check == "flow"]
    assert len(found) == 1
    assert found[0].startswith("3 samples have no optical flow, the specification asks for it: ")


def test_a_member_of_another_clip_is_found(ingest: Ingest, tmp_path: Path) -> None:
    """The fields of a clip belong to its frames: one too few is a problem that the check names."""
    spec, folder, index = ingest(policy())
    sample = by_key(folder, index)["up"]
    offset, size = sample.entry.members["flow"]
    fields = unpack_flow(sample.read("flow"), [0])
    short = pack_flow(fields)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tar, idx = copy / sample.info.name, (copy / sample.info.name).with_suffix(".idx")
    tar.chmod(0o644)
    idx.chmod(0o644)
    content = bytearray(tar.read_bytes())
    content[offset : offset + len(short)] = short
    tar.write_bytes(content)
    lines = [json.loads(line) for line in idx.read_text().splitlines()]
    for line in lines:
        if line["key"] == "up":
            line["members"]["flow"] = [offset, len(short)]
    idx.write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = json.loads((copy / "index.json").read_text())
    about["shards"][0]["idx_sha256"] = sha256_of(idx)
    (copy / "index.json").write_text(json.dumps(about))
    assert len(short) < size
    found = [r.detail for r in check_shards(spec, [], copy, 10, False) if r.check == "clips"]
    assert len(found) == 1
    assert "up: 1 flow fields of 64x48, its record says 3 frames of 64x48" in found[0]


def test_the_same_clip_gives_the_same_bytes(tmp_path: Path) -> None:
    """And pieces of 32 frames give what the whole gives at once."""
    path = tmp_path / "clip.mp4"
    write_moving(path, (2, 1), 70)
    member = flow_member(path.read_bytes(), 70, "dis")
    assert flow_member(path.read_bytes(), 70, "dis") == member
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert pack_flow(quantise(extract("dis", frames))) == member
    for count in (32, 33, 2):
        write_moving(path, (2, 1), count)
        assert len(unpack_flow(flow_member(path.read_bytes(), count, "dis"), range(count - 1))) == count - 1
    with pytest.raises(RejectedError, match="gives 1 flow fields for 5 frames") as caught:
        flow_member(path.read_bytes(), 5, "dis")
    assert caught.value.reason == RejectReason.ENCODE_FAILED


# --- digests -----------------------------------------------------------------------------------------------


def test_digests_from_before_there_was_flow_stay() -> None:
    """These were computed by the version without the field."""
    clip = {"representation": "mp4", "short_side": 64, "fps": None, "audio": "keep"}
    spec = {
        "name": "fixed",
        "version": "1",
        "licence": "none",
        "labels": ("a", "b"),
        "parts": [{"name": "main", "source": {"kind": "folder", "root": "raw"}, "split": "train"}],
        "shards": {"samples_per_shard": 2, "seed": 7},
        "max_reject_share": 0.5,
    }
    rows = [
        ListedVideo("main", f"v{n}", f"a/v{n}.mp4", "a", "train", f"v{n}", None, None, 10 + n, f"{n:064x}")
        for n in range(3)
    ]

    def digests(**fields: object) -> list[str]:
        whole = DatasetSpec.model_validate(spec | {"clip": clip | fields})
        plan = plan_shards(whole, rows, Encoder(name="ffmpeg/1", version="7.0"), whole.labels)
        return [*(shard.digest for shard in plan.shards), digest(whole)]

    before = [
        "128504ffc7c4b2ab45e8e7320334a9d7ad483205591ce69367b95e3bab12d932",
        "edb9b9106c2603a39a8a316475208432c057ee2d7be345d15da513881b08b543",
        "db36eed1e6133a4a6dc429a3788533d2c7965753c86405dcf03dd18cc11c2357",
    ]
    assert digests() == before
    assert digests(flow=None) == before
    assert set(digests(flow="dis")).isdisjoint(before)


def test_flow_is_written_down_when_it_is_asked_for() -> None:
    assert policy().model_dump()["flow"] == "dis"
    assert ClipPolicy.model_validate_json(policy().model_dump_json()) == policy()
    without = policy(flow=None)
    assert "flow" not in without.model_dump()
    assert ClipPolicy.model_validate(without.model_dump(mode="json")) == without


def test_flow_needs_neighbouring_frames() -> None:
    with pytest.raises(ValueError, match=r"clip\.flow is only for representation mp4"):
        policy(representation="jpgs", num_frames=8)
    with pytest.raises(ValueError, match="flow"):
        policy(flow="tvl1")
    assert policy(representation="jpgs", num_frames=8, flow=None).flow is None


def test_another_opencv_is_another_encoder(ingest_settings: Settings) -> None:
    plain, flow = encoder_of(ingest_settings, "mp4"), encoder_of(ingest_settings, "mp4", "dis")
    assert (plain.name, flow.name) == ("ffmpeg/1", "ffmpeg/1+dis/1")
    assert f"opencv {cv2.__version__}" in flow.version
    assert plain.version in flow.version
    with pytest.raises(ValueError, match="no flow extractor 'tvl1'"):
        encoder_of(ingest_settings, "mp4", "tvl1")


def test_a_proposed_specification_mentions_flow(make_spec: Callable[..., DatasetSpec]) -> None:
    source = make_spec(Path("raw")).parts[0].source
    text = spec_text("tiny", source, ["a"], "train", 0, policy(flow=None), 10, [], None)
    assert "  # flow: dis  # optical flow" in text
    assert "flow" not in yaml.safe_load(text)["clip"]
    assert yaml.safe_load(text.replace("  # flow: dis", "  flow: dis"))["clip"]["flow"] == "dis"
