"""LSTS on one GPU: training steps of both stages, inference over a video, and one short run of every stage.

    python -m benchmarks.lsts_gpu speed [--batch 2] [--kinds "single,lsts,single:dense,lsts:dense"]
    python -m benchmarks.lsts_gpu stages <shards> [--params params/templates/lsts.yaml] [--set KEY=VALUE …]

`speed` trains the paper's nets (ResNet-101, 600 × 1000) on one batch that lies on the device, under a mode of torch in
which any wait for the device is an error; the loss must fall. Then it times blocks of ten frames at inference.
`stages` goes through the code that the stages run, without Ray and MLflow.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from benchmarks.lsts_chain import Chain
from benchmarks.on_gpu import Trainer, fit_config, timed
from training.core.config import DataConfig, apply_overrides, validate
from training.core.loop import _channels_last, precision_context
from training.core.system import FrameBoxes, RawBatch
from training.lsts.config import LSTSConfig, MethodConfig
from training.lsts.presets import LAYOUT
from training.lsts.runner import LSTSRunner
from training.lsts.system import SINGLE, LSTSSystem

CLASSES = tuple(f"class {number}" for number in range(30))
METHOD = MethodConfig(interval=10, schedule="offline", key="srfu", non_key="dfa", alignment="sampled")
HOLD = METHOD.model_copy(update={"non_key": "hold"})
OPTIM: dict[str, Any] = {"name": "sgd", "weight_decay": 5e-4}
RATES = {"backbone": 2e-3, "head": 2e-3, "alignment": 2e-3, "offsets": 5e-3}
PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
DENSE = {"kind": "dense", "channels": 256, "convs": 2, "centre_radius": 1.5}


def system_of(method: MethodConfig, head: str, options: argparse.Namespace) -> LSTSSystem:
    """Build the paper's networks with either head."""
    layout = apply_overrides({name: LAYOUT[name] for name in LSTSConfig.model_fields}, options.set)
    if head == "dense":
        layout["head"] = DENSE
    transform = {
        "size": options.height, "long_side": options.width, "train_crop": "whole", "eval_short_side": options.height,
        "flip": True, "normalise": "imagenet",
    }  # fmt: skip
    frames = {"schedule": "offline", "interval": 10}
    data = {
        "num_frames": 1 if method is SINGLE else 3, "sampling": "frames", "frames": frames, "batch_size": options.batch,
        "transform": transform,
    }  # fmt: skip
    config = validate(LSTSConfig, layout, "benchmark")
    system = LSTSSystem(config, method, validate(DataConfig, data, "benchmark"), "frozen", CLASSES)
    system.freeze()
    return system


def video(batch: int, frames: int, options: argparse.Namespace, device: torch.device) -> RawBatch:
    """Frames of noise with a bright rectangle that moves, of the network's own size."""
    height, width = options.height, options.width
    pixels = torch.randint(0, 90, (batch, frames, height, width, 3), dtype=torch.uint8)
    boxes = torch.zeros(batch, frames, 2, 4)
    label = torch.randint(0, len(CLASSES), (batch, 1, 2)).expand(-1, frames, -1).contiguous()
    for row in range(batch):
        for frame in range(frames):
            for place in range(2):
                x, y = 80 + 400 * place + 10 * frame, 60 + 120 * place + 20 * row
                pixels[row, frame, y : y + 200, x : x + 260] += (40 + 5 * label[row, frame, place]).to(torch.uint8)
                boxes[row, frame, place] = torch.tensor([x, y, x + 260, y + 200])
    known = torch.ones(batch, frames, dtype=torch.bool)
    track = torch.arange(2).expand(batch, frames, -1).contiguous()
    return RawBatch(
        pixels, torch.tensor([[height, width]] * batch), torch.zeros(batch, len(CLASSES)),
        tuple(map(str, range(batch))), torch.arange(batch), torch.ones(batch, dtype=torch.bool),
        number_BT=torch.arange(frames).expand(batch, -1).contiguous(),
        boxes=FrameBoxes(known, boxes, label, track), sizes=((height, width),) * batch,
    ).to(device)  # fmt: skip


def speed(options: argparse.Namespace) -> None:
    """Print training speed and memory of both stages, then inference."""
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, batch {options.batch}")
    print(f"{'step':<26}{'examples/s':>11}{'ms':>8}{'peak GiB':>10}{'first loss':>12}{'last':>8}")
    for kind in filter(None, options.kinds.split(",")):
        name, _, rest = kind.partition(":")
        torch.manual_seed(0)
        torch.cuda.reset_peak_memory_stats()
        method = SINGLE if name == "single" else METHOD
        system = system_of(method, "dense" if "dense" in rest else "rfcn", options)
        rates = {group: rate for group, rate in RATES.items() if group in system.parameter_groups()}
        raw = video(options.batch, 1 if name == "single" else 3, options, device)
        trainer = Trainer(system, fit_config(compiled="compiled" in rest, **OPTIM, lr=rates), raw)
        first = float(trainer.step())
        for _ in range(8):
            trainer.step()
        seconds, last = timed(trainer.step, options.repeats)
        gib = torch.cuda.max_memory_allocated() / 2**30
        print(
            f"{kind:<26}{options.batch / seconds:>11.2f}{1000 * seconds:>8.1f}{gib:>10.1f}{first:>12.3f}"
            f"{float(last):>8.3f}",
            flush=True,
        )
        del trainer, raw, system
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    inference(options, device)


def inference(options: argparse.Namespace, device: torch.device) -> None:
    """Print ms per frame of a video of forty frames: single-frame detector, LSTS, reused boxes."""
    torch.manual_seed(0)
    for head in ("rfcn", "dense"):
        system = system_of(METHOD, head, options).to(device).eval()
        _channels_last(system)
        raw = video(1, 40, options, device)
        for name, method in (("single", SINGLE), ("lsts", METHOD), ("hold", HOLD)):
            for precision in PRECISIONS:
                for _ in range(2):
                    runner: LSTSRunner = system.runner(system.model, method)
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                    with precision_context(precision, device)(), torch.inference_mode():
                        runner.push(raw)
                        answer = runner.finish()
                    torch.cuda.synchronize()
                    seconds = time.perf_counter() - started
                shown = f"{1000 * seconds / 40:>8.2f} ms per frame, {answer.gmac / 40:>8.2f} GMAC"
                print(f"inference {head:<6}{name:<7}{precision:<5}{shown}", flush=True)


def stages(options: argparse.Namespace) -> None:
    """Run every stage on packed data."""
    params = yaml.safe_load(options.params.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        chain = Chain(options.shards, params, Path(temporary), "cuda", overrides=["data.decoder=auto", *options.set])
        started = time.perf_counter()
        figures = chain.evaluation("lsts", 0).metrics
        kept = ("map50", "gmac_per_frame", "offsets")
        shown = {k: round(v, 4) for k, v in sorted(figures.items()) if k.split("/")[1].startswith(kept)}
        print(f"{'lsts_eval':<44} {shown}, all {time.perf_counter() - started:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    fast = commands.add_parser("speed")
    fast.add_argument("--kinds", default="single,lsts,lsts:compiled,single:dense,lsts:dense")
    for name, default in (("batch", 2), ("repeats", 10), ("height", 600), ("width", 1000)):
        fast.add_argument(f"--{name}", type=int, default=default)
    fast.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    fast.set_defaults(run=speed)
    whole = commands.add_parser("stages")
    whole.add_argument("shards", type=Path)
    whole.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    whole.add_argument("--params", type=Path, default=Path("params/templates/lsts.yaml"))
    whole.set_defaults(run=stages)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
