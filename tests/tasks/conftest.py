"""Small real videos, made once per test run by the static ffmpeg."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from data_specs.files import sha256_of
from data_specs.schema import (
    ClipPolicy,
    DatasetSpec,
    Encoder,
    FolderSource,
    ListedVideo,
    Part,
    ShardPolicy,
)
from infra.settings import Settings
from tasks.ops.encoder import encoder_of


class VideoMaker:
    """Makes videos by name; each is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ffmpeg: str = imageio_ffmpeg.get_ffmpeg_exe()

    def run(self, *arguments: str, data: bytes | None = None) -> None:
        command = [self.ffmpeg, "-hide_banner", "-loglevel", "error", "-y", *arguments]
        subprocess.run(command, check=True, input=data, stdin=None if data is not None else subprocess.DEVNULL)

    def pattern(self, name: str, *options: str, size: str = "96x64", rate: str = "25", seconds: float = 1) -> Path:
        """ffmpeg's moving test picture, with the output options given."""
        path = self.folder / name
        if not path.exists():
            source = f"testsrc2=size={size}:rate={rate}:duration={seconds}"
            self.run("-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", *options, f"file:{path}")
        return path

    def sounding(self, name: str, *options: str, seconds: float = 1, size: str = "96x64") -> Path:
        """The test picture with a tone."""
        path = self.folder / name
        if not path.exists():
            self.run(
                *("-f", "lavfi", "-i", f"testsrc2=size={size}:rate=25:duration={seconds}"),
                *("-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=16000:duration={seconds}"),
                *("-pix_fmt", "yuv420p", *options, f"file:{path}"),
            )
        return path

    def numbered(self, name: str, frames: int, *options: str, rate: str = "25") -> Path:
        """Plain frames whose brightness says their number, see `frame_numbers`."""
        path = self.folder / name
        if not path.exists():
            luma = (40 + 4 * np.arange(frames) % 160).astype(np.uint8)
            planes = np.concatenate(
                [np.repeat(luma[:, None], 64 * 48, 1), np.full((frames, 64 * 24), 128, np.uint8)], 1
            )
            head = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", "64x48", "-r", rate, "-i", "pipe:0"]
            self.run(*head, *(options or ("-g", "50")), f"file:{path}", data=planes.tobytes())
        return path


@pytest.fixture(scope="session")
def video_maker(tmp_path_factory: pytest.TempPathFactory) -> VideoMaker:
    return VideoMaker(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def frame_numbers() -> Callable[[bytes | Path], list[int]]:
    """Read back the numbers that `VideoMaker.numbered` wrote (modulo 40)."""

    def read(video: bytes | Path) -> list[int]:
        import io

        import av

        with av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video)) as container:
            means = [frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)]
        # `gray` is full range: back to limited range.
        return [round((mean * 219 / 255 + 16 - 40) / 4) for mean in means]

    return read


@pytest.fixture
def ingest_settings(tmp_path: Path) -> Settings:
    return Settings(root=tmp_path, progress=False, RAY_ADDRESS=None)


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., DatasetSpec]:
    """A data set of folder parts; keyword arguments replace fields."""

    def make(*roots: Path, clip: ClipPolicy | None = None, per_shard: int = 3, **fields: object) -> DatasetSpec:
        parts = tuple(
            Part(name=f"part{i}", source=FolderSource(root=str(root)), split="train") for i, root in enumerate(roots)
        )
        given: dict[str, object] = {
            "name": "tiny",
            "version": "1",
            "licence": "none",
            "labels": ("a", "b"),
            "parts": parts,
            "clip": clip or ClipPolicy(representation="mp4", short_side=32, fps=None, audio="drop", preset="ultrafast"),
            "shards": ShardPolicy(samples_per_shard=per_shard, seed=7),
            "max_reject_share": 1.0,
        }
        return DatasetSpec.model_validate(given | fields)

    return make


@pytest.fixture(scope="session")
def list_video() -> Callable[..., ListedVideo]:
    """The manifest row of a file."""

    def listed(path: Path, key: str = "", part: str = "part0", **fields: object) -> ListedVideo:
        there = path.exists()
        row = ListedVideo(
            part=part,
            key=key or path.stem.lower().replace(".", "_"),
            path=path.name,
            label="a",
            split="train",
            group=path.stem,
            start_s=None,
            end_s=None,
            size=path.stat().st_size if there else None,
            checksum=sha256_of(path) if there else "",
        )
        return row._replace(**fields)

    return listed


@pytest.fixture(scope="session")
def mp4_encoder() -> Encoder:
    return encoder_of(Settings(progress=False), "mp4")
