import copy

import pytest
import torch

from training.core.config import ConfigError, DataConfig, validate
from training.core.system import ClipBatch
from training.movinet.supernet_system import SupernetConfig, SupernetSystem

DATA = {
    "num_frames": 4, "sampling": "dense", "batch_size": 3,
    "transform": {
        "size": 16, "train_crop": "random", "eval_short_side": 16, "flip": False, "normalise": "unit",
    },
}  # fmt: skip


@pytest.fixture
def make_system(small_space):
    def make(**changes) -> SupernetSystem:
        values = {
            "space": small_space.config.model_dump(), "variant": "stream", "dropout": 0.2, "drop_path": 0.1,
            "norm_eps": 1e-3, "norm_momentum": 0.1, "label_smoothing": 0.1, "warmup": 0.25, "sandwich": False,
            "near": None, **changes,
        }  # fmt: skip
        torch.manual_seed(0)
        config = validate(SupernetConfig, values, "supernet")
        return SupernetSystem(config, DataConfig.model_validate(DATA), ("a", "b", "c"))

    return make


def batch(clips: int = 3, views: int = 1) -> ClipBatch:
    return ClipBatch(
        torch.randn(clips, 3, 4 * views, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.arange(clips) % 3,
        tuple(map(str, range(clips))),
        torch.arange(clips),
        torch.ones(clips, dtype=torch.bool),
        torch.zeros(clips, 4),
        torch.zeros(clips, dtype=torch.bool),
    )


def loss_at(system: SupernetSystem, seed: int) -> float:
    torch.manual_seed(seed)
    return copy.deepcopy(system).train()(batch()).loss.item()


def test_members_depend_on_the_generator_that_the_loop_seeds(make_system):
    system = make_system()
    assert loss_at(system, 1) == loss_at(system, 1)
    assert len({loss_at(system, seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("sandwich", [False, True])
@pytest.mark.parametrize("memory", ["plain", "channels last"])
def test_all_parameters_get_gradients_and_training_learns(make_system, sandwich, memory):
    system = make_system(sandwich=sandwich, dropout=0.0, drop_path=0.0)
    if memory == "channels last":
        for parameter in system.parameters():
            if parameter.dim() in (4, 5):
                kind = torch.channels_last if parameter.dim() == 4 else torch.channels_last_3d
                parameter.data = parameter.data.contiguous(memory_format=kind)
    optimizer = torch.optim.SGD(system.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        torch.manual_seed(0)
        output = system.train()(batch())
        output.loss.backward()
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in system.parameters())
        assert output.loss.dtype == torch.float32
        losses.append(output.loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_warm_up_follows_the_steps(make_system):
    system = make_system()
    assert system.warmed_share == 1
    shares = []
    for step in (0, 10, 25, 99):
        system.on_step(step, 100)
        shares.append(system.warmed_share)
    assert shares[:3] == [0, 0.4, 1]
    assert shares[3] > 1
    system.on_step(0, 100)
    torch.manual_seed(0)
    system(batch())
    (choice,) = system.supernet._members
    assert len(choice.mixed_kernels) == 4
    cold = make_system(warmup=0)
    cold.on_step(0, 100)
    assert cold.warmed_share == 1


def test_prediction_is_the_largest_members_and_means_views(make_system):
    system = make_system().eval()
    child = system.supernet.child(system.space.largest_genotype())
    clips = batch(2)
    with torch.inference_mode():
        torch.testing.assert_close(
            system.predict(clips).scores_BK, child(clips.video_BCTHW).softmax(-1), rtol=1e-6, atol=1e-6
        )
        pair = batch(2, views=2)
        apart = [child(part).softmax(-1) for part in pair.video_BCTHW.split(4, dim=2)]
        torch.testing.assert_close(system.predict(pair).scores_BK, torch.stack(apart).mean(0))


def test_training_goes_on_after_an_evaluation(make_system):
    system = make_system(sandwich=True).eval()
    with torch.inference_mode():
        before = system.predict(batch()).scores_BK  # keeps the member's modules
    system.train()
    torch.manual_seed(0)
    system(batch()).loss.backward()
    assert all(p.grad is not None for p in system.parameters())
    with torch.inference_mode():
        after = system.eval().predict(batch()).scores_BK
    assert not torch.equal(before, after)  # its statistics have moved


def test_cost_is_the_largest_members(make_system):
    system = make_system()
    row = system.cost()["main"]
    child = system.supernet.child(system.space.largest_genotype())
    assert row.params == sum(p.numel() for p in child.parameters())
    assert row.params < sum(p.numel() for p in system.parameters())
    assert row.gmac > 0


def test_members_near_a_cost(make_system):
    near = {"kind": "params", "value": 12000, "tolerance": 0.1}
    system = make_system(near=near, warmup=0)
    for seed in range(5):
        torch.manual_seed(seed)
        system(batch())
    assert all(abs(system._budget.cost(choice.layout) / 12000 - 1) <= 0.1 for choice in system.supernet._members)
    with pytest.raises(ConfigError, match="Change the target"):
        make_system(near={**near, "value": 1e9})
