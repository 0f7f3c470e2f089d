"""The operator against its definition, and the facts that follow from it (§12 of the specification, 1 to 8 and 10)."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from training.lsts.sampling import (
    Canvas,
    Window,
    bilinear_weights,
    gather_bilinear,
    lay_out_memory,
    sample_factorised,
    sample_reference,
)

HEIGHT, WIDTH = 7, 9


def window_of(offsets):
    low, high = offsets.detach().floor().amin(0).tolist(), (offsets.detach().floor().amax(0) + 1).tolist()
    return Window(*(int(min(v, 0)) for v in low), *(int(max(v, 0)) for v in high))


def factorised(memory, descriptors, query, offsets, *, block=16, border="zero"):
    canvas = Canvas(*query.shape[-2:], window_of(offsets), block)
    laid_out = lay_out_memory(memory, canvas), lay_out_memory(descriptors, canvas)
    return sample_factorised(*laid_out, query, offsets, canvas, border=border, shares=True)


def by_grid_sample(memory, descriptors, query, offsets):
    """The third implementation: `grid_sample` at normalised coordinates."""
    frames, _, height, width = query.shape
    y, x = torch.meshgrid(*(torch.arange(n, dtype=query.dtype) for n in (height, width)), indexing="ij")
    values, scores = [], []
    for dx, dy in offsets.unbind():
        grid = torch.stack([(x + dx) * 2 / (width - 1) - 1, (y + dy) * 2 / (height - 1) - 1], dim=-1)
        both = [
            F.grid_sample(m.expand(frames, -1, -1, -1), grid.expand(frames, -1, -1, -1), align_corners=True)
            for m in (memory, descriptors)
        ]
        values.append(both[0])
        scores.append((both[1] * query).sum(1))
    share = torch.stack(scores, 1).softmax(1)
    return (torch.stack(values, 1) * share[:, :, None]).sum(1), share


def draw(memories=1, frames=1, locations=6, channels=5, embed=4, seed=0, spread=1.5, size=(HEIGHT, WIDTH)):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    offsets = (torch.randn(locations, 2, generator=generator, dtype=torch.float64) * spread).requires_grad_()
    return normal(memories, channels, *size), normal(memories, embed, *size), normal(frames, embed, *size), offsets


def gradients(form, inputs, seed=1):
    aligned, share = form(*inputs)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(aligned.shape, generator=generator).to(aligned.dtype)
    return aligned, share, torch.autograd.grad((aligned * weight).sum(), inputs)


def apart(one, other):
    return max(float((a - b).detach().abs().max()) for a, b in zip(one, other, strict=True))


# --- 1: three implementations -----------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 4, 16, 100])
@pytest.mark.parametrize("frames", [1, 3])
def test_three_forms_agree(block, frames):
    inputs = draw(frames=frames)
    results = [
        gradients(form, inputs) for form in (sample_reference, by_grid_sample, lambda *i: factorised(*i, block=block))
    ]
    for aligned, share, grads in results[1:]:
        assert apart([aligned, share], results[0][:2]) < 1e-13
        assert apart(grads, results[0][2]) < 1e-12


def test_a_moved_offset_would_be_noticed():
    """Control of the tolerances above: a ten-millionth of a cell is seen."""
    memory, descriptors, query, offsets = draw()
    moved = (offsets + 1e-7).detach()
    assert apart(factorised(memory, descriptors, query, moved), sample_reference(*draw())) > 1e-9


def test_offset_gradients_are_finite_differences():
    memory, descriptors, query, offsets = (x.detach() for x in draw(frames=2, locations=4))
    inputs = (memory, descriptors, query, offsets.requires_grad_())
    weight = torch.randn(2, 5, HEIGHT, WIDTH, dtype=torch.float64)

    def loss(table):
        return float((factorised(memory, descriptors, query, table)[0] * weight).sum())

    (grad,) = torch.autograd.grad((factorised(*inputs)[0] * weight).sum(), offsets)
    step = 1e-5
    for index in range(offsets.numel()):
        move = torch.zeros(offsets.numel(), dtype=torch.float64)
        move[index] = step
        move = move.view_as(offsets)
        with torch.no_grad():
            difference = (loss(offsets + move) - loss(offsets - move)) / (2 * step)
        assert float(grad.flatten()[index]) == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("border", ["zero", "mask"])
def test_gradcheck(border):
    inputs = draw(frames=2, locations=3, channels=2, embed=2, size=(3, 4))
    assert torch.autograd.gradcheck(lambda *i: factorised(*i, block=3, border=border), inputs)


def test_second_derivatives():
    inputs = draw(locations=2, channels=2, embed=2, size=(2, 3))
    assert torch.autograd.gradgradcheck(lambda *i: factorised(*i, block=4)[0], inputs)


def test_window_may_be_larger_than_needed_and_maps_smaller_than_it():
    inputs = draw(locations=4, size=(3, 2), spread=3.0)
    expected = gradients(sample_reference, inputs)
    for more in (0, 1, 5):
        x0, y0, x1, y1 = window_of(inputs[3])
        canvas = Canvas(3, 2, Window(x0 - more, y0, x1, y1 + more), 8)

        def form(memory, descriptors, query, offsets, canvas=canvas):
            laid_out = lay_out_memory(memory, canvas), lay_out_memory(descriptors, canvas)
            return sample_factorised(*laid_out, query, offsets, canvas, shares=True)

        found = gradients(form, inputs)
        assert apart(found[:2], expected[:2]) < 1e-13
        assert apart(found[2], expected[2]) < 1e-12


def test_frames_of_several_memories():
    """Two frames per memory; each has its own memory's result."""
    memory, descriptors, query, offsets = draw(memories=2, frames=4)
    found = factorised(memory, descriptors, query, offsets)
    for row in range(4):
        own = row // 2
        alone = sample_reference(memory[own, None], descriptors[own, None], query[row, None], offsets)
        assert apart([x[row, None] for x in found], alone) < 1e-13
    swapped = sample_reference(memory[1, None], descriptors[1, None], query[0, None], offsets)
    assert apart([found[0][0, None]], swapped[:1]) > 0.1
    with pytest.raises(ValueError, match="3 frames cannot share 2 memories"):
        factorised(memory, descriptors, query[:3], offsets)


# --- 2 to 5: what comes out of equal maps -----------------------------------------------------


@pytest.mark.parametrize("form", [sample_reference, factorised])
def test_one_location_at_the_cell_itself_is_the_identity(form):
    memory, descriptors, query, _ = draw(frames=1)
    aligned, share = form(memory, descriptors, query, torch.zeros(1, 2, dtype=torch.float64))
    assert torch.equal(aligned, memory)
    assert torch.equal(share, torch.ones_like(share))
    moved, _ = form(memory, descriptors, query, torch.full((1, 2), 0.1, dtype=torch.float64))
    assert not torch.equal(moved, memory)


def test_constant_memory_is_kept_inside_and_shrinks_at_the_border():
    """Locations outside have similarity 0 and value 0, and keep their share."""
    _, descriptors, query, offsets = draw(locations=12, size=(15, 17))
    memory = torch.full((1, 3, 15, 17), 2.0, dtype=torch.float64)
    edge = math.floor(float(offsets.detach().abs().max())) + 1
    aligned = factorised(memory, descriptors, query, offsets)[0].detach()
    inner = aligned[..., edge:-edge, edge:-edge]
    assert inner.numel() > 0
    assert float((inner - 2).abs().max()) < 1e-14
    assert float(aligned[0, 0, 0, 0]) < 1.9
    assert float(aligned.max()) < 2 + 1e-14


def sharp(memory, squared_norm):
    """Descriptors of a given squared norm, one direction per cell."""
    return F.normalize(memory, dim=1) * math.sqrt(squared_norm)


def test_identical_frames_return_the_same_map_only_where_similarity_is_sharp():
    """The operator mixes neighbours: equal frames are no identity in general."""
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(1, 64, 10, 12, generator=generator, dtype=torch.float64)
    side = torch.arange(-1.0, 2.0, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    errors = []
    for squared_norm in (1, 10, 40, 100):
        embedded = sharp(memory, squared_norm)
        aligned, _ = factorised(memory, embedded, embedded, grid)
        errors.append(float((aligned - memory).abs().max()))
    assert errors[0] > 1
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 1e-6
    assert errors[3] < 1e-12


def test_identical_frames_without_the_cell_itself_among_the_locations():
    """Control: however sharp, what is not looked at does not come back."""
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(1, 64, 10, 12, generator=generator, dtype=torch.float64)
    offsets = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    embedded = sharp(memory, 100)
    assert float((factorised(memory, embedded, embedded, offsets)[0] - memory).abs().mean()) > 0.5


# --- 6 to 8: what the operator commutes with --------------------------------------------------


def test_a_translation_is_found():
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(1, 64, 12, 14, generator=generator, dtype=torch.float64)
    side = torch.arange(-2.0, 3.0, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    shifted = memory.roll((-1, 2), dims=(2, 3))  # shifted(p) = memory(p + d), d = (−2, 1)
    aligned, share = factorised(memory, sharp(memory, 200), sharp(shifted, 200), grid)
    inside = (..., slice(2, -2), slice(2, -2))
    assert float((aligned - shifted)[inside].abs().max()) < 1e-12
    best = grid[share[inside].argmax(1)]
    assert best.unique(dim=1).shape[1] >= 1
    assert bool((best == torch.tensor([-2.0, 1.0], dtype=torch.float64)).all())
    # Control: without that displacement the map does not come back.
    others = grid[~((grid[:, 0] == -2) & (grid[:, 1] == 1))]
    missed, _ = factorised(memory, sharp(memory, 200), sharp(shifted, 200), others)
    assert float((missed - shifted)[inside].abs().mean()) > 0.5


def test_equivariance_in_the_interior():
    memory, descriptors, query, offsets = draw(size=(16, 16), spread=1.0)
    aligned, _ = factorised(memory, descriptors, query, offsets)
    rolled, _ = factorised(*(x.roll((2, 3), dims=(2, 3)) for x in (memory, descriptors, query)), offsets)
    edge = math.floor(float(offsets.detach().abs().max())) + 1
    inside = (..., slice(edge + 2, -edge), slice(edge + 3, -edge))
    difference = (aligned.roll((2, 3), dims=(2, 3)) - rolled).detach()
    assert float(difference[inside].abs().max()) < 1e-13
    assert float(difference.abs().max()) > 0.1


def test_order_and_duplicates_of_locations():
    memory, descriptors, query, offsets = draw()
    aligned, share = factorised(memory, descriptors, query, offsets)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted, permuted_share = factorised(memory, descriptors, query, offsets[order])
    assert apart([aligned, share[:, order]], [permuted, permuted_share]) < 1e-14
    doubled, _ = factorised(memory, descriptors, query, offsets.repeat(2, 1))
    assert apart([aligned], [doubled]) < 1e-14
    one_doubled, _ = factorised(memory, descriptors, query, torch.cat([offsets, offsets[:1]]))
    assert apart([aligned], [one_doubled]) > 1e-3
    assert apart([share.sum(1)], [torch.ones_like(share[:, 0])]) < 1e-14


def test_linear_in_the_memory_and_within_its_values():
    memory, descriptors, query, offsets = draw(frames=2)
    other = torch.randn_like(memory)
    parts = [factorised(m, descriptors, query, offsets)[0] for m in (memory, other, 2 * memory - 3 * other)]
    assert apart([2 * parts[0] - 3 * parts[1]], [parts[2]]) < 1e-13
    assert float(parts[0].detach().abs().max()) <= float(memory.detach().abs().max())


# --- 9, 10: gradients of the offsets ----------------------------------------------------------


def test_right_derivative_at_whole_offsets():
    """Floor and fraction: what the loss does to the right. `grid_sample` agrees off the integers, not on them."""
    memory, descriptors, query, _ = (x.detach() for x in draw(size=(16, 23), channels=12, embed=6))
    side = torch.arange(-2.0, 3.0, dtype=torch.float64)
    whole = torch.cartesian_prod(side, side)
    weight = torch.randn(1, 12, 16, 23, dtype=torch.float64)

    def gradient(form, table):
        table = table.clone().requires_grad_()
        return torch.autograd.grad((form(memory, descriptors, query, table)[0] * weight).sum(), table)[0]

    reference = gradient(sample_reference, whole)
    assert apart([gradient(factorised, whole)], [reference]) < 1e-11
    step = 1e-7
    with torch.no_grad():
        base = (sample_reference(memory, descriptors, query, whole)[0] * weight).sum()
        for location, axis in ((0, 0), (7, 1), (24, 0)):
            moved = whole.clone()
            moved[location, axis] += step
            right = ((sample_reference(memory, descriptors, query, moved)[0] * weight).sum() - base) / step
            assert float(reference[location, axis]) == pytest.approx(float(right), rel=1e-4, abs=1e-4)
    fractional = whole + 0.3
    assert apart([gradient(by_grid_sample, fractional)], [gradient(factorised, fractional)]) < 1e-11
    assert apart([gradient(by_grid_sample, whole)], [reference]) > 0.1


def hat_weights(offsets, window):
    x = torch.arange(window.x0, window.x1 + 1, dtype=offsets.dtype)
    y = torch.arange(window.y0, window.y1 + 1, dtype=offsets.dtype)
    parts = [(1 - (places - offsets[:, axis, None]).abs()).relu() for axis, places in ((1, y), (0, x))]
    return (parts[0][:, :, None] * parts[1][:, None]).flatten(1)


def test_hat_functions_would_never_leave_the_grid():
    side = torch.arange(-4.0, 5.0)
    grid = torch.cartesian_prod(side, side).requires_grad_()
    window = window_of(grid)
    weight = torch.randn(81, window.rows * window.columns)
    assert torch.equal(hat_weights(grid, window), bilinear_weights(grid, window))
    (by_hat,) = torch.autograd.grad((hat_weights(grid, window) * weight).sum(), grid)
    assert torch.count_nonzero(by_hat) == 0
    (ours,) = torch.autograd.grad((bilinear_weights(grid, window) * weight).sum(), grid)
    assert torch.count_nonzero(ours) == ours.numel()


def test_twice_the_pixels_twice_the_gradient():
    memory, descriptors, query, offsets = draw()

    def gradient(copies):
        maps = [x.repeat(copies, 1, 1, 1) for x in (memory, descriptors, query)]
        return torch.autograd.grad(factorised(*maps, offsets)[0].square().sum(), offsets)[0]

    assert apart([gradient(2)], [2 * gradient(1)]) < 1e-11
    assert float(gradient(1).abs().min()) > 0


# --- options ----------------------------------------------------------------------------------


def test_masked_border_leaves_locations_outside_out():
    inputs = draw(locations=5)
    found = gradients(lambda *i: factorised(*i, border="mask"), inputs)
    expected = gradients(lambda *i: sample_reference(*i, border="mask"), inputs)
    assert apart(found[:2], expected[:2]) < 1e-13
    assert apart(found[2], expected[2]) < 1e-12
    memory = torch.ones(1, 1, HEIGHT, WIDTH, dtype=torch.float64)
    descriptors, query = (x.detach() for x in inputs[1:3])
    table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-2.0, 1.5]], dtype=torch.float64)
    aligned, share = factorised(memory, descriptors, query, table, border="mask")
    assert apart([aligned], [memory]) < 1e-15
    assert float(share[0, 1, :, -1].abs().max()) == 0
    shrunk, _ = factorised(memory, descriptors, query, table)
    assert float(shrunk.min()) < 0.9


def test_where_all_locations_lie_outside_none_is_left_out():
    memory, descriptors, query, _ = draw()
    table = torch.tensor([[3.5, 0.0], [4.0, 0.0]], dtype=torch.float64)
    aligned, share = factorised(memory, descriptors, query, table, border="mask")
    assert bool(torch.isfinite(aligned).all())
    assert bool(torch.isfinite(share).all())
    assert apart([share.sum(1)], [torch.ones_like(share[:, 0])]) < 1e-14
    # At the right border similarities of both are 0.
    assert torch.equal(share[0, :, :, -1], torch.full((2, HEIGHT), 0.5, dtype=torch.float64))


def test_gather_is_bilinear_with_zeros():
    maps = torch.arange(12.0, dtype=torch.float64).view(1, 1, 3, 4)

    def at(x, y):
        point = [torch.full((1, 1, 1), float(v), dtype=torch.float64) for v in (x, y)]
        return float(gather_bilinear(maps, *point))

    assert at(1, 2) == 9
    assert at(1.25, 1) == 5.25
    assert at(1, 1.5) == 7
    assert at(3.5, 0) == 1.5  # half of 3, half of nothing
    assert at(-1, 0) == at(4, 0) == at(0, 3) == 0
    assert at(-0.25, 2) == 6


def test_low_precision_compares_in_fp32():
    """Large similarities in bf16: shares are those of fp32, and the values are of the memory's type."""
    memory, descriptors, query, offsets = (x.detach().float() for x in draw(embed=64, channels=16))
    memory, descriptors, query = memory.bfloat16(), descriptors.bfloat16() * 4, query.bfloat16()
    exact, share = factorised(memory.float(), descriptors.float(), query.float(), offsets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        aligned, found = factorised(memory, descriptors, query, offsets)
    assert aligned.dtype is torch.bfloat16
    assert found.dtype is torch.float32
    assert apart([found], [share]) < 1e-5
    assert apart([aligned.float()], [exact]) < 0.05
    rounded = (query * descriptors).sum(1)
    assert apart([rounded.float()], [(query.float() * descriptors.float()).sum(1)]) > 0.1


def test_gradients_in_low_precision():
    inputs = [x.detach().float().requires_grad_() for x in draw(embed=8)]
    expected = gradients(factorised, inputs)[2]

    def form(memory, descriptors, query, offsets):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return factorised(memory.bfloat16(), descriptors, query, offsets)

    found = gradients(form, inputs)[2]
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype is torch.float32
        assert float((ours - exact).abs().max() / exact.abs().max()) < 0.02


def test_nothing_waits_for_the_device():
    """Meta tensors have no values: whatever would read one fails."""
    canvas = Canvas(HEIGHT, WIDTH, Window(-3, -3, 3, 3), 16)
    memory, descriptors, query, offsets = (x.detach().to("meta").requires_grad_() for x in draw(frames=2))
    laid_out = lay_out_memory(memory, canvas), lay_out_memory(descriptors, canvas)
    aligned, _ = sample_factorised(*laid_out, query, offsets, canvas, border="mask")
    torch.autograd.grad(aligned.sum(), (memory, descriptors, query, offsets))
    with pytest.raises(NotImplementedError, match="meta"):
        offsets[offsets > 0]


@pytest.mark.slow
def test_compiles_into_one_graph():
    inputs = draw(frames=2, locations=3, channels=3, embed=2)
    canvas = Canvas(HEIGHT, WIDTH, window_of(inputs[3]), 16)

    def form(memory, descriptors, query, offsets):
        laid_out = lay_out_memory(memory, canvas), lay_out_memory(descriptors, canvas)
        return sample_factorised(*laid_out, query, offsets, canvas, border="mask", shares=True)

    expected = gradients(form, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while tracing
        found = gradients(torch.compile(form, fullgraph=True, backend="aot_eager"), inputs)
    assert apart(found[:2], expected[:2]) < 1e-14
    assert apart(found[2], expected[2]) < 1e-13
