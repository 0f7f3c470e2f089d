import hashlib
from pathlib import Path

import pytest

from data_specs.schema import ClipPolicy, RejectReason
from tasks.media import IngestError, all_stored, encode, make_jobs, quarantine_path, store_folder, summarise
from tasks.ops.plan import IngestPlan, plan_shards
from tasks.ops.quarantine import TooManyRejectsError, read_quarantine
from tasks.ops.shards import assemble, verify_shards

ROBUSTNESS = Path(__file__).parents[3] / "shared" / "data" / "robustness"


@pytest.fixture
def make_plan(make_spec, list_video, mp4_encoder, video_maker, tmp_path):
    """A plan of good videos (`s0` …) and bad ones (`b0` …), three a shard."""

    def make(good: int = 5, bad: int = 0, **fields: object) -> IngestPlan:
        folder = tmp_path / "raw"
        folder.mkdir(exist_ok=True)
        for number in range(good):
            source = video_maker.numbered(f"s{number}.mp4", 5 + number)
            (folder / source.name).write_bytes(source.read_bytes())
        for number in range(bad):
            (folder / f"b{number}.mp4").write_text(f"no video {number}")
        spec = make_spec(folder, **fields)
        return plan_shards(spec, [list_video(p) for p in sorted(folder.iterdir())], mp4_encoder, spec.labels)

    return make


def store_hashes(store: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(store.iterdir())}


def test_only_missing_shards_are_made(make_plan, ingest_settings):
    plan = make_plan(good=7)
    shown: list[int] = []
    encode(plan, ingest_settings, 0, shown.append)
    assert (shown[0], shown[-1]) == (0, 7)
    assert shown == sorted(shown)
    store = store_folder(ingest_settings)
    whole = store_hashes(store)
    lost = plan.shards[1].digest
    (store / f"{lost}.json").unlink()
    kept = {p.name: p.stat().st_ino for p in store.iterdir() if lost not in p.name}
    assert [job.plan.digest for job in make_jobs(plan, ingest_settings)] == [lost]
    encode(plan, ingest_settings, 0, shown.append)
    assert store_hashes(store) == whole
    assert {p.name: p.stat().st_ino for p in store.iterdir() if lost not in p.name} == kept
    assert make_jobs(plan, ingest_settings) == []
    assert not (ingest_settings.work / "tmp" / "shards@tiny").exists()


def test_what_killed_runs_left_is_removed(make_plan, ingest_settings):
    left = ingest_settings.work / "tmp" / "shards@tiny" / "abc-dead" / "shard.tar"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    other = ingest_settings.work / "tmp" / "shards@other" / "shard.tar"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"half")
    encode(make_plan(), ingest_settings, 0, lambda _: None)
    assert not left.exists()
    assert other.exists()


def test_broken_videos_do_not_stop_the_run(make_plan, ingest_settings):
    plan = make_plan(good=3, bad=5)
    encode(plan, ingest_settings, 0, lambda _: None)
    rows = read_quarantine(quarantine_path("tiny", ingest_settings))
    assert sorted(row.key for row in rows) == [f"b{n}" for n in range(5)]
    assert sum(s.info.samples for s in all_stored(plan, ingest_settings)) == 3


def test_cap_on_rejects_stops_with_the_list(make_plan, ingest_settings):
    plan = make_plan(good=4, bad=4, max_reject_share=0.4)
    with pytest.raises(TooManyRejectsError, match=r"of 8 videos rejected .*not_a_video \d.*quarantine/tiny.csv"):
        encode(plan, ingest_settings, 0, lambda _: None)
    rows = read_quarantine(quarantine_path("tiny", ingest_settings))
    assert len(rows) == 4
    assert {row.reason for row in rows} == {RejectReason.NOT_A_VIDEO}
    # Nothing is encoded again to say it a second time.
    before = store_hashes(store_folder(ingest_settings))
    with pytest.raises(TooManyRejectsError):
        encode(plan, ingest_settings, 0, lambda _: None)
    assert store_hashes(store_folder(ingest_settings)) == before
    encode(make_plan(good=4, bad=4, max_reject_share=0.5), ingest_settings, 0, lambda _: None)


def test_a_shard_that_fails_does_not_stop_the_others(make_plan, ingest_settings, tmp_path):
    plan = make_plan(good=7)
    victim = plan.shards[1].videos[0].video
    path = tmp_path / "raw" / victim.path
    content = path.read_bytes()
    path.write_bytes(content + b"changed")
    with pytest.raises(
        IngestError, match=rf"1 of 3 shards .*(?s:.)*sample '{victim.key}'.*changed after it was listed"
    ):
        encode(plan, ingest_settings, 0, lambda _: None)
    assert [job.plan.name for job in make_jobs(plan, ingest_settings)] == [plan.shards[1].name]
    with pytest.raises(IngestError, match="is not in"):
        all_stored(plan, ingest_settings)
    path.write_bytes(content)
    encode(plan, ingest_settings, 0, lambda _: None)
    assert len(all_stored(plan, ingest_settings)) == 3


def test_summary():
    assert summarise({}) == "0 rejected"
    assert summarise({"empty": 2, "corrupt": 1}) == "3 rejected (empty 2, corrupt 1)"


@pytest.mark.skipif(not ROBUSTNESS.is_dir(), reason="the folder of odd files is not here")
@pytest.mark.parametrize("representation", ["mp4", "jpgs"])
def test_every_odd_file_becomes_a_sample_or_a_true_reject(
    make_spec, list_video, ingest_settings, representation, tmp_path
):
    from tasks.ops.encoder import encoder_of

    files = sorted(ROBUSTNESS.iterdir())
    videos = [list_video(path, key=f"v{number}") for number, path in enumerate(files)]
    clip = ClipPolicy(
        representation=representation,
        short_side=64,
        fps=None,
        audio="separate",
        num_frames=8 if representation == "jpgs" else None,
        preset="ultrafast",
    )
    spec = make_spec(ROBUSTNESS, clip=clip, per_shard=30)
    encoder = encoder_of(ingest_settings, representation)
    plan = plan_shards(spec, videos, encoder, spec.labels)
    encode(plan, ingest_settings, 0, lambda _: None)
    stored = all_stored(plan, ingest_settings)
    folder = tmp_path / "out"
    assemble(plan, stored, store_folder(ingest_settings), folder)
    assert verify_shards(folder) == {}
    names = {f"v{number}": path.name for number, path in enumerate(files)}
    rejects = {names[row.key]: row.reason.value for s in stored for row in s.rejects}
    assert rejects == {
        "-video-with-dash-.mp4": "too_small",
        "ac3.mp4": "no_video_stream",
        "corrupted.mp4": "corrupt",
        "result.webm": "empty",
    }
    assert sum(s.info.samples for s in stored) == len(files) - 4
