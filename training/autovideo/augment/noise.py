"""Augmenters of noise, lost pixels and compression, and ImageNet-C (`pixels_noise.py`, `pixels_corruption.py`)."""

from typing import Annotated, Literal

from training.autovideo.augment.augmenter import Augmenter, AugmenterConfig, IntPair, Pair, Within
from training.autovideo.domains import choice, floats, integers
from training.autovideo.primitive import primitive, setting

_HERE = "training.autovideo.augment.pixels_noise:"
_AMOUNTS = choice((0.05, 0.3), (0.2, 0.6), (0.4, 0.9))


class NoiseConfig(AugmenterConfig):
    """Settings of noise."""

    scale: Annotated[Pair, Within(0, 1)] = setting(
        (0.05, 0.15),
        help="size of the noise",
        unit="shares of white",
        search=choice((0.02, 0.08), (0.05, 0.15), (0.1, 0.3)),
    )
    per_channel: bool = setting(True, help="noise of its own for each channel", search=choice(False, True))


@primitive("augment/gaussian_noise")
class GaussianNoise(Augmenter):
    """Adds normal noise."""

    Config = NoiseConfig
    operation = _HERE + "gaussian_noise"


@primitive("augment/laplace_noise")
class LaplaceNoise(Augmenter):
    """Adds Laplace noise: more outliers than normal noise."""

    Config = NoiseConfig
    operation = _HERE + "laplace_noise"


class WideNoiseConfig(NoiseConfig):
    """Settings of uniform and multiplied noise."""

    scale: Annotated[Pair, Within(0, 1)] = setting(
        (0.15, 0.4), help="largest noise", unit="shares of white or of the value", search=_AMOUNTS
    )


@primitive("augment/uniform_noise")
class UniformNoise(Augmenter):
    """Adds uniform noise to each pixel."""

    Config = WideNoiseConfig
    operation = _HERE + "uniform_noise"


@primitive("augment/multiply_noise")
class MultiplyNoise(Augmenter):
    """Multiplies each pixel by a number of its own."""

    Config = WideNoiseConfig
    operation = _HERE + "multiply_noise"


@primitive("augment/speckle_noise")
class SpeckleNoise(Augmenter):
    """Adds normal noise in proportion to the value."""

    Config = WideNoiseConfig
    operation = _HERE + "speckle_noise"


class ShotNoiseConfig(AugmenterConfig):
    """Settings of `ShotNoise`."""

    photons: Annotated[Pair, Within(1, 10000)] = setting(
        (8.0, 60.0), help="photons of a white pixel", search=choice((3.0, 12.0), (8.0, 60.0), (40.0, 200.0))
    )
    per_channel: bool = setting(True, help="noise of its own for each channel", search=choice(False, True))


@primitive("augment/shot_noise")
class ShotNoise(Augmenter):
    """Counts photons: noise of dark scenes (Poisson)."""

    Config = ShotNoiseConfig
    operation = _HERE + "shot_noise"


class IsoNoiseConfig(AugmenterConfig):
    """Settings of `IsoNoise`."""

    strength: Annotated[Pair, Within(0, 5)] = setting(
        (0.5, 2.0), help="sensitivity of the camera", search=choice((0.2, 0.8), (0.5, 2.0), (1.5, 4.0))
    )


@primitive("augment/iso_noise")
class IsoNoise(Augmenter):
    """Noise of a camera at high sensitivity: grain and patches of wrong colour."""

    Config = IsoNoiseConfig
    operation = _HERE + "iso_noise"


class DotsConfig(AugmenterConfig):
    """Settings of what hits single pixels."""

    share: Annotated[Pair, Within(0, 1)] = setting(
        (0.03, 0.12), help="share of the pixels", search=choice((0.01, 0.05), (0.03, 0.12), (0.1, 0.3))
    )
    per_channel: bool = setting(False, help="pixels of its own for each channel", search=choice(False, True))


@primitive("augment/dropout")
class Dropout(Augmenter):
    """Makes pixels black."""

    Config = DotsConfig
    operation = _HERE + "dropout"


@primitive("augment/salt")
class Salt(Augmenter):
    """Makes pixels light."""

    Config = DotsConfig
    operation = _HERE + "salt"


@primitive("augment/pepper")
class Pepper(Augmenter):
    """Makes pixels dark."""

    Config = DotsConfig
    operation = _HERE + "pepper"


@primitive("augment/salt_and_pepper")
class SaltAndPepper(Augmenter):
    """Makes pixels black or white."""

    Config = DotsConfig
    operation = _HERE + "salt_and_pepper"


class ImpulseConfig(DotsConfig):
    """Settings of `ImpulseNoise`."""

    per_channel: bool = setting(True, help="pixels of its own for each channel", search=choice(False, True))


@primitive("augment/impulse_noise")
class ImpulseNoise(Augmenter):
    """Replaces pixels by random ones."""

    Config = ImpulseConfig
    operation = _HERE + "replace_noise"


class PatchesConfig(AugmenterConfig):
    """Settings of what hits cells of a grid."""

    share: Annotated[Pair, Within(0, 1)] = setting(
        (0.05, 0.25), help="share of the cells; at least one", search=choice((0.02, 0.1), (0.05, 0.25), (0.2, 0.5))
    )
    cells: int = setting(8, help="cells along each axis", ge=1, le=128, search=integers(3, 20))
    per_channel: bool = setting(False, help="cells of its own for each channel", search=choice(False, True))


@primitive("augment/coarse_dropout")
class CoarseDropout(Augmenter):
    """Makes cells of a grid black."""

    Config = PatchesConfig
    operation = _HERE + "coarse_dropout"


@primitive("augment/coarse_salt_and_pepper")
class CoarseSaltAndPepper(Augmenter):
    """Fills cells of a grid with black and white dots."""

    Config = PatchesConfig
    operation = _HERE + "coarse_salt_and_pepper"


class ChannelDropoutConfig(AugmenterConfig):
    """Settings of `ChannelDropout`."""

    channels: Annotated[IntPair, Within(1, 3)] = setting(
        (1, 2), help="channels that are lost", search=choice((1, 1), (1, 2))
    )


@primitive("augment/channel_dropout")
class ChannelDropout(Augmenter):
    """Makes whole colour channels black."""

    Config = ChannelDropoutConfig
    operation = _HERE + "channel_dropout"


class CutoutConfig(AugmenterConfig):
    """Settings of `Cutout`."""

    holes: int = setting(1, help="rectangles", ge=1, le=16, search=integers(1, 4))
    size: Annotated[Pair, Within(0, 1)] = setting(
        (0.2, 0.5), help="height and width", unit="shares of the side", search=choice((0.1, 0.3), (0.2, 0.5))
    )
    fill: Literal["grey", "mean", "noise"] = setting(
        "grey", help="what fills them", search=choice("grey", "mean", "noise")
    )
    grey: float = setting(0.5, help="the grey, where `fill` is so", ge=0, le=1)


@primitive("augment/cutout")
class Cutout(Augmenter):
    """Fills rectangles, the same in all frames (Cutout, Random Erasing)."""

    Config = CutoutConfig
    operation = _HERE + "cutout"


class GridMaskConfig(AugmenterConfig):
    """Settings of `GridMask`."""

    period: Annotated[Pair, Within(0.02, 1)] = setting(
        (0.2, 0.4),
        help="distance of the squares",
        unit="shares of the short side",
        search=choice((0.1, 0.2), (0.2, 0.4)),
    )
    ratio: float = setting(0.5, help="side of a square, of the distance", gt=0, lt=1, search=floats(0.2, 0.7))


@primitive("augment/grid_mask")
class GridMask(Augmenter):
    """Makes the squares of a lattice black."""

    Config = GridMaskConfig
    operation = _HERE + "grid_mask"


class JpegConfig(AugmenterConfig):
    """Settings of `Jpeg`."""

    quality: Annotated[Pair, Within(1, 100)] = setting(
        (5.0, 30.0), help="quality as libjpeg counts it", search=choice((5.0, 30.0), (20.0, 60.0), (40.0, 90.0))
    )


@primitive("augment/jpeg")
class Jpeg(Augmenter):
    """Compresses each frame as JPEG does."""

    Config = JpegConfig
    operation = _HERE + "jpeg"


_C = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise",
    "gaussian_blur", "spatter", "saturate",
)  # fmt: skip


class ImagenetCConfig(AugmenterConfig):
    """Settings of `ImagenetC`."""

    corruption: Literal[
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
        "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
        "speckle_noise", "gaussian_blur", "spatter", "saturate",
    ] = setting("gaussian_noise", help="which corruption", search=choice(*_C))  # fmt: skip
    severity: int = setting(3, help="strength", ge=1, le=5, search=integers(1, 5))


@primitive("augment/imagenet_c")
class ImagenetC(Augmenter):
    """One of the 19 corruptions of ImageNet-C, in five severities."""

    Config = ImagenetCConfig
    operation = "training.autovideo.augment.pixels_corruption:imagenet_c"
