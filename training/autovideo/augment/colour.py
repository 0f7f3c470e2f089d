"""Augmenters of colour, contrast and quantisation (`pixels_colour.py`)."""

from typing import Annotated

from training.autovideo.augment.augmenter import Augmenter, AugmenterConfig, IntPair, Pair, Within
from training.autovideo.domains import choice, floats, integers
from training.autovideo.primitive import primitive, setting

_HERE = "training.autovideo.augment.pixels_colour:"
_GAINS = choice((0.9, 1.1), (0.8, 1.2), (0.6, 1.4), (0.4, 1.6))
_ALPHA = choice((0.3, 0.6), (0.5, 1.0), (1.0, 1.0))


class AddConfig(AugmenterConfig):
    """Settings of `Brightness` and `Add`."""

    add: Annotated[Pair, Within(-1, 1)] = setting(
        (-0.25, 0.25),
        help="what is added",
        unit="shares of white",
        search=choice((-0.1, 0.1), (-0.25, 0.25), (-0.4, 0.4)),
    )


@primitive("augment/brightness")
class Brightness(Augmenter):
    """Adds one number to all pixels."""

    Config = AddConfig
    operation = _HERE + "brightness"


@primitive("augment/add")
class Add(Augmenter):
    """Adds a number of its own to each colour channel."""

    Config = AddConfig
    operation = _HERE + "add"


class MultiplyConfig(AugmenterConfig):
    """Settings of `Multiply`."""

    factor: Annotated[Pair, Within(0, 10)] = setting((0.6, 1.4), help="factor of all values", search=_GAINS)
    per_channel: bool = setting(False, help="a factor for each channel", search=choice(False, True))


@primitive("augment/multiply")
class Multiply(Augmenter):
    """Multiplies all pixels, or each channel, by a number."""

    Config = MultiplyConfig
    operation = _HERE + "multiply"


class FactorConfig(AugmenterConfig):
    """Settings of `Contrast` and `Saturation`."""

    factor: Annotated[Pair, Within(0, 10)] = setting((0.4, 1.6), help="1 leaves the clip as it is", search=_GAINS)


@primitive("augment/contrast")
class Contrast(Augmenter):
    """Scales the distance from the clip's mean grey."""

    Config = FactorConfig
    operation = _HERE + "contrast"


@primitive("augment/saturation")
class Saturation(Augmenter):
    """Scales the distance of colours from grey."""

    Config = FactorConfig
    operation = _HERE + "saturation"


@primitive("augment/linear_contrast")
class LinearContrast(Augmenter):
    """Scales the distance from mid-grey, of all channels or of each."""

    Config = MultiplyConfig
    operation = _HERE + "linear_contrast"


class GammaConfig(AugmenterConfig):
    """Settings of `Gamma`."""

    gamma: Annotated[Pair, Within(0.05, 10)] = setting(
        (0.5, 2.0),
        help="exponent; above 1 is darker",
        search=choice((0.8, 1.25), (0.5, 2.0), (0.35, 3.0)),
    )


@primitive("augment/gamma")
class Gamma(Augmenter):
    """Raises values to a power."""

    Config = GammaConfig
    operation = _HERE + "gamma"


class LogContrastConfig(AugmenterConfig):
    """Settings of `LogContrast`."""

    gain: Annotated[Pair, Within(0, 5)] = setting((0.6, 1.4), help="factor of log2(1 + value)", search=_GAINS)


@primitive("augment/log_contrast")
class LogContrast(Augmenter):
    """Maps values through a logarithm."""

    Config = LogContrastConfig
    operation = _HERE + "log_contrast"


class SigmoidContrastConfig(AugmenterConfig):
    """Settings of `SigmoidContrast`."""

    gain: Annotated[Pair, Within(0.1, 50)] = setting(
        (5.0, 10.0), help="slope of the sigmoid", search=choice((3.0, 6.0), (5.0, 10.0), (8.0, 15.0))
    )
    cutoff: Annotated[Pair, Within(0, 1)] = setting((0.35, 0.65), help="value that becomes mid-grey")


@primitive("augment/sigmoid_contrast")
class SigmoidContrast(Augmenter):
    """Maps values through a sigmoid: more contrast in the middle, less at both ends."""

    Config = SigmoidContrastConfig
    operation = _HERE + "sigmoid_contrast"


class HueConfig(AugmenterConfig):
    """Settings of `Hue`."""

    turn: Annotated[Pair, Within(-0.5, 0.5)] = setting(
        (-0.25, 0.25),
        help="how far hues turn",
        unit="full turns",
        search=choice((-0.05, 0.05), (-0.1, 0.1), (-0.25, 0.25), (-0.5, 0.5)),
    )


@primitive("augment/hue")
class Hue(Augmenter):
    """Turns all hues by one angle."""

    Config = HueConfig
    operation = _HERE + "hue"


class HsvConfig(AugmenterConfig):
    """Settings of `Hsv`."""

    hue: Annotated[Pair, Within(-0.5, 0.5)] = setting(
        (-0.1, 0.1), help="how far hues turn", unit="full turns", search=choice((-0.05, 0.05), (-0.1, 0.1), (-0.3, 0.3))
    )
    saturation: Annotated[Pair, Within(0, 10)] = setting((0.5, 1.5), help="factor of saturation", search=_GAINS)
    value: Annotated[Pair, Within(0, 10)] = setting((0.7, 1.3), help="factor of value", search=_GAINS)


@primitive("augment/hsv")
class Hsv(Augmenter):
    """Turns hues, scales saturation and value."""

    Config = HsvConfig
    operation = _HERE + "hsv"


class ColorJitterConfig(AugmenterConfig):
    """Settings of `ColorJitter`."""

    brightness: float = setting(0.4, help="factor within 1 ± this", ge=0, le=1, search=floats(0.0, 0.8))
    contrast: float = setting(0.4, help="factor within 1 ± this", ge=0, le=1, search=floats(0.0, 0.8))
    saturation: float = setting(0.4, help="factor within 1 ± this", ge=0, le=1, search=floats(0.0, 0.8))
    hue: float = setting(0.1, help="hues turn within ± this", unit="full turns", ge=0, le=0.5, search=floats(0.0, 0.3))


@primitive("augment/color_jitter")
class ColorJitter(Augmenter):
    """Changes brightness, contrast, saturation and hue, in this order."""

    Config = ColorJitterConfig
    operation = _HERE + "color_jitter"


class AlphaConfig(AugmenterConfig):
    """Settings of augmenters that mix their result with the clip."""

    alpha: Annotated[Pair, Within(0, 1)] = setting((0.5, 1.0), help="share of the result in the mix", search=_ALPHA)


@primitive("augment/grayscale")
class Grayscale(Augmenter):
    """Takes the colour away, wholly or in part."""

    Config = AlphaConfig
    operation = _HERE + "grayscale"


@primitive("augment/sepia")
class Sepia(Augmenter):
    """Gives the clip brown tones."""

    Config = AlphaConfig
    operation = _HERE + "sepia"


@primitive("augment/equalize")
class Equalize(Augmenter):
    """Flattens the histogram of each channel over the whole clip, so that nothing flickers."""

    Config = AlphaConfig
    operation = _HERE + "equalize"


class ColorTemperatureConfig(AugmenterConfig):
    """Settings of `ColorTemperature`."""

    kelvin: Annotated[Pair, Within(1000, 40000)] = setting(
        (2500.0, 14000.0),
        help="temperature of the light; 6500 leaves the clip as it is",
        unit="kelvin",
        search=choice((4500.0, 9000.0), (2500.0, 14000.0), (1500.0, 20000.0)),
    )


@primitive("augment/color_temperature")
class ColorTemperature(Augmenter):
    """Lights the clip by a warmer or colder lamp."""

    Config = ColorTemperatureConfig
    operation = _HERE + "color_temperature"


class InvertConfig(AugmenterConfig):
    """Settings of `Invert`."""

    per_channel: bool = setting(False, help="negate one to three channels instead of all", search=choice(False, True))


@primitive("augment/invert")
class Invert(Augmenter):
    """Makes a negative."""

    Config = InvertConfig
    operation = _HERE + "invert"


class SolarizeConfig(AugmenterConfig):
    """Settings of `Solarize`."""

    threshold: Annotated[Pair, Within(0, 1)] = setting(
        (0.3, 0.7), help="values from here on are negated", search=choice((0.2, 0.4), (0.3, 0.7), (0.6, 0.9))
    )


@primitive("augment/solarize")
class Solarize(Augmenter):
    """Negates what is bright."""

    Config = SolarizeConfig
    operation = _HERE + "solarize"


class PosterizeConfig(AugmenterConfig):
    """Settings of `Posterize`."""

    bits: Annotated[IntPair, Within(1, 8)] = setting(
        (2, 3), help="bits that are kept of each channel", unit="bits", search=choice((1, 2), (2, 3), (3, 5))
    )


@primitive("augment/posterize")
class Posterize(Augmenter):
    """Keeps only the highest bits of each channel."""

    Config = PosterizeConfig
    operation = _HERE + "posterize"


class ColorQuantizationConfig(AugmenterConfig):
    """Settings of `ColorQuantization`."""

    levels: Annotated[IntPair, Within(2, 256)] = setting(
        (3, 8), help="levels of each channel", search=choice((2, 4), (3, 8), (8, 16))
    )


@primitive("augment/color_quantization")
class ColorQuantization(Augmenter):
    """Rounds each channel to a few levels of equal distance."""

    Config = ColorQuantizationConfig
    operation = _HERE + "color_quantization"


class KMeansQuantizationConfig(AugmenterConfig):
    """Settings of `KMeansQuantization`."""

    colors: int = setting(6, help="colours of a clip", ge=2, le=64, search=integers(3, 16))
    iterations: int = setting(4, help="rounds of k-means", ge=1, le=20)


@primitive("augment/kmeans_quantization")
class KMeansQuantization(Augmenter):
    """Paints the clip in a few of its own colours."""

    Config = KMeansQuantizationConfig
    operation = _HERE + "kmeans_quantization"


class AutocontrastConfig(AugmenterConfig):
    """Settings of `Autocontrast`."""

    cutoff: Annotated[Pair, Within(0, 0.45)] = setting(
        (0.02, 0.15),
        help="share of the pixels at either end that may saturate",
        search=choice((0.0, 0.0), (0.0, 0.05), (0.02, 0.15)),
    )


@primitive("augment/autocontrast")
class Autocontrast(Augmenter):
    """Stretches each channel of the clip to the full range."""

    Config = AutocontrastConfig
    operation = _HERE + "autocontrast"


class ClaheConfig(AlphaConfig):
    """Settings of `Clahe`."""

    clip_limit: float = setting(4.0, help="limit of the local gain", gt=0, le=40, search=floats(1.0, 8.0))
    tiles: int = setting(6, help="tiles along each axis", ge=1, le=32, search=integers(2, 12))


@primitive("augment/clahe")
class Clahe(Augmenter):
    """Equalises the brightness of each neighbourhood, with a limit on the gain (CLAHE)."""

    Config = ClaheConfig
    operation = _HERE + "clahe"


@primitive("augment/channel_shuffle")
class ChannelShuffle(Augmenter):
    """Exchanges the colour channels."""

    operation = _HERE + "channel_shuffle"


class StrengthConfig(AugmenterConfig):
    """Settings of `Vignette` and `Illumination`."""

    strength: Annotated[Pair, Within(0, 1)] = setting(
        (0.3, 0.8), help="how far the light falls", search=choice((0.1, 0.4), (0.3, 0.8), (0.6, 1.0))
    )


@primitive("augment/vignette")
class Vignette(Augmenter):
    """Darkens towards the corners."""

    Config = StrengthConfig
    operation = _HERE + "vignette"


@primitive("augment/illumination")
class Illumination(Augmenter):
    """Lights the clip from one side and darkens the other."""

    Config = StrengthConfig
    operation = _HERE + "illumination"
