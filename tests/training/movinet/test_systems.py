"""Clip, stream and ensemble systems: losses, parts, members, weights to start from."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import Tensor

from data_specs.files import sha256_of
from training.core.config import ConfigError, DataConfig, WeightsFile, validate
from training.core.stage import StageInputs
from training.core.system import ClipBatch, RawBatch, StepOutput, System
from training.core.weights import WeightError
from training.movinet.config import EnsembleConfig, HalfConfig, StreamConfig, TrainConfig
from training.movinet.start import start_from_base, start_from_file
from training.movinet.system import Ensemble, MoViNetSystem, StreamSystem
from training.registry import all_stages

PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.tiny.yaml").read_text())
CLASSES = ("one", "two", "three")


def values(stage: str, **changes: Any) -> dict[str, Any]:
    shared = {field: PARAMS[section] for field, section in all_stages()[stage].shared.items()}
    given = {**PARAMS[stage], **shared, **changes}
    given["data"] = {**given["data"], "decoder": "pyav"}
    return given


def lively(system: System) -> System:
    """Scales away from 0 and statistics away from (0, 1): a fresh net hides everything."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in system.named_parameters():
        if name.endswith((".scale", ".position")):
            parameter.data.fill_(0.4)
        elif name.endswith("classifier.weight"):
            parameter.data.mul_(100)
    for name, buffer in system.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return system


def raw(frames: int = 4, count: int = 3) -> RawBatch:
    generator = torch.Generator().manual_seed(1)
    return RawBatch(
        frames_BTHWC=torch.randint(0, 256, (count, frames, 40, 60, 3), generator=generator, dtype=torch.uint8),
        size_B2=torch.tensor([[40, 60]] * count),
        label_B=torch.arange(count) % 3,
        key=tuple(map(str, range(count))),
        seed_B=torch.arange(count) * 977,
        valid_B=torch.ones(count, dtype=torch.bool),
    )


def train_system(**changes: Any) -> MoViNetSystem:
    torch.manual_seed(0)
    config = validate(TrainConfig, values("movinet_train", **changes), "train")
    system = MoViNetSystem(config.model, config.variant.variant(), config.data, CLASSES)
    return lively(system)  # type: ignore[return-value]


def stream_system(**changes: Any) -> StreamSystem:
    torch.manual_seed(0)
    config = validate(StreamConfig, values("movinet_stream", **changes), "stream")
    return lively(StreamSystem(config, CLASSES))  # type: ignore[return-value]


class Context:
    """What the loop lends, in its plainest form; counts exchanges of gradients as data parallelism would make them."""

    def __init__(self, system: System) -> None:
        self.system, self.exchanges, self._partial = system, 0, False

    def autocast(self) -> Any:
        return nullcontext()

    def partial(self) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, name: str = "main") -> dict[str, Tensor]:
        raise AssertionError("the loop steps")


def test_loss_is_smoothed_cross_entropy() -> None:
    system = train_system().eval()
    batch = system.prepare(raw(), train=False)
    logits = system.net(batch.video_BCTHW)
    expected = F.cross_entropy(logits, batch.label_B, label_smoothing=0.1)
    torch.testing.assert_close(system(batch).loss, expected)
    assert (system(batch).loss - F.cross_entropy(logits, batch.label_B)).abs() > 1e-5


def test_parts_add_up_to_the_gradient_of_their_mean_loss() -> None:
    """§6.6: the state goes from part to part, no gradient does."""
    system = stream_system(subclips=2)
    for module in system.modules():  # the same function in both passes
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    batch = system.prepare(raw(), train=False)
    system.eval()
    logs = system.update(batch, Context(system))
    gradients = {name: p.grad.clone() for name, p in system.named_parameters() if p.grad is not None}
    system.zero_grad(set_to_none=True)
    state, losses = system.net.initial_state(3, (32, 32)), []
    for part in torch.split(batch.video_BCTHW, 2, dim=2):
        logits, state = system.net.stream(part, state)
        losses.append(F.cross_entropy(logits, batch.label_B, label_smoothing=0.1))
    mean = torch.stack(losses).mean()
    mean.backward()
    torch.testing.assert_close(logs["loss"], mean.detach())
    for name, parameter in system.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
    # Control: without the state the second part would be a video of its own.
    alone = system.net(batch.video_BCTHW[:, :, 2:])
    assert (F.cross_entropy(alone, batch.label_B, label_smoothing=0.1) - losses[1]).abs() > 1e-4


def test_answers_do_not_depend_on_frames_per_call() -> None:
    scores = []
    for frames in (1, 3, 4):
        system = stream_system(eval_subclip=frames).eval()
        with torch.inference_mode():
            prediction = system.predict_all(system.prepare(raw(), train=False))
        scores.append(prediction.scores_BK)
        torch.testing.assert_close(prediction.arms["clip"], prediction.scores_BK, rtol=1e-5, atol=1e-6)
        assert prediction.extras["running_top1"].shape == (3, 4)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-5, atol=1e-6)


def test_a_stream_reports_its_state() -> None:
    system = stream_system()
    state = system.net.initial_state(1, (32, 32))
    expected = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert system.cost()["main"].measured == {"state_bytes": expected}


def half(member: str) -> tuple[HalfConfig, MoViNetSystem]:
    config = validate(HalfConfig, values("movinet_half", member=member), "half")
    torch.manual_seed(config.fit.seed)
    system = MoViNetSystem(config.model, config.variant.variant(), config.data, CLASSES, int(member))
    return config, lively(system)  # type: ignore[return-value]


def test_members_see_every_other_frame_and_differ() -> None:
    (first, even), (second, odd) = half("0"), half("1")
    assert (first.fit.seed, second.fit.seed) == (3, 4)
    clips = raw()
    seen = [system.prepare(clips, train=False).video_BCTHW for system in (even, odd)]
    whole = train_system().prepare(clips, train=False).video_BCTHW
    torch.testing.assert_close(seen[0], whole[:, :, 0::2])
    torch.testing.assert_close(seen[1], whole[:, :, 1::2])
    assert validate(HalfConfig, first.model_dump(mode="json"), "saved") == first


def test_ensemble_is_the_mean_of_logits_at_the_cost_of_one() -> None:
    members = (half("0")[1], half("1")[1])
    data = validate(DataConfig, values("movinet_train")["data"], "data")
    ensemble = Ensemble(members, data).eval()
    batch: ClipBatch = ensemble.prepare(raw(), train=False)
    with torch.inference_mode():
        got = ensemble.predict_all(batch)
        logits = [m.net(batch.video_BCTHW[:, :, i::2]) for i, m in enumerate(members)]
    torch.testing.assert_close(got.scores_BK, ((logits[0] + logits[1]) / 2).softmax(-1))
    torch.testing.assert_close(got.arms["member1"], logits[1].softmax(-1))
    assert (got.arms["probabilities"] - got.scores_BK).abs().max() > 1e-7
    assert (got.arms["aligned"] - got.scores_BK).abs().max() > 1e-7
    full = train_system(variant="base_2plus1d").cost()["main"].gmac
    assert ensemble.cost()["main"].gmac == pytest.approx(full, rel=0.02)
    assert ensemble.cost()["member0"].gmac == pytest.approx(full / 2, rel=0.02)


@pytest.mark.parametrize(
    ("stage", "model", "changes", "message"),
    [
        ("movinet_train", TrainConfig, {"variant": "bass"}, "unknown variant"),
        ("movinet_train", TrainConfig, {"model": {**PARAMS["movinet_model"], "architecture": "a9"}}, "known: t0, a0"),
        ("movinet_stream", StreamConfig, {"variant": "base"}, "must be causal"),
        ("movinet_stream", StreamConfig, {"subclips": 5}, "some would be empty"),
        ("movinet_half", HalfConfig, {"member": "0", "seeds": [1, 1]}, "must differ"),
        ("movinet_ensemble", EnsembleConfig, {"data": {**PARAMS["movinet_data"], "num_frames": 5}}, "even"),
    ],
)
def test_settings_that_cannot_be(stage: str, model: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(model, values(stage, **changes), stage)


def test_stream_takes_over_what_transfers(caplog: pytest.LogCaptureFixture) -> None:
    base, stream = train_system(variant="base_2plus1d"), stream_system(variant="stream")
    before = {name: tensor.clone() for name, tensor in stream.net.state_dict().items()}
    with caplog.at_level(logging.INFO):
        start_from_base(stream.net, base.state_dict())
    after, theirs = stream.net.state_dict(), base.net.state_dict()
    gates = [name for name in after if ".gate." in name]
    assert gates
    assert all(torch.equal(after[name], before[name]) for name in gates)
    others = [name for name in after if name not in gates]
    assert all(torch.equal(after[name], theirs[name]) for name in others)
    assert "gate" in caplog.text
    other = train_system(model={**PARAMS["movinet_model"], "width": 2.0})
    with pytest.raises(WeightError, match="another architecture"):
        start_from_base(stream.net, other.state_dict())


def test_published_weights_by_path(tmp_path: Path) -> None:
    source, target = train_system(), train_system()
    with torch.no_grad():
        for parameter in target.net.parameters():
            parameter.add_(1.0)
    state = {name: tensor.contiguous() for name, tensor in source.net.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    given = WeightsFile(path="a.safetensors", sha256=sha256_of(tmp_path / "a.safetensors"))
    own = target.net.classifier.weight.detach().clone()  # type: ignore[union-attr]
    start_from_file(target.net, given, "fovea", tmp_path)
    torch.testing.assert_close(target.net.stem.conv.weight, source.net.stem.conv.weight)
    torch.testing.assert_close(target.net.classifier.weight, own)  # type: ignore[union-attr]
    wider = train_system(model={**PARAMS["movinet_model"], "width": 2.0})
    with pytest.raises(WeightError, match=r"stem\.conv\.weight"):
        start_from_file(wider.net, given, "fovea", tmp_path)


@pytest.mark.parametrize("stage", ["movinet_train", "movinet_half"])
def test_builder_of_the_stage_loads_them(stage: str, tmp_path: Path, make_inputs: Callable[..., StageInputs]) -> None:
    build = all_stages()[stage].build
    items = {"member": "1"} if stage == "movinet_half" else {}
    source: Any = build(make_inputs(stage, tmp_path, **items))
    lively(source)
    save_file({k: v.contiguous() for k, v in source.net.state_dict().items()}, tmp_path / "w.safetensors")
    weights = {"path": "w.safetensors", "sha256": sha256_of(tmp_path / "w.safetensors")}
    loaded: Any = build(make_inputs(stage, tmp_path, weights=weights, **items))
    assert torch.equal(loaded.net.stem.conv.weight, source.net.stem.conv.weight)
    with pytest.raises(WeightError, match="sha256"):
        build(make_inputs(stage, tmp_path, weights={**weights, "sha256": "0" * 64}, **items))


@pytest.fixture
def make_inputs() -> Callable[..., StageInputs]:
    def make(stage: str, root: Path, **changes: Any) -> StageInputs:
        config = validate(all_stages()[stage].config, values(stage, **changes), stage)
        return StageInputs(config, CLASSES, {}, root)

    return make


def test_steps_report_loss_and_accuracy() -> None:
    output: StepOutput = train_system()(train_system().prepare(raw(), train=True))
    assert set(output.logs) == {"accuracy"}
    assert not output.logs["accuracy"].requires_grad
