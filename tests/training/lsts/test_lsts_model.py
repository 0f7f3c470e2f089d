"""Features that travel in training (§7), the oracle's displacements, parameter groups and settings."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from training.core.config import ConfigError, OptimConfig, validate
from training.lsts.config import EvalConfig, MethodConfig, TrainConfig
from training.lsts.model import LSTS, displacements
from training.lsts.system import SINGLE, LSTSSystem

Make = Callable[..., LSTSSystem]
Method = Callable[..., MethodConfig]


@pytest.fixture
def images() -> torch.Tensor:
    """(B=2, T=4, 3, 32, 48): four different frames per example."""
    return torch.randn(2, 4, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def features(model: LSTS, image: torch.Tensor, numbers: list[list[int]]) -> torch.Tensor:
    return model.forward_example(image[:, : len(numbers[0])], torch.tensor(numbers))


# --- what travels -----------------------------------------------------------------------------


def test_an_image_three_times_is_the_plain_detector_bit_for_bit(system_of: Make, images: torch.Tensor) -> None:
    """§12.5: the memory is F of the old key frame, and passes both identities unchanged."""
    model = system_of().model
    still = images[:, :1].expand(-1, 3, -1, -1, -1)
    own = model.high(model.low(still.flatten(0, 1))).unflatten(0, (2, 3))[:, 0]
    result = features(model, still, [[7, 7, 7], [0, 0, 0]])
    assert torch.equal(result, own)
    assert not torch.equal(features(model, still, [[7, 8, 9], [0, 0, 0]])[0], own[0])
    result.square().sum().backward()
    for module in (model.srfu, model.dfa, model.low2high):
        assert module is not None
        assert all(p.grad is None or not p.grad.any() for p in module.parameters())
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


def test_identities_hold_by_step(system_of: Make, images: torch.Tensor) -> None:
    model = system_of().model
    triple = images[:, :3]
    own = model.high(model.low(triple.flatten(0, 1))).unflatten(0, (2, 3))
    low = model.low(triple.flatten(0, 1)).unflatten(0, (2, 3))
    # The current frame is the new key frame: its features are those of the key frame, fused with the memory.
    key = model.remember(own[:, 1], own[:, 0])
    assert torch.equal(features(model, triple, [[0, 9, 9], [0, 9, 9]]), key)
    # Both key frames are the same: the memory is the old one.
    expected, _ = model.aggregate(low[:, 2], model.prepare(own[:, 0]))
    torch.testing.assert_close(features(model, triple, [[4, 4, 9], [4, 4, 9]]), expected)
    # Nothing is the same.
    expected, _ = model.aggregate(low[:, 2], model.prepare(key))
    torch.testing.assert_close(features(model, triple, [[0, 5, 9], [0, 5, 9]]), expected)


def test_deeper_memories_are_steps_one_after_another(system_of: Make, images: torch.Tensor) -> None:
    for ratio in (1.0, 0.7):
        model = system_of().model
        model.config = model.config.model_copy(
            update={"alignment": model.config.alignment.model_copy(update={"memory_ratio": ratio})}
        )
        own = model.high(model.low(images.flatten(0, 1))).unflatten(0, (2, 4))
        low = model.low(images[:, 3])
        memory = own[:, 0]
        for place in (1, 2):
            fused = model.remember(own[:, place], memory)
            memory = ratio * fused + (1 - ratio) * own[:, place]
        expected, _ = model.aggregate(low, model.prepare(memory))
        torch.testing.assert_close(features(model, images, [[0, 10, 20, 25]] * 2), expected)


@pytest.mark.parametrize(
    ("changes", "frames"), [({"interval": 1, "non_key": "hold"}, 3), ({"non_key": "hold"}, 3), ({"key": "plain"}, 2)]
)
def test_methods_without_a_part_train_what_they_run(
    system_of: Make, method_of: Method, images: torch.Tensor, changes: dict[str, Any], frames: int
) -> None:
    """Key frames alone are trained where others are never looked at; without SRFU older key frames do not matter."""
    model = system_of(method_of(**changes)).model
    numbers = [list(range(frames))] * 2
    result = features(model, images, numbers)
    other = images.clone()
    other[:, 0] += 1
    assert torch.equal(features(model, other, numbers), result) == (frames == 1)
    if "non_key" in changes:
        own = model.high(model.low(images[:, :frames].flatten(0, 1))).unflatten(0, (2, frames))
        memory = own[:, 0]
        for place in range(1, frames):
            memory = model.remember(own[:, place], memory)
        torch.testing.assert_close(result, memory)


def test_a_single_frame_is_the_plain_detector(system_of: Make, images: torch.Tensor) -> None:
    model = system_of(SINGLE).model
    assert model.offsets is None
    own = model.high(model.low(images[:, 0]))
    assert torch.equal(features(model, images, [[0], [0]]), own)


# --- the oracle -------------------------------------------------------------------------------


def test_displacements_are_those_of_the_objects() -> None:
    """Two objects that overlap, one that the other frame does not show."""
    here = torch.tensor([[[0.0, 0, 32, 32], [16, 16, 32, 32], [40, 0, 64, 16]]])
    there = torch.tensor([[[8.0, 0, 40, 32], [0, 24, 16, 40], [0, 0, 0, 0]]])
    track_here, track_there = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, -1]])
    field = displacements(here, track_here, there, track_there, (4, 8), 8)
    assert field.shape == (1, 2, 4, 8)
    assert field[0, :, 0, 0].tolist() == [1.0, 0.0]
    assert field[0, :, 3, 3].tolist() == [-2.0, 1.0], "the smaller one is in front"
    assert not field[0, :, :, 4:].any(), "no object, or one that is not there"
    # Padding has the track −1 on both sides, and is no object.
    assert not displacements(here, torch.full((1, 3), -1), there, torch.full((1, 3), -1), (4, 8), 8).any()


def test_the_oracle_trains_without_what_it_does_not_compare(
    system_of: Make, method_of: Method, video_of: Callable[..., Any], frames_of: Callable[..., Any]
) -> None:
    system = system_of(method_of(alignment="truth")).train()
    raw = frames_of(video_of(9), 3, 6)
    loss = system(system.prepare(raw, train=True)).loss
    loss.backward()
    for group in system.parameter_groups().values():
        assert all(p.grad is not None for p in group)
    assert "offsets" not in system.parameter_groups()


# --- training ---------------------------------------------------------------------------------


def optim(**lr: float) -> OptimConfig:
    return OptimConfig(name="sgd", lr=lr, weight_decay=0.1, schedule="constant", warmup_steps=0)


def test_one_list_of_rates_serves_all_methods(system_of: Make, method_of: Method) -> None:
    rates = {"backbone": 0.1, "head": 0.2, "alignment": 0.3, "offsets": 0.4}
    groups = {g["name"]: g for g in system_of().optimizers(optim(**rates))["main"].param_groups}
    assert {name: g["lr"] for name, g in groups.items()} == {
        "backbone": 0.1, "head": 0.2, "alignment": 0.3, "offsets/undecayed": 0.4,
    }  # fmt: skip
    assert groups["offsets/undecayed"]["weight_decay"] == 0
    plain = system_of(SINGLE).optimizers(optim(**rates))["main"]
    assert [g["name"] for g in plain.param_groups] == ["backbone", "head"]
    fixed = method_of(offsets={"init": "grid", "radius": 1, "seed": 0, "learned": False, "clamp": 4.0})
    assert "offsets" not in system_of(fixed).parameter_groups()
    with pytest.raises(ConfigError, match="no such group: 'heads'"):
        system_of().optimizers(optim(**rates, heads=0.1))


def test_offsets_are_brought_back_before_each_step_and_in_what_is_saved(system_of: Make) -> None:
    system = system_of()
    assert system.model.offsets is not None
    with torch.no_grad():
        system.model.offsets.table[0] = torch.tensor([9.0, -9.0])
    system.on_step(3, 10)
    assert system.model.offsets.table[0].tolist() == [4.0, -4.0]
    with torch.no_grad():
        system.model.offsets.table[1] = torch.tensor([-7.0, 0.5])
    assert system.export_state()["model.offsets.table"][1].tolist() == [-4.0, 0.5]


def test_a_backbone_that_is_not_trained_keeps_everything(system_of: Make, video_of, frames_of) -> None:
    system = system_of()
    system.train_backbone = False
    system.freeze()
    system.train()
    assert "backbone" not in system.parameter_groups()
    assert not any(module.training for module in system.model.backbone.modules())
    before = {name: value.clone() for name, value in system.model.backbone.state_dict().items()}
    system(system.prepare(frames_of(video_of(9), 0, 3), train=True)).loss.backward()
    assert all(p.grad is None for p in system.model.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in system.model.backbone.state_dict().items())


def test_weights_of_another_detector_are_refused(system_of: Make) -> None:
    system, single = system_of(), system_of(SINGLE, seed=5)
    state = single.model.state_dict()
    system.model.load_detector(state)
    assert torch.equal(system.model.backbone.conv1.weight, single.model.backbone.conv1.weight)
    del state["backbone.conv1.weight"]
    with pytest.raises(ValueError, match=r"missing \['backbone.conv1.weight'\]"):
        system.model.load_detector(state)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
def test_what_is_compiled_is_what_runs(system_of: Make, images: torch.Tensor) -> None:
    """`fit.compile` compiles calls of modules; the backbone's two parts are methods."""
    import copy

    system = system_of()
    numbers = [[0, 5, 9]] * 2
    expected = features(system.model, images, numbers)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for network in system.networks():
        network.compile(backend="eager")
    torch.testing.assert_close(features(system.model, images, numbers), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3
    assert not torch._dynamo.utils.counters["graph_break"]
    assert not any("_parts" in name for name in system.state_dict())
    # A copy, as the moving average of weights is one, runs on its own weights.
    twin = copy.deepcopy(system_of())
    with torch.no_grad():
        twin.model.backbone.conv1.weight.zero_()
    assert not torch.equal(twin.model.low(images[:, 0]), system.model.low(images[:, 0]))
    torch._dynamo.reset()


# --- settings ---------------------------------------------------------------------------------


@pytest.fixture
def sections() -> dict[str, Any]:
    from pathlib import Path

    import yaml

    params = yaml.safe_load((Path(__file__).parents[2] / "params.tiny.yaml").read_text())
    return {
        "model": params["lsts_model"],
        "data": params["lsts_data"],
        "methods": params["lsts_methods"],
        **params["lsts_train"],
    }


def test_a_stage_reads_the_frames_that_its_method_needs(sections: dict[str, Any]) -> None:
    config = validate(TrainConfig, {**sections, "method": "lsts"}, "test")
    assert config.data.num_frames == 3
    assert validate(TrainConfig, config.model_dump(), "again") == config
    hold = validate(TrainConfig, {**sections, "method": "hold"}, "test")
    assert hold.data.num_frames == 1
    assert hold.data.frames is not None
    assert hold.data.frames.schedule == "online"
    plain = {**sections["methods"]["lsts"], "key": "plain", "interval": 6}
    config = validate(TrainConfig, {**sections, "methods": {"dfa": plain}, "method": "dfa"}, "test")
    assert (config.data.num_frames, config.data.frames.interval) == (2, 6)
    deep = {**sections, "data": {**sections["data"], "num_frames": 5}, "method": "lsts"}
    assert validate(TrainConfig, deep, "test").data.num_frames == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lstm"}, "'lstm' is none of methods"),
        ({"data": {"num_frames": 1}}, "3 trains a memory of depth 1"),
        ({"methods": {"interval": 1}}, "write `non_key: hold`"),
        ({"methods": {"alignment": "truth", "offsets": {"init": "grid", "radius": 1, "seed": 0}}}, "learned"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(sections: dict[str, Any], change, message: str) -> None:
    values = {**sections, "method": "lsts"}
    if "data" in change:
        values["data"] = values["data"] | change["data"]
    elif "methods" in change:
        values["methods"] = {"lsts": values["methods"]["lsts"] | change["methods"]}
    else:
        values |= change
    with pytest.raises(ConfigError, match=message):
        validate(TrainConfig, values, "test")


def test_variants_of_an_evaluation_have_names_of_their_own(sections: dict[str, Any]) -> None:
    shared = {name: sections[name] for name in ("model", "data", "methods")}
    values = {**shared, "method": "lsts", "seq_nms": False, "single": True}
    hold = sections["methods"]["hold"]
    assert validate(EvalConfig, {**values, "variants": {"held": hold}}, "test").variants["held"].non_key == "hold"
    with pytest.raises(ConfigError, match="must not be called single"):
        validate(EvalConfig, {**values, "variants": {"single": hold}}, "test")
