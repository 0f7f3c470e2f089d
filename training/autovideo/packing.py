"""The extractor that makes shards: listing, probing, encoding and packing by the data half, in processes of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from data_specs.schema import digest, read_index
from training.autovideo.domains import choice
from training.autovideo.primitive import Input, Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.shard_sets import open_shards
from training.autovideo.values import Context, Manifest, Value
from training.core.config import ConfigError


class WebdatasetConfig(PrimitiveConfig):
    """How videos are stored in shards."""

    representation: Literal["mp4", "jpgs"] = setting("mp4", help="`mp4`: H.264; `jpgs`: frames sampled evenly")
    num_frames: int | None = setting(None, help="frames of `jpgs`", unit="frames", ge=1)
    short_side: int = setting(128, help="of the stored clips", unit="pixels", search=choice(64, 128, 256), ge=16)
    fps: float | None = setting(None, help="frames per second; null keeps the source's", unit="1/s", gt=0)
    samples_per_shard: int = setting(64, help="videos per tar", ge=1)
    seed: int = setting(0, help="of the order of the samples")
    max_reject_share: float = setting(0.1, help="the run stops when more of the videos cannot be used", ge=0, le=1)
    min_frames: int = setting(1, help="shorter videos are rejected", unit="frames", ge=1)
    workers: int | None = setting(0, help="processes at once; null: all cores through Ray; 0: one process", ge=0)


@primitive("extractor/webdataset")
class Webdataset(Primitive):
    """Decodes, scales and packs the videos into webdataset shards: the ingest of the data half."""

    kind = "extractor"
    determinism = "impure"  # it lists the videos anew each time, and makes no more than what has changed
    inputs: ClassVar[Mapping[str, Input]] = {"manifest": Input(Port.MANIFEST)}
    outputs: ClassVar[Mapping[str, Port]] = {"shards": Port.SHARDS}
    Config: ClassVar[type[PrimitiveConfig]] = WebdatasetConfig

    def produce(self, inputs: Mapping[str, Value], state: Any, context: Context) -> dict[str, Value]:
        """Write the specification, list the sources, and make the shards; what is done already is not made again.

        Raises:
            ConfigError: the ingest failed; the message is its own.
        """
        manifest = inputs["manifest"]
        assert isinstance(manifest, Manifest)
        config = self.config
        clip = {
            "representation": config.representation,
            "short_side": config.short_side,
            "fps": config.fps,
            "audio": "drop",
            "min_frames": config.min_frames,
        }
        if config.num_frames is not None:
            clip["num_frames"] = config.num_frames
        # Other clips of the same videos are another data set, so that several pipelines can share a place.
        name = f"{manifest.dataset}_{digest({'clip': clip, 'shards': config.samples_per_shard})[:6]}"
        spec = {
            "name": name,
            **manifest.spec,
            "clip": clip,
            "shards": {"samples_per_shard": config.samples_per_shard, "seed": config.seed},
            "max_reject_share": config.max_reject_share,
        }
        place = context.data
        path = place.root / "data_specs" / "datasets" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
        os.replace(temporary, path)
        self._call(context, [sys.executable, "-m", "tasks", "manifest", name])
        # The mark of a finished ingest: what it was asked for, and of which listing.
        mark = place.work / "ingested" / f"{name}.json"
        wanted = json.dumps({"listing": digest((place.manifests / f"{name}.csv").read_text()), "spec": digest(spec)})
        if not (mark.is_file() and mark.read_text() == wanted and _shards_are_there(place.shards / name)):
            mark.unlink(missing_ok=True)
            workers = [] if config.workers is None else ["--workers", str(config.workers)]
            self._call(context, [sys.executable, "-m", "flows.ingest", name, *workers])
            mark.parent.mkdir(parents=True, exist_ok=True)
            temporary = mark.with_suffix(f".tmp-{os.getpid()}")
            temporary.write_text(wanted)
            os.replace(temporary, mark)
        return {"shards": open_shards(place.shards / name, name)}

    def _call(self, context: Context, command: list[str]) -> None:
        place = context.data
        environment = {**os.environ, "FOVEA_ROOT": str(place.root)}
        done = subprocess.run(command, env=environment, cwd=place.root, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise ConfigError(
                f"step {context.step!r} ({self.id}): {' '.join(command[1:])} failed:\n" + "\n".join(said[-15:])
            )


def _shards_are_there(folder: Path) -> bool:
    """Whether a folder of shards has an index, and every file that the index names, in its size."""
    if not (folder / "index.json").is_file():
        return False
    files = ((folder / shard.name, shard.bytes) for shard in read_index(folder).shards)
    return all(path.is_file() and path.stat().st_size == size for path, size in files)
