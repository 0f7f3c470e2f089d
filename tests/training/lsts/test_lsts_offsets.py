"""The table of displacements: its first values, what the host knows of it, and that training moves it."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from training.lsts.config import AlignmentConfig, OffsetsConfig
from training.lsts.fusion import Alignment
from training.lsts.offsets import LAG, MARGIN, Offsets, dead, touched_shifts, usage
from training.lsts.sampling import Window, bilinear_weights

GRID = OffsetsConfig(init="grid", radius=4, seed=0, learned=True, clamp=8)
GAUSSIAN = OffsetsConfig(init="gaussian", count=40, sigma=1, seed=0, learned=True, clamp=8)


def with_table(rows, config=GAUSSIAN):
    offsets = Offsets(config.model_copy(update={"init": "gaussian", "count": len(rows), "sigma": 1, "radius": None}))
    with torch.no_grad():
        offsets.table.copy_(torch.tensor(rows))
    offsets.refresh()
    return offsets


def test_grid_counts_x_in_the_outer_loop():
    table = Offsets(GRID).table.tolist()
    assert table[:3] == [[-4, -4], [-4, -3], [-4, -2]]
    assert table[9] == [-3, -4]
    assert len(table) == 81
    assert table[40] == [0, 0]
    assert Offsets(GRID.model_copy(update={"radius": 0})).table.tolist() == [[0, 0]]


def test_gaussian_is_a_function_of_its_seed():
    torch.manual_seed(1)
    first = Offsets(GAUSSIAN).table
    torch.manual_seed(2)
    assert torch.equal(first, Offsets(GAUSSIAN).table)
    assert not torch.equal(first, Offsets(GAUSSIAN.model_copy(update={"seed": 1})).table)
    many = Offsets(GAUSSIAN.model_copy(update={"count": 20000, "sigma": 1.5})).table.detach()
    assert many.std(dim=0).tolist() == pytest.approx([1.5, 1.5], rel=0.03)
    assert float(Offsets(GAUSSIAN.model_copy(update={"clamp": 0.5})).table.detach().abs().max()) == 0.5


def test_fixed_offsets_are_not_trained():
    assert Offsets(GAUSSIAN).table.requires_grad
    assert not Offsets(GAUSSIAN.model_copy(update={"learned": False})).table.requires_grad


# --- what the host knows ----------------------------------------------------------------------


def test_window_holds_all_corners():
    offsets = with_table([[-1.2, 0.3], [2.0, 0.0]])
    # While learning: corners, and half a cell more on each side; (0, 0) is always inside.
    assert offsets.window == Window(-2, -1, 3, 1)
    with torch.no_grad():
        assert offsets.window == Window(-2, 0, 2, 1)
    fixed = with_table([[-1.2, 0.3], [2.0, 0.0]], GAUSSIAN.model_copy(update={"learned": False}))
    assert fixed.window == Window(-2, 0, 2, 1)


@pytest.mark.parametrize("learning", [True, False])
def test_weights_of_the_window_sum_to_one(learning):
    """Over many tables, moved within the margin: no corner lies outside."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        offsets = with_table((torch.randn(7, 2, generator=generator) * 3).clamp(-8, 8).tolist())
        with torch.set_grad_enabled(learning):
            window = offsets.window
            table = offsets().detach()
            if learning:
                table = (table + MARGIN * 0.99 * (2 * torch.rand(7, 2, generator=generator) - 1)).clamp(-8, 8)
            assert float((bilinear_weights(table, window).sum(1) - 1).abs().max()) < 1e-5
    beyond = bilinear_weights(torch.tensor([[window.x1 + 1.5, 0.0]]), window)
    assert float(beyond.sum()) == 0


def test_table_that_left_the_window_is_brought_back_for_the_pass():
    """On a device the host learns of a step later: until then the result is exact for what was brought back."""
    offsets = with_table([[0.0, 0.0], [1.0, 1.0]])
    window = offsets.window
    with torch.no_grad():
        offsets.table += 5
    found = offsets().detach()
    assert float(found.max()) < window.x1
    assert float((bilinear_weights(found, window).sum(1) - 1).abs().max()) < 1e-5
    offsets.refresh()
    assert torch.equal(offsets().detach(), offsets.table.detach())
    assert offsets.window == Window(0, 0, 7, 7)


def test_steps_of_fused_optimizers_are_seen():
    """They leave the version counter as it was."""
    offsets = with_table([[0.0, 0.0]])
    optimizer = torch.optim.SGD(offsets.parameters(), lr=3.0, fused=True)
    offsets().sum().backward()
    optimizer.step()
    offsets.refresh()
    assert offsets.table.tolist() == [[-3, -3]]
    assert offsets.window == Window(-4, -4, 0, 0)


def test_a_table_that_is_not_finite_shows_in_the_result():
    offsets = with_table([[0.5, 0.0], [1.0, 0.0]])
    window = offsets.window
    with torch.no_grad():
        offsets.table[0, 0] = torch.nan
    offsets.clamp_()
    offsets.refresh()
    assert offsets.window == window
    weights = bilinear_weights(offsets(), window).detach()
    assert bool(weights[0].isnan().any())
    assert bool(weights[1].isfinite().all())


def test_clamp():
    offsets = with_table([[9.0, -20.0], [0.5, 7.5]])
    offsets.clamp_()
    assert offsets.table.tolist() == [[8.0, -8.0], [0.5, 7.5]]


def test_loading_and_moving_are_noticed():
    source = with_table([[6.0, 1.0], [-5.0, 0.0]])
    target = with_table([[0.0, 0.0], [0.0, 0.0]])
    target.load_state_dict(source.state_dict())
    target.refresh()
    assert target.window == source.window
    assert set(source.state_dict()) == {"table"}
    assert copy.deepcopy(source).window == source.window
    assert pickle.loads(pickle.dumps(source)).window == source.window
    assert source.double().table.dtype is torch.float64
    source.refresh()
    assert source.window == target.window


def test_without_values():
    with torch.device("meta"):
        offsets = Offsets(GAUSSIAN)
    offsets.refresh()
    assert offsets.table.is_meta
    assert offsets.window == Offsets(GAUSSIAN).window


# --- figures ----------------------------------------------------------------------------------


def test_statistics():
    figures = with_table([[-1.0, 0.5], [3.0, -0.5]]).statistics()
    assert {name: float(value) for name, value in figures.items()} == {"mean_x": 2, "mean_y": 0.5, "max": 3}


def test_twins_and_dead_locations():
    offsets = with_table([[0.0, 0.0], [1.0, 0.0], [0.0, 0.03], [1.0, 0.2]])
    assert offsets.twins().tolist() == [False, False, True, False]
    assert offsets.twins(0.3).tolist() == [False, False, True, True]
    share = torch.tensor([0.5, 0.4995, 0.0005, 0.0])[None, :, None, None].expand(2, 4, 3, 5)
    assert usage(share).tolist() == pytest.approx([0.5, 0.4995, 0.0005, 0])
    assert dead(usage(share)).tolist() == [False, False, True, True]


def test_touched_shifts():
    assert touched_shifts(Offsets(GRID).table) == 81
    assert touched_shifts(torch.tensor([[0.5, 0.5], [0.2, 0.0], [1.0, 1.0]])) == 4
    assert touched_shifts(torch.tensor([[0.5, -0.5]])) == 4
    assert 28 <= touched_shifts(Offsets(GAUSSIAN).table) <= 36


# --- training ---------------------------------------------------------------------------------


def one_step(weights):
    """Return how many of 81 offsets of the integer grid one step of gradient descent moves."""
    config = AlignmentConfig(
        offsets=GRID,
        embed_channels=8,
        similarity="softmax",
        border="zero",
        quality="code",
        low2high="code",
        memory_ratio=1.0,
    )
    torch.manual_seed(0)
    offsets = Offsets(GRID)
    alignment = Alignment(config, 16, offsets)
    before = offsets.table.detach().clone()
    memory, query, wanted = torch.randn(3, 1, 16, 12, 14).unbind()
    optimizer = torch.optim.SGD([*alignment.parameters(), *offsets.parameters()], lr=1e-3, momentum=0.9)
    fused, _ = alignment(alignment.key(memory), query)
    loss = (fused - wanted).square().sum()
    if weights is not None:
        # The same loss, with another matrix of weights.
        loss = (loss.detach() * weights(offsets.table, offsets.window)).sum()
    loss.backward()
    optimizer.step()
    return int((offsets.table.detach() != before).all(1).sum())


def test_offsets_leave_the_integer_grid():
    assert one_step(None) >= math.ceil(0.9 * 81)


def test_with_hat_functions_they_would_not():
    def hat(table, window):
        x, y = torch.arange(window.x0, window.x1 + 1.0), torch.arange(window.y0, window.y1 + 1.0)
        return (1 - (x - table[:, :1]).abs()).relu().mean() + (1 - (y - table[:, 1:]).abs()).relu().mean()

    assert one_step(hat) == 0


def test_offsets_are_shared_and_not_owned():
    offsets = Offsets(GAUSSIAN)
    config = AlignmentConfig(
        offsets=GAUSSIAN,
        embed_channels=4,
        similarity="softmax",
        border="zero",
        quality="code",
        low2high="code",
        memory_ratio=1.0,
    )
    model = nn.ModuleDict(
        {"offsets": offsets, "srfu": Alignment(config, 8, offsets), "dfa": Alignment(config, 8, offsets)}
    )
    assert model["srfu"].offsets is model["dfa"].offsets is offsets
    assert [name for name in model.state_dict() if "table" in name] == ["offsets.table"]
    copied = copy.deepcopy(model)
    assert copied["srfu"].offsets is copied["offsets"]


@pytest.mark.gpu
def test_a_training_step_does_not_wait():
    torch.cuda.init()
    offsets = Offsets(GAUSSIAN).cuda()
    offsets.refresh()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(40):
            with torch.no_grad():
                offsets.table += 0.03
            offsets.clamp_()
            offsets.refresh()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Slow enough to be followed: nothing was held back.
    moved = offsets.table.detach().cpu() - Offsets(GAUSSIAN).table.detach()
    assert float((moved - 1.2).abs().max()) < 1e-4
    assert float((bilinear_weights(offsets().detach(), offsets.window).sum(1) - 1).abs().max()) < 1e-5


@pytest.mark.gpu
def test_a_leap_is_held_back_until_it_is_known():
    offsets = Offsets(GAUSSIAN).cuda()
    offsets.refresh()
    window = offsets.window
    with torch.no_grad():
        offsets.table += 5
    offsets.clamp_()
    assert float(offsets.table.detach().max()) < window.x1 + window.y1
    for _ in range(LAG + 1):
        offsets.refresh()
    assert offsets.window.x1 >= window.x1
    assert float((bilinear_weights(offsets().detach(), offsets.window).sum(1) - 1).abs().max()) < 1e-5
