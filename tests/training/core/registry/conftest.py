"""A small project on disk: encoded clips of four colours, an AdaFocus model that can tell them, its evaluation."""

import functools
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml

from data_specs.schema import ClipRecord, Encoder, IndexEntry, ShardIndex, ShardInfo
from infra.settings import Settings
from training.adafocus import STAGES
from training.core.checkpoint import model_digest, save_model
from training.core.config import load_section, validate
from training.core.data import open_loader
from training.core.promotion import Promotion, promote
from training.core.registration import Registry, Version, register
from training.core.run import run_stage
from training.core.stage import StageInputs, StageRef
from training.core.tracking import start_run

CLASSES = ("red", "green", "blue", "grey")
COLOURS = ((200, 40, 40), (40, 190, 40), (40, 40, 200), (120, 120, 120))
DATA = {
    "num_frames": 4,
    "sampling": "segments",
    "batch_size": 32,
    "decoder": "pyav",
    "transform": {
        "size": 32,
        "train_crop": "center",
        "eval_short_side": 32,
        "flip": False,
        "normalise": "symmetric",
    },
}
MODEL = {
    "size": 32,
    "num_frames": 4,
    "glance": {"name": "tiny_glance", "options": {}, "weights": None, "norms": "batch"},
    "glance_size": 16,
    "local": {"name": "tiny_local", "options": {}, "weights": None, "norms": "batch"},
    "patch": 16,
    "grid": 3,
    "policy_channels": 8,
    "policy_hidden": 16,
    "classifier_hidden": 32,
    "classifier_dropout": 0.0,
    "use_glance": True,
}
FIT = {
    "steps": 1,
    "seed": 0,
    "optim": {"name": "adam", "lr": {"main": 0.01}, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0},
    "clip_grad_norm": None,
    "ema_decay": None,
    "precision": "fp32",
    "eval_every": 0,
    "keep": "last",
}
PARAMS = {
    "adafocus_data": DATA,
    "adafocus_model": MODEL,
    "adafocus_pretrain": {"dropout": 0.0, "train_frames": 2, "fit": FIT},
    "adafocus_finetune": {"train": "classifier", "arms": ["policy", "random"], "fit": FIT},
    "adafocus_eval": {},
}


@functools.cache
def encode(colour: tuple[int, int, int], seed: int, frames: int = 8, side: int = 48, sound: bool = False) -> bytes:
    """Return an mp4 of one colour with noise."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        tone = container.add_stream("aac", rate=16000) if sound else None
        for _ in range(frames):
            picture = np.clip(np.array(colour) + rng.normal(0, 20, (side, side, 3)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        if tone is not None:
            for start in range(0, frames * 2000, 1000):
                wave = np.sin(2 * np.pi * 440 * np.arange(start, start + 1000) / 16000).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, start
                container.mux(tone.encode(frame))
            container.mux(tone.encode())
    return buffer.getvalue()


def write_shards(folder: Path, counts: dict[str, int], seed: int = 0) -> ShardIndex:
    """Write a shard set in the documented format: one shard per split."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for split, count in counts.items():
        name = f"main-{split}-00000.tar"
        buffer, entries = io.BytesIO(), []
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for i in range(count):
                label = i % len(CLASSES)
                key = f"{split}-{i:04d}"
                record = ClipRecord(
                    key=key,
                    source=f"{CLASSES[label]}/{i}.mp4",
                    part="main",
                    split=split,
                    group=key,
                    label=label,
                    num_frames=8,
                    fps=8,
                    width=48,
                    height=48,
                    duration_s=1.0,
                    has_audio=False,
                )
                contents = {
                    # Eight different files are enough: encoding is what takes the time here.
                    "mp4": encode(COLOURS[label], seed * 10_000 + i % 8),
                    "json": record.model_dump_json().encode(),
                }
                members = {}
                for extension, content in contents.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                    offset = tar.offset - -(-len(content) // 512) * 512
                    members[extension] = (offset, len(content))
                entries.append(IndexEntry(key=key, label=label, num_frames=8, members=members))
        content = buffer.getvalue()
        idx = "".join(entry.model_dump_json() + "\n" for entry in entries).encode()
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".idx").write_bytes(idx)
        shards.append(
            ShardInfo(
                name=name,
                part="main",
                split=split,
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                samples=count,
                idx_sha256=hashlib.sha256(idx).hexdigest(),
                plan_digest=f"plan-{split}-{seed}",
            )
        )
    index = ShardIndex(
        format=1,
        dataset=folder.name,
        spec_digest="5" * 64,
        representation="mp4",
        encoder=Encoder(name="x264", version="1"),
        classes=CLASSES,
        shards=tuple(shards),
        rejects={"corrupt": 2, "too_short": 0},
        listed={split: count + (2 if split == "test" else 0) for split, count in counts.items()},
    )
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "index.json").write_text(index.model_dump_json(indent=1))
    return index


class Project:
    """A project folder with the outputs of training stages, made as the stages make them."""

    def __init__(self, root: Path, store: Path, test_clips: int = 120) -> None:
        self.settings = Settings(root=root, mlflow_tracking_uri=None, progress=False, device="cpu")
        self.root = root
        shutil.copy(store, root)
        (root / "params").mkdir()
        (root / "params" / "demo.yaml").write_text(yaml.safe_dump(PARAMS))
        self._counts = {"train": 16, "test": test_clips}
        self.write_shards(0)
        (root / "data" / "manifests").mkdir(parents=True)
        (root / "data" / "manifests" / "demo.csv").write_text("part,key\n" + "main,a\n" * 138)
        self._stages = {stage.name: stage for stage in STAGES}
        for net in ("glance", "local"):
            self._save("adafocus_pretrain", {"net": net}, f"adafocus_pretrain/{net}", None)

    def write_shards(self, seed: int) -> None:
        """Write the shards: the same keys with other pictures for another seed, the same bytes for the same one."""
        self.index = write_shards(self.settings.shards / "demo", self._counts, seed)

    def _config(self, stage: str, items: dict[str, str]) -> Any:
        record = self._stages[stage]
        path = self.root / "params" / "demo.yaml"
        values = load_section(path, stage) | items
        values |= {name: load_section(path, section) for name, section in record.shared.items()}
        return validate(record.config, values, stage)

    def _save(self, stage: str, items: dict[str, str], folder: str, fitted: Any) -> str:
        """Save a model of a stage (random weights unless `fitted`) and log a finished run for it."""
        config = self._config(stage, items)
        torch.manual_seed(1)
        system = fitted or self._stages[stage].build(StageInputs(config, CLASSES, {}))
        target = self.settings.runs / "demo" / folder / "model"
        values = config.model_dump(mode="json")
        save_model(
            target,
            system.export_state(),
            stage=stage,
            dataset="demo",
            config=values,
            classes=CLASSES,
            decoder="pyav",
        )
        digest = model_digest(target)
        run = start_run(
            self.settings,
            experiment="adafocus",
            name=f"{stage}@demo" + "".join(f"-{v}" for v in items.values()),
            tags={
                "stage": stage,
                "kind": "fit",
                "dataset": "demo",
                "model_digest": digest,
                "data_digest": self.index.data_digest(),
                "git_commit": "a" * 40,
                "git_dirty": "false",
                "flow_run_id": "flow-1",
                "hardware": "test machine",
                "upstream_model_digests": json.dumps({}),
            },
            params={"config": values},
        )
        for step in range(1, 6):
            run.log_metrics(
                {"train/loss": 2.0 / step, "train/reward": 0.1 * step, "train/entropy": 2.0 - 0.1 * step}, step
            )
        run.finish()
        return digest

    def train(self, swapped: int = 0, noise: float = 0.0) -> str:
        """Make the fine-tuned model: f_C's last layer solved by least squares on the training clips.

        Args:
            swapped: 2 exchanges the last two classes (half of the clips wrong), 4 all of them.
            noise: added to the weights: another model with the same answers.
        """
        config = self._config("adafocus_finetune", {})
        torch.manual_seed(0)
        system = self._stages["adafocus_finetune"].build(StageInputs(config, CLASSES, {})).eval()
        inputs, labels = [], []
        handle = system.net.classifier.fc.register_forward_hook(lambda _, given, __: inputs.append(given[0][:, -1]))
        loader = open_loader(self.settings.shards / "demo", config.data, split="train", train=False, seed=0)
        with torch.inference_mode():
            for raw in loader:
                system.predict(system.prepare(raw, train=False))
                inputs[-1] = inputs[-1][raw.valid_B]
                labels.append(raw.label_B[raw.valid_B])
        loader.close()
        handle.remove()
        features = torch.cat([torch.cat(inputs), torch.ones(sum(len(x) for x in inputs), 1)], dim=1)
        target = torch.nn.functional.one_hot(torch.cat(labels), len(CLASSES)).float() * 8
        solved = torch.linalg.lstsq(features.double(), target.double(), driver="gelsd").solution.float()
        order = list(range(len(CLASSES)))
        order[len(order) - swapped :] = order[len(order) - swapped :][::-1] if swapped else []
        with torch.no_grad():
            system.net.classifier.fc.weight.copy_(solved[:-1].T[order] + noise)
            system.net.classifier.fc.bias.copy_(solved[-1][order])
        return self._save("adafocus_finetune", {}, "adafocus_finetune", system)

    def evaluate(self) -> StageRef:
        """Run the evaluation stage."""
        ref = StageRef.parse("adafocus_eval@demo")
        run_stage(ref, self.settings)
        return ref


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Project:
    """A project with one registered model, version 1 of adafocus-demo; tests only read it."""
    project = Project(tmp_path_factory.mktemp("project"), empty_store)
    project.train()
    register(project.settings, project.evaluate())
    return project


@dataclass(frozen=True)
class ThreeModels:
    """What was seen while a weak, a strong and a worse model went through register and promote, in this order."""

    project: Project
    ref: StageRef
    versions: tuple[Version, ...]
    outcomes: tuple[Promotion, ...]
    champion: Version | None
    """At the end."""
    again: Version
    """What registering the last one again returned, after a person had given its alias to the first."""
    challenger: Version | None
    """After that."""


@pytest.fixture(scope="session")
def three_models(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> ThreeModels:
    """A project with three registered versions; half, none and all of the clips wrong, all on the same clips.

    Registering takes many seconds (the stored model is tried out in a process of its own), so who needs registered
    versions that may be changed goes on from here: aliases and shards may, versions are only added.
    """
    project = Project(tmp_path_factory.mktemp("three"), empty_store)
    settings = project.settings
    versions, outcomes = [], []
    for swapped in (2, 0, 4):
        project.train(swapped=swapped)
        ref = project.evaluate()
        versions.append(register(settings, ref))
        outcomes.append(promote(settings, "demo"))
    registry = Registry.open(settings)
    champion = registry.by_alias("adafocus-demo", "champion")
    registry.set_alias(versions[0], "challenger")
    again = register(settings, ref)
    challenger = registry.by_alias("adafocus-demo", "challenger")
    return ThreeModels(project, ref, tuple(versions), tuple(outcomes), champion, again, challenger)


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., bytes]:
    """`encode`, for tests: files of a test folder cannot import each other."""
    return encode
