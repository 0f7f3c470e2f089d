"""Loader throughput as ratios of one run.

Makes a set of noise-textured moving clips with the wheel's ffmpeg (or takes a shard folder), then times,
interleaved and for each decoder that works here:

- bare: threads that decode the same frames with the same library from bytes already in memory, dropping
  them at once: what the machine can do without any loader;
- index, stream: `open_loader`, batches taken as fast as they come;
- workers: plain `webdataset` in DataLoader processes, decoding the same frames and collating uint8.

Targets: index ÷ bare ≥ 0.95, index ÷ workers ≥ 1.5, memory flat over epochs. On a busy machine the wall-clock
ratios scatter; `cpu÷bare` (CPU time per clip of the bare loop ÷ that of index) does not.

    python -m benchmarks.bench_loader [--shards FOLDER] [--clips 64] [--frames 16] [--threads 2] [--repeats 3]
"""

import argparse
import functools
import hashlib
import json
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import torch
import webdataset as wds

from data_specs.schema import SHARD_FORMAT, ClipRecord, Encoder, IndexEntry, ShardIndex, ShardInfo, digest
from training.core.config import DataConfig, TransformConfig
from training.core.data import open_loader
from training.core.data_index import SplitIndex
from training.core.decode import LADDER, decode_clip, usable
from training.core.sampling import frame_positions

SEED = 0


def make_shards(folder: Path, clips: int, *, height: int, width: int, frames: int, per_shard: int = 16) -> Path:
    """Encode clips and pack them like the ingest does."""
    folder.mkdir(parents=True)
    distinct = []
    for number in range(min(clips, 16)):
        path = folder / "clip.mp4"
        picture = f"testsrc2=s={width}x{height}:r=25,noise=alls=12:allf=t:all_seed={number},hue=h={number * 20}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", picture]
        command += ["-frames:v", str(frames), "-c:v", "libx264", "-preset", "veryfast", "-tune", "fastdecode"]
        command += ["-crf", "23", "-g", "250" if frames <= 120 else "12", "-pix_fmt", "yuv420p", str(path)]
        subprocess.run(command, check=True)
        distinct.append(path.read_bytes())
        path.unlink()
    shards = []
    for start in range(0, clips, per_shard):
        path = folder / f"main-train-{start // per_shard:05d}.tar"
        with wds.TarWriter(str(path), mtime=0) as writer:
            for number in range(start, min(clips, start + per_shard)):
                record = ClipRecord(
                    key=f"clip-{number:05d}",
                    source="",
                    part="main",
                    split="train",
                    group="",
                    label=0,
                    num_frames=frames,
                    fps=25.0,
                    width=width,
                    height=height,
                    duration_s=frames / 25,
                    has_audio=False,
                )
                content = distinct[number % len(distinct)]
                writer.write({"__key__": record.key, "json": record.model_dump_json().encode(), "mp4": content})
        members: dict[str, dict[str, tuple[int, int]]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                members.setdefault(key, {})[extension] = (member.offset_data, member.size)
        entries = [IndexEntry(key=key, label=0, num_frames=frames, members=m) for key, m in members.items()]
        idx = "".join(entry.model_dump_json() + "\n" for entry in entries).encode()
        path.with_suffix(".idx").write_bytes(idx)
        content = path.read_bytes()
        shards.append(
            ShardInfo(
                name=path.name,
                part="main",
                split="train",
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                samples=len(entries),
                idx_sha256=hashlib.sha256(idx).hexdigest(),
                plan_digest=digest(path.name),
            )
        )
    index = ShardIndex(
        format=SHARD_FORMAT,
        dataset="bench",
        spec_digest=digest("bench"),
        representation="mp4",
        encoder=Encoder(name="ffmpeg", version="wheel"),
        classes=("one",),
        shards=tuple(shards),
        rejects={},
        listed={"train": clips},
    )
    (folder / "index.json").write_text(json.dumps(index.model_dump(mode="json")))
    return folder


def bare(shards: Path, config: DataConfig, decoder: str) -> Callable[[], tuple[float, float]]:
    """Clips per second of threads that only decode, from memory."""
    index = SplitIndex(shards, "train")
    contents = [index.read(number) for number in range(len(index))]
    wanted = [frame_positions(int(n), config, train=False, seed=0) for n in index.num_frames]

    def measure() -> tuple[float, float]:
        with ThreadPoolExecutor(config.threads) as pool:
            start, cpu = time.perf_counter(), time.process_time()
            for _ in pool.map(lambda i: decode_clip(contents[i], wanted[i], decoder).shape, range(len(contents))):
                pass
            return len(contents) / (time.perf_counter() - start), time.process_time() - cpu

    return measure


def loader(shards: Path, config: DataConfig) -> Callable[[], tuple[float, float]]:
    """Clips per second of `open_loader` over one pass, the same (middle) frames."""

    def measure() -> tuple[float, float]:
        opened = open_loader(shards, config, split="train", train=False, seed=SEED)
        for _ in opened:  # as in later epochs: memory of batches is there
            pass
        start, cpu = time.perf_counter(), time.process_time()
        for _ in opened:
            pass
        speed = opened.num_samples / (time.perf_counter() - start)
        spent = time.process_time() - cpu
        opened.close()
        return speed, spent

    return measure


def _decode_sample(sample: dict[str, Any], config: DataConfig, decoder: str) -> torch.Tensor:
    count = json.loads(sample["json"])["num_frames"]
    return torch.from_numpy(decode_clip(sample["mp4"], frame_positions(count, config, train=False, seed=0), decoder))


def workers(shards: Path, config: DataConfig, decoder: str) -> Callable[[], tuple[float, float]]:
    """Clips per second of webdataset with DataLoader processes, one per thread of the others."""
    urls = [str(path) for path in sorted(shards.glob("*-train-*.tar"))]

    def measure() -> tuple[float, float]:
        dataset = wds.DataPipeline(
            wds.SimpleShardList(urls),
            wds.split_by_worker,
            wds.tarfile_to_samples(),
            wds.map(functools.partial(_decode_sample, config=config, decoder=decoder)),
        )
        loading = torch.utils.data.DataLoader(
            dataset,
            config.batch_size,
            num_workers=config.threads,
            persistent_workers=True,
            multiprocessing_context="spawn",
        )
        for _ in loading:  # starts the processes, which is not counted
            break
        start = time.perf_counter()
        total = sum(len(batch) for batch in loading)
        return total / (time.perf_counter() - start), 0.0

    return measure


def resident_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def memory(shards: Path, config: DataConfig, epochs: int = 4) -> list[float]:
    """Resident memory (MB) after each epoch of endless training."""
    opened = open_loader(shards, config, split="train", train=True, seed=SEED)
    steps = -(-opened.num_samples // config.batch_size)
    batches = iter(opened)
    figures = []
    for _ in range(epochs):
        for _ in range(steps):
            next(batches)
        figures.append(resident_mb())
    opened.close()
    return figures


def ratio(first: list[float], second: list[float]) -> float:
    """Median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="loader throughput as ratios of one run")
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--length", type=int, default=70, help="frames per stored clip")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decoders", nargs="*", default=[name for name in LADDER if usable(name) is None])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        width = arguments.height * 4 // 3 // 2 * 2
        size = {"height": arguments.height, "width": width, "frames": arguments.length}
        shards = arguments.shards or make_shards(Path(temporary) / "bench", arguments.clips, **size)
        short = arguments.height
        crop = TransformConfig(
            size=short * 7 // 8, train_crop="center", eval_short_side=short, flip=False, normalise="imagenet"
        )
        print(
            f"{'decoder':<11}{'clips/s':>9}{'bare':>8}{'index÷bare':>12}{'cpu÷bare':>10}{'stream÷bare':>13}{'index÷workers':>15}"
        )
        for decoder in arguments.decoders:
            config = DataConfig(
                num_frames=arguments.frames,
                sampling="segments",
                batch_size=arguments.batch,
                transform=crop,
                decoder=decoder,
                threads=arguments.threads,
            )
            measures = {
                "bare": bare(shards, config, decoder),
                "index": loader(shards, config),
                "stream": loader(shards, config.model_copy(update={"source": "stream"})),
                "workers": workers(shards, config, decoder),
            }
            speeds: dict[str, list[float]] = {name: [] for name in measures}
            spent: dict[str, list[float]] = {name: [] for name in measures}
            for _ in range(arguments.repeats):
                for name, measure in measures.items():  # interleaved: other load hits all alike
                    speed, cpu_s = measure()
                    speeds[name].append(speed)
                    spent[name].append(cpu_s)
            # Ratios within a round, then their median: load that comes and goes hits a round alike.
            index, raw, stream, processes = (speeds[name] for name in ("index", "bare", "stream", "workers"))
            cpu = ratio(spent["bare"], spent["index"])
            print(
                f"{decoder:<11}{statistics.median(index):>9.1f}{statistics.median(raw):>8.1f}{ratio(index, raw):>12.2f}"
                f"{cpu:>10.2f}{ratio(stream, raw):>13.2f}{ratio(index, processes):>15.2f}"
            )
        figures = memory(shards, config)
        print("resident MB after each epoch: " + " ".join(f"{value:.0f}" for value in figures))


if __name__ == "__main__":
    main()
