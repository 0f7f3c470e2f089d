"""AdaMML on one GPU: training steps of every stage, inference that skips, and one short run of every stage.

    python -m benchmarks.adamml_gpu speed [--batch 16] [--segments 5]
    python -m benchmarks.adamml_gpu stages <shards> --params params/templates/adamml.yaml

`speed` trains the paper's nets on one batch that lies on the device (loss must fall), under a mode of torch in which
any wait for the device is an error. `stages` goes through the code that the stages run, without Ray and MLflow.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.on_gpu import Trainer, fit_config, raw_batch, run_stage, timed, values_of
from data_specs.schema import read_index
from infra.settings import Settings
from training.adamml.config import FinetuneConfig, JointConfig, UnimodalConfig, WarmupConfig
from training.adamml.model import AdaMML, Decision, rows_of
from training.adamml.rounds import Finetune, Joint, Warmup
from training.adamml.system import AdaMMLSystem, Unimodal
from training.core.config import validate
from training.core.data import resolve_decoder
from training.core.evaluate import evaluate_shards
from training.core.loop import precision_context
from training.core.stage import StageInputs
from training.core.system import RawBatch, System
from training.registry import all_stages

CLASSES = tuple(f"class {number}" for number in range(31))

KINDS = "rgb,rgb:compiled,audio,audio:compiled,warmup,joint recognition,joint policy,finetune,finetune:compiled"

USAGE = {"rgb": 0.4647, "audio": 0.9415}
"""Published shares of segments on Kinetics-Sounds."""

SGD: dict[str, Any] = {"name": "sgd", "weight_decay": 1e-4}


def paper(options: argparse.Namespace) -> dict[str, Any]:
    """Model and data block of the paper, RGB and sound."""

    def net(name: str) -> dict[str, Any]:
        return {"name": name, "weights": None, "norms": "batch"}

    model = {
        "modalities": ["rgb", "audio"], "proxies": {}, "size": 224, "num_frames": 8,
        "nets": {"rgb": net("resnet50"), "audio": net("mobilenetv2")}, "dropout": 0.5,
        "policy_nets": {"rgb": net("mobilenetv2"), "audio": net("mobilenetv2")},
        "policy_frames": 4, "policy_size": 160, "joint": 2048, "hidden": 256, "recurrent": True, "feed_back": True,
        "shared_decision": False, "spectrogram": {"n_fft": 511, "window": 240, "hop": 120, "epsilon": 1e-6},
        "constants": "measured", "mean": "segments", "least_one": False,
    }  # fmt: skip
    transform = {
        "size": 224, "train_crop": "random", "train_short_side": [256, 320], "eval_short_side": 256, "flip": True,
        "normalise": "imagenet",
    }  # fmt: skip
    data = {
        "num_frames": 8, "sampling": "clips", "stride": 4, "train_clips": options.segments, "eval_clips": 10,
        "sound": {"rate": 24000, "samples": 30720}, "batch_size": options.batch, "transform": transform,
    }  # fmt: skip
    return {"model": model, "data": data}


def system_of(kind: str, options: argparse.Namespace) -> System:
    """Build the system of a stage; `joint …` is set to one half of a round."""
    values = paper(options)
    stage = kind.split()[0]
    group = {"rgb": "main", "audio": "main"}.get(kind, "recognition")
    values["fit"] = fit_config(compiled=False, **SGD, lr={group: 0.01}).model_dump()
    if stage in ("rgb", "audio"):
        return Unimodal(validate(UnimodalConfig, {**values, "modality": stage}, stage), CLASSES, None)
    if stage == "warmup":
        system: AdaMMLSystem = Warmup(validate(WarmupConfig, {**values, "temperature": 5.0}, stage), CLASSES)
    elif stage == "finetune":
        system = Finetune(validate(FinetuneConfig, {**values, "price": 1.0}, stage), CLASSES)
    else:
        adam = {
            "name": "adam", "lr": {"policy": 0.001}, "weight_decay": 1e-4, "schedule": "constant", "warmup_steps": 0,
        }  # fmt: skip
        joint = {
            "price": 1.0, "weights": {"rgb": 1.0, "audio": 0.05}, "wrong": 10.0, "penalty": "gated_square",
            "temperature": 5.0, "temperature_decay": 0.965, "round_steps": 50, "freeze_norms": True, "tolerance": 0.01,
            "policy_optim": adam,
        }  # fmt: skip
        return Joint(validate(JointConfig, {**values, **joint}, stage), CLASSES)
    system.freeze()
    return system


def batch_of(options: argparse.Namespace, segments: int, device: torch.device) -> RawBatch:
    """Frames of noise and sound whose loudness tells the class."""
    raw = raw_batch(options.batch, segments * 8, 256, device, len(CLASSES))
    noise = torch.rand(options.batch, segments, 30720, device=device) - 0.5
    sound = (noise * (1 + raw.label_B[:, None, None]) * 900).to(torch.int16)
    return replace(raw, sound_BSN=sound, has_sound_B=torch.ones_like(raw.valid_B))


def speed(options: argparse.Namespace) -> None:
    """Print training speed of every stage, and that of inference with and without skipping."""
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, batch {options.batch} videos")
    print(f"{'step':<26}{'videos/s':>9}{'peak GiB':>10}{'first loss':>12}{'last':>8}")
    for kind in options.kinds.split(","):
        kind, _, compiled = kind.partition(":")
        torch.manual_seed(0)
        torch.cuda.reset_peak_memory_stats()
        single = kind in ("rgb", "audio")
        raw = batch_of(options, 1 if single else options.segments, device)
        if kind == "audio":
            raw = replace(raw, frames_BTHWC=raw.frames_BTHWC[:, :0])
        group = "main" if single else "recognition"
        trainer = Trainer(system_of(kind, options), fit_config(compiled=bool(compiled), **SGD, lr={group: 0.01}), raw)
        if kind == "joint policy":
            trainer.count = 50  # the second half of the first round
        first = float(trainer.step())
        for _ in range(5):
            trainer.step()
        seconds, last = timed(trainer.step, options.repeats)
        name, gib = f"{kind}{', compiled' if compiled else ''}", torch.cuda.max_memory_allocated() / 2**30
        print(f"{name:<26}{options.batch / seconds:>9.1f}{gib:>10.1f}{first:>12.3f}{float(last):>8.3f}", flush=True)
        del trainer, raw
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    inference(options, device)


@torch.inference_mode()
def inference(options: argparse.Namespace, device: torch.device) -> None:
    """Print videos per second with all modalities and with the published share, and how bf16 changes decisions."""
    torch.manual_seed(0)
    system = system_of("finetune", options).to(device).eval()
    assert isinstance(system, AdaMMLSystem)
    net: AdaMML = system.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for videos in (1, 8, 64):
        inputs = {
            "rgb": torch.randn(videos, 10, 8, 3, 224, 224, device=device, dtype=torch.bfloat16),
            "audio": torch.randn(videos, 10, 1, 1, 256, 256, device=device, dtype=torch.bfloat16),
        }
        rates = torch.tensor(list(USAGE.values()), device=device)
        used = torch.rand(videos, 10, 2, device=device) < rates
        results = {}
        for name, chosen in (("all", torch.ones_like(used)), ("chosen", used)):

            def call(
                chosen: torch.Tensor = chosen,
                skips: bool = name == "chosen",
                inputs: dict[str, torch.Tensor] = inputs,
            ) -> torch.Tensor:
                with precision_context("bf16", device)():
                    if not skips:  # fusion asks no policy
                        return net.fuse(net.segment_scores(inputs), chosen.float())
                    logits, _ = net.policy.unroll(net.joint(inputs), None)
                    return net.answer(rows_of(inputs), Decision(logits, chosen)).score_BC

            for _ in range(3):
                call()
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(10):
                call()
            torch.cuda.synchronize()
            results[name] = 10 * videos / (time.perf_counter() - started)
        share = used.float().mean((0, 1)).tolist()
        print(
            f"inference, {videos} at once: all {results['all']:.1f} videos/s, policy and {share[0]:.0%} rgb "
            f"{share[1]:.0%} audio {results['chosen']:.1f} videos/s ({results['chosen'] / results['all']:.2f} times)"
        )
    inputs = {name: value[:32].float() for name, value in inputs.items()}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact, _ = net.policy.unroll(net.joint(inputs), None)
    with precision_context("bf16", device)():
        rounded, _ = net.policy.unroll(net.joint(inputs), None)
    # Around the median of an untrained policy, where decisions are closest.
    margins = [logits[..., 1] - logits[..., 0] for logits in (exact, rounded)]
    middle = margins[0].flatten(0, 1).median(0).values
    changed = ((margins[0] > middle) != (margins[1] > middle)).float().mean()
    print(f"bf16 against fp32: {changed:.2%} of an untrained policy's decisions differ (cut at the median)")


def stages(options: argparse.Namespace) -> None:
    """Run every stage on packed data."""
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

        single = [f"adamml_unimodal-{name}" for name in params["adamml_model"]["modalities"]]
        for key in single:
            train("adamml_unimodal", key, modality=key.partition("-")[2])
        train("adamml_warmup", "adamml_warmup", tuple(single))
        train("adamml_joint", "adamml_joint", ("adamml_warmup",), price="1")
        train("adamml_finetune", "adamml_finetune", ("adamml_joint",), price="1")
        stage = all_stages()["adamml_eval"]
        values = values_of("adamml_eval", params, overrides) | {"price": "1"}
        config = validate(stage.config, values, "adamml_eval")
        given = {key: models[key] for key in ("adamml_finetune", *single)}
        system: System = stage.build(StageInputs(config, tuple(classes), given))
        started = time.perf_counter()
        found = evaluate_shards(system, options.shards, config.data, split="test", settings=Settings(device="cuda"))
        kept = ("top1", "gmac_per_video", "saving", "usage", "num")
        shown = {k: round(v, 4) for k, v in sorted(found.metrics.items()) if k.split("/")[1].startswith(kept)}
        print(f"{'adamml_eval':<44} {shown}, {time.perf_counter() - started:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    fast = commands.add_parser("speed")
    fast.add_argument("--kinds", default=KINDS, help="steps, `:compiled` after those to compile")
    for name, default in (("batch", 16), ("segments", 5), ("repeats", 20)):
        fast.add_argument(f"--{name}", type=int, default=default)
    fast.set_defaults(run=speed)
    whole = commands.add_parser("stages")
    whole.add_argument("shards", type=Path)
    whole.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    whole.add_argument("--params", type=Path, default=Path("params/templates/adamml.yaml"))
    whole.set_defaults(run=stages)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
