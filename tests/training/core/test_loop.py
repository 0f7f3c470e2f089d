"""The train loop on a small system with dropout, batch norm and a loader that counts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from training.core.checkpoint import Checkpoint, CheckpointError, load_newest, save_checkpoint
from training.core.config import FitConfig
from training.core.failures import TrainingDiverged
from training.core.loop import Hooks, MovingAverage, fit, precision_context, step_seed
from training.core.system import ClipBatch, RawBatch, StepOutput, System


class Loader:
    """Endless batches that are a function of the position; like the real one it can be put anywhere."""

    def __init__(self, size: int = 8) -> None:
        self.position = 0
        self.size = size

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.position)
            frames = torch.randint(0, 255, (self.size, 2, 4, 4, 3), generator=generator, dtype=torch.uint8)
            label = (frames.float().mean((1, 2, 3))[:, 0] > 127).long()
            self.position += 1
            yield RawBatch(
                frames, torch.full((self.size, 2), 4), label, tuple("k" * self.size),
                torch.zeros(self.size, dtype=torch.long), torch.ones(self.size, dtype=torch.bool),
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def close(self) -> None:
        pass


class Small(System):
    def __init__(self, *, poison_at: int | None = None) -> None:
        super().__init__()
        self.classes = ("low", "high")
        self.body = nn.Sequential(nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
        self.poison_at = poison_at
        self.calls = 0

    def prepare(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        video = raw.frames_BTHWC.float().permute(0, 4, 1, 2, 3) / 255 - 0.5
        box = torch.zeros(len(raw.key), 4)
        return ClipBatch(video, raw.label_B, raw.key, raw.seed_B, raw.valid_B, box, raw.valid_B)

    def forward(self, batch: ClipBatch) -> StepOutput:
        self.calls += 1
        logits = self.body(batch.video_BCTHW[:, :, 0].flatten(1))
        loss = nn.functional.cross_entropy(logits, batch.label_B)
        return StepOutput(loss * float("nan") if self.calls == self.poison_at else loss)


def config(**changes: Any) -> FitConfig:
    values: dict[str, Any] = {
        "steps": 12,
        "seed": 1,
        "optim": {
            "name": "sgd",
            "lr": {"main": 0.1},
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "warmup_steps": 2,
        },
        "clip_grad_norm": None,
        "ema_decay": None,
        "precision": "fp32",
        "eval_every": 0,
        "keep": "last",
        "checkpoint_every": 4,
        "log_every": 4,
    }
    return FitConfig(**{**values, **changes})


CPU = torch.device("cpu")


def run(folder=None, system=None, loader=None, logs=None, **changes):
    torch.manual_seed(0)
    system = Small() if system is None else system()
    hooks = Hooks(checkpoints=folder, log=(lambda s, v: logs.append((s, v))) if logs is not None else Hooks().log)
    evaluate = changes.pop("evaluate", None)
    return fit(system, loader or Loader(), config(**changes), device=CPU, evaluate=evaluate, hooks=hooks)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(Exception):
    pass


class DyingLoader(Loader):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def __iter__(self):
        for count, batch in enumerate(super().__iter__()):
            if count == self.after:
                raise Killed
            yield batch


RMSPROP = {
    "clip_grad_each": 0.1,
    "optim": {
        "name": "rmsprop", "lr": {"main": 0.5}, "rho": 0.9, "eps": 1.0, "weight_decay": 1e-4, "decay": "kernels",
        "schedule": "cosine", "warmup_steps": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.8}, {"accumulate": 2}, {"clip_grad_norm": 0.1}, RMSPROP])
@pytest.mark.parametrize("dies_after", [3, 4, 9, 11])
def test_resumed_run_is_bit_equal(tmp_path, changes, dies_after):
    whole = run(**changes)
    with pytest.raises(Killed):
        run(tmp_path, loader=DyingLoader(dies_after * changes.get("accumulate", 1)), **changes)
    resumed = run(tmp_path, **changes)
    assert resumed.resumed_from == dies_after // 4 * 4
    assert equal(whole.weights, resumed.weights)


def test_another_seed_or_position_is_another_run(tmp_path):
    """Negative control of the test above."""
    assert not equal(run().weights, run(seed=2).weights)
    moved = Loader()
    moved.position = 1
    assert not equal(run().weights, run(loader=moved).weights)
    assert step_seed(1, 2, 0) != step_seed(1, 2, 1)


def test_finished_run_does_nothing_again(tmp_path):
    first = run(tmp_path)
    made: list[Small] = []

    def make() -> Small:
        made.append(Small())
        return made[0]

    second = run(tmp_path, system=make)
    assert made[0].calls == 0
    assert equal(first.weights, second.weights)


def test_nan_stops_before_anything_is_saved(tmp_path):
    with pytest.raises(TrainingDiverged, match="between step 4 and 8"):
        run(tmp_path, system=lambda: Small(poison_at=6))
    kept = load_newest(tmp_path)
    assert kept is not None
    assert kept.step == 4
    assert all(torch.isfinite(v).all() for v in kept.state["system"].values())


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    whole = run(tmp_path)
    newest = sorted(tmp_path.glob("step-*"))[-1]
    content = (newest / "state.pt").read_bytes()
    (newest / "state.pt").write_bytes(content[: len(content) // 2])
    kept = load_newest(tmp_path)
    assert kept is not None
    assert kept.step == 8
    assert equal(run(tmp_path).weights, whole.weights)


def test_half_written_checkpoint_is_not_seen(tmp_path):
    (tmp_path / ".tmp-abc").mkdir()
    (tmp_path / ".tmp-abc" / "state.pt").write_bytes(b"x")
    assert load_newest(tmp_path) is None
    save_checkpoint(tmp_path, Checkpoint(1, {"a": torch.ones(1)}, {}, None))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_checkpoint_of_another_system_is_refused(tmp_path):
    run(tmp_path)

    class Wider(Small):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(48, 9), nn.BatchNorm1d(9), nn.Dropout(), nn.ReLU(), nn.Linear(9, 2))

    with pytest.raises(CheckpointError, match="does not fit"):
        run(tmp_path, system=Wider)


def test_accumulation_equals_the_large_batch():
    class Plain(Small):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(48, 2))

    class Halves(Loader):
        """Each batch of `Loader` in two halves."""

        def __iter__(self):
            for raw in super().__iter__():
                for part in (slice(0, 4), slice(4, 8)):
                    tensors = {
                        k: getattr(raw, k)[part] for k in ("frames_BTHWC", "size_B2", "label_B", "seed_B", "valid_B")
                    }
                    yield replace(raw, key=raw.key[part], **tensors)

    whole, halves = run(system=Plain), run(system=Plain, loader=Halves(), accumulate=2)
    for name, value in whole.weights.items():
        torch.testing.assert_close(value, halves.weights[name])


def test_best_weights_are_kept_also_after_a_resume(tmp_path):
    values = iter([0.1, 0.9, 0.3, 0.2])
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(system: System) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in system.state_dict().items()})
        return {"val/top1": next(values)}

    report = run(tmp_path, eval_every=3, keep="best", evaluate=evaluate)
    assert report.best == 0.9
    assert equal(report.weights, seen[1])
    assert not equal(report.weights, seen[3])
    again = run(tmp_path, eval_every=3, keep="best", evaluate=evaluate)
    assert equal(again.weights, seen[1])


def test_average_of_constant_weights_follows_them():
    """EMA with decay 0 is the last state, weights and buffers."""
    last, averaged = run(), run(ema_decay=0.0)
    for name, value in last.weights.items():
        torch.testing.assert_close(value, averaged.weights[name])
    assert not equal(run(ema_decay=0.9).weights, averaged.weights)


class Warm(Small):
    """The loss is multiplied by a factor of the progress; remembers what it was told, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, int]] = []
        self.events: list[str] = []
        self.factor = 0.0

    def on_step(self, step: int, steps: int) -> None:
        self.told.append((step, steps))
        self.events.append("step")
        self.factor = (step + 1) / steps

    def prepare(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        self.events.append("batch")
        return super().prepare(raw, train=train)

    def forward(self, batch: ClipBatch) -> StepOutput:
        return StepOutput(super().forward(batch).loss * self.factor)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_system_hears_of_each_step_once_before_its_batches(accumulate):
    made: list[Warm] = []
    run(system=lambda: made.append(Warm()) or made[0], accumulate=accumulate)
    assert made[0].told == [(step, 12) for step in range(12)]
    assert made[0].events == ["step", *["batch"] * accumulate] * 12


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_depends_on_the_step_resumes_exactly(tmp_path, accumulate):
    whole = run(system=Warm, accumulate=accumulate)
    with pytest.raises(Killed):
        run(tmp_path, system=Warm, loader=DyingLoader(9 * accumulate), accumulate=accumulate)
    made: list[Warm] = []
    resumed = run(tmp_path, system=lambda: made.append(Warm()) or made[0], accumulate=accumulate)
    assert resumed.resumed_from == 8
    assert made[0].told == [(step, 12) for step in range(8, 12)]
    assert equal(whole.weights, resumed.weights)

    class Counting(Warm):
        """Control: a factor that is kept in the object starts anew after a resume."""

        def on_step(self, step: int, steps: int) -> None:
            self.factor += 1 / steps

    folder = tmp_path / "counting"
    straight = run(system=Counting, accumulate=accumulate)
    torch.testing.assert_close(straight.weights, whole.weights)
    with pytest.raises(Killed):
        run(folder, system=Counting, loader=DyingLoader(9 * accumulate), accumulate=accumulate)
    assert not equal(run(folder, system=Counting, accumulate=accumulate).weights, straight.weights)


def test_logs_name_loss_rates_and_throughput():
    logs: list[tuple[int, dict[str, float]]] = []
    run(logs=logs, clip_grad_norm=1.0)
    steps = [step for step, _ in logs]
    assert steps == [4, 8, 12]
    assert {"train/loss", "train/grad_norm", "train/clips_per_s", "train/data_wait_share", "lr/main"} <= set(logs[0][1])
    rates = [values["lr/main"] for _, values in logs]
    assert rates[0] > rates[1] > rates[2]


def test_gradients_are_clipped_as_a_whole_or_each_by_itself():
    logs: dict[str, list[tuple[int, dict[str, float]]]] = {"free": [], "loose": [], "whole": [], "each": []}
    weights = {
        name: run(logs=logs[name], **changes).weights
        for name, changes in {
            "free": {},
            "loose": {"clip_grad_each": 1e6},
            "whole": {"clip_grad_norm": 0.1},
            "each": {"clip_grad_each": 0.1},
        }.items()
    }
    assert equal(weights["free"], weights["loose"])
    assert not equal(weights["free"], weights["each"])
    assert not equal(weights["whole"], weights["each"])
    # What is logged is the norm before clipping, of all together.
    assert logs["each"][0][1]["train/grad_norm"] > 0.1
    assert "train/grad_norm" not in logs["free"][0][1]
    with pytest.raises(ValueError, match="exclude one another"):
        config(clip_grad_norm=0.1, clip_grad_each=0.1)
    with pytest.raises(ValueError, match="greater than 0"):
        config(clip_grad_each=0.0)


def test_bf16_runs_in_reduced_precision():
    with precision_context("bf16", CPU)():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with precision_context("fp32", CPU)():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


# --- moving average ---------------------------------------------------------------------------


class _Normed(System):
    """One batch norm whose momentum is free to choose; trained by nothing."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5, momentum=momentum)
        self.weight = nn.Parameter(torch.zeros(3))


def test_average_of_one_batch_statistics_is_a_small_momentum() -> None:
    """Momentum 0 in TensorFlow's terms (1 in torch's) with averaged buffers ≡ momentum 1 - decay (§6.1)."""
    decay = 0.9
    literal, small = _Normed(1.0), _Normed(1 - decay)
    average = MovingAverage(literal, decay)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        x = torch.randn(16, 5, generator=generator) * 3 + 1
        literal.norm(x)
        small.norm(x)
        if step == 0:  # both start from the first batch
            small.load_state_dict(literal.state_dict())
        average.update(literal)
    torch.testing.assert_close(average.module.norm.running_mean, small.norm.running_mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(average.module.norm.running_var, small.norm.running_var, rtol=0, atol=1e-5)
    # Control: without averaging the buffers are those of the last batch.
    assert (literal.norm.running_mean - small.norm.running_mean).abs().max() > 0.05
    assert int(average.module.norm.num_batches_tracked) == 20


def test_average_equals_torchs_averaged_model() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    system = _Normed(0.1)
    ours, theirs = (
        MovingAverage(system, 0.8),
        AveragedModel(system, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True),
    )
    for step in range(6):
        system.norm(torch.randn(8, 5, generator=torch.Generator().manual_seed(step)))
        with torch.no_grad():
            system.weight += step
        ours.update(system)
        theirs.update_parameters(system)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours.module.state_dict()[name], value)


def test_warm_up_of_the_average_forgets_the_first_weights_and_resumes() -> None:
    system = _Normed(0.1)
    warm, cold = MovingAverage(system, 0.999, warmup=True), MovingAverage(system, 0.999)
    for _ in range(40):
        with torch.no_grad():
            system.weight.copy_(torch.full((3,), 1.0 if warm.steps else 0.0))
        warm.update(system)
        cold.update(system)
    expected = 0.0
    for step in range(1, 40):
        decay = min(0.999, (1 + step) / (10 + step))
        expected = decay * expected + 1 - decay
    assert warm.module.weight[0].item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.99
    assert cold.module.weight[0].item() < 0.05
    again = MovingAverage(_Normed(0.1), 0.999, warmup=True)
    again.load_state_dict(warm.state_dict())
    again.update(system)
    warm.update(system)
    torch.testing.assert_close(again.module.weight, warm.module.weight)


def test_evaluation_with_last_batch_statistics_jumps_where_averaged_ones_do_not() -> None:
    """§7: raw one-batch statistics make a fixed net's evaluation vary from step to step."""
    literal = _Normed(1.0)
    average = MovingAverage(literal, 0.95)
    probe = torch.randn(64, 5, generator=torch.Generator().manual_seed(99))
    raw, averaged = [], []
    for step in range(60):
        literal.train()
        literal.norm(torch.randn(8, 5, generator=torch.Generator().manual_seed(step)))
        average.update(literal)
        if step >= 20:
            raw.append(literal.eval().norm(probe))
            averaged.append(average.module.eval().norm(probe))
    spread = [torch.stack(outputs).var(0).mean().item() for outputs in (raw, averaged)]
    assert spread[0] > 8 * spread[1]
