"""Augmenters of blur, edges, sharpness, pooling and segments (`pixels_filter.py`, `pixels_segment.py`)."""

from typing import Annotated, Literal

from training.autovideo.augment.augmenter import Augmenter, AugmenterConfig, IntPair, Pair, Within
from training.autovideo.domains import choice, floats, integers
from training.autovideo.primitive import primitive, setting

_HERE = "training.autovideo.augment.pixels_filter:"
_SEGMENT = "training.autovideo.augment.pixels_segment:"
_ALPHA = choice((0.2, 0.5), (0.4, 0.9), (1.0, 1.0))


class GaussianBlurConfig(AugmenterConfig):
    """Settings of `GaussianBlur`."""

    sigma: Annotated[Pair, Within(0, 20)] = setting(
        (0.6, 2.5), help="standard deviation", unit="pixels", search=choice((0.1, 1.0), (0.6, 2.5), (1.0, 4.0))
    )


@primitive("augment/gaussian_blur")
class GaussianBlur(Augmenter):
    """Blurs by a Gaussian."""

    Config = GaussianBlurConfig
    operation = _HERE + "gaussian_blur"


class BoxBlurConfig(AugmenterConfig):
    """Settings of `BoxBlur`."""

    size: Annotated[IntPair, Within(1, 31)] = setting(
        (3, 7), help="side of the square; even ones count as the next odd", unit="pixels", search=choice((3, 5), (3, 7))
    )


@primitive("augment/box_blur")
class BoxBlur(Augmenter):
    """Averages over a square."""

    Config = BoxBlurConfig
    operation = _HERE + "box_blur"


class WindowConfig(AugmenterConfig):
    """Settings of filters with a fixed window."""

    size: int = setting(
        5, help="side of the window; even ones count as the next odd", unit="pixels", ge=3, le=15, search=choice(3, 5)
    )


@primitive("augment/median_blur")
class MedianBlur(Augmenter):
    """Takes the median of a square: small things vanish, edges stay."""

    Config = WindowConfig
    operation = _HERE + "median"


@primitive("augment/dilate")
class Dilate(Augmenter):
    """Grows what is bright (grey morphology)."""

    Config = WindowConfig
    operation = _HERE + "dilate"


@primitive("augment/erode")
class Erode(Augmenter):
    """Grows what is dark (grey morphology)."""

    Config = WindowConfig
    operation = _HERE + "erode"


class BilateralBlurConfig(WindowConfig):
    """Settings of `BilateralBlur`."""

    sigma_color: Annotated[Pair, Within(0.01, 2)] = setting(
        (0.15, 0.5), help="distance of colours that still count as near", search=choice((0.05, 0.2), (0.15, 0.5))
    )


@primitive("augment/bilateral_blur")
class BilateralBlur(Augmenter):
    """Smooths surfaces and keeps edges."""

    Config = BilateralBlurConfig
    operation = _HERE + "bilateral_blur"


class MotionBlurConfig(AugmenterConfig):
    """Settings of `MotionBlur`."""

    length: Annotated[Pair, Within(1, 60)] = setting(
        (5.0, 12.0), help="length of the stroke", unit="pixels", search=choice((3.0, 7.0), (5.0, 12.0), (8.0, 20.0))
    )
    angle: Annotated[Pair, Within(-360, 360)] = setting((0.0, 360.0), help="direction of the stroke", unit="degrees")
    direction: Annotated[Pair, Within(-1, 1)] = setting((-1.0, 1.0), help="which end is heavier; 0 is neither")


@primitive("augment/motion_blur")
class MotionBlur(Augmenter):
    """Blurs along a line, as a moving camera does."""

    Config = MotionBlurConfig
    operation = _HERE + "motion_blur"


class DefocusBlurConfig(AugmenterConfig):
    """Settings of `DefocusBlur`."""

    radius: Annotated[Pair, Within(0, 20)] = setting(
        (1.5, 4.0), help="radius of the disk", unit="pixels", search=choice((1.0, 2.0), (1.5, 4.0), (3.0, 7.0))
    )


@primitive("augment/defocus_blur")
class DefocusBlur(Augmenter):
    """Blurs by a disk, as a lens out of focus does."""

    Config = DefocusBlurConfig
    operation = _HERE + "defocus_blur"


class ZoomBlurConfig(AugmenterConfig):
    """Settings of `ZoomBlur`."""

    zoom: Annotated[Pair, Within(1, 2)] = setting(
        (1.08, 1.25), help="largest scale", search=choice((1.03, 1.1), (1.08, 1.25), (1.2, 1.4))
    )
    steps: int = setting(6, help="scales that are averaged", ge=1, le=30)


@primitive("augment/zoom_blur")
class ZoomBlur(Augmenter):
    """Blurs away from the centre, as a zooming lens does."""

    Config = ZoomBlurConfig
    operation = _HERE + "zoom_blur"


class GlassBlurConfig(AugmenterConfig):
    """Settings of `GlassBlur`."""

    distance: Annotated[Pair, Within(0.5, 20)] = setting(
        (1.5, 4.0), help="how far pixels move", unit="pixels", search=choice((1.0, 2.0), (1.5, 4.0))
    )
    sigma: float = setting(0.6, help="blur before and after", unit="pixels", ge=0.1, le=5, search=floats(0.3, 1.5))


@primitive("augment/glass_blur")
class GlassBlur(Augmenter):
    """Exchanges near pixels, as rough glass does."""

    Config = GlassBlurConfig
    operation = _HERE + "glass_blur"


class SharpnessConfig(AugmenterConfig):
    """Settings of `Sharpness`."""

    factor: Annotated[Pair, Within(0, 10)] = setting(
        (0.0, 4.0), help="below 1 softer, above 1 sharper", search=choice((0.5, 1.5), (0.1, 1.9), (0.0, 4.0))
    )


@primitive("augment/sharpness")
class Sharpness(Augmenter):
    """Makes softer or sharper, as Pillow does."""

    Config = SharpnessConfig
    operation = _HERE + "sharpness"


class UnsharpMaskConfig(AugmenterConfig):
    """Settings of `UnsharpMask`."""

    sigma: Annotated[Pair, Within(0.1, 10)] = setting((0.8, 2.0), help="size of the details", unit="pixels")
    amount: Annotated[Pair, Within(0, 10)] = setting(
        (0.8, 2.5), help="how much the details grow", search=choice((0.3, 1.0), (0.8, 2.5))
    )


@primitive("augment/unsharp_mask")
class UnsharpMask(Augmenter):
    """Sharpens: adds the difference from a blurred clip."""

    Config = UnsharpMaskConfig
    operation = _HERE + "unsharp_mask"


class FilterConfig(AugmenterConfig):
    """Settings of filters whose result is mixed with the clip."""

    alpha: Annotated[Pair, Within(0, 1)] = setting((0.4, 0.9), help="share of the result in the mix", search=_ALPHA)


class EmbossConfig(FilterConfig):
    """Settings of `Emboss`."""

    strength: Annotated[Pair, Within(0, 5)] = setting(
        (0.5, 1.5), help="height of the relief", search=choice((0.25, 1.0), (0.5, 1.5))
    )


@primitive("augment/emboss")
class Emboss(Augmenter):
    """Lights the picture as a relief."""

    Config = EmbossConfig
    operation = _HERE + "emboss"


@primitive("augment/edge_detect")
class EdgeDetect(Augmenter):
    """Mixes with the edges of all directions (Laplace)."""

    Config = FilterConfig
    operation = _HERE + "edge_detect"


class DirectedEdgeDetectConfig(FilterConfig):
    """Settings of `DirectedEdgeDetect`."""

    angle: Annotated[Pair, Within(-360, 360)] = setting((0.0, 360.0), help="where the edges rise to", unit="degrees")


@primitive("augment/directed_edge_detect")
class DirectedEdgeDetect(Augmenter):
    """Mixes with the edges that rise in one direction."""

    Config = DirectedEdgeDetectConfig
    operation = _HERE + "directed_edge_detect"


class CannyConfig(FilterConfig):
    """Settings of `Canny`."""

    threshold: Annotated[Pair, Within(0, 2)] = setting(
        (0.1, 0.3), help="step that is an edge; half of it where it goes on", search=choice((0.05, 0.15), (0.1, 0.3))
    )
    reach: int = setting(8, help="how far an edge goes on", unit="pixels", ge=0, le=64)


@primitive("augment/canny")
class Canny(Augmenter):
    """Mixes with thin white edges on black."""

    Config = CannyConfig
    operation = _HERE + "canny"


class ConvolveConfig(FilterConfig):
    """Settings of `Convolve`."""

    filter: Literal["smooth", "detail", "edge_enhance", "contour", "find_edges", "sharpen"] = setting(
        "contour",
        help="which of Pillow's filters",
        search=choice("smooth", "detail", "edge_enhance", "contour", "find_edges", "sharpen"),
    )


@primitive("augment/convolve")
class Convolve(Augmenter):
    """Mixes with the result of a ready-made filter."""

    Config = ConvolveConfig
    operation = _HERE + "convolve"


class PoolingConfig(AugmenterConfig):
    """Settings of poolings."""

    size: Annotated[IntPair, Within(1, 16)] = setting(
        (2, 5), help="side of the cells", unit="pixels", search=choice((2, 3), (2, 5), (4, 8))
    )


@primitive("augment/average_pooling")
class AveragePooling(Augmenter):
    """Replaces cells by their average."""

    Config = PoolingConfig
    operation = _HERE + "average_pooling"


@primitive("augment/max_pooling")
class MaxPooling(Augmenter):
    """Replaces cells by their largest value."""

    Config = PoolingConfig
    operation = _HERE + "max_pooling"


@primitive("augment/min_pooling")
class MinPooling(Augmenter):
    """Replaces cells by their least value."""

    Config = PoolingConfig
    operation = _HERE + "min_pooling"


@primitive("augment/median_pooling")
class MedianPooling(Augmenter):
    """Replaces cells by their middle value."""

    Config = PoolingConfig
    operation = _HERE + "median_pooling"


class PixelateConfig(AugmenterConfig):
    """Settings of `Pixelate`."""

    blocks: Annotated[Pair, Within(0.01, 1)] = setting(
        (0.15, 0.4), help="blocks along an axis", unit="shares of its pixels", search=choice((0.3, 0.6), (0.15, 0.4))
    )


@primitive("augment/pixelate")
class Pixelate(Augmenter):
    """Lowers the resolution."""

    Config = PixelateConfig
    operation = _HERE + "pixelate"


class CartoonConfig(AugmenterConfig):
    """Settings of `Cartoon`."""

    saturation: Annotated[Pair, Within(0, 5)] = setting((1.3, 2.0), help="factor of saturation")
    levels: Annotated[IntPair, Within(2, 64)] = setting((5, 8), help="levels of each channel")
    edges: Annotated[Pair, Within(0, 1)] = setting((0.6, 1.0), help="darkness of outlines", search=_ALPHA)


@primitive("augment/cartoon")
class Cartoon(Augmenter):
    """Draws flat surfaces of strong colours with dark outlines."""

    Config = CartoonConfig
    operation = _HERE + "cartoon"


class CellsConfig(AugmenterConfig):
    """Settings of `Voronoi` and `Superpixels`."""

    rows: int = setting(10, help="cells along y", ge=1, le=128, search=integers(5, 30))
    columns: int = setting(10, help="cells along x", ge=1, le=128, search=integers(5, 30))
    share: Annotated[Pair, Within(0, 1)] = setting(
        (0.5, 1.0), help="share of the cells that are painted", search=choice((0.2, 0.5), (0.5, 1.0), (1.0, 1.0))
    )


class VoronoiConfig(CellsConfig):
    """Settings of `Voronoi`."""

    irregularity: float = setting(0.9, help="0: squares; 1: drawn points", ge=0, le=1, search=floats(0.0, 1.0))


@primitive("augment/voronoi")
class Voronoi(Augmenter):
    """Paints the cells around drawn points in their mean colour."""

    Config = VoronoiConfig
    operation = _SEGMENT + "voronoi"


class SuperpixelsConfig(CellsConfig):
    """Settings of `Superpixels`."""

    compactness: float = setting(
        0.15, help="colour distance that counts as much as one cell", gt=0, le=5, search=floats(0.05, 0.5, log=True)
    )
    iterations: int = setting(3, help="rounds of k-means", ge=1, le=20)


@primitive("augment/superpixels")
class Superpixels(Augmenter):
    """Paints cells that follow the edges in their mean colour."""

    Config = SuperpixelsConfig
    operation = _SEGMENT + "superpixels"
