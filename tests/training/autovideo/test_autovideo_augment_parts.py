"""Combiners, policies, mixing, augmenters of other packages, and the draws under them."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.settings import Settings
from training.autovideo import catalogue as catalogue_module
from training.autovideo.augment.augmentation import Augmentation, augment_uint8
from training.autovideo.augment.combiners import RandAugment, RandAugmentConfig, SomeOf
from training.autovideo.augment.draws import Draws
from training.autovideo.use import Use
from training.autovideo.values import Clips, Context
from training.core.config import ConfigError

MODULES = tuple(name for name in catalogue_module.MODULES if importlib.util.find_spec(name))
MANY = 240


@pytest.fixture(autouse=True)
def _only_what_is_there() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue_module, "MODULES", MODULES)
        catalogue_module.catalogue.cache_clear()
        yield
    catalogue_module.catalogue.cache_clear()


def mark(amount: float) -> dict[str, Any]:
    """Return an augmenter that leaves a trace on a black clip."""
    return {"use": "augment/brightness", "with": {"p": 1.0, "add": (amount, amount)}}


def traces(use: str, count: int = MANY, **settings: Any) -> list[float]:
    """Return what the augmenter adds to each of many black clips."""
    video = torch.zeros(count, 3, 2, 3, 4)
    out, _ = Augmentation([Use(use=use, settings=settings)])(video, torch.arange(count), None)
    assert torch.equal(out, out[:, :1, :1, :1, :1].expand_as(out))
    return [round(float(value), 3) for value in out[:, 0, 0, 0, 0]]


MARKS = [mark(0.1), mark(0.2), mark(0.4)]


def test_sequential_is_one_after_the_other() -> None:
    video, seed_B = torch.rand(3, 3, 2, 8, 9, generator=torch.Generator().manual_seed(1)), torch.arange(3)
    steps = [
        Use(use="augment/solarize", settings={"p": 1.0, "threshold": (0.4, 0.4)}),
        Use(use="augment/gamma", settings={"p": 1.0, "gamma": (2.0, 2.0)}),
    ]

    def run(*uses: Use) -> Tensor:
        return Augmentation(uses)(video, seed_B)[0]

    combined = run(Use(use="combine/sequential", settings={"of": steps}))
    assert torch.equal(combined, run(*steps))
    assert not torch.allclose(combined, run(*reversed(steps)), atol=0.01), "control: the order matters"
    mixed = run(Use(use="combine/sequential", settings={"of": steps, "random_order": True}))
    seen = {
        (bool(torch.equal(mixed[row], run(*steps)[row])), bool(torch.equal(mixed[row], run(*reversed(steps))[row])))
        for row in range(3)
    }
    assert seen <= {(True, False), (False, True)}


def test_random_order_takes_every_order() -> None:
    first, second = mark(0.5), {"use": "augment/multiply", "with": {"p": 1.0, "factor": (0.5, 0.5)}}
    found = traces("combine/sequential", of=[first, second], random_order=True)
    assert set(found) == {0.25, 0.5}
    assert 0.3 < found.count(0.25) / MANY < 0.7
    assert set(traces("combine/sequential", of=[first, second])) == {0.25}, "control"


@pytest.mark.parametrize("random_order", [False, True])
def test_some_of_takes_n_different_parts(random_order: bool) -> None:
    pairs = traces("combine/some_of", of=MARKS, n=2, random_order=random_order)
    assert set(pairs) == {0.3, 0.5, 0.6}
    assert min(pairs.count(value) for value in set(pairs)) > MANY / 6
    assert set(traces("combine/some_of", of=MARKS, n=3, random_order=random_order)) == {0.7}, "control: all"
    assert set(traces("combine/some_of", of=MARKS, n=0, random_order=random_order)) == {0.0}, "control: none"


def test_some_of_more_than_there_are() -> None:
    with pytest.raises(ConfigError, match="4 of 3 parts"):
        traces("combine/some_of", of=MARKS, n=4)
    with pytest.raises(ConfigError, match="4 of 3 parts"):
        SomeOf(SomeOf.Config(of=MARKS, n=4))  # type: ignore[call-arg]


def test_one_of_takes_one() -> None:
    found = traces("combine/one_of", of=MARKS)
    assert set(found) == {0.1, 0.2, 0.4}
    assert min(found.count(value) for value in set(found)) > MANY / 5
    assert set(traces("combine/one_of", of=MARKS[:1])) == {0.1}, "control"


def test_sometimes_takes_one_list_or_the_other() -> None:
    found = traces("combine/sometimes", chance=0.25, then=MARKS[:2], otherwise=MARKS[2:])
    assert set(found) == {0.3, 0.4}
    assert 0.15 < found.count(0.3) / MANY < 0.35
    assert set(traces("combine/sometimes", chance=1.0, then=MARKS[:2])) == {0.3}, "control: always"
    assert set(traces("combine/sometimes", chance=0.0, then=MARKS[:2])) == {0.0}, "control: never"


def test_with_channels_changes_these_only() -> None:
    video = torch.rand(2, 3, 2, 6, 7, generator=torch.Generator().manual_seed(2))
    use = Use(
        use="combine/with_channels",
        settings={"channels": ["green"], "of": [{"use": "augment/invert", "with": {"p": 1.0}}]},
    )
    out, _ = Augmentation([use])(video, torch.arange(2))
    assert torch.equal(out[:, [0, 2]], video[:, [0, 2]])
    assert torch.allclose(out[:, 1], 1 - video[:, 1])


@pytest.mark.parametrize("mask", ["uniform", "pixels", "checkerboard", "grid", "horizontal", "vertical", "noise"])
def test_blend_lies_between(mask: str) -> None:
    video = torch.rand(3, 3, 2, 13, 17, generator=torch.Generator().manual_seed(2)) * 0.5

    def blended(low: float, high: float) -> Tensor:
        settings = {"mask": mask, "alpha": (low, high), "of": [mark(0.5)]}
        return Augmentation([Use(use="combine/blend", settings=settings)])(video, torch.arange(3))[0]

    out = blended(0.2, 0.8)
    assert bool(((out - video) >= 0.1 - 1e-5).all())
    assert bool(((out - video) <= 0.4 + 1e-5).all())
    assert torch.equal(blended(0.0, 0.0), video), "control: none of it"
    assert torch.allclose(blended(1.0, 1.0), video + 0.5, atol=1e-6), "control: all of it"
    if mask != "uniform":
        assert float((out - video).std()) > 0.01


def test_a_parts_own_probability_holds() -> None:
    found = traces("combine/one_of", of=[{"use": "augment/brightness", "with": {"p": 0.3, "add": (0.5, 0.5)}}])
    assert 0.2 < found.count(0.5) / MANY < 0.4


def test_combiners_inside_combiners() -> None:
    inner = {"use": "combine/one_of", "with": {"of": MARKS[:2]}}
    found = traces("combine/sequential", of=[inner, mark(0.4)])
    assert set(found) == {0.5, 0.6}


def test_parts_are_checked_and_named() -> None:
    with pytest.raises(ConfigError, match=r"combine/one_of: part 1.*no primitive is called 'augment/nothing'"):
        traces("combine/one_of", of=[mark(0.1), {"use": "augment/nothing"}])
    with pytest.raises(ConfigError, match="gama"):
        traces("combine/one_of", of=[{"use": "augment/gamma", "with": {"gama": 1}}])
    with pytest.raises(ConfigError, match="mixes clips"):
        traces("combine/with_channels", of=[{"use": "augment/mixup"}])


def test_randaugment_grows_with_its_magnitude() -> None:
    video = torch.rand(40, 3, 1, 16, 17, generator=torch.Generator().manual_seed(2))

    def away(**settings: Any) -> float:
        out, _ = Augmentation([Use(use="augment/randaugment", settings=settings)])(video, torch.arange(40))
        return float((out - video).abs().mean())

    assert away(magnitude=1.0) < away(magnitude=9.0) < away(magnitude=25.0)
    assert away(n=1) < away(n=3)
    parts = RandAugment(RandAugmentConfig()).parts
    assert len(parts) == 28
    assert parts[0].settings["degrees"] == [9.0, 9.0]
    assert parts[1].settings["degrees"] == [-9.0, -9.0]


def test_augmix_stays_near_the_clip() -> None:
    video = torch.rand(8, 3, 1, 16, 17, generator=torch.Generator().manual_seed(2))
    out, _ = Augmentation([Use(use="augment/augmix")])(video, torch.arange(8))
    trivial, _ = Augmentation([Use(use="augment/trivialaugment")])(video, torch.arange(8))
    assert 0 < float((out - video).abs().mean()) < float((trivial - video).abs().mean())


def _batch(count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return clips of one value each, their seeds and targets."""
    video = torch.linspace(0.1, 0.9, count).view(-1, 1, 1, 1, 1).repeat(1, 3, 4, 8, 10)
    return video, torch.arange(count) + 5, torch.eye(count)


def test_mixup_mixes_the_next_clip_and_its_target() -> None:
    video, seed_B, label = _batch()
    out, target = Augmentation([Use(use="augment/mixup", settings={"p": 1.0})])(video, seed_B, label)
    assert target is not None
    kept_B = target.diagonal()
    expected = kept_B * video[:, 0, 0, 0, 0] + (1 - kept_B) * video.roll(-1, 0)[:, 0, 0, 0, 0]
    assert torch.allclose(out[:, 0, 0, 0, 0], expected, atol=1e-6)
    assert torch.allclose(target, torch.diag(kept_B) + torch.diag(1 - kept_B).roll(1, 1), atol=1e-6)
    assert len(kept_B.unique()) == 4, "each clip has a weight of its own"


@pytest.mark.parametrize(
    ("use", "settings"),
    [("augment/cutmix", {})]
    + [("augment/videomix", {"mode": mode}) for mode in ("spatial", "temporal", "spatiotemporal")],
)
def test_what_is_pasted_is_what_the_target_says(use: str, settings: dict[str, Any]) -> None:
    video, seed_B, label = _batch()
    out, target = Augmentation([Use(use=use, settings={"p": 1.0, "alpha": 2.0, **settings})])(video, seed_B, label)
    assert target is not None
    own = torch.isclose(out, video)
    assert bool((own | torch.isclose(out, video.roll(-1, 0))).all())
    assert torch.allclose(own.float().mean((1, 2, 3, 4)), target.diagonal(), atol=1e-6)
    frames = own.flatten(3).all(3).all(1)
    if settings.get("mode") == "temporal":
        assert bool((frames | ~own.flatten(3).any(3).any(1)).all()), "whole frames"
    if settings.get("mode") == "spatial":
        assert torch.equal(own, own[:, :, :1].expand_as(own)), "the same in all frames"


def test_mixing_needs_targets_and_a_second_clip() -> None:
    video, seed_B, label = _batch()
    mixup = Augmentation([Use(use="augment/mixup", settings={"p": 1.0})])
    assert mixup.mixes
    with pytest.raises(ValueError, match=r"augment/mixup: .*give target_BK"):
        mixup(video, seed_B)
    with pytest.raises(ValueError, match="give target_BK"):
        augment_uint8((video * 255).byte(), mixup, seed_B)
    out, target = mixup(video[:1], seed_B[:1], label[:1])
    assert torch.equal(out, video[:1])
    assert torch.equal(target, label[:1])  # type: ignore[arg-type]


def test_mixing_inside_a_combiner() -> None:
    video, seed_B, label = _batch(12)
    use = Use(use="combine/one_of", settings={"of": [{"use": "augment/mixup", "with": {"p": 1.0}}, mark(0.05)]})
    steps = Augmentation([use])
    assert steps.mixes
    out, target = steps(video, seed_B, label)
    assert target is not None
    mixed = target.diagonal() < 1
    assert 0 < int(mixed.sum()) < 12
    assert torch.allclose(out[~mixed], video[~mixed] + 0.05, atol=1e-6)


def test_produce_adds_plain_data(tmp_path: Path) -> None:
    clips = Clips(None, {"frames": 8})
    context = Context.alone(step="aug", seed=1, work=tmp_path, settings=Settings())
    flip = catalogue_module.find("augment/hflip")
    made = flip(flip.Config(p=0.25)).produce({"clips": clips}, None, context)["clips"]  # type: ignore[call-arg]
    assert isinstance(made, Clips)
    assert made.augment == (Use(use="augment/hflip", settings={"p": 0.25, "per_frame": False}),)
    assert made.data == clips.data
    some = SomeOf(SomeOf.Config(of=MARKS, n=1))  # type: ignore[call-arg]
    twice = some.produce({"clips": made}, None, context)["clips"]
    assert isinstance(twice, Clips)
    assert [use.use for use in twice.augment] == ["augment/hflip", "combine/some_of"]
    assert len({clips.digest, made.digest, twice.digest}) == 3
    assert Use.model_validate(twice.augment[1].model_dump(mode="json")) == twice.augment[1]


SOURCE = '''
from training.autovideo.augment.augmenter import Augmenter, AugmenterConfig
from training.autovideo.primitive import primitive, setting


class TintConfig(AugmenterConfig):
    """Settings."""

    red: float = setting(0.3, help="what is added to red")


@primitive("augment/{name}")
class Tint(Augmenter):
    """Adds red."""

    Config = TintConfig
    operation = "elsewhere_{name}:{function}"


def tint(video, config, draw):
    out = video.clone()
    out[:, 0] += config.red * draw.uniform(0.5, 1.0, 1, 1, 1)
    return out


def smaller(video, config, draw):
    return video[..., 1:]
'''


def _install(folder: Path, name: str, function: str, patch: pytest.MonkeyPatch) -> None:
    (folder / f"elsewhere_{name}.py").write_text(SOURCE.replace("{name}", name).replace("{function}", function))
    info = folder / f"elsewhere_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: elsewhere-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{catalogue_module.GROUP}]\nmine = elsewhere_{name}\n")
    patch.syspath_prepend(folder)
    catalogue_module.catalogue.cache_clear()


def test_an_augmenter_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.full((2, 3, 2, 4, 5), 0.9)
    with pytest.raises(ConfigError, match="no primitive is called"):
        Augmentation([Use(use="augment/tint")])
    _install(tmp_path, "tint", "tint", monkeypatch)
    out, _ = Augmentation([Use(use="augment/tint", settings={"p": 1.0})])(video, torch.arange(2))
    assert float(out.max()) == 1.0, "clamped"
    assert bool((out[:, 0] > 0.95).all())
    assert torch.equal(out[:, 1:], video[:, 1:])
    inside = Use(use="combine/one_of", settings={"of": [{"use": "augment/tint", "with": {"p": 1.0}}]})
    assert bool((Augmentation([inside])(video, torch.arange(2))[0][:, 0] > 0.95).all())


@pytest.mark.parametrize(
    ("name", "function", "error", "message"),
    [
        ("gone", "nowhere", ConfigError, "operation 'elsewhere_gone:nowhere' cannot be loaded"),
        ("shrinks", "smaller", ValueError, "augment/shrinks: its operation .* an augmenter keeps both"),
    ],
)
def test_a_broken_augmenter_is_named(
    name: str, function: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, name, function, monkeypatch)
    with pytest.raises(error, match=message):
        Augmentation([Use(use=f"augment/{name}", settings={"p": 1.0})])(torch.zeros(2, 3, 2, 4, 5), torch.arange(2))


def test_declarations_are_light() -> None:
    names = [name for name in MODULES if ".augment." in name]
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += "print([name for name in ('torch', 'kornia') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    control = subprocess.run(
        [sys.executable, "-c", code.replace("augment.time", "augment.pixels_time")], capture_output=True, text=True
    )
    assert "torch" in control.stdout


def test_draws_have_their_distributions() -> None:
    draw = Draws(torch.arange(500))
    uniform = draw.uniform(-1, 3, 40)
    assert uniform.dtype == torch.float32
    assert -1 <= float(uniform.min()) < -0.99
    assert 2.99 < float(uniform.max()) <= 3
    assert abs(float(uniform.mean()) - 1) < 0.05
    normal = draw.normal(40)
    assert abs(float(normal.mean())) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02
    laplace = draw.laplace(40)
    assert abs(float(laplace.var()) - 2) < 0.15
    for alpha in (0.2, 1.0, 8.0):
        beta = draw.beta(alpha, 40)
        assert 0 <= float(beta.min()) <= float(beta.max()) <= 1
        assert abs(float(beta.mean()) - 0.5) < 0.01
        assert abs(float(beta.var()) - 1 / (8 * alpha + 4)) < 0.01
    whole = draw.integers(-2, 3, 40)
    assert sorted(whole.unique().tolist()) == [-2, -1, 0, 1, 2, 3]
    assert torch.equal(draw.permutation(7).sort(1).values, torch.arange(7).expand(500, 7))
    assert not draw.bernoulli(0.0, 50).any()
    assert draw.bernoulli(1.0, 50).all()


def test_draws_are_independent_streams() -> None:
    seed_B = torch.arange(4000)
    draw = Draws(seed_B)
    values = [draw.uniform(), draw.uniform(), draw.child(0).uniform(), draw.child(1).uniform(),
              draw.child(0).child(0).uniform(), Draws(seed_B, 1).uniform()]  # fmt: skip
    linked = torch.corrcoef(torch.stack(values)) - torch.eye(len(values))
    assert float(linked.abs().max()) < 0.08
    again = Draws(seed_B)
    assert torch.equal(again.uniform(), values[0])
    assert torch.equal(again.child(1).uniform(), values[3]), "a child does not depend on the draws before it"
    row_N = torch.tensor([7, 3])
    assert torch.equal(Draws(seed_B).rows(row_N).uniform(0, 1, 5), Draws(seed_B).uniform(0, 1, 5)[row_N])
    frames = Draws(seed_B[:3]).frames(5)
    assert len(frames.seed_B.unique()) == 15
