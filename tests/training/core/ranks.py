"""What each process of test_ranks.py runs: fits of small systems, whose results it writes to a file.

`python ranks.py <folder> <rank> <world>`; with one process the same fits without data parallelism.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from training.core.config import FitConfig
from training.core.distributed import Group
from training.core.loop import Hooks, fit
from training.core.ray_runner import _wrapper
from training.core.system import ClipBatch, RawBatch, StepOutput, System

STEPS = 5
SUBCLIPS = 3
CPU = torch.device("cpu")


class Loader:
    """Endless micro-batches of 8 clips, of which each rank gets every `world`-th.

    The seed of a clip says its parity (bit 0: with two ranks that is the rank) and its micro-batch's (bit 1).
    """

    def __init__(self, group: Group) -> None:
        self.group = group

    def __iter__(self):
        position = 0
        while True:
            generator = torch.Generator().manual_seed(position)
            mine = slice(self.group.rank, None, self.group.world)
            frames = torch.randint(0, 255, (8, 2 * SUBCLIPS, 2, 2, 3), generator=generator, dtype=torch.uint8)[mine]
            seed = (torch.arange(8) % 2 + 2 * (position % 2))[mine]
            size, valid = torch.full((len(seed), 2), 2), torch.ones(len(seed), dtype=torch.bool)
            label = (frames.float().mean((1, 2, 3))[:, 0] > 127).long()
            yield RawBatch(frames, size, label, tuple("k" * len(seed)), seed, valid)
            position += 1

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class Base(System):
    classes = ("low", "high")

    def prepare(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        video = raw.frames_BTHWC.float().permute(0, 4, 1, 2, 3) / 255 - 0.5
        return ClipBatch(
            video, raw.label_B, raw.key, raw.seed_B, raw.valid_B, torch.zeros(len(raw.key), 4), raw.valid_B
        )


class Recurrent(Base):
    """Trains over the sub-clips of a video; no gradient crosses the state between them."""

    def __init__(self, partial: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.carry, self.head = nn.Linear(24, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.partial = partial

    def forward(self, batch: ClipBatch, part: int, state_B6: Tensor) -> tuple[StepOutput, Tensor]:
        frames = batch.video_BCTHW[:, :, 2 * part : 2 * part + 2].flatten(1)
        state_B6 = torch.tanh(self.inner(frames) + self.carry(state_B6))
        return StepOutput(nn.functional.cross_entropy(self.head(state_B6), batch.label_B)), state_B6.detach()

    def update(self, batch: ClipBatch, ctx) -> dict[str, Tensor]:
        state_B6 = torch.zeros(len(batch.key), 6)
        total = torch.zeros(())
        for part in range(SUBCLIPS):
            alone = {"but the last": part < SUBCLIPS - 1, "all": True, "none": False}[self.partial]
            with ctx.partial() if alone else contextlib.nullcontext(), ctx.autocast():
                output, state_B6 = ctx.system(batch, part, state_B6)
                ctx.backward(output.loss / SUBCLIPS)
            total += output.loss.detach() / SUBCLIPS
        return {"loss": total}


class Paths(Base):
    """Clips of each parity have their own branch, one more serves first micro-batches, and one every second step."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unused_parameters = unused
        self.branches = nn.ModuleList([nn.Linear(72, 2) for _ in range(2)])
        self.first, self.second = nn.Linear(72, 2), nn.Linear(72, 2)
        self.odd = False

    def on_step(self, step: int, steps: int) -> None:
        self.odd = step % 2 == 1

    def forward(self, batch: ClipBatch) -> StepOutput:
        features = batch.video_BCTHW.flatten(1)
        logits = torch.zeros(len(batch.key), 2)
        for parity, branch in enumerate(self.branches):
            mine = batch.seed_B % 2 == parity
            if mine.any():
                logits[mine] = branch(features[mine])
        if (batch.seed_B < 2).all():
            logits = logits + self.first(features)
        if self.odd:
            logits = logits + self.second(features)
        return StepOutput(nn.functional.cross_entropy(logits, batch.label_B))


def train(system: System, group: Group, **changes: Any) -> dict[str, Any]:
    """Return the weights after a fit, and how often gradients were exchanged."""
    exchanges = 0

    def counted(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal exchanges
        exchanges += 1
        return allreduce_hook(state, bucket)

    def wrap(system: System) -> nn.Module:
        if not dist.is_initialized():
            return system
        wrapped = _wrapper(Group(world=2), CPU)(system)  # data parallelism also in a process group of one
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
        wrapped.register_comm_hook(None, counted)
        return wrapped

    config = FitConfig(
        steps=STEPS, seed=1, clip_grad_norm=None, ema_decay=None, precision="fp32", eval_every=0, keep="last",
        optim={
            "name": "sgd", "lr": {"main": 0.2}, "weight_decay": 0.01, "schedule": "constant", "warmup_steps": 0,
        }, **changes,
    )  # fmt: skip
    report = fit(system, Loader(group), config, device=CPU, hooks=Hooks(wrap=wrap, group=group))
    return {"weights": report.weights, "exchanges": exchanges}


def run(folder: Path, rank: int, world: int) -> None:
    """Run all fits as one of `world` processes and write `<rank>-of-<world>.pt`."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    group = Group(rank, world)
    results: dict[str, dict[str, Any]] = {}
    for partial in ("but the last", "none", "all"):
        for accumulate in (1, 2):
            results[f"{partial}/{accumulate}"] = train(Recurrent(partial), group, accumulate=accumulate)
    for accumulate in (1, 2):
        results[f"paths/{accumulate}"] = train(Paths(unused=True), group, accumulate=accumulate)
    if world > 1:
        try:  # the last one: it leaves a half-done exchange behind
            train(Paths(unused=False), group)
            results["undeclared"] = {"error": ""}
        except RuntimeError as error:
            results["undeclared"] = {"error": str(error)}
    torch.save(results, folder / f"{rank}-of-{world}.pt")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
