"""Shards of the task `moving_sprites`, made in this process by what the ingest is made of.

    python -m benchmarks.sprites <folder> --set size=96 --set motion=horizontal_fast … [--crf 24]

Renders, encodes, reads the annotation that the task writes, encodes clips for the shards, and writes these to
`<folder>/data/shards/sprites`.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from data_specs.load import class_names, load_spec
from data_specs.schema import ShardIndex
from infra.settings import Settings
from tasks.ops.encoder import encoder_of
from tasks.ops.listing import read_manifest, write_manifest
from tasks.ops.moving_sprites import MovingSpritesConfig
from tasks.ops.moving_sprites_files import set_up, write_sprites
from tasks.ops.plan import plan_shards
from tasks.ops.sample import context_of
from tasks.ops.shards import ShardJob, assemble, write_shard

NAME = "sprites"


def make_sprites(root: Path, config: MovingSpritesConfig, crf: int | None = None) -> Path:
    """Make videos and shards below a folder; return the folder of the shards.

    Args:
        root: is made where it is missing.
        config: of the task.
        crf: of the clips in the shards; None: that of the task's specification.
    """
    settings = Settings(root=root.absolute(), progress=False)
    folder = settings.root / "data" / "raw" / NAME
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_sprites(folder, config)
    (settings.root / "params").mkdir(exist_ok=True)
    (settings.root / "params.yaml").write_text("datasets: []\n")
    set_up(NAME, folder, config, settings)
    path = settings.root / "data_specs" / "datasets" / f"{NAME}.yaml"
    if crf is not None:
        values = yaml.safe_load(path.read_text())
        values["clip"]["crf"] = crf
        path.write_text(yaml.safe_dump(values))
    spec = load_spec(NAME, path.parent)
    encoder = encoder_of(settings, spec.clip.representation, spec.clip.flow)
    classes = class_names(spec)
    plan = plan_shards(spec, read_manifest(write_manifest(spec, settings)), encoder, classes)
    contexts = {part.name: context_of(spec, part, encoder, settings, classes) for part in spec.parts}
    store, temporary = settings.work / "store", settings.work / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    stored = [write_shard(ShardJob(shard, contexts[shard.part], store, temporary)) for shard in plan.shards]
    target = settings.shards / NAME
    index: ShardIndex = assemble(plan, stored, store, target)
    assert not any(index.rejects.values()), index.rejects
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--crf", type=int)
    options = parser.parse_args()
    values: dict[str, Any] = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in options.set)}
    print(make_sprites(options.folder, MovingSpritesConfig.model_validate(values), options.crf))


if __name__ == "__main__":
    main()
