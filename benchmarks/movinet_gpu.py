"""MoViNet on one GPU: training, streaming and supernet steps, and one short run of every stage.

    python -m benchmarks.movinet_gpu speed [--architecture a0] [--frames 32] [--size 172] [--batch 64]
    python -m benchmarks.movinet_gpu stages <shards> --params params/templates/movinet.yaml

`speed` trains on one batch that lies on the device (loss must fall); under a mode of torch in which any wait for the
device is an error. `stages` goes through the code that the stages run, without Ray and MLflow.
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
from training.backbones.movinet_layout import VARIANTS
from training.core.config import DataConfig, TransformConfig, validate
from training.core.data import resolve_decoder
from training.core.evaluate import evaluate_shards
from training.core.loop import precision_context
from training.core.stage import ScoreInputs, StageInputs
from training.core.system import RawBatch, System
from training.core.trials import Search
from training.movinet.config import NetConfig, StreamConfig
from training.movinet.system import MoViNetSystem, StreamSystem
from training.registry import all_stages

CLASSES = tuple(f"class {number}" for number in range(600))

OPTIM: dict[str, Any] = {
    "name": "rmsprop", "lr": {"main": 0.1}, "rho": 0.9, "momentum": 0.9, "eps": 1.0, "weight_decay": 3e-5,
    "decay": "kernels",
}  # fmt: skip
"""The paper's optimizer with a rate for a small batch."""


KINDS = "base,base:compiled,base_2plus1d,base_2plus1d:compiled,stream,stream:compiled,stream in parts,supernet"


# --- speed ------------------------------------------------------------------------------------


def net_config(architecture: str) -> NetConfig:
    """The paper's net, with a momentum of batch norm for a short run."""
    return NetConfig(
        architecture=architecture, width=1.0, dropout=0.2, drop_path=0.2, label_smoothing=0.1, norm_eps=1e-3,
        norm_momentum=0.1,
    )  # fmt: skip


def data_config(options: argparse.Namespace) -> DataConfig:
    """The paper's clips."""
    transform: dict[str, Any] = {
        "size": options.size, "train_crop": "area", "area": [0.08, 1.0], "aspect": [0.5, 2.0],
        "eval_short_side": options.size, "flip": True, "normalise": "unit",
    }  # fmt: skip
    return DataConfig(
        num_frames=options.frames, sampling="dense", stride=5, overrun="loop", batch_size=options.batch,
        transform=TransformConfig(**transform),
    )  # fmt: skip


def system_of(kind: str, options: argparse.Namespace, data: DataConfig) -> System:
    """Build one of `base`, `base_2plus1d`, `stream`, `stream in parts` or `supernet`."""
    model = net_config(options.architecture)
    if kind == "supernet":
        from training.movinet.config_search import SupernetStageConfig
        from training.movinet.supernet_system import SupernetSystem

        params = yaml.safe_load(options.params.read_text())
        values = {**params["movinet_supernet"], "space": params["movinet_space"]}
        fit = fit_config(compiled=False, **OPTIM).model_dump()
        config = validate(SupernetStageConfig, {**values, "data": data.model_dump(), "fit": fit}, "supernet")
        return SupernetSystem(config, data, CLASSES)
    if kind.startswith("stream"):
        values = {
            "model": model.model_dump(), "data": data.model_dump(), "variant": "stream",
            "subclips": 4 if kind == "stream in parts" else 1, "eval_subclip": 8,
            "fit": fit_config(compiled=False, **OPTIM).model_dump(),
        }  # fmt: skip
        return StreamSystem(validate(StreamConfig, values, "stream"), CLASSES)
    return MoViNetSystem(model, VARIANTS[kind], data, CLASSES)


def speed(options: argparse.Namespace) -> None:
    """Print training speed of every kind of step, and the time of one frame of a stream."""
    device = torch.device("cuda")
    data = data_config(options)
    raw = raw_batch(options.batch, options.frames, options.size, device, len(CLASSES))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.architecture}, bf16, {raw_shape(raw)}")
    print(f"{'step':<26}{'clips/s':>9}{'peak GiB':>10}{'first loss':>12}{'last':>8}")
    for kind in options.kinds.split(","):
        kind, _, compiled = kind.partition(":")
        torch.manual_seed(0)
        torch.cuda.reset_peak_memory_stats()
        trainer = Trainer(system_of(kind, options, data), fit_config(compiled=bool(compiled), **OPTIM), raw)
        first = float(trainer.step())
        for _ in range(30 if kind == "supernet" else 8):  # members of new shapes take longer
            trainer.step()
        seconds, last = timed(trainer.step, options.repeats)
        name, gib = f"{kind}{', compiled' if compiled else ''}", torch.cuda.max_memory_allocated() / 2**30
        print(f"{name:<26}{options.batch / seconds:>9.1f}{gib:>10.1f}{first:>12.3f}{float(last):>8.3f}", flush=True)
        del trainer
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    frame_times(options, data, device)


def raw_shape(raw: RawBatch) -> str:
    """Return the batch's shape for people."""
    return " × ".join(map(str, raw.frames_BTHWC.shape))


def frame_times(options: argparse.Namespace, data: DataConfig, device: torch.device) -> None:
    """Print the time of one frame of a stream, and how far bf16 is from fp32."""
    torch.manual_seed(0)
    system = system_of("stream", options, data).to(device).eval()
    assert isinstance(system, StreamSystem)
    net, size = system.net, (options.size, options.size)
    for streams in (1, 64):
        frame = torch.rand(streams, 3, 1, *size, device=device)
        state = net.initial_state(streams, size)

        def advance(frame: torch.Tensor = frame) -> torch.Tensor:
            nonlocal state
            logits, state = net.stream(frame, state)
            return logits

        with torch.inference_mode(), precision_context("bf16", device)():
            advance()
            advance()
            seconds, _ = timed(advance, 50)
        print(f"stream, {streams} at once: {1e3 * seconds:.2f} ms per frame, {streams / seconds:.0f} frames/s")
    for parameter in net.parameters():  # fresh scales are 0 and would hide everything
        if parameter.dim() == 0:
            parameter.data.fill_(0.3)
    clip = torch.rand(2, 3, 16, *size, device=device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        exact = net(clip)
        state, parts = net.initial_state(2, size), []
        for part in torch.split(clip, 5, dim=2):
            logits, state = net.stream(part, state)
            parts.append(logits)
        with precision_context("bf16", device)():
            rounded = net(clip).float()
    scale = exact.abs().max()
    print(f"in calls of 5 frames against whole, fp32: {float((parts[-1] - exact).abs().max() / scale):.1e}")
    print(f"bf16 against fp32: {float((rounded - exact).abs().max() / scale):.1e}")


# --- stages -----------------------------------------------------------------------------------


def stages(options: argparse.Namespace) -> None:
    """Run every stage: trainings, evaluations, and the first candidates of a search."""
    params = yaml.safe_load(options.params.read_text())
    classes = list(read_index(options.shards).classes)
    overrides = [f"data.decoder={resolve_decoder('auto')}", *options.set]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        models: dict[str, Path] = {}

        def train(stage: str, key: str, upstream: tuple[str, ...] = (), **items: Any) -> None:
            values = values_of(stage, params, overrides) | items
            given = {name: models[name] for name in upstream}
            run_stage(stage, values, key, options.shards, classes, work / key, given)
            models[key] = work / key / "result" / "model"

        train("movinet_train", "movinet_train")
        train("movinet_stream", "movinet_stream", ("movinet_train",))
        for member in ("0", "1"):
            train("movinet_half", f"movinet_half-{member}", member=member)
        train("movinet_supernet", "movinet_supernet")
        found = search(params, overrides, classes, options.shards, models["movinet_supernet"])
        values = values_of("movinet_found", params, overrides) | {"engine": "evolution", "control": "none", "seed": "0"}
        values["found"] = {"architecture": found, "trial": None, "value": None, "reward": None, "facts": {}}
        run_stage("movinet_found", values, "movinet_found", options.shards, classes, work / "movinet_found")
        for name in ("movinet_eval", "movinet_stream_eval", "movinet_ensemble"):
            evaluate(name, params, overrides, classes, options.shards, models)


def search(
    params: dict[str, Any], overrides: list[str], classes: list[str], shards: Path, supernet: Path
) -> dict[str, Any]:
    """Score the first candidates of a search; return the best one's entry."""
    stage = all_stages()["movinet_search"]
    values = values_of("movinet_search", params, overrides) | {"engine": "evolution", "control": "none", "seed": "0"}
    config = validate(stage.config, values, "search")
    upstream = {"movinet_supernet": supernet}
    plan: Search = stage.build(StageInputs(config, tuple(classes), upstream))
    assert stage.scorer is not None
    scorer = stage.scorer(ScoreInputs(config, tuple(classes), upstream, Path.cwd(), shards, "cuda", False))
    started, scored = time.perf_counter(), []
    for _ in range(16):
        trial = plan.ask()
        assert trial is not None
        scored.append((scorer.score(trial)[stage.metric], trial))
    seconds = (time.perf_counter() - started) / len(scored)
    best = max(scored, key=lambda pair: pair[0])
    print(f"{'movinet_search':<44} 16 candidates, {seconds:.2f} s each, best {stage.metric} {best[0]:.3f}", flush=True)
    entry: dict[str, Any] = best[1].config["architecture"]
    return entry


def evaluate(
    name: str, params: dict[str, Any], overrides: list[str], classes: list[str], shards: Path, models: dict[str, Path]
) -> None:
    """Evaluate trained models and print how it went."""
    stage = all_stages()[name]
    given = validate(stage.config, values_of(name, params, overrides), name)
    system: System = stage.build(StageInputs(given, tuple(classes), {key: models[key] for key in stage.upstream}))
    started = time.perf_counter()
    found = evaluate_shards(system, shards, given.data, split="test", settings=Settings(device="cuda"))
    top1 = {key: round(value, 3) for key, value in found.metrics.items() if key.startswith("test/top1")}
    print(f"{name:<44} {top1}, {time.perf_counter() - started:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    fast = commands.add_parser("speed")
    fast.add_argument("--architecture", default="a0")
    fast.add_argument("--kinds", default=KINDS, help="steps, `:compiled` after those to compile")
    for name, default in (("frames", 32), ("size", 172), ("batch", 64), ("repeats", 30)):
        fast.add_argument(f"--{name}", type=int, default=default)
    fast.set_defaults(run=speed)
    whole = commands.add_parser("stages")
    whole.add_argument("shards", type=Path)
    whole.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    whole.set_defaults(run=stages)
    for command in (fast, whole):
        command.add_argument("--params", type=Path, default=Path("params/templates/movinet.yaml"))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
