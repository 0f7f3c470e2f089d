"""Does the policy of AdaMML save cost without losing accuracy, and beat random choices at equal rates? Several seeds.

    python -m benchmarks.adamml_claims --seeds 0 1 2 --train 4000 --test 4000

Videos of the controlled task `sound_or_picture` (told by sound, picture or either; rendered, not encoded, and held in
memory) go through all stages by the loop and the evaluation that the stages use; the seed changes weights, order and
draws, the videos stay. The oracle knows the generator's flags: it uses what is informative, and nothing else.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from benchmarks.sounding_videos import MemoryLoader, Videos, render
from tasks.ops.sound_or_picture import CLASSES, SAMPLE_RATE, SoundOrPictureConfig
from training.adamml.evaluation import Evaluation
from training.adamml.rounds import Finetune, Joint, Warmup
from training.adamml.segments import Segments
from training.adamml.system import AdaMMLSystem, Unimodal
from training.core.config import DataConfig, apply_overrides, validate
from training.core.evaluate import Evaluation as Evaluated
from training.core.evaluate import evaluate
from training.core.loop import fit
from training.core.system import System
from training.registry import all_stages

Array = NDArray[Any]


# --- all stages -------------------------------------------------------------------------------


def small(name: str, channels: list[int], **options: Any) -> dict[str, Any]:
    """Return a tiny net."""
    return {"name": name, "options": {"channels": channels, **options}, "weights": None, "norms": "batch"}


def settings(task: SoundOrPictureConfig) -> dict[str, Any]:
    """Return the sections of a params file for a task: nets of which that for pictures costs most."""
    half = task.segment_frames // 2

    def recipe(steps: int, rate: float, group: str, schedule: str = "cosine") -> dict[str, Any]:
        optim = {
            "name": "adam", "lr": {group: rate}, "weight_decay": 1e-4, "schedule": schedule,
            "warmup_steps": 10 if schedule == "cosine" else 0,
        }  # fmt: skip
        return {
            "steps": steps, "seed": 0, "optim": optim, "clip_grad_norm": 5.0, "ema_decay": None, "precision": "fp32",
            "eval_every": 0, "keep": "last", "log_every": 20, "checkpoint_every": 100000,
        }  # fmt: skip

    transform = {
        "size": task.size, "train_crop": "center", "eval_short_side": task.size, "flip": False,
        "normalise": "symmetric",
    }  # fmt: skip
    policy = {
        "name": "adam", "lr": {"policy": 0.003}, "weight_decay": 1e-4, "schedule": "constant", "warmup_steps": 0,
    }  # fmt: skip
    return {
        "data": {
            "num_frames": 2, "sampling": "clips", "stride": half, "train_clips": task.segments,
            "eval_clips": task.segments, "sound": {"rate": SAMPLE_RATE, "samples": 30720}, "batch_size": 32,
            "transform": transform, "decoder": "pyav",
        },
        "model": {
            "modalities": ["rgb", "audio"], "proxies": {}, "size": task.size, "num_frames": 2,
            "nets": {
                "rgb": small("tiny_local", [8, 16, 32]),
                "audio": small("tiny_glance", [8, 16, 32], stem_stride=2),
            },
            "dropout": 0.1,
            "policy_nets": {
                "rgb": small("tiny_glance", [8, 16]),
                "audio": small("tiny_glance", [4, 8], stem_stride=2),
            },
            "policy_frames": 1, "policy_size": task.size // 2, "joint": 64, "hidden": 32, "recurrent": True,
            "feed_back": True, "shared_decision": False,
            "spectrogram": {"n_fft": 255, "window": 240, "hop": 480, "epsilon": 1e-6}, "constants": "measured",
            "mean": "segments", "least_one": False,
        },
        "unimodal": {"fit": recipe(300, 0.004, "main")},
        "warmup": {"temperature": 5.0, "fit": recipe(40, 0.002, "recognition", "constant")},
        "joint": {
            "weights": {"rgb": 0.3, "audio": 0.1}, "wrong": 10.0, "penalty": "gated_square", "temperature": 5.0,
            "temperature_decay": 0.965, "round_steps": 20, "freeze_norms": True, "tolerance": 0.005,
            "policy_optim": policy,
            "fit": {**recipe(480, 0.001, "recognition", "constant"), "eval_every": 80, "keep": "best"},
        },
        "finetune": {"fit": recipe(40, 0.001, "recognition")},
        "eval": {"decide": "argmax", "draws": 20},
    }  # fmt: skip


class Chain:
    """All stages of one seed, on videos in memory.

    Args:
        videos: split → videos.
        sections: as `settings` gives them.
        fps: frames per second of the videos.
        seed: of weights, order and draws.
        price: factor of the costs λ.
        device: where to train.
    """

    def __init__(
        self,
        videos: Mapping[str, Videos],
        sections: Mapping[str, Any],
        fps: float,
        *,
        seed: int,
        price: float = 1.0,
        device: str = "cpu",
        classes: tuple[str, ...] = CLASSES,
    ) -> None:
        self.videos, self.sections, self.fps = videos, sections, fps
        self.seed, self.price, self.device, self.classes = seed, price, torch.device(device), classes
        self.seconds: dict[str, float] = {}

    def config(self, stage: str, **items: Any) -> Any:
        """Return a stage's config."""
        values = {"model": self.sections["model"], "data": self.sections["data"], **self.sections[stage], **items}
        if "fit" in values:
            values = apply_overrides(values, [f"fit.seed={self.seed}"])
        return validate(all_stages()[f"adamml_{stage}"].config, values, stage)

    def loader(self, split: str, data: DataConfig, *, train: bool) -> MemoryLoader:
        """Return a loader of a split."""
        seed = self.seed if train else 0
        return MemoryLoader(self.videos[split], data, self.fps, train=train, seed=seed, device=self.device)

    def evaluate(self, system: System, data: DataConfig, split: str) -> Evaluated:
        """Evaluate a system."""
        return evaluate(system, self.loader(split, data, train=False), split=split, device=self.device)  # type: ignore[arg-type]

    def train(self, name: str, system: System, config: Any, metric: str = "val/top1") -> System:
        """Train a system by the loop of all stages; it ends with the weights that become the model."""
        started = time.perf_counter()

        def judge(judged: System) -> dict[str, float]:
            return self.evaluate(judged, config.data, "val").metrics

        loader = self.loader("train", config.data, train=True)
        report = fit(system, loader, config.fit, device=self.device, evaluate=judge, metric=metric)
        system.load_state_dict(report.weights)
        self.seconds[name] = time.perf_counter() - started
        return system

    def recognisers(self) -> dict[str, Unimodal]:
        """Train the sub-networks, one by one."""
        trained = {}
        for name in self.sections["model"]["modalities"]:
            config = self.config("unimodal", modality=name)
            torch.manual_seed(self.seed)
            trained[name] = self.train(f"unimodal-{name}", Unimodal(config, self.classes, None), config)
        return trained  # type: ignore[return-value]

    def warmed(self, single: Mapping[str, Unimodal]) -> Warmup:
        """Train under the decisions of an untrained policy."""
        config = self.config("warmup")
        torch.manual_seed(self.seed + 1)
        system = Warmup(config, self.classes)
        for name, net in single.items():
            system.net.nets[name].load_state_dict(net.net.state_dict())
        system.freeze()
        return self.train("warmup", system, config)  # type: ignore[return-value]

    def chosen(self, warmed: Warmup) -> AdaMMLSystem:
        """Train policy and recognition in turns, then recognition again."""
        config = self.config("joint", price=self.price)
        joint = Joint(config, self.classes)
        joint.load_state_dict(warmed.state_dict())
        self.train("joint", joint, config, "val/choice")
        config = self.config("finetune", price=self.price)
        system = Finetune(config, self.classes)
        system.load_state_dict(joint.state_dict())
        system.freeze()
        return self.train("finetune", system, config)  # type: ignore[return-value]

    def result(self, system: AdaMMLSystem, single: Mapping[str, Unimodal]) -> tuple[dict[str, float], Segments]:
        """Evaluate on the test split, and take the evaluation apart."""
        config = self.config("eval", price=self.price)
        evaluation = Evaluation(system, single, config)  # type: ignore[arg-type]
        done = self.evaluate(evaluation, config.data, "test")
        metrics = {key.removeprefix("test/"): value for key, value in done.metrics.items()}
        segments = evaluation.segments(done.predictions)
        if self.device.type == "cuda":
            again = evaluate(
                evaluation,
                self.loader("test", config.data, train=False),  # type: ignore[arg-type]
                split="test",
                device=self.device,
                precision="bf16",
            )
            changed = again.predictions.extras["choices"] != done.predictions.extras["choices"]
            metrics |= {"changed_in_bf16": float(changed.mean()), "top1_in_bf16": again.metrics["test/top1"]}
        flags = self.videos["test"].flags_NSK
        oracle = segments.of_choices("informative", [segments.given(flags)], policy=False)
        metrics |= {"top1_informative": oracle.top1, "gmac_per_video_informative": oracle.gmac}
        return metrics | selectivity(segments, flags), segments

    def run(self) -> dict[str, float]:
        """Run all stages and return the figures of the test split."""
        single = self.recognisers()
        metrics, _ = self.result(self.chosen(self.warmed(single)), single)
        return metrics


def selectivity(segments: Segments, flags_NSK: Array) -> dict[str, float]:
    """Return use rates on informative and other segments, and by group of classes."""
    result = {}
    groups = segments.label // 4  # sound, picture, both
    for k, name in enumerate(segments.names):
        used_NS, told_NS = segments.choices_NSK[:, :, k], flags_NSK[:, :, k]
        result[f"use_{name}_informative"] = float(used_NS[told_NS].mean())
        result[f"use_{name}_other"] = float(used_NS[~told_NS].mean())
        for number, group in enumerate(("sound", "picture", "both")):
            result[f"use_{name}_of_{group}"] = float(used_NS[groups == number].mean())
    return result


# --- several seeds ----------------------------------------------------------------------------

SHOWN = (
    "top1", "top1_fusion", "saving", "top1_random", "top1_all_or_none", "top1_informative", "top1_rgb", "top1_audio",
    "top1_sampled", "usage_rgb", "usage_audio", "use_rgb_of_sound", "use_rgb_of_picture", "use_rgb_informative",
    "use_rgb_other",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prices", type=float, nargs="+", default=[1.0])
    for name, default in (("train", 4000), ("val", 800), ("test", 4000), ("size", 32), ("processes", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="joint.fit.steps=960")
    parser.add_argument("--out", type=Path, help="folder for the figures as JSON")
    options = parser.parse_args()
    counts = {"num_train": options.train, "num_val": options.val, "num_test": options.test}
    task = SoundOrPictureConfig(task="sound_or_picture", size=options.size, **counts)
    started = time.perf_counter()
    videos = {
        split: render(task, split, counts[f"num_{split}"], options.processes) for split in ("train", "val", "test")
    }
    print(f"rendered in {time.perf_counter() - started:.0f} s", flush=True)
    sections = apply_overrides(settings(task), options.overrides)
    rows: list[dict[str, float]] = []
    print("| seed | price | " + " | ".join(SHOWN) + " |", flush=True)
    for seed in options.seeds:
        chain = Chain(videos, sections, task.fps, seed=seed, device=options.device)
        single = chain.recognisers()
        warmed = chain.warmed(single)
        for price in options.prices:
            chain.price = price
            metrics, _ = chain.result(chain.chosen(warmed), single)
            rows.append({"seed": seed, "price": price, **metrics})
            cells = " | ".join(f"{metrics[name]:.4f}" for name in SHOWN)
            print(f"| {seed} | {price:g} | {cells} |", flush=True)
        print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in chain.seconds.items()), flush=True)
    for price in options.prices:
        of = [row for row in rows if row["price"] == price]
        for name in ("changed_in_bf16", "top1_in_bf16"):
            if name in of[0]:
                print(f"price {price:g}: {name} " + ", ".join(f"{row[name]:.4f}" for row in of))
        for other in ("fusion", "random", "all_or_none", "sampled"):
            gaps = [row["top1"] - row[f"top1_{other}"] for row in of]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
            won = sum(gap > 0 for gap in gaps)
            mean = statistics.mean(gaps)
            print(f"price {price:g}: model - {other}: {mean:+.4f} ± {error:.4f} (s.e.), {won}/{len(gaps)} seeds")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "rows.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
