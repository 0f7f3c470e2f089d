import copy
import random

import pytest
import torch

from training.backbones.movinet import MoViNet
from training.backbones.movinet_layout import BASE, STREAM, Variant
from training.movinet.space import BlockGenes, Genotype, Space
from training.movinet.supernet import Choice, Supernet, warmed

CAUSAL_3D = Variant(True, "3d", "2plus3d", "silu", "sigmoid", "silu", positional=True)
VARIANTS = {"base": BASE, "stream": STREAM, "positional": CAUSAL_3D}


def make(space: Space, variant: Variant = STREAM) -> Supernet:
    torch.manual_seed(0)
    net = Supernet(space, variant, 5, dropout=0.0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            # ReZero and positions start at 0, where most weights have no effect and no gradient.
            if name.endswith((".scale", ".position")):
                parameter.fill_(0.7)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return net


def clips(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 4, 24, 24, generator=torch.Generator().manual_seed(1))


def genotypes(space: Space, count: int = 4) -> list[Genotype]:
    rng = random.Random(0)
    return [space.largest_genotype(), space.smallest_genotype(), *(space.sample(rng) for _ in range(count))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_member_is_its_child_exactly(small_space, variant):
    net = make(small_space, VARIANTS[variant]).eval()
    answers = []
    for genotype in genotypes(small_space):
        child = net.child(genotype)
        assert type(child) is MoViNet
        assert not child.training
        assert child.layout == small_space.layout(genotype)
        answers.append(net(clips(), genotype))
        assert torch.equal(answers[-1], child(clips()))
    # Control: members differ.
    assert len({tuple(answer.flatten().tolist()) for answer in answers}) == len(answers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_and_statistics_are_those_of_the_child(small_space, variant):
    for genotype in genotypes(small_space, 2):
        net = make(small_space, VARIANTS[variant]).train()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        child = net.child(genotype).train()
        for model, inputs in ((net, (clips(), genotype)), (child, (clips(),))):
            model(*inputs).square().sum().backward()
        member = net._member(Choice(small_space.layout(genotype)))
        grads = {name: p.grad for name, p in net.net.named_parameters()}
        assert all(grad is not None for grad in grads.values())
        for piece in member.parameters:
            torch.testing.assert_close(piece.view(grads[piece.source]), child.get_parameter(piece.name).grad)
        # Outside of the slices: zeros. So everything of the gradients is in the slices.
        total = sum(grad.abs().double().sum() for grad in grads.values())
        inside = sum(p.grad.abs().double().sum() for p in child.parameters())
        torch.testing.assert_close(total, inside)
        now = net.state_dict()
        for piece in member.buffers:
            assert torch.equal(piece.view(now[f"net.{piece.source}"]), child.get_buffer(piece.name)), piece.name
        touched = {f"net.{piece.source}" for piece in member.buffers}
        assert all(torch.equal(now[name], before[name]) for name in set(before) - touched)


def test_weights_that_are_not_chosen_get_zeros(small_space):
    net = make(small_space)
    net(clips(), small_space.smallest_genotype()).sum().backward()
    unused = [p for name, p in net.named_parameters() if ".options.3x3x3." in name or ".1.scale" in name]
    assert unused
    assert all(p.grad is not None and not p.grad.any() for p in unused)
    used = net.net.blocks[0][0].depthwise.options["5x1x1"].temporal.weight.grad
    width = small_space.layout(small_space.smallest_genotype()).blocks[0].layers[0].expand
    assert used[:width].any()
    assert len(used) > width
    assert not used[width:].any()


def test_halves_of_a_gate_are_sliced_each_for_itself(small_space):
    """The input of a stream's gate is [cumulative mean; frame's mean]: leading slices would mix them up."""
    net = make(small_space).eval()
    genotype = gated_smallest(small_space)
    own = net.net.blocks[0][0].gate.reduce.weight
    weight = net.child(genotype).blocks[0][0].gate.reduce.weight
    hidden, width = weight.shape[0], weight.shape[1] // 2
    half = own.shape[1] // 2
    assert torch.equal(weight, torch.cat([own[:hidden, :width], own[:hidden, half : half + width]], dim=1))
    assert not torch.equal(weight, own[:hidden, : 2 * width])


def gated_smallest(space: Space) -> Genotype:
    smallest = space.smallest_genotype()
    gate = space.config.gates.index(True)
    blocks = [
        BlockGenes(b.width, tuple(type(g)(g.kernel, g.expansion, gate) for g in b.layers)) for b in smallest.blocks
    ]
    return Genotype(smallest.stem, smallest.project, tuple(blocks))


def test_depth_is_a_choice(small_space):
    net = make(small_space).eval()
    deep = small_space.largest_genotype()
    first = deep.blocks[0]
    shallow = Genotype(deep.stem, deep.project, (BlockGenes(first.width, first.layers[:1]), *deep.blocks[1:]))
    assert not torch.equal(net(clips(), deep), net(clips(), shallow))
    # With α = 0 the layer that differs is the identity.
    with torch.no_grad():
        net.net.blocks[0][1].scale.zero_()
    torch.testing.assert_close(net(clips(), deep), net(clips(), shallow))


def test_state_dict_round_trip(small_space):
    net, other = make(small_space).eval(), Supernet(small_space, STREAM, 5, dropout=0.0).eval()
    genotype = small_space.sample(random.Random(3))
    assert not torch.equal(net(clips(), genotype), other(clips(), genotype))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(clips(), genotype), other(clips(), genotype))
    copied = copy.deepcopy(net)
    with torch.no_grad():
        next(net.parameters()).zero_()
    assert torch.equal(copied(clips(), genotype), other(clips(), genotype))


def test_move_to_another_type_takes_the_statistics_along(small_space):
    net, genotype = make(small_space).eval(), small_space.sample(random.Random(3))
    before = net(clips(), genotype)
    torch.testing.assert_close(net.double()(clips().double(), genotype), before.double(), rtol=1e-4, atol=1e-4)


def test_sandwich_accumulates_gradients(small_space):
    net = make(small_space)
    for genotype in (small_space.largest_genotype(), small_space.smallest_genotype()):
        net(clips(), genotype).sum().backward()
    together = [p.grad.clone() for p in net.parameters()]
    apart = []
    for genotype in (small_space.largest_genotype(), small_space.smallest_genotype()):
        fresh = make(small_space)
        fresh(clips(), genotype).sum().backward()
        apart.append([p.grad for p in fresh.parameters()])
    for total, one, two in zip(together, *apart, strict=True):
        torch.testing.assert_close(total, one + two, rtol=1e-3, atol=1e-4)


def test_net_that_is_no_member_is_refused(small_space):
    net = make(small_space)
    layout = small_space.largest()
    with pytest.raises(ValueError, match="no member of its space"):
        net(clips(), Choice(layout.scaled(2)))
    with pytest.raises(ValueError, match="mixture"):
        net.child(Choice(layout, frozenset({"blocks.0.0"})))
    no_gates = Variant(True, "2plus1d", "none", "silu", "sigmoid", "silu")
    with pytest.raises(ValueError, match="no squeeze-excitation"):
        Supernet(small_space, no_gates, 5)


# --- warm-up ----------------------------------------------------------------------------------------


def test_warm_up_starts_with_means_and_largest_widths(small_space):
    rng = random.Random(0)
    choice = warmed(small_space, small_space.smallest_genotype(), 0.0, rng)
    names = {f"blocks.{i}.{j}" for i in range(2) for j in range(2)}
    assert choice.mixed_kernels == choice.mixed_gates == names
    largest = small_space.largest()
    assert (choice.layout.stem, choice.layout.project) == (largest.stem, largest.project)
    for block, wide in zip(choice.layout.blocks, largest.blocks, strict=True):
        assert block.width == wide.width
        assert [layer.expand for layer in block.layers] == [layer.expand for layer in wide.layers]


def test_warm_up_ends_with_the_member(small_space):
    genotype = small_space.sample(random.Random(1))
    rng = random.Random(0)
    state = rng.getstate()
    assert warmed(small_space, genotype, 1.0, rng) == Choice(small_space.layout(genotype))
    assert rng.getstate() == state


def test_share_of_replaced_choices_falls_linearly(small_space):
    rng, genotype = random.Random(0), small_space.smallest_genotype()
    for share in (0.25, 0.75):
        drawn = [warmed(small_space, genotype, share, rng) for _ in range(600)]
        mixed = sum("blocks.0.0" in choice.mixed_kernels for choice in drawn) / len(drawn)
        wide = sum(choice.layout.stem == small_space.largest().stem for choice in drawn) / len(drawn)
        both = sum("blocks.0.0" in c.mixed_kernels and c.layout.stem == 24 for c in drawn) / len(drawn)
        assert mixed == pytest.approx(1 - share, abs=0.08)
        assert wide == pytest.approx(1 - share, abs=0.08)
        assert both == pytest.approx((1 - share) ** 2, abs=0.08)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mixtures_are_the_means_of_their_options(small_space, variant):
    net = make(small_space, VARIANTS[variant]).eval()
    smallest = gated_smallest(small_space)
    layout = small_space.layout(smallest)
    width = layout.blocks[0].layers[0].expand
    features = torch.randn(2 * 4, width, 8, 8)
    mixed = net._member(Choice(layout, frozenset({"blocks.0.0"}), frozenset({"blocks.0.0"})))
    values = {piece.name: piece.view(net.net.get_parameter(piece.source)) for piece in mixed.parameters}
    values |= {piece.name: piece.view(net.net.get_buffer(piece.source)) for piece in mixed.buffers}
    prefix = "blocks.0.0.depthwise."
    part = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    mean = torch.func.functional_call(mixed.net.blocks[0][0].depthwise.eval(), part, (features, 2, "", None, None))
    apart = []
    for index, kernel in enumerate(small_space.kernels):
        genes = smallest.blocks[0].layers[0]
        blocks = (BlockGenes(0, (type(genes)(index, genes.expansion, genes.gate),)), *smallest.blocks[1:])
        child = net.child(Genotype(smallest.stem, smallest.project, blocks))
        assert child.blocks[0][0].depthwise.temporal is None or kernel[0] > 1
        apart.append(child.blocks[0][0].depthwise(features, 2, "", None, None))
    torch.testing.assert_close(mean, torch.stack(apart).mean(0))
    assert not torch.allclose(apart[0], apart[1])
    # Gates: half of the frames' own, half of the gated ones.
    gate = "blocks.0.0.gate."
    part = {name.removeprefix(gate): value for name, value in values.items() if name.startswith(gate)}
    half = torch.func.functional_call(
        mixed.net.blocks[0][0].gate, part, (features, 2, torch.zeros(2, dtype=torch.int64), "", None, None)
    )
    full = net.child(smallest).blocks[0][0].gate(features, 2, torch.zeros(2, dtype=torch.int64), "", None, None)
    torch.testing.assert_close(half, (features + full) / 2)


def test_warm_up_choices_can_be_trained(small_space):
    net, rng = make(small_space).train(), random.Random(0)
    for share in (0.0, 0.5):
        net(clips(), warmed(small_space, small_space.sample(rng), share, rng)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
