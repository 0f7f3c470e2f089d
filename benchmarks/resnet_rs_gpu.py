"""3D ResNet-RS on one GPU: speed of the net, and one short run of every stage.

    python -m benchmarks.resnet_rs_gpu speed [--depth 50] [--frames 32] [--size 224] [--batch 32]
    python -m benchmarks.resnet_rs_gpu stages <shards> --params params/templates/resnet_rs.yaml

`speed` trains on one batch that lies on the device (loss must fall) with the step that `training.core.loop` makes:
update, optimizer, moving average; under a mode of torch in which any wait for the device is an error. `stages` goes
through the code that the stages run, without Ray and MLflow.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.on_gpu import Trainer, fit_config, raw_batch, run_stage, timed, values_of
from data_specs.schema import read_index
from infra.settings import Settings
from training.core.config import DataConfig, FitConfig, TransformConfig, validate
from training.core.data import resolve_decoder
from training.core.evaluate import evaluate_shards
from training.core.loop import precision_context
from training.core.stage import StageInputs
from training.core.system import ClipBatch, RawBatch, System
from training.core.trials import Search
from training.registry import all_stages
from training.resnet_rs.config import NetConfig
from training.resnet_rs.system import ResNetRS

OPTIM: dict[str, Any] = {
    "name": "sgd", "lr": {"main": 0.02}, "nesterov": True, "weight_decay": 4e-5, "decay": "kernels",
}  # fmt: skip
"""The paper's optimizer with a rate for a small batch."""

CLASSES = tuple(f"class {number}" for number in range(400))


# --- speed ------------------------------------------------------------------------------------


def net_config(depth: int) -> NetConfig:
    """The paper's net."""
    return NetConfig(
        depth=depth, width=1.0, stem="v1", stem_temporal_kernel=5, stem_temporal_stride=2, pool_t=1, temporal="1133",
        se_ratio=0.25, gating="last", gate_order="code", padding="same", drop_path=0.1, dropout=0.5,
        label_smoothing=0.1, norm_eps=1e-5, norm_momentum=0.1, weights=None,
    )  # fmt: skip


def speed(options: argparse.Namespace) -> None:
    """Print training and evaluation speed, plain and compiled."""
    device = torch.device("cuda")
    torch.backends.cudnn.benchmark = True
    transform: dict[str, Any] = {
        "size": options.size, "train_crop": "area", "area": [0.08, 1.0], "aspect": [0.5, 2.0],
        "eval_short_side": options.size, "flip": True, "normalise": "unit",
    }  # fmt: skip
    data = DataConfig(
        num_frames=options.frames, sampling="dense", stride=2, overrun="loop", batch_size=options.batch,
        transform=TransformConfig(**transform),
    )  # fmt: skip
    raw = raw_batch(options.batch, options.frames, options.size, device, len(CLASSES))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, batch {options.batch}")
    print(f"{'':<22}{'train clips/s':>14}{'eval views/s':>14}{'peak GiB':>10}{'first loss':>12}{'last':>8}")
    for compiled in (False, True):
        row = run_speed(options.depth, data, raw, fit_config(compiled=compiled, **OPTIM), device)
        name = f"RS-{options.depth} {'compiled' if compiled else 'eager'}"
        print(f"{name:<22}{row[0]:>14.1f}{row[1]:>14.1f}{row[2]:>10.1f}{row[3]:>12.3f}{row[4]:>8.3f}", flush=True)
    print(f"logits, bf16 against fp32: relative error {relative_error(options.depth, data, raw):.2e}")


def run_speed(
    depth: int, data: DataConfig, raw: RawBatch, config: FitConfig, device: torch.device
) -> tuple[float, float, float, float, float]:
    """Return clips per second of training, views per second, peak memory (GiB), first and last loss."""
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    system = ResNetRS(net_config(depth), data, CLASSES)
    trainer = Trainer(system, config, raw)
    first = float(trainer.step())
    for _ in range(8):
        trainer.step()
    seconds, last = timed(trainer.step, 20)
    clips = len(raw.key) / seconds
    system.eval()
    with torch.inference_mode(), precision_context("bf16", device)():
        batch = system.prepare(raw, train=False)

        def predict() -> torch.Tensor:
            return system.predict(batch).scores_BK

        predict()
        predict()
        seconds, _ = timed(predict, 10)
    return clips, len(raw.key) / seconds, torch.cuda.max_memory_allocated() / 2**30, first, float(last)


def relative_error(depth: int, data: DataConfig, raw: RawBatch) -> float:
    """Return max |bf16 - fp32| over max |fp32| of the logits of four clips."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    system = ResNetRS(net_config(depth), data, CLASSES).to(raw.frames_BTHWC.device).eval()
    batch: ClipBatch = system.prepare(raw, train=False)
    clips = batch.video_BCTHW[:4]
    with torch.inference_mode():
        exact = system.net(clips)
        with precision_context("bf16", clips.device)():
            rounded = system.net(clips).float()
    return float((rounded - exact).abs().max() / exact.abs().max())


# --- stages -----------------------------------------------------------------------------------


def stages(options: argparse.Namespace) -> None:
    """Run a point of the grid, the search's first trials, the training and both evaluations."""
    params = yaml.safe_load(options.params.read_text())
    classes = list(read_index(options.shards).classes)
    overrides = [f"data.decoder={resolve_decoder('auto')}", *options.set]
    point = {"depth": 26, "frames": 8, "size": 64, "width": 0.25, "seed": 0}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        fits = [("resnet_rs_grid", values_of("resnet_rs_grid", params, overrides) | point, "grid point")]
        search = all_stages()["resnet_rs_search"]
        config = validate(search.config, values_of("resnet_rs_search", params, overrides), "search")
        plan: Search = search.build(StageInputs(config, tuple(classes), {}))
        trials = [trial for trial in (plan.ask() for _ in range(2)) if trial is not None]
        fits += [(trial.stage, trial.config, f"trial {trial.name}") for trial in trials]
        fits += [("resnet_rs_train", values_of("resnet_rs_train", params, overrides), "train")]
        for stage, values, name in fits:
            run_stage(stage, values, name, options.shards, classes, work / name.replace(" ", "-"))
        model = {"resnet_rs_train": work / "train" / "result" / "model"}
        for name in ("resnet_rs_eval", "resnet_rs_views"):
            stage_of = all_stages()[name]
            given = validate(stage_of.config, values_of(name, params, overrides), name)
            system: System = stage_of.build(StageInputs(given, tuple(classes), model))
            started = time.perf_counter()
            found = evaluate_shards(system, options.shards, given.data, split="test", settings=Settings(device="cuda"))
            seconds = time.perf_counter() - started
            top1, views = found.metrics["test/top1"], given.data.eval_views
            print(f"{name:<44} test top-1 {top1:.3f}, {views} views, {seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    fast = commands.add_parser("speed")
    for name, default in (("depth", 50), ("frames", 32), ("size", 224), ("batch", 32)):
        fast.add_argument(f"--{name}", type=int, default=default)
    fast.set_defaults(run=speed)
    whole = commands.add_parser("stages")
    whole.add_argument("shards", type=Path)
    whole.add_argument("--params", type=Path, default=Path("params/templates/resnet_rs.yaml"))
    whole.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    whole.set_defaults(run=stages)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
