import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_specs.schema import ClipRecord, DatasetSpec, Encoder, ListedVideo, RejectReason, read_index
from infra.settings import Settings
from tasks.ops.plan import IngestPlan, plan_shards
from tasks.ops.sample import SampleContext, SampleError, make_sample
from tasks.ops.shards import (
    ShardError,
    ShardJob,
    StoredShard,
    assemble,
    evict,
    progress_path,
    read_entries,
    read_stored,
    stored_path,
    verify_shards,
    write_shard,
)


@pytest.fixture
def sources(video_maker, tmp_path) -> Path:
    """Four good videos and two bad files."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(4):
        good = video_maker.numbered(f"s{number}.mp4", 5 + number)
        (folder / good.name).write_bytes(good.read_bytes())
    (folder / "empty.mp4").touch()
    (folder / "page.mp4").write_text("<html>")
    return folder


@pytest.fixture
def make_jobs(ingest_settings, mp4_encoder) -> Callable[..., list[ShardJob]]:
    def make(spec: DatasetSpec, videos: list[ListedVideo], **context: object) -> list[ShardJob]:
        plan = plan_shards(spec, videos, mp4_encoder, spec.labels)
        roots = {part.name: part.source.root for part in spec.parts}
        work = ingest_settings.work
        return [
            ShardJob(
                plan=shard,
                context=replace(
                    SampleContext("tiny", roots[shard.part], spec.clip, mp4_encoder, False, ingest_settings), **context
                ),
                store=work / "shards",
                temporary=work / "tmp",
            )
            for shard in plan.shards
        ]

    return make


@pytest.fixture
def tiny(make_spec, list_video, sources) -> tuple[DatasetSpec, list[ListedVideo]]:
    videos = [list_video(path) for path in sorted(sources.iterdir())]
    videos.append(list_video(sources / "gone.mp4"))
    return make_spec(sources, per_shard=4), videos


def planned(spec: DatasetSpec, videos: list[ListedVideo], encoder: Encoder) -> IngestPlan:
    return plan_shards(spec, videos, encoder, spec.labels)


def store_hashes(store: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(store.iterdir())}


def test_shard_holds_samples_and_names_rejects(tiny, make_jobs):
    jobs = make_jobs(*tiny)
    stored = [write_shard(job) for job in jobs]
    assert [s.info.name for s in stored] == ["part0-train-00000.tar", "part0-train-00001.tar"]
    assert sum(s.info.samples for s in stored) == 4
    reasons = {row.key: row.reason for s in stored for row in s.rejects}
    assert reasons == {
        "empty": RejectReason.EMPTY,
        "page": RejectReason.NOT_A_VIDEO,
        "gone": RejectReason.MISSING,
    }
    for job, made in zip(jobs, stored, strict=True):
        assert read_stored(job.store, job.plan) == made
        assert progress_path(job).read_bytes() == b"." * len(job.plan.videos)
        left = [path for path in job.temporary.iterdir() if path.suffix != ".progress"]
        assert left == []


def test_records_describe_the_stored_clip(tiny, make_jobs, frame_numbers, sources):
    for job in make_jobs(*tiny):
        stored = write_shard(job)
        tar = stored_path(job.store, job.plan.digest, "tar").read_bytes()
        entries = read_entries(stored_path(job.store, job.plan.digest, "idx"))
        assert [e.key for e in entries] == [
            p.video.key for p in job.plan.videos if p.video.key not in {r.key for r in stored.rejects}
        ]
        for entry in entries:
            content = {name: tar[start : start + size] for name, (start, size) in entry.members.items()}
            record = ClipRecord.model_validate_json(content["json"])
            assert set(content) == {"json", "mp4"}
            assert (record.key, record.label, record.split) == (entry.key, 0, "train")
            assert record.num_frames == entry.num_frames == 5 + int(record.key[1:])
            assert (record.width, record.height, record.fps) == (42, 32, 25.0)
            assert len(frame_numbers(content["mp4"])) == record.num_frames
            assert record.source_sha256 == hashlib.sha256((sources / record.source).read_bytes()).hexdigest()


def test_two_writes_give_the_same_bytes(tiny, make_jobs):
    jobs = make_jobs(*tiny)
    for job in jobs:
        write_shard(job)
    first = store_hashes(jobs[0].store)
    for job in jobs:
        evict(job.store, job.plan.digest)
        assert read_stored(job.store, job.plan) is None
        write_shard(job)
    assert store_hashes(jobs[0].store) == first
    assert len(first) == 6


def test_an_isolated_probe_changes_nothing(tiny, make_jobs):
    jobs = make_jobs(*tiny)
    first = [write_shard(job) for job in jobs]
    before = store_hashes(jobs[0].store)
    assert [write_shard(job) for job in make_jobs(*tiny, isolate=True)] == first
    assert store_hashes(jobs[0].store) == before


def test_plain_webdataset_and_tar_read_it(tiny, make_jobs, video_maker):
    import webdataset as wds

    job = make_jobs(*tiny)[0]
    stored = write_shard(job)
    tar = stored_path(job.store, job.plan.digest, "tar")
    keys = [e.key for e in read_entries(tar.with_suffix(".idx"))]
    samples = list(wds.WebDataset(str(tar), shardshuffle=False))
    assert [s["__key__"] for s in samples] == keys
    assert all(json.loads(s["json"])["key"] == s["__key__"] and s["mp4"][4:8] == b"ftyp" for s in samples)
    listing = subprocess.run(["tar", "tf", str(tar)], capture_output=True, text=True, check=True).stdout.split()
    assert listing == [f"{key}.{name}" for key in keys for name in ("json", "mp4")]
    with tarfile.open(tar) as archive:
        assert {(m.mtime, m.uname, m.gname, m.uid, m.gid, m.mode) for m in archive} == {
            (0, "fovea", "fovea", 0, 0, 0o444)
        }
    assert len(samples) == stored.info.samples


def test_shard_of_rejects_alone_has_no_tar(make_spec, list_video, tmp_path, make_jobs, ingest_settings, mp4_encoder):
    path = tmp_path / "raw" / "empty.mp4"
    path.parent.mkdir()
    path.touch()
    spec, videos = make_spec(path.parent), [list_video(path)]
    (job,) = make_jobs(spec, videos)
    stored = write_shard(job)
    assert stored.info.samples == 0
    assert read_stored(job.store, job.plan) == stored
    assert not stored_path(job.store, job.plan.digest, "tar").exists()
    folder = tmp_path / "out"
    assert assemble(planned(spec, videos, mp4_encoder), [stored], job.store, folder).shards == ()
    assert verify_shards(folder) == {}


def test_unfinished_or_damaged_shards_are_not_taken(tiny, make_jobs):
    job = make_jobs(*tiny)[0]
    write_shard(job)
    tar, idx, record = (stored_path(job.store, job.plan.digest, s) for s in ("tar", "idx", "json"))
    content = record.read_bytes()
    for damage in (
        lambda: record.unlink(),
        lambda: (record.unlink(), record.write_bytes(content[:50])),
        lambda: tar.unlink(),
        lambda: (tar.chmod(0o644), tar.write_bytes(tar.read_bytes()[:-1])),
        lambda: idx.unlink(),
    ):
        write_shard(job)
        assert read_stored(job.store, job.plan) is not None
        damage()
        assert read_stored(job.store, job.plan) is None


def test_a_changed_source_is_an_error_and_leaves_nothing(tiny, make_jobs, sources):
    (sources / "s1.mp4").write_bytes((sources / "s2.mp4").read_bytes())
    errors = []
    for job in make_jobs(*tiny):
        try:
            write_shard(job)
        except SampleError as error:
            errors.append(str(error))
            assert read_stored(job.store, job.plan) is None
            assert [p for p in job.temporary.iterdir() if p.suffix != ".progress"] == []
    (message,) = errors
    assert "sample 's1'" in message
    assert "changed after it was listed" in message
    assert "python -m tasks.ops.sample tiny s1" in message


def test_another_encoder_is_refused(tiny, make_jobs):
    job = make_jobs(*tiny, encoder=Encoder(name="ffmpeg/1", version="0.1"))[0]
    with pytest.raises(SampleError, match=r"shards were planned for ffmpeg/1\s+0.1"):
        write_shard(job)


def test_required_sound(tiny, make_jobs, list_video, sources, video_maker):
    spec, _ = tiny
    loud = video_maker.sounding("loud.mp4")
    (sources / "loud.mp4").write_bytes(loud.read_bytes())
    videos = [list_video(sources / "loud.mp4"), list_video(sources / "s0.mp4")]
    (job,) = make_jobs(spec, videos, audio_required=True)
    assert [(row.key, row.reason) for row in write_shard(job).rejects] == [("s0", RejectReason.NO_AUDIO)]


def test_duplicates_are_rejected_with_the_key_that_stays(tiny, make_jobs, list_video, sources):
    spec, _ = tiny
    (sources / "copy.mp4").write_bytes((sources / "s0.mp4").read_bytes())
    videos = [list_video(sources / "s0.mp4", split="test"), list_video(sources / "copy.mp4")]
    rows = [row for job in make_jobs(spec, videos) for row in write_shard(job).rejects]
    assert [(row.key, row.reason) for row in rows] == [("copy", RejectReason.DUPLICATE)]
    assert "sample s0" in rows[0].detail


def test_commands_do_not_name_the_folder_of_the_project(tiny, make_jobs, ingest_settings):
    rows = [row for job in make_jobs(*tiny) for row in write_shard(job).rejects]
    commands = {row.key: row.command for row in rows}
    assert commands["gone"] == "ls -l raw/gone.mp4"
    assert commands["page"] == "python -m tasks.ops.sample tiny page"
    assert not any(str(ingest_settings.root) in row.model_dump_json() for row in rows)


@pytest.fixture
def published(tiny, make_jobs, mp4_encoder, tmp_path) -> tuple[IngestPlan, list[StoredShard], Path, Path]:
    spec, videos = tiny
    jobs = make_jobs(spec, videos)
    stored = [write_shard(job) for job in jobs]
    folder = tmp_path / "data" / "shards" / "tiny"
    plan = planned(spec, videos, mp4_encoder)
    assemble(plan, stored, jobs[0].store, folder)
    return plan, stored, jobs[0].store, folder


def test_published_folder(published, tmp_path):
    _, stored, store, folder = published
    index = read_index(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["index.json", "labels.txt", "quarantine.csv"]
        + [f"part0-train-0000{n}.{s}" for n in (0, 1) for s in ("idx", "tar")]
    )
    assert index.shards == tuple(s.info for s in stored)
    assert (index.rejects, index.listed, index.classes) == (
        {"empty": 1, "missing": 1, "not_a_video": 1},
        {"train": 7},
        ("a", "b"),
    )
    assert (folder / "labels.txt").read_text() == "a\nb\n"
    assert (folder / index.shards[0].name).samefile(stored_path(store, index.shards[0].plan_digest, "tar"))
    assert verify_shards(folder) == {}


def test_publishing_again_changes_nothing_and_clears_strangers(published):
    plan, stored, store, folder = published
    before = store_hashes(folder)
    (folder / "old-train-00000.tar").write_bytes(b"x")
    assemble(plan, stored, store, folder)
    assert store_hashes(folder) == before


def test_folder_without_index_is_not_finished(published):
    folder = published[3]
    (folder / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match="has not finished"):
        verify_shards(folder)


def overwrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("tar", lambda b: b[:700] + b"!" + b[701:], "sha256"),
        ("tar", lambda b: b[:-512], "bytes, index.json says"),
        ("idx", lambda b: b.replace(b"1", b"2", 1), "idx is not the one"),
    ],
)
def test_damage_is_found(published, suffix, change, message):
    plan, _, _, folder = published
    path = folder / f"part0-train-00001.{suffix}"
    overwrite(path, change(path.read_bytes()))
    problems = verify_shards(folder)
    assert list(problems) == [plan.shards[1].digest]
    assert message in problems[plan.shards[1].digest]


def test_missing_and_unnamed_shards_are_found(published):
    plan, _, _, folder = published
    (folder / "part0-train-00000.tar").rename(folder / "other-train-00000.tar")
    with pytest.raises(ShardError, match=r"does not name other-train-00000\.tar"):
        verify_shards(folder)
    (folder / "other-train-00000.tar").unlink()
    assert "missing" in verify_shards(folder)[plan.shards[0].digest]


def test_a_key_in_two_shards_is_found(published):
    _, _, _, folder = published
    index = json.loads((folder / "index.json").read_text())
    first = dict(index["shards"][0])
    for suffix in ("tar", "idx"):
        (folder / f"copy-train-00000.{suffix}").write_bytes((folder / f"part0-train-00000.{suffix}").read_bytes())
    index["shards"].append(first | {"name": "copy-train-00000.tar"})
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match=r"is in part0-train-00000\.tar and in copy"):
        verify_shards(folder)


def test_another_part_leaves_old_shards_byte_identical(published, tiny, make_spec, make_jobs, list_video, sources):
    _, _, store, folder = published
    before = store_hashes(folder)
    more = sources.parent / "more"
    more.mkdir()
    (more / "new.mp4").write_bytes((sources / "s3.mp4").read_bytes() + b"\0\0\0\x08free")
    spec, videos = make_spec(sources, more, per_shard=4), tiny[1]
    jobs = make_jobs(spec, [*videos, list_video(more / "new.mp4", part="part1")])
    new = [job for job in jobs if read_stored(store, job.plan) is None]
    assert [job.plan.name for job in new] == ["part1-train-00000.tar"]
    stored = [read_stored(store, job.plan) or write_shard(job) for job in jobs]
    assemble(
        planned(
            spec, [job_row for job in jobs for job_row in (p.video for p in job.plan.videos)], jobs[0].context.encoder
        ),
        stored,
        store,
        folder,
    )
    after = store_hashes(folder)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"index.json"}
    assert set(after) - set(before) == {"part1-train-00000.tar", "part1-train-00000.idx"}


def test_sample_by_hand_needs_no_shard(tiny, make_jobs, tmp_path):
    job = make_jobs(*tiny)[0]
    good = next(p for p in job.plan.videos if p.video.key.startswith("s"))
    made = make_sample(good, job.context, tmp_path)
    assert made.record.key == good.video.key
    assert set(made.members) == {"mp4"}
    assert Settings(root=tmp_path).root == tmp_path
