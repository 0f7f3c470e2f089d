"""A small project of real videos, listed and sharded once for these tests."""

import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from data_specs.load import class_names, load_spec
from infra.settings import Settings
from tasks.ops.encoder import encoder_of
from tasks.ops.listing import part_root, read_manifest, write_manifest
from tasks.ops.plan import plan_shards
from tasks.ops.sample import SampleContext
from tasks.ops.shards import ShardJob, assemble, write_shard

SPEC = """\
name: toys
version: "1"
description: Colored squares.
licence: CC0-1.0
labels: [left, right]
parts:
  - name: main
    source:
      kind: folder
      root: raw
    split: {train: 0.5, val: 0.25, test: 0.25, seed: 0, group: 'regex:^(.+)_\\d+\\.'}
clip:
  representation: mp4
  short_side: 32
  fps: null
  audio: drop
shards:
  samples_per_shard: 8
  seed: 0
max_reject_share: 0.5
expected: {test: 10}
"""


def make_video(
    path: Path, seed: int = 0, frames: int = 10, size: tuple[int, int] = (48, 32), sound: bool = False
) -> None:
    """Write a real H.264 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=16000) if sound else None
        color = rng.integers(0, 255, 3, dtype=np.uint8)
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), color, dtype=np.uint8)
            picture[8:16, 4 + number : 12 + number] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
        if audio is not None:
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            tone.sample_rate = 16000
            container.mux(audio.encode(tone))
            container.mux(audio.encode(None))


@pytest.fixture(scope="session")
def video_maker() -> Callable[..., None]:
    return make_video


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the data set `toys`: 16 videos of 8 groups, one of them cut, sharded without a cluster."""
    root = tmp_path_factory.mktemp("project")
    folder = root / "data_specs" / "datasets"
    folder.mkdir(parents=True)
    (folder / "toys.yaml").write_text(SPEC)
    for number in range(16):
        label = ("left", "right")[number % 2]
        make_video(root / "raw" / label / f"day{number // 4}{label}_{number}.mp4", seed=number)
    broken = root / "raw" / "left" / "day0left_0.mp4"
    broken.write_bytes(broken.read_bytes()[:400])
    settings = Settings(root=root, progress=False)
    spec = load_spec("toys", folder)
    manifest = write_manifest(spec, settings)
    encoder = encoder_of(settings, "mp4")
    plan = plan_shards(spec, read_manifest(manifest), encoder, class_names(spec))
    context = SampleContext("toys", part_root(spec.parts[0], settings), spec.clip, encoder, False, settings)
    store = settings.work / "shards"
    stored = [write_shard(ShardJob(shard, context, store, settings.work / "tmp")) for shard in plan.shards]
    assemble(plan, stored, store, settings.shards / "toys")
    return root


@pytest.fixture
def project(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A copy of that project, which a test may damage; it is the project of `Settings()`."""
    root = tmp_path / "project"
    shutil.copytree(built, root, symlinks=True)
    monkeypatch.setenv("FOVEA_ROOT", str(root))
    monkeypatch.setenv("FOVEA_PROGRESS", "false")
    monkeypatch.chdir(root)
    return Settings()
