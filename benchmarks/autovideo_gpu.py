"""The recognisers of AutoVideo on one GPU: training steps with augmenters, and one short run of every stage.

    python -m benchmarks.autovideo_gpu speed [--kinds "tsm,tsm:compiled,i3d,…"] [--batch 16]
    python -m benchmarks.autovideo_gpu augment [--batch 16]
    python -m benchmarks.autovideo_gpu stages <shards> [--params params/templates/autovideo.yaml] [--steps 60]

`speed` trains the published nets on one batch that lies on the device, under a mode of torch in which any wait for the
device is an error; the loss must fall. `augment` runs every augmenter of the catalogue in that mode. `stages` goes
through the code that the stages run, without Ray and MLflow.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.on_gpu import Trainer, fit_config, raw_batch, run_stage, timed
from data_specs.schema import read_index
from training.autovideo.augment.augmentation import Augmentation
from training.autovideo.catalogue import catalogue
from training.autovideo.config import TrainConfig
from training.autovideo.presets import NETS
from training.autovideo.system import AutoVideoSystem
from training.autovideo.use import Use
from training.core.config import validate

CLASSES = tuple(f"class {number}" for number in range(400))
KINDS = "tsn,tsm,i3d,eco_lite,eco_full,c3d,r2plus1d,r3d"
PRESETS = {
    "tsn": "tsn_r50", "tsm": "tsm_r50", "i3d": "i3d", "i3d_r50": "i3d_r50", "eco_lite": "eco_lite",
    "eco_full": "eco_full", "c3d": "c3d", "r2plus1d": "r2plus1d_18.tv", "r3d": "r3d_18.tv", "r3d_hara": "r3d_50.hara",
}  # fmt: skip
FRAMES = {"tsn": 8, "tsm": 8, "i3d": 32}
"""Frames where the preset's are too many for a quick step."""

AUGMENT = [{"use": f"augment/{name}"} for name in ("hflip", "color_jitter", "rotate", "gaussian_blur")]


def document(
    kind: str, frames: int, size: int, batch: int, augment: list[dict[str, Any]], **settings: Any
) -> dict[str, Any]:
    """Return a pipeline for one net."""
    use, own, _, _ = NETS[PRESETS[kind]]
    decoder = "decoder/segments" if use in ("recognition/tsn", "recognition/tsm") or "eco" in use else "decoder/dense"
    steps: list[dict[str, Any]] = [
        {"id": "data", "use": "reader/dataset"},
        {"id": "clip", "use": decoder, "in": "data", "with": {"frames": frames, "size": size, "short_side": size}},
        {"id": "crop", "use": "transform/random_resized_crop", "in": "clip"},
    ]
    if augment:
        steps.append({"id": "aug", "use": "combine/sequential", "in": "crop", "with": {"of": augment}})
    last = steps[-1]["id"]
    steps.append({"id": "net", "use": use, "in": last, "with": {**own, "steps": 100, "batch_size": batch, **settings}})
    return {"schema": "pipeline/v1", "name": kind, "seed": 0, "steps": steps, "outputs": ["net.model"]}


def speed(options: argparse.Namespace) -> None:
    """Print training speed of every net."""
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, batch {options.batch}")
    print(f"{'step':<22}{'clips':>14}{'clips/s':>9}{'ms':>8}{'peak GiB':>10}{'first loss':>12}{'last':>8}")
    for name in options.kinds.split(","):
        kind, _, compiled = name.partition(":")
        _, _, frames, size = NETS[PRESETS[kind]]
        frames = FRAMES.get(kind, frames)
        torch.manual_seed(0)
        torch.cuda.reset_peak_memory_stats()
        values = document(kind, frames, size, options.batch, [] if options.plain else AUGMENT)
        config = validate(TrainConfig, {"document": values}, kind)
        system = AutoVideoSystem(config, CLASSES)
        system.freeze()
        raw = raw_batch(options.batch, frames, size, device, len(CLASSES))
        recipe = fit_config(compiled=bool(compiled), name="sgd", lr={"main": options.lr}, weight_decay=5e-4)
        trainer = Trainer(system, recipe, raw)
        first = float(trainer.step())
        for _ in range(8):
            trainer.step()
        seconds, last = timed(trainer.step, options.repeats)
        gib, clip = torch.cuda.max_memory_allocated() / 2**30, f"{frames}x{size}x{size}"
        print(
            f"{name:<22}{clip:>14}{options.batch / seconds:>9.1f}{1e3 * seconds:>8.1f}{gib:>10.1f}{first:>12.3f}"
            f"{float(last):>8.3f}",
            flush=True,
        )
        del trainer, system
        torch._dynamo.reset()
        torch.cuda.empty_cache()


def augment(options: argparse.Namespace) -> None:
    """Run every augmenter on a batch of clips; one that waits for the device is named."""
    device = torch.device("cuda")
    video = torch.rand(options.batch, 3, 8, 112, 112, device=device)
    seeds = torch.arange(options.batch, device=device)
    target = torch.eye(options.batch, device=device)
    rows, waits = [], []
    for name, item in sorted(catalogue().items()):
        if item.kind not in ("augment", "combine"):
            continue
        settings: dict[str, Any] = {"p": 1.0} if "p" in item.Config.model_fields else {}
        if "of" in item.Config.model_fields:
            settings = {"of": ["augment/hflip", "augment/rotate"]}
        ops = Augmentation([Use(use=name, settings=settings)])
        ops(video, seeds, target)
        ops(video, seeds, target)
        try:
            seconds, _ = timed(lambda ops=ops: ops(video, seeds, target)[0], 5)  # type: ignore[misc]
            rows.append((seconds, name))
        except RuntimeError as error:
            torch.cuda.set_sync_debug_mode("default")
            waits.append(f"{name}: {str(error).splitlines()[0][:100]}")
    print(f"{len(rows)} augmenters without a wait, {options.batch} clips of 8x112x112:")
    for seconds, name in sorted(rows, reverse=True)[:12]:
        print(f"  {name:<34}{1e3 * seconds:8.2f} ms")
    print(f"  median {1e3 * sorted(rows)[len(rows) // 2][0]:.2f} ms")
    for line in waits:
        print(f"  WAITS {line}")


def stages(options: argparse.Namespace) -> None:
    """Train every pipeline of the template, as its stage and as a trial of a search are trained."""
    params = yaml.safe_load(options.params.read_text())
    classes = list(read_index(options.shards).classes)
    changed = {"steps": options.steps, "precision": "bf16", "eval_every": options.steps // 3}
    with tempfile.TemporaryDirectory() as temporary:
        for name, document in params["autovideo_pipelines"].items():
            for step in document["steps"]:
                if step["id"] == "net":
                    step["with"] |= changed
            config = validate(TrainConfig, {"document": document}, name)
            values = config.model_dump(mode="json")
            run_stage("autovideo_train", values, f"pipeline {name}", options.shards, classes, Path(temporary) / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("speed")
    one.add_argument("--kinds", default=KINDS)
    one.add_argument("--batch", type=int, default=16)
    one.add_argument("--repeats", type=int, default=20)
    one.add_argument("--lr", type=float, default=0.01)
    one.add_argument("--plain", action="store_true", help="without augmenters")
    two = commands.add_parser("augment")
    two.add_argument("--batch", type=int, default=16)
    three = commands.add_parser("stages")
    three.add_argument("shards", type=Path)
    three.add_argument("--params", type=Path, default=Path("params/templates/autovideo.yaml"))
    three.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    {"speed": speed, "augment": augment, "stages": stages}[options.command](options)


if __name__ == "__main__":
    main()
