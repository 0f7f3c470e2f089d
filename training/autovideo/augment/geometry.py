"""Augmenters of geometry: flips, warps, crops and rearranged pieces (`pixels_geometry.py`)."""

from typing import Annotated, Literal

from training.autovideo.augment.augmenter import Augmenter, AugmenterConfig, IntPair, Pair, Within
from training.autovideo.domains import choice, floats, integers
from training.autovideo.primitive import primitive, setting

_HERE = "training.autovideo.augment.pixels_geometry:"
_DEGREES = choice((-10.0, 10.0), (-20.0, 20.0), (-30.0, 30.0), (-45.0, 45.0))
_SHARES = choice((-0.1, 0.1), (-0.2, 0.2), (-0.4, 0.4))
_SCALES = choice((0.8, 1.25), (0.6, 1.5), (0.5, 2.0))


@primitive("augment/hflip")
class Hflip(Augmenter):
    """Mirrors left and right."""

    operation = _HERE + "hflip"


@primitive("augment/vflip")
class Vflip(Augmenter):
    """Mirrors top and bottom."""

    operation = _HERE + "vflip"


class Rot90Config(AugmenterConfig):
    """Settings of `Rot90`."""

    turns: Annotated[IntPair, Within(1, 3)] = setting(
        (1, 3), help="anti-clockwise turns", unit="quarter turns", search=choice((1, 3), (1, 1), (2, 2), (3, 3))
    )


@primitive("augment/rot90")
class Rot90(Augmenter):
    """Turns by quarter turns; a picture that is not square is scaled back to its shape."""

    Config = Rot90Config
    operation = _HERE + "rot90"


class WarpConfig(AugmenterConfig):
    """Settings of what may show something beyond the edge of the picture."""

    border: Literal["fill", "mirror"] = setting(
        "fill", help="what lies beyond the edge: a grey, or the mirrored picture", search=choice("fill", "mirror")
    )
    fill: Annotated[Pair, Within(0, 1)] = setting((0.0, 1.0), help="the grey beyond the edge")


class AffineConfig(WarpConfig):
    """Settings of `Affine`."""

    rotate: Annotated[Pair, Within(-180, 180)] = setting(
        (-20.0, 20.0), help="turn, anti-clockwise", unit="degrees", search=_DEGREES
    )
    scale: Annotated[Pair, Within(0.1, 10)] = setting((0.7, 1.3), help="factor of the size", search=_SCALES)
    shear: Annotated[Pair, Within(-60, 60)] = setting(
        (-12.0, 12.0), help="slant along x", unit="degrees", search=_DEGREES
    )
    translate: Annotated[Pair, Within(-1, 1)] = setting(
        (-0.1, 0.1), help="move along x and along y", unit="shares of the side", search=_SHARES
    )


@primitive("augment/affine")
class Affine(Augmenter):
    """Turns, scales, slants and moves at once."""

    Config = AffineConfig
    operation = _HERE + "affine"


class RotateConfig(WarpConfig):
    """Settings of `Rotate`."""

    degrees: Annotated[Pair, Within(-180, 180)] = setting(
        (-30.0, 30.0), help="turn, anti-clockwise", unit="degrees", search=_DEGREES
    )


@primitive("augment/rotate")
class Rotate(Augmenter):
    """Turns about the centre."""

    Config = RotateConfig
    operation = _HERE + "rotate"


class ScaleConfig(WarpConfig):
    """Settings of `Zoom`, `ScaleX` and `ScaleY`."""

    scale: Annotated[Pair, Within(0.1, 10)] = setting((0.5, 1.6), help="factor of the size", search=_SCALES)


@primitive("augment/zoom")
class Zoom(Augmenter):
    """Scales both axes alike, about the centre."""

    Config = ScaleConfig
    operation = _HERE + "zoom"


@primitive("augment/scale_x")
class ScaleX(Augmenter):
    """Stretches or narrows the width."""

    Config = ScaleConfig
    operation = _HERE + "scale_x"


@primitive("augment/scale_y")
class ScaleY(Augmenter):
    """Stretches or narrows the height."""

    Config = ScaleConfig
    operation = _HERE + "scale_y"


class ShearConfig(WarpConfig):
    """Settings of `ShearX` and `ShearY`."""

    degrees: Annotated[Pair, Within(-60, 60)] = setting((-20.0, 20.0), help="slant", unit="degrees", search=_DEGREES)


@primitive("augment/shear_x")
class ShearX(Augmenter):
    """Slants along x."""

    Config = ShearConfig
    operation = _HERE + "shear_x"


@primitive("augment/shear_y")
class ShearY(Augmenter):
    """Slants along y."""

    Config = ShearConfig
    operation = _HERE + "shear_y"


class TranslateConfig(WarpConfig):
    """Settings of `TranslateX` and `TranslateY`."""

    share: Annotated[Pair, Within(-1, 1)] = setting(
        (-0.25, 0.25), help="how far the picture moves", unit="shares of the side", search=_SHARES
    )


@primitive("augment/translate_x")
class TranslateX(Augmenter):
    """Moves the picture sideways."""

    Config = TranslateConfig
    operation = _HERE + "translate_x"


@primitive("augment/translate_y")
class TranslateY(Augmenter):
    """Moves the picture up or down."""

    Config = TranslateConfig
    operation = _HERE + "translate_y"


class PerspectiveConfig(AugmenterConfig):
    """Settings of `Perspective`."""

    strength: Annotated[Pair, Within(0, 0.45)] = setting(
        (0.1, 0.3),
        help="how far each corner may move inwards",
        unit="shares of the side",
        search=choice((0.05, 0.15), (0.1, 0.3), (0.2, 0.4)),
    )


@primitive("augment/perspective")
class Perspective(Augmenter):
    """Looks at the picture from the side; it is filled by what lies between four drawn corners."""

    Config = PerspectiveConfig
    operation = _HERE + "perspective"


class ElasticConfig(AugmenterConfig):
    """Settings of `Elastic`."""

    strength: Annotated[Pair, Within(0, 0.5)] = setting(
        (0.03, 0.07),
        help="largest displacement",
        unit="shares of the short side",
        search=choice((0.01, 0.03), (0.03, 0.07), (0.05, 0.12)),
    )
    smoothness: float = setting(
        0.12,
        help="distance over which the displacement changes",
        unit="shares of the short side",
        ge=0.01,
        le=1,
        search=floats(0.05, 0.3),
    )


@primitive("augment/elastic")
class Elastic(Augmenter):
    """Bends the picture by smooth noise."""

    Config = ElasticConfig
    operation = _HERE + "elastic"


class PiecewiseAffineConfig(AugmenterConfig):
    """Settings of `PiecewiseAffine`."""

    strength: Annotated[Pair, Within(0, 0.3)] = setting(
        (0.03, 0.07),
        help="standard deviation of the nodes' move",
        unit="shares of the short side",
        search=choice((0.01, 0.03), (0.03, 0.07)),
    )
    cells: int = setting(4, help="cells of the grid along each axis", ge=1, le=32, search=integers(2, 8))


@primitive("augment/piecewise_affine")
class PiecewiseAffine(Augmenter):
    """Moves the nodes of a grid and what lies between them."""

    Config = PiecewiseAffineConfig
    operation = _HERE + "piecewise_affine"


class LensDistortionConfig(AugmenterConfig):
    """Settings of `LensDistortion`."""

    strength: Annotated[Pair, Within(-0.8, 0.8)] = setting(
        (-0.5, 0.5),
        help="above 0 barrel, below 0 pincushion",
        search=choice((-0.2, 0.2), (-0.5, 0.5), (0.2, 0.6), (-0.6, -0.2)),
    )


@primitive("augment/lens_distortion")
class LensDistortion(Augmenter):
    """Bends straight lines, as wide and long lenses do."""

    Config = LensDistortionConfig
    operation = _HERE + "lens_distortion"


class SwirlConfig(AugmenterConfig):
    """Settings of `Swirl`."""

    degrees: Annotated[Pair, Within(-720, 720)] = setting(
        (-120.0, 120.0), help="turn of the middle", unit="degrees", search=choice((-60.0, 60.0), (-120.0, 120.0))
    )


@primitive("augment/swirl")
class Swirl(Augmenter):
    """Turns the middle more than the edge, as a whirl does."""

    Config = SwirlConfig
    operation = _HERE + "swirl"


class RandomResizedCropConfig(AugmenterConfig):
    """Settings of `RandomResizedCrop`."""

    area: Annotated[Pair, Within(0.01, 1)] = setting(
        (0.3, 0.9),
        help="area of the box",
        unit="shares of the picture",
        search=choice((0.08, 1.0), (0.3, 0.9), (0.5, 1.0)),
    )
    aspect: Annotated[Pair, Within(0.1, 10)] = setting(
        (0.75, 1.3333), help="width over height of the box, relative to the picture's"
    )


@primitive("augment/random_resized_crop")
class RandomResizedCrop(Augmenter):
    """Scales a box of the picture to the size of the clip."""

    Config = RandomResizedCropConfig
    operation = _HERE + "random_resized_crop"


class CropAndPadConfig(WarpConfig):
    """Settings of `CropAndPad`."""

    share: Annotated[Pair, Within(-1, 0.45)] = setting(
        (-0.2, 0.2),
        help="what is cut from each side; below 0, what is added",
        unit="shares of the side",
        search=choice((-0.2, 0.0), (0.0, 0.2), (-0.2, 0.2)),
    )


@primitive("augment/crop_and_pad")
class CropAndPad(Augmenter):
    """Cuts from, or adds to, each side by a number of its own, and scales back."""

    Config = CropAndPadConfig
    operation = _HERE + "crop_and_pad"


class CropToAspectConfig(AugmenterConfig):
    """Settings of `CropToAspect`."""

    ratio: Annotated[Pair, Within(0.1, 10)] = setting(
        (0.6, 1.7), help="width over height, relative to the picture's", search=_SCALES
    )


@primitive("augment/crop_to_aspect")
class CropToAspect(Augmenter):
    """Cuts to another aspect ratio at a drawn place, and scales back."""

    Config = CropToAspectConfig
    operation = _HERE + "crop_to_aspect"


class PadToAspectConfig(WarpConfig):
    """Settings of `PadToAspect`."""

    ratio: Annotated[Pair, Within(0.1, 10)] = setting(
        (0.6, 1.7), help="width over height, relative to the picture's", search=_SCALES
    )


@primitive("augment/pad_to_aspect")
class PadToAspect(Augmenter):
    """Adds bars up to another aspect ratio, and scales back."""

    Config = PadToAspectConfig
    operation = _HERE + "pad_to_aspect"


class JigsawConfig(AugmenterConfig):
    """Settings of `Jigsaw`."""

    rows: int = setting(4, help="pieces along y", ge=1, le=64, search=integers(2, 8))
    columns: int = setting(4, help="pieces along x", ge=1, le=64, search=integers(2, 8))
    share: float = setting(0.5, help="probability that a piece changes its place", ge=0, le=1, search=floats(0.1, 1.0))


@primitive("augment/jigsaw")
class Jigsaw(Augmenter):
    """Exchanges pieces of the picture."""

    Config = JigsawConfig
    operation = _HERE + "jigsaw"
