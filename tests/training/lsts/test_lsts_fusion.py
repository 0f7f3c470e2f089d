"""Descriptors, alignment and fusion against plain formulas; what stays the same bit for bit."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from training.core.cost import count_params
from training.lsts.config import AlignmentConfig, OffsetsConfig
from training.lsts.fusion import Alignment, Low2High, QualityNet, identity_where, warp
from training.lsts.offsets import Offsets
from training.lsts.sampling import sample_reference

CHANNELS = 64


def configured(**changes):
    offsets = {"init": "gaussian", "count": 6, "sigma": 1.5, "seed": 0, "learned": True, "clamp": 8}
    values = {
        "offsets": offsets,
        "embed_channels": 8,
        "similarity": "softmax",
        "border": "zero",
        "quality": "code",
        "low2high": "code",
        "memory_ratio": 1.0,
    }
    return AlignmentConfig(**{**values, **changes})


def built(config=None, channels=CHANNELS, scale=10.0):
    """An alignment in float64 whose weights and biases matter."""
    config = config or configured()
    torch.manual_seed(0)
    offsets = Offsets(config.offsets).double()
    alignment = Alignment(config, channels, offsets).double()
    with torch.no_grad():
        for parameter in alignment.parameters():
            if parameter.dim() == 1:
                parameter.normal_(std=0.3)
            elif parameter.dim() == 4:
                parameter.mul_(scale)
    return alignment


def maps(memories=1, frames=1, channels=CHANNELS, seed=0, size=(6, 7)):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, channels, *size, generator=generator, dtype=torch.float64) for n in (memories, frames))


def plainly(alignment, memory, query):
    """One frame: every layer on its own, the operator by definition, softmax over two logits."""
    net, config = alignment.quality, alignment.config
    temperature = 1.0 if alignment.temperature is None else alignment.temperature
    aligned, share = sample_reference(
        memory,
        alignment.embed_memory(memory),
        alignment.embed_query(query),
        alignment.offsets.table,
        similarity=config.similarity,
        temperature=temperature,
        border=config.border,
    )
    logits = [net.conv3(net.conv2(net.conv1(x))) for x in (query, aligned)]
    weight = torch.cat(logits, 1).softmax(1)
    return weight[:, :1] * query + weight[:, 1:] * aligned, weight[:, :1], share


def apart(*pairs):
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("quality", ["code", "paper"])
@pytest.mark.parametrize("similarity", ["softmax", "scaled", "cosine"])
@pytest.mark.parametrize("border", ["zero", "mask"])
def test_alignment_is_what_the_formulas_say(quality, similarity, border):
    """The shared and exchanged 1×1 convolutions included: values and all gradients."""
    alignment = built(configured(quality=quality, similarity=similarity, border=border))
    memory, query = (x.requires_grad_() for x in maps())
    parameters = [*alignment.parameters(), *alignment.offsets.parameters()]
    weight = torch.randn(1, CHANNELS, 6, 7, dtype=torch.float64)

    fused, aux = alignment(alignment.key(memory), query, shares=True)
    expected, own, share = plainly(alignment, memory, query)
    assert apart((fused, expected), (aux.own_N1HW, own), (aux.share_NKHW, share)) < 1e-12
    assert float(aux.own_N1HW.detach().std()) > 0.01
    found = torch.autograd.grad((fused * weight).sum(), [memory, query, *parameters])
    wanted = torch.autograd.grad((expected * weight).sum(), [memory, query, *parameters])
    # The last bias moves both logits alike, and has no gradient.
    for ours, theirs in zip(found, wanted, strict=True):
        assert apart((ours, theirs)) < 1e-10 * (1 + float(theirs.abs().max()))


def test_exchange_is_exact_only_for_1x1():
    """Control: a 3×3 convolution may not come before the alignment."""
    alignment = built(configured(quality="paper"))
    memory, query = maps(size=(9, 9))
    embedded = alignment.embed_memory(memory), alignment.embed_query(query)
    table = alignment.offsets.table

    def aligned(values):
        return sample_reference(values, *embedded, table)[0]

    conv = alignment.quality.conv1
    before = aligned(F.conv2d(memory, conv.weight, padding=1))
    after = F.conv2d(aligned(memory), conv.weight, padding=1)
    assert apart((before, after)) > 0.1
    one = conv.weight[:, :, :1, :1]
    assert apart((aligned(F.conv2d(memory, one)), F.conv2d(aligned(memory), one))) < 1e-12
    assert not alignment.commutes


def test_other_frames_together_are_as_one_at_a_time():
    alignment = built()
    memory, query = maps(frames=9)
    with torch.no_grad():
        key = alignment.key(memory)
        together, aux = alignment(key, query, shares=True)
        for row in range(9):
            alone, own = alignment(key, query[row, None], shares=True)
            assert apart((together[row, None], alone), (aux.share_NKHW[row, None], own.share_NKHW)) < 1e-12


def test_rows_say_which_memory():
    alignment = built()
    memory, query = maps(memories=2, frames=3)
    with torch.no_grad():
        key = alignment.key(memory)
        found, _ = alignment(key, query, torch.tensor([1, 0, 1]))
        for row, own in enumerate((1, 0, 1)):
            assert apart((found[row, None], plainly(alignment, memory[own, None], query[row, None])[0])) < 1e-12
        assert apart((found[:1], plainly(alignment, memory[:1], query[:1])[0])) > 1e-3
        with pytest.raises(ValueError, match="3 frames cannot share 2 memories"):
            alignment(key, query)
        with pytest.raises(ValueError, match="cannot be aligned"):
            alignment(key, query[:2, ..., :-1])


def test_equal_maps_count_one_half_each():
    net = QualityNet(CHANNELS, "code")
    one = maps()[0].float()
    logits = torch.cat([net(one), net(one.clone())], 1)
    assert torch.equal(logits.softmax(1), torch.full_like(logits, 0.5))
    different = torch.cat([net(one), net(one + 1)], 1).softmax(1)
    assert float((different - 0.5).detach().abs().max()) > 1e-6


@pytest.mark.parametrize("quality", ["code", "paper"])
def test_one_location_and_equal_frames_are_the_identity(quality):
    """One location at the cell itself: alignment and fusion return the map (§12, 3)."""
    offsets = OffsetsConfig(init="grid", radius=0, seed=0, learned=True, clamp=8)
    alignment = built(configured(offsets=offsets, quality=quality))
    memory, _ = maps()
    fused, aux = alignment(alignment.key(memory), memory)
    assert torch.equal(fused, memory)
    assert apart((aux.own_N1HW, torch.full((1, 1, 6, 7), 0.5, dtype=torch.float64))) < 1e-12


def test_equal_frames_are_not_reproduced_in_general_and_flags_keep_them():
    """§12, 5: the identity of training is a choice by flags, exact to the bit, per row of a batch."""
    alignment = built()
    memory, _ = maps(memories=2)
    memory.requires_grad_()
    fused, _ = alignment(alignment.key(memory), memory)
    assert apart((fused, memory)) > 0.1
    same = torch.tensor([True, False])
    chosen = identity_where(same, memory, fused)
    assert torch.equal(chosen[0], memory[0])
    assert torch.equal(chosen[1], fused[1])
    (grad,) = torch.autograd.grad(chosen[0].sum(), memory)
    assert torch.equal(grad[0], torch.ones_like(grad[0]))
    assert float(grad[1].abs().max()) == 0


def test_new_layers():
    """Widths and initial values for the published channels."""
    for layers, shapes in (
        ("code", [(256, 1024, 1, 1), (16, 256, 3, 3), (1, 16, 3, 3)]),
        ("paper", [(256, 1024, 3, 3), (16, 256, 1, 1), (1, 16, 1, 1)]),
    ):
        with torch.device("meta"):
            net = QualityNet(1024, layers)
        assert [tuple(conv.weight.shape) for conv in net.children()] == shapes
        assert [tuple(conv.bias.shape) for conv in net.children()] == [(256,), (16,), (1,)]
    for layers, shapes in (
        ("code", [(256, 1024, 1, 1), (256, 256, 3, 3), (1024, 256, 3, 3)]),
        ("paper", [(256, 1024, 3, 3), (512, 256, 3, 3), (1024, 512, 3, 3)]),
    ):
        with torch.device("meta"):
            net = Low2High(1024, 1024, layers)
        assert [tuple(m.weight.shape) for m in net if hasattr(m, "weight")] == shapes
        assert [type(m).__name__ for m in net] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d"]
    torch.manual_seed(0)
    net = QualityNet(256, "paper")
    assert float(net.conv1.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert all(float(conv.bias.detach().abs().max()) == 0 for conv in net.children())
    small = Low2High(32, 16, "code").double()
    assert small(maps(channels=32)[0]).shape == (1, 16, 6, 7)


def test_state_has_each_layer_by_its_name():
    """Convolutions that run as one are kept as two."""
    alignment = built(configured(similarity="cosine"))
    layers = ["quality.conv1", "quality.conv2", "quality.conv3", "embed_memory", "embed_query"]
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(alignment.state_dict()) == {*names, "temperature"}
    assert count_params(Alignment(configured(embed_channels=256), 1024, Offsets(configured().offsets))) == (
        2 * (1024 * 256 + 256) + (1024 * 256 + 256) + (256 * 16 * 9 + 16) + (16 * 9 + 1)
    )


def test_warp_follows_true_displacements():
    memory, query = maps(size=(8, 9))
    displacement = torch.zeros(1, 2, 8, 9, dtype=torch.float64)
    displacement[:, 0], displacement[:, 1] = -2, 1
    shifted = warp(memory, displacement)
    assert torch.equal(shifted[..., :-1, 2:], memory[..., 1:, :-2])
    assert float(shifted[..., :2].abs().max()) == 0
    half = torch.zeros(1, 2, 8, 9, dtype=torch.float64)
    half[:, 0] = 0.5
    assert apart((warp(memory, half)[..., :-1], (memory[..., :-1] + memory[..., 1:]) / 2)) < 1e-14
    assert torch.equal(warp(memory, torch.zeros_like(half)), memory)

    alignment = built()
    fused, aux = alignment(alignment.key(memory), query, displacement_N2HW=displacement)
    own = torch.cat([alignment.quality(query), alignment.quality(shifted)], 1).softmax(1)
    assert apart((fused, own[:, :1] * query + own[:, 1:] * shifted), (aux.own_N1HW, own[:, :1])) < 1e-12


def test_an_oracle_needs_no_offsets():
    alignment = Alignment(configured(), CHANNELS, None).double()
    assert {name.split(".")[0] for name in alignment.state_dict()} == {"quality"}
    memory, query = maps(memories=2, frames=4)
    key = alignment.key(memory)
    fused, _ = alignment(key, query, displacement_N2HW=torch.zeros(4, 2, 6, 7, dtype=torch.float64))
    assert fused.shape == query.shape
    rows = torch.tensor([0, 0, 1, 1])
    again, _ = alignment(key, query, rows, displacement_N2HW=torch.zeros(4, 2, 6, 7, dtype=torch.float64))
    assert torch.equal(fused, again)
    with pytest.raises(ValueError, match="displacements"):
        alignment(key, query)


def test_autocast():
    """Convolutions and values in bf16, similarities not: close to fp32, and of the query's type."""
    alignment = built(scale=3.0).float()
    memory, query = (x.float() for x in maps())
    exact, _ = alignment(alignment.key(memory), query)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        key = alignment.key(memory)
        fused, aux = alignment(key, query, shares=True)
        low, _ = alignment(alignment.key(memory.bfloat16()), query.bfloat16())
    assert key.sampled[0].dtype is torch.bfloat16
    assert key.sampled[1].dtype is aux.share_NKHW.dtype is aux.own_N1HW.dtype is torch.float32
    assert fused.dtype is torch.float32
    assert low.dtype is torch.bfloat16
    assert apart((fused, exact)) < 0.2
    fused.sum().backward()
    assert bool(torch.isfinite(alignment.offsets.table.grad).all())


def test_training_step_reads_no_values():
    """On meta tensors: whatever would make the host wait for a value fails."""
    with torch.device("meta"):
        alignment = Alignment(configured(border="mask"), CHANNELS, Offsets(configured().offsets))
        memory, query = torch.empty(2, CHANNELS, 6, 7, requires_grad=True), torch.empty(2, CHANNELS, 6, 7)
        fused, _ = alignment(alignment.key(memory), query)
        chosen = identity_where(torch.zeros(2, dtype=torch.bool), memory, fused)
        torch.autograd.grad(chosen.sum(), [memory, *alignment.parameters(), alignment.offsets.table])


@pytest.mark.slow
@pytest.mark.parametrize("quality", ["code", "paper"])
def test_compiles_into_one_graph(quality):
    alignment = built(configured(quality=quality), channels=16)
    memory, query = maps(channels=16)

    def step(memory, query):
        return alignment(alignment.key(memory), query)[0]

    expected = step(memory, query)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while tracing
        found = torch.compile(step, fullgraph=True, backend="aot_eager")(memory, query)
        grads = [torch.autograd.grad(x.sum(), alignment.offsets.table)[0] for x in (expected, found)]
    assert apart((expected, found), tuple(grads)) < 1e-12
