"""Ingest beside the bare ffmpeg commands that it runs, and planning of 650,000 listed videos.

    python benchmarks/bench_ingest.py [<number of videos>]

Prints processor and wall time of both, and their ratios; nothing is asserted. The bare side is `xargs -P2` over the
very same commands: no probe, no checks, no checksums, no tar. Ray's start costs the same for any number of videos and
is shown by itself. Wants a quiet machine; says the load at the start.
"""

import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_specs.files import sha256_of
from data_specs.schema import ClipPolicy, DatasetSpec, Encoder, FolderSource, ListedVideo, Part, ShardPolicy
from infra.settings import Settings
from tasks.media import encode
from tasks.ops.clips import mp4_command, plan_cut
from tasks.ops.encoder import encoder_of, ffmpeg_path
from tasks.ops.plan import plan_shards
from tasks.ops.probe import probe

WORKERS = 2
FRAMES = 70
PLANNED = 650_000


def spec_of(root: Path, per_shard: int) -> DatasetSpec:
    return DatasetSpec(
        name="bench",
        version="1",
        licence="none",
        labels=("a",),
        parts=(Part(name="all", source=FolderSource(root=str(root)), split="train"),),
        clip=ClipPolicy(representation="mp4", short_side=256, fps=None, audio="keep"),
        shards=ShardPolicy(samples_per_shard=per_shard, seed=0),
        max_reject_share=0.0,
    )


def make_videos(folder: Path, count: int) -> list[Path]:
    """Ten different pictures with noise and a tone, 480 × 360, under `count` names."""
    paths: list[Path] = []
    for number in range(count):
        path = folder / f"v{number}.mp4"
        if number < 10:
            picture = f"testsrc2=size=480x360:rate=25:duration={FRAMES / 25},noise=alls={10 + 2 * number}:allf=t"
            tone = f"sine=frequency={300 + 50 * number}:duration={FRAMES / 25}"
            inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone]
            command = [ffmpeg_path(Settings()), "-loglevel", "error", *inputs, "-pix_fmt", "yuv420p", "-c:a", "aac"]
            subprocess.run([*command, str(path)], check=True, stdin=subprocess.DEVNULL)
        else:
            path.write_bytes(paths[number % 10].read_bytes())
        paths.append(path)
    return paths


def bare(paths: list[Path], spec: DatasetSpec, folder: Path) -> tuple[float, float]:
    """Return (processor seconds, wall seconds) of the commands alone."""
    lines = []
    for path in paths:
        info = probe(path)
        own = folder / path.stem
        own.mkdir(parents=True, exist_ok=True)
        cut = plan_cut(info, spec.clip, None, None)
        lines.append(shlex.join(mp4_command(path, info, cut, spec.clip, ffmpeg_path(Settings()), own)))
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        ["xargs", "-0", f"-P{WORKERS}", "-n1", "sh", "-c", 'eval "exec $0"'],
        input="\0".join(lines).encode(),
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def below(pid: int) -> dict[int, float]:
    """Return pid → processor seconds, with those of ended children, of all processes below one but ffmpeg."""
    parents: dict[int, list[tuple[int, str, float]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = stat.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = tail.split()
        used = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        parents.setdefault(int(fields[1]), []).append((int(stat.parent.name), head.partition("(")[2], used))
    found: dict[int, float] = {}
    todo = [pid]
    while todo:
        for child, name, used in parents.get(todo.pop(), []):
            if not name.startswith("ffmpeg"):  # counted with the worker that waits for it
                found[child] = used
                todo.append(child)
    return found


def ingest(paths: list[Path], spec: DatasetSpec, root: Path) -> dict[str, float]:
    """Return seconds of an ingest: processor, wall, and both until the first video was finished."""
    settings = Settings(root=root, progress=False).model_copy(update={"ray_address": None})
    videos = [
        ListedVideo("all", p.stem, p.name, "a", "train", p.stem, None, None, p.stat().st_size, sha256_of(p))
        for p in paths
    ]
    plan = plan_shards(spec, videos, encoder_of(settings, "mp4"), ("a",))
    at_first: dict[str, float] = {}
    used: dict[int, float] = {}
    looking, looked_at = 0.0, 0.0
    before, start = time.process_time(), time.perf_counter()

    def processor() -> float:
        return time.process_time() - before - looking + sum(used.values())

    def show(done: int) -> None:
        nonlocal looking, looked_at
        first = bool(done) and not at_first
        if not first and done < len(paths) and time.perf_counter() - looked_at < 2:
            return
        looking -= time.process_time()
        used.update(below(os.getpid()))
        looking += time.process_time()
        looked_at = time.perf_counter()
        if first:
            at_first.update(processor=processor(), wall=looked_at - start)

    encode(plan, settings, WORKERS, show)
    return {
        "processor": processor(),
        "wall": time.perf_counter() - start,
        "start_processor": at_first["processor"],
        "start_wall": at_first["wall"],
    }


def plan_many() -> None:
    """Plan `PLANNED` videos from a manifest (run in a process of its own, for its memory)."""
    from tasks.ops.listing import manifest_bytes, read_manifest

    folder = Path(tempfile.mkdtemp())
    path = folder / "many.csv"
    if os.fork() == 0:  # the rows that are written must not count
        rows = (
            ListedVideo(
                "all",
                f"some_class_{i:06d}-{i:012x}",
                f"train/some class {i % 400}/{i:011x}_000010_000020.mp4",
                "a",
                "train",
                f"train/some class {i % 400}/{i:011x}",
                10.0,
                20.0,
                500_000 + i,
                f"{i:064x}",
            )
            for i in range(PLANNED)
        )
        path.write_bytes(manifest_bytes(rows))
        os._exit(0)
    os.wait()
    start = time.process_time()  # one thread, no waiting: the same as wall time on a quiet machine
    videos = read_manifest(path)
    read = time.process_time()
    shards = plan_shards(spec_of(folder, 1000), videos, Encoder(name="ffmpeg", version="1"), ("a",)).shards
    done = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"read": read - start, "plan": done - read, "gib": peak, "shards": len(shards)}))
    path.unlink()
    folder.rmdir()


def main() -> int:
    if sys.argv[1:] == ["plan"]:
        plan_many()
        return 0
    count = int(sys.argv[1]) if sys.argv[1:] else 500
    print(f"{count} videos of {FRAMES} frames, {WORKERS} processes, load of the machine: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        (folder / "raw").mkdir()
        paths = make_videos(folder / "raw", count)
        spec = spec_of(folder / "raw", max(1, count // 16))
        # Half of the bare commands before and half after: the machine's clock drifts over minutes.
        first = bare(paths[::2], spec, folder / "bare")
        ours = ingest(paths, spec, folder / "project")
        second = bare(paths[1::2], spec, folder / "bare")
        cpu, wall = first[0] + second[0], first[1] + second[1]
    whole = (ours["processor"], ours["wall"])
    running = (whole[0] - ours["start_processor"], whole[1] - ours["start_wall"])
    print(f"{'':44}{'processor':>11}{'wall':>9}")
    for name, row in (
        ("ffmpeg alone, xargs -P2", (cpu, wall)),
        ("ingest", whole),
        ("  of it until the first video (Ray, imports)", (ours["start_processor"], ours["start_wall"])),
    ):
        print(f"{name:44}{row[0]:9.1f} s{row[1]:7.1f} s")
    for name, row in (("ratio, whole", whole), ("ratio, after the first video", running)):
        print(f"{name:44}{row[0] / cpu:11.2f}{row[1] / wall:9.2f}   (to reach: 1.1)")
    done = subprocess.run([sys.executable, __file__, "plan"], capture_output=True, text=True, check=True)
    many = json.loads(done.stdout)
    print(
        f"planning {PLANNED:,} videos: manifest read in {many['read']:.1f} s, {many['shards']} shards planned in "
        f"{many['plan']:.1f} s, peak memory {many['gib']:.2f} GiB (to reach: under 1)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
