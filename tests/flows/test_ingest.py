"""The ingest as a whole: the flow, its command line, and what happens when it is killed."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import pytest

from data_specs.schema import RejectReason, read_index
from infra.locks import StageLockedError, stage_lock
from infra.settings import Settings

ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "FOVEA_PROGRESS": "false",
    "DVC_NO_ANALYTICS": "1",
}

SPEC = """\
name: tiny
version: "1"
licence: none
labels: [a, b]
parts:
  - name: first
    source: {kind: folder, root: raw}
    split: {train: 0.6, val: 0.2, test: 0.2, seed: 3}
clip: {representation: mp4, short_side: 64, fps: null, audio: keep, preset: PRESET}
shards: {samples_per_shard: 3, seed: 1}
max_reject_share: 0.2
"""


@pytest.fixture(scope="module")
def raw_videos(tmp_path_factory) -> Path:
    """Two classes of ten videos each, one file of them broken, in a project that has listed them."""
    root = tmp_path_factory.mktemp("listed")
    folder = root / "raw"
    folder.mkdir()
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    for label in "ab":
        (folder / label).mkdir()
        for number in range(10):
            strong = 3 if label == "b" else 1
            picture = f"testsrc2=size=128x96:rate=25:duration={1 + number / 10},hue=h={18 * number}:s={strong}"
            command = [ffmpeg, "-loglevel", "error", "-f", "lavfi", "-i", picture, "-pix_fmt", "yuv420p"]
            subprocess.run([*command, str(folder / label / f"{number}.mp4")], check=True, stdin=subprocess.DEVNULL)
    (folder / "b" / "9.mp4").write_text("no video")
    write_settings(root, preset="ultrafast")
    list_sources(root)
    return folder


def write_settings(root: Path, preset: str) -> None:
    for folder in ("params", "data_specs/datasets"):
        (root / folder).mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "data_specs/datasets/tiny.yaml").write_text(SPEC.replace("PRESET", preset))


def make_project(root: Path, raw: Path, preset: str = "ultrafast") -> Path:
    """A project with one data set, its sources listed (which does not depend on the preset)."""
    write_settings(root, preset)
    for folder in ("raw", "data/manifests"):
        shutil.copytree(raw.parent / folder, root / folder)
    return root


def list_sources(root: Path) -> None:
    code = (
        "from data_specs.load import load_spec; from infra.settings import Settings\n"
        "from tasks.ops.listing import write_manifest; write_manifest(load_spec('tiny'), Settings())"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, env=os.environ | ENVIRONMENT)


def hashes(root: Path) -> dict[str, str]:
    folder = root / "data" / "shards" / "tiny"
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture
def project(tmp_path, raw_videos, monkeypatch) -> Settings:
    root = make_project(tmp_path / "project", raw_videos)
    monkeypatch.setenv("FOVEA_ROOT", str(root))
    monkeypatch.chdir(root)
    return Settings(progress=False, RAY_ADDRESS=None)


@pytest.mark.timeout(300)
def test_flow_publishes_retries_and_refuses(prefect_server, project):
    """One test for the flow itself, since the server takes long to start."""
    from flows.ingest import ingest
    from tasks.shards import retry_failed

    index = ingest(dataset="tiny", settings=project, workers=0)
    first = hashes(project.root)
    assert read_index(project.shards / "tiny") == index
    assert (sum(s.samples for s in index.shards), index.rejects) == (19, {"not_a_video": 1})
    assert sum(index.listed.values()) == 20

    # A second run makes nothing and changes nothing, also after DVC has removed the output.
    made = {p.name: p.stat().st_mtime_ns for p in (project.work / "shards").iterdir()}
    shutil.rmtree(project.shards / "tiny")
    ingest(dataset="tiny", settings=project, workers=0)
    assert hashes(project.root) == first
    assert {p.name: p.stat().st_mtime_ns for p in (project.work / "shards").iterdir()} == made

    # Retry forgets the shards with that reject only.
    assert retry_failed("tiny", [RejectReason.TIMEOUT], project) == []
    again = retry_failed("tiny", [RejectReason.NOT_A_VIDEO], project)
    assert len(again) == 1
    ingest(dataset="tiny", settings=project, workers=0)
    assert hashes(project.root) == first
    remade = {p.name for p in (project.work / "shards").iterdir() if made[p.name] != p.stat().st_mtime_ns}
    assert {Path(name).suffix for name in remade} == {".tar", ".idx", ".json"}
    assert len(remade) == 3

    # A damaged shard is found, and the next run mends it.
    name = index.shards[0].name
    stored = project.work / "shards" / f"{index.shards[0].plan_digest}.tar"
    content = bytearray(stored.read_bytes())
    content[700] ^= 1
    stored.chmod(0o644)
    stored.write_bytes(content)
    from tasks.ops.shards import ShardError

    with pytest.raises(ShardError, match=name):
        ingest(dataset="tiny", settings=project, workers=0)
    ingest(dataset="tiny", settings=project, workers=0)
    assert hashes(project.root) == first

    # The cap stops the flow.
    spec = project.root / "data_specs/datasets/tiny.yaml"
    spec.write_text(spec.read_text().replace("max_reject_share: 0.2", "max_reject_share: 0.01"))
    from tasks.ops.quarantine import TooManyRejectsError

    with pytest.raises(TooManyRejectsError, match="not_a_video 1"):
        ingest(dataset="tiny", settings=project, workers=0)


def test_retry_waits_for_no_running_ingest(project, monkeypatch):
    from tasks import shards

    monkeypatch.setattr(shards, "stage_lock", lambda path: stage_lock(path, wait_s=0.2))
    with (
        stage_lock(shards.lock_path("tiny", project)),
        pytest.raises(StageLockedError, match=f"process {os.getpid()} "),
    ):
        shards.retry_failed("tiny", (), project)


def test_missing_manifest_is_named(project):
    from tasks.shards import make_plan

    (project.manifests / "tiny.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny.csv is missing.*manifest@tiny"):
        make_plan("tiny", project)


# --- slow: real processes, killed -------------------------------------------------------------------


def environment(server: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FOVEA_", "RAY_ADDRESS"))}
    return clean | ENVIRONMENT | {"PREFECT_API_URL": server}


COMMAND = [sys.executable, "-m", "flows.ingest", "tiny", "--workers", "2"]
ALONE = [*COMMAND[:-1], "0"]
"""Without Ray, which takes long to start: where it is not what is tested."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, raw_videos, server_url) -> dict[str, str]:
    """Hashes of a run that nobody disturbed, in one process: Ray's workers must make the same."""
    root = make_project(tmp_path_factory.mktemp("whole") / "project", raw_videos, preset="veryslow")
    done = subprocess.run(ALONE, cwd=root, env=environment(server_url), capture_output=True, text=True, check=True)
    assert "19 samples in" in done.stdout
    return hashes(root)


def descendants(pid: int) -> list[int]:
    """Processes below one, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            child = int(stat.parent.name)
            found += [child, *descendants(child)]
    return found


def finished_shards(root: Path) -> set[str]:
    return {path.stem for path in (root / ".work" / "shards").glob("*.json")}


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the ingest ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end_of(pids: dict[int, str], seconds: float = 30) -> dict[int, str]:
    """Wait for processes to end; returns those that did not, with their command lines."""
    deadline = time.monotonic() + seconds
    while (left := {pid: name for pid, name in pids.items() if alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def named(pids: list[int]) -> dict[int, str]:
    """Return pid → name of processes that could write a shard or keep others alive.

    Ray's agents are left out: they look for their parent now and then, and end a minute later by themselves.
    """
    found = {}
    for pid in pids:
        try:
            found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return {pid: name for pid, name in found.items() if not name.startswith(("ray::Dashboard", "ray::RuntimeEnv"))}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_driver_starts_again_at_once(tmp_path, raw_videos, server_url, uninterrupted):
    root = make_project(tmp_path / "project", raw_videos, preset="veryslow")
    process = subprocess.Popen(COMMAND, cwd=root, env=environment(server_url))
    wait_for(lambda: len(finished_shards(root)) >= 2, process)
    below = named(descendants(process.pid))
    process.kill()
    process.wait()
    finished = finished_shards(root)
    assert 2 <= len(finished) < len([n for n in uninterrupted if n.endswith(".tar")])
    assert not (root / "data/shards/tiny/index.json").exists()
    made = {name: (root / ".work/shards" / f"{name}.tar").stat().st_mtime_ns for name in finished}
    subprocess.run(COMMAND, cwd=root, env=environment(server_url), check=True, capture_output=True)
    assert hashes(root) == uninterrupted
    assert {name: (root / ".work/shards" / f"{name}.tar").stat().st_mtime_ns for name in finished} == made
    assert below
    assert end_of(below) == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_worker_is_replaced(tmp_path, raw_videos, server_url, uninterrupted):
    root = make_project(tmp_path / "project", raw_videos, preset="veryslow")
    process = subprocess.Popen(COMMAND, cwd=root, env=environment(server_url))

    def working() -> list[int]:
        commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in descendants(process.pid)}
        return [pid for pid, path in commands.items() if path.exists() and b"write_shard" in path.read_bytes()]

    for _ in range(2):
        wait_for(lambda: any((root / ".work/tmp").glob("*/*/*/clip.mp4")) and bool(working()), process)
        os.kill(working()[0], signal.SIGKILL)
        time.sleep(0.5)
    assert process.wait(timeout=300) == 0
    assert hashes(root) == uninterrupted


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_dvc_leaves_no_second_writer(tmp_path, raw_videos, server_url, uninterrupted):
    root = make_project(tmp_path / "project", raw_videos, preset="veryslow")
    stage = {"cmd": " ".join(["exec", *COMMAND]), "deps": ["data/manifests/tiny.csv"], "outs": ["data/shards/tiny"]}
    (root / "dvc.yaml").write_text(json.dumps({"stages": {"shards": stage}}))
    run = {"cwd": root, "env": {**environment(server_url), "SHELL": "/bin/sh"}}  # dash, where it is the system's shell
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], check=True, **run)
    subprocess.run([*dvc, "config", "cache.type", "hardlink,symlink,copy"], check=True, **run)
    process = subprocess.Popen([*dvc, "repro"], **run)
    wait_for(lambda: len(finished_shards(root)) >= 1, process)
    below = named(descendants(process.pid))
    process.kill()
    process.wait()
    subprocess.run([*dvc, "repro"], check=True, **run)
    assert hashes(root) == uninterrupted
    assert end_of(below) == {}
    status = subprocess.run([*dvc, "status"], check=True, capture_output=True, text=True, **run)
    assert "up to date" in status.stdout
    tar = next((root / "data/shards/tiny").glob("*.tar"))
    assert tar.stat().st_nlink >= 3  # store, output and cache share one file
    # The same without Ray: nothing of what follows depends on who writes.
    (root / "dvc.yaml").write_text((root / "dvc.yaml").read_text().replace("--workers 2", "--workers 0"))
    again = subprocess.run([*dvc, "repro", "--force"], check=True, capture_output=True, text=True, **run)
    assert "19 samples in" in again.stdout
    assert hashes(root) == uninterrupted


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_videos_leave_old_shards_alone(tmp_path, raw_videos, server_url, uninterrupted):
    root = make_project(tmp_path / "project", raw_videos, preset="veryslow")
    shutil.copytree(root / "raw" / "a", root / "more" / "b")
    for path in (root / "more" / "b").iterdir():
        path.write_bytes(path.read_bytes() + b"\0\0\0\x08free")  # other bytes, same picture
    spec = root / "data_specs/datasets/tiny.yaml"
    second = "  - name: second\n    source: {kind: folder, root: more}\n    split: train\nclip:"
    spec.write_text(spec.read_text().replace("clip:", second, 1))
    list_sources(root)
    subprocess.run(ALONE, cwd=root, env=environment(server_url), check=True, capture_output=True)
    after = hashes(root)
    old = {name: sha for name, sha in uninterrupted.items() if name.startswith("first-")}
    assert old.items() <= after.items()
    assert any(name.startswith("second-train-") for name in after)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_command_line_errors_are_one_line(tmp_path, raw_videos, server_url):
    root = make_project(tmp_path / "project", raw_videos)
    spec = root / "data_specs/datasets/tiny.yaml"
    spec.write_text(spec.read_text().replace("max_reject_share: 0.2", "max_reject_share: 0.0"))
    done = subprocess.run(ALONE, cwd=root, env=environment(server_url), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: data set 'tiny': 1 of 20 videos rejected")
    assert (root / ".work/quarantine/tiny.csv").exists()
