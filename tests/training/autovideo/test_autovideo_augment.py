"""Every augmenter of the catalogue, and of other packages: changes pixels, keeps everything else, repeats itself."""

import importlib
import importlib.util
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.autovideo import catalogue as catalogue_module
from training.autovideo.augment.augmentation import Augmentation, augment_uint8
from training.autovideo.augment.augmenter import Augmenter, Composite, mixes
from training.autovideo.use import Use
from training.core.config import ConfigError

MODULES = tuple(name for name in catalogue_module.MODULES if importlib.util.find_spec(name))
"""Of the catalogue, as far as they are there."""


def _names() -> list[str]:
    found = []
    for module in MODULES:
        found += [item.id for item in catalogue_module.in_module(importlib.import_module(module))
                  if issubclass(item, Augmenter)]  # fmt: skip
    for point in catalogue_module.entry_points(group=catalogue_module.GROUP):
        found += [item.id for item in catalogue_module._foreign(point) if issubclass(item, Augmenter)]
    return found


NAMES = _names()
TIME = [
    "augment/temporal_reverse", "augment/temporal_jitter", "augment/temporal_shift", "augment/temporal_speed",
    "augment/frame_drop", "augment/frame_freeze", "augment/temporal_shuffle", "augment/temporal_loop",
]  # fmt: skip
MIXING = ["augment/mixup", "augment/cutmix", "augment/videomix", "augment/fademix"]
PICTURES = [name for name in NAMES if name not in TIME + MIXING]
CORRUPTIONS = [
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise",
    "gaussian_blur", "spatter", "saturate",
]  # fmt: skip
SEEDS = (11, 22, 33)


@pytest.fixture(autouse=True, scope="module")
def _only_what_is_there() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue_module, "MODULES", MODULES)
        catalogue_module.catalogue.cache_clear()
        yield
    catalogue_module.catalogue.cache_clear()


def clip(*, still: bool = False, count: int = len(SEEDS), frames: int = 4) -> Tensor:
    """Return textured clips with a moving spot, the same for every run."""
    generator = torch.Generator().manual_seed(5)
    rough = torch.rand(count, 3, 7, 6, generator=generator)
    video = F.interpolate(rough, (25, 20), mode="bicubic").clamp(0.02, 0.98)[:, :, None].repeat(1, 1, frames, 1, 1)
    if not still:
        for frame in range(frames):
            video[:, :, frame, 3 + 4 * frame : 9 + 4 * frame, 5:12] = 0.1 * frame
    return video


def seeds(*values: int) -> Tensor:
    return torch.tensor(values or SEEDS)


def use(name: str, **settings: object) -> Use:
    """Return an augmenter that is sure to act."""
    fields = catalogue_module.find(name).Config.model_fields
    certain = {field: 1.0 for field in ("p", "chance") if field in fields}
    return Use(use=name, settings={**certain, **settings})


def changed(step: Use, video: Tensor, seed_B: Tensor) -> Tensor:
    return Augmentation([step])(video, seed_B, torch.eye(len(video)))[0]


def test_about_sixty_augmenters() -> None:
    assert len([name for name in NAMES if name.startswith("augment/")]) >= 60
    assert {
        "combine/sequential",
        "combine/some_of",
        "combine/one_of",
        "combine/sometimes",
        "combine/with_channels",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_made_from_its_defaults_and_described(name: str) -> None:
    item = catalogue_module.find(name)
    primitive = item(item.Config())
    assert isinstance(primitive, Augmenter)
    again = Use.model_validate(primitive.use().model_dump(mode="json"))
    assert again == primitive.use()
    assert again.resolved("again") == again
    description = item.describe()
    assert description["summary"].endswith(".")
    assert all(field["help"] for field in description["config"].values())
    item.domains()
    video = clip()
    out, target = Augmentation([again])(video, seeds(), torch.eye(len(video)))
    assert out.shape == video.shape
    assert target is not None


@pytest.mark.parametrize("name", NAMES)
def test_changes_pixels_and_nothing_else(name: str) -> None:
    video = clip(count=6)
    seed_B = seeds(1, 2, 3, 4, 5, 6)
    before, label_BK = video.clone(), torch.eye(6)
    out, target_BK = Augmentation([use(name)])(video, seed_B, label_BK)
    assert torch.equal(video, before), "the argument itself"
    assert out.shape == video.shape
    assert out.dtype == torch.float32
    assert bool(out.isfinite().all())
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    moved = (out - video).abs().mean((1, 2, 3, 4))
    assert int((moved > 0.002).sum()) >= 3, f"visible in half of the clips at least: {moved.tolist()}"
    assert target_BK is not None
    if mixes(use(name)):
        assert torch.allclose(target_BK.sum(1), torch.ones(6))
        assert not torch.equal(target_BK, label_BK)
    else:
        assert torch.equal(target_BK, label_BK)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("augment/")])
def test_never_at_probability_zero(name: str) -> None:
    video = clip()
    out, target = Augmentation([use(name, p=0.0)])(video, seeds(), torch.eye(3))
    assert torch.equal(out, video)
    assert torch.equal(target, torch.eye(3))  # type: ignore[arg-type]


def test_some_clips_at_half_probability() -> None:
    video = clip(count=1).repeat(200, 1, 1, 1, 1)
    out = changed(use("augment/invert", p=0.5), video, torch.arange(200))
    rows = (out != video).flatten(1).any(1)
    assert 70 < int(rows.sum()) < 130
    assert torch.allclose(out[rows], 1 - video[rows])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MIXING])
def test_stored_clips_stay_bytes(name: str) -> None:
    stored = (clip() * 255).round().to(torch.uint8)
    out = augment_uint8(stored, [use(name)], SEEDS)
    assert out.dtype == torch.uint8
    assert out.shape == stored.shape
    assert not torch.equal(out, stored)
    single = augment_uint8(stored[1], [use(name)], SEEDS[1])
    assert (single.int() - out[1].int()).abs().max() <= 1, "rounding only"


def test_stored_clips_without_augmenters_are_equal() -> None:
    stored = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(3, 2, 1, 1)
    assert torch.equal(augment_uint8(stored, [], 4), stored)
    with pytest.raises(ValueError, match="must be uint8"):
        augment_uint8(stored.float(), [], 4)


@pytest.mark.parametrize("name", PICTURES)
def test_same_for_all_frames(name: str) -> None:
    out = changed(use(name), clip(still=True), seeds())
    assert torch.allclose(out, out[:, :, :1].expand_as(out), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_anew_for_each_frame_where_flagged(name: str) -> None:
    if "per_frame" not in catalogue_module.find(name).Config.model_fields:
        with pytest.raises(ConfigError, match="per_frame"):
            Augmentation([use(name, per_frame=True)])
        return
    video = clip(still=True)
    out = changed(use(name, per_frame=True), video, seeds())
    constant = name in {
        "augment/hflip", "augment/vflip", "augment/median_blur", "augment/dilate", "augment/erode", "augment/invert",
        "augment/kmeans_quantization",
    }  # fmt: skip
    if not constant:  # they have nothing to draw but whether they act
        assert not torch.allclose(out, out[:, :, :1].expand_as(out), atol=1e-3)
    assert torch.equal(out, changed(use(name, per_frame=True), video, seeds()))


@pytest.mark.parametrize("name", TIME)
def test_time_moves_whole_frames(name: str) -> None:
    video = clip(frames=8)
    out = changed(use(name), video, seeds())
    same = (out[:, :, :, None] == video[:, :, None]).flatten(4).all(4).all(1)
    assert bool(same.any(2).all()), "each frame is one of the clip"
    assert not torch.equal(out, video)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MIXING])
def test_neighbours_and_place_do_not_matter(name: str) -> None:
    video = clip()
    together = changed(use(name), video, seeds())
    alone = changed(use(name), video[2:], seeds(SEEDS[2]))
    turned = changed(use(name), video.flip(0), seeds().flip(0)).flip(0)
    assert torch.allclose(together[2:], alone, atol=2e-5)
    assert torch.allclose(together, turned, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_function_of_the_seed(name: str) -> None:
    video = clip(count=1).repeat(6, 1, 1, 1, 1)
    seed_B = seeds(1, 2, 3, 4, 5, 6)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = changed(use(name), video, seed_B)
    assert torch.equal(torch.get_rng_state(), state), "torch's generator is not used"
    torch.manual_seed(1)
    assert torch.equal(changed(use(name), video, seed_B), first)
    without_draws = {
        "augment/hflip", "augment/vflip", "augment/median_blur", "augment/dilate", "augment/erode", "augment/invert",
        "augment/temporal_reverse", *MIXING,
    }  # fmt: skip
    if name not in without_draws:
        assert not torch.equal(first, first[:1].expand_as(first)), "other seeds, other pixels"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_on_the_host(name: str) -> None:
    # A meta tensor has no values: whatever asks for one raises, and so does a mix with a tensor of the CPU.
    fewer = {"augment/randaugment": {"n": 1}, "augment/augmix": {"width": 1, "depth": (1, 1)}}.get(name, {})
    out, _ = Augmentation([use(name, **fewer)])(
        torch.empty(2, 3, 4, 25, 20, device="meta"),
        torch.empty(2, dtype=torch.int64, device="meta"),
        torch.empty(2, 5, device="meta"),
    )
    assert out.shape == (2, 3, 4, 25, 20)


def test_reading_on_the_host_would_be_seen() -> None:
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.empty(2, device="meta").max().item()


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_on_the_gpu(name: str) -> None:
    video, step = clip(), Augmentation([use(name)])
    expected, _ = step(video, seeds(), torch.eye(3))
    on_gpu = video.cuda(), seeds().cuda(), torch.eye(3).cuda()
    step(*on_gpu)  # kernels are loaded, tables are cached
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, _ = step(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isclose(out.cpu(), expected, atol=1e-3).float().mean() > 0.99


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruptions(corruption: str, severity: int) -> None:
    video = clip()
    out = changed(use("augment/imagenet_c", corruption=corruption, severity=severity), video, seeds())
    assert bool(out.isfinite().all())
    assert (out - video).abs().mean() > 0.003


@pytest.mark.parametrize(
    "corruption", ["gaussian_noise", "fog", "contrast", "jpeg_compression", "gaussian_blur", "snow"]
)
def test_severities_grow(corruption: str) -> None:
    video = clip()
    away = [
        float(
            (changed(use("augment/imagenet_c", corruption=corruption, severity=severity), video, seeds()) - video)
            .abs()
            .mean()
        )
        for severity in (1, 3, 5)
    ]
    assert away == sorted(away)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 16, 17), (3, 33, 18)])
def test_odd_shapes(name: str, shape: tuple[int, int, int]) -> None:
    frames, height, width = shape
    video = F.interpolate(clip(count=2).flatten(1, 2), (height, width)).view(2, 3, 4, height, width)[:, :, :frames]
    out = changed(use(name), video, seeds(1, 2))
    assert out.shape == video.shape
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_pictures_stay_finite(name: str, value: float) -> None:
    out = changed(use(name), torch.full((2, 3, 2, 16, 17), value), seeds(1, 2))
    assert bool(out.isfinite().all())


def test_x_is_not_y() -> None:
    # AutoVideo's ScaleY built ScaleX (D14): stretched along one axis, what is constant along it stays.
    ramp = torch.linspace(0.1, 0.9, 21).view(1, 1, 1, 1, 21).expand(1, 3, 2, 21, 21).contiguous()
    settings = {"scale": (1.5, 1.5), "border": "mirror"}
    assert not torch.allclose(changed(use("augment/scale_x", **settings), ramp, seeds(1)), ramp, atol=1e-3)
    assert torch.allclose(changed(use("augment/scale_y", **settings), ramp, seeds(1)), ramp, atol=1e-5)


def test_geometry_is_exact_where_it_can_be() -> None:
    video = clip()
    square = video[..., :20, :]
    quarter = changed(use("augment/rotate", degrees=(90.0, 90.0)), square, seeds())
    assert torch.allclose(quarter, square.rot90(1, (-2, -1)), atol=1e-4)
    assert torch.equal(changed(use("augment/rot90", turns=(1, 1)), square, seeds()), square.rot90(1, (-2, -1)))
    whole = changed(use("augment/random_resized_crop", area=(1.0, 1.0), aspect=(1.0, 1.0)), video, seeds())
    assert torch.allclose(whole, video, atol=1e-5)
    right = changed(use("augment/translate_x", share=(0.25, 0.25), fill=(0.0, 0.0)), video, seeds())
    assert torch.allclose(right[..., 5:], video[..., :-5], atol=1e-5)
    assert float(right[..., :5].max()) < 1e-5
    pieces = changed(use("augment/jigsaw", rows=5, columns=4, share=1.0), video, seeds())
    assert torch.equal(pieces.flatten(3).sort(3).values, video.flatten(3).sort(3).values)
    still = changed(use("augment/perspective", strength=(0.0, 0.0)), video, seeds())
    assert torch.allclose(still, video, atol=1e-4)


def test_colour_is_exact_where_it_can_be() -> None:
    video = clip()
    assert torch.allclose(changed(use("augment/invert"), video, seeds()), 1 - video)
    assert torch.allclose(changed(use("augment/contrast", factor=(1.0, 1.0)), video, seeds()), video, atol=1e-6)
    assert torch.allclose(changed(use("augment/hue", turn=(0.0, 0.0)), video, seeds()), video, atol=1e-5)
    daylight = changed(use("augment/color_temperature", kelvin=(6500.0, 6500.0)), video, seeds())
    assert torch.allclose(daylight, video, atol=1e-5)
    warm = changed(use("augment/color_temperature", kelvin=(3000.0, 3000.0)), video * 0.5, seeds())
    assert bool((warm[:, 0] > warm[:, 2] * 1.5).float().mean() > 0.4)
    levels = changed(use("augment/posterize", bits=(1, 1)), video, seeds()).unique()
    assert len(levels) == 2
    assert len(changed(use("augment/kmeans_quantization", colors=4), video, seeds())[0].flatten(1).T.unique(dim=0)) <= 4
    fine = changed(use("augment/jpeg", quality=(100.0, 100.0)), video.mean(1, keepdim=True).expand_as(video), seeds())
    assert torch.allclose(fine, video.mean(1, keepdim=True).expand_as(video), atol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"add": (0.3, 0.1)}, "low 0.3 is above high 0.1"),
        ({"add": (0.0, 3.0)}, "not within -1…1"),
        ({"ad": (0.0, 0.1)}, "ad"),
        ({"p": 1.5}, "p"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmentation([Use(use="augment/brightness", settings=settings)])


def test_wrong_input_is_named() -> None:
    step = Augmentation([use("augment/invert")])
    with pytest.raises(ValueError, match="float32"):
        step(clip().double(), seeds())
    with pytest.raises(ValueError, match="3 clips need as many int64 seeds"):
        step(clip(), seeds(1))
    with pytest.raises(ConfigError, match="did you mean 'augment/hflip'"):
        Augmentation([Use(use="augment/hflp")])


def test_composites_are_those_with_parts() -> None:
    composites = {name for name in NAMES if issubclass(catalogue_module.find(name), Composite)}
    assert {"augment/randaugment", "augment/augmix", "augment/trivialaugment"} < composites
    assert not composites & set(MIXING)
