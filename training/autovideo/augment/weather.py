"""Augmenters of weather and light (`pixels_weather.py`)."""

from typing import Annotated, Literal

from training.autovideo.augment.augmenter import Augmenter, AugmenterConfig, Pair, Within
from training.autovideo.domains import choice, floats
from training.autovideo.primitive import primitive, setting

_HERE = "training.autovideo.augment.pixels_weather:"
_AMOUNTS = choice((0.05, 0.3), (0.2, 0.6), (0.4, 0.9))


class FogConfig(AugmenterConfig):
    """Settings of `Fog`."""

    density: Annotated[Pair, Within(0, 1)] = setting((0.3, 0.7), help="share of fog in a pixel", search=_AMOUNTS)


@primitive("augment/fog")
class Fog(Augmenter):
    """Hides the scene behind light grey."""

    Config = FogConfig
    operation = _HERE + "fog"


class CloudsConfig(AugmenterConfig):
    """Settings of `Clouds`."""

    cover: Annotated[Pair, Within(0, 1)] = setting((0.3, 0.6), help="how much is covered", search=_AMOUNTS)
    opacity: float = setting(0.85, help="of the thickest clouds", gt=0, le=1, search=floats(0.3, 1.0))


@primitive("augment/clouds")
class Clouds(Augmenter):
    """Lays white clouds with gaps over the scene."""

    Config = CloudsConfig
    operation = _HERE + "clouds"


_SLANT = choice((-10.0, 10.0), (-30.0, 30.0))


class RainConfig(AugmenterConfig):
    """Settings of `Rain`."""

    drops: Annotated[Pair, Within(0, 0.2)] = setting(
        (0.003, 0.01), help="drops per pixel", search=choice((0.001, 0.004), (0.003, 0.01), (0.008, 0.02))
    )
    length: float = setting(
        0.12, help="length of a streak", unit="shares of the short side", gt=0, le=0.5, search=floats(0.05, 0.25)
    )
    slant: Annotated[Pair, Within(-60, 60)] = setting((-20.0, 20.0), help="wind", unit="degrees", search=_SLANT)


@primitive("augment/rain")
class Rain(Augmenter):
    """Draws light streaks over a darkened scene."""

    Config = RainConfig
    operation = _HERE + "rain"


class SnowConfig(AugmenterConfig):
    """Settings of `Snow`."""

    flakes: Annotated[Pair, Within(0, 0.5)] = setting(
        (0.005, 0.02), help="flakes per pixel", search=choice((0.002, 0.01), (0.005, 0.02), (0.015, 0.04))
    )
    size: float = setting(
        0.03, help="of the largest flakes", unit="shares of the short side", gt=0, le=0.3, search=floats(0.01, 0.08)
    )
    slant: Annotated[Pair, Within(-60, 60)] = setting((-25.0, 25.0), help="wind", unit="degrees", search=_SLANT)
    white: float = setting(0.25, help="how far the scene is whitened", ge=0, le=1, search=floats(0.0, 0.6))


@primitive("augment/snow")
class Snow(Augmenter):
    """Draws flakes over a whitened scene."""

    Config = SnowConfig
    operation = _HERE + "snow"


class SnowyLandscapeConfig(AugmenterConfig):
    """Settings of `SnowyLandscape`."""

    threshold: Annotated[Pair, Within(0, 1)] = setting(
        (0.35, 0.6), help="what is lighter becomes white", search=choice((0.2, 0.4), (0.35, 0.6))
    )
    whiteness: float = setting(0.9, help="share of snow", gt=0, le=1, search=floats(0.5, 1.0))


@primitive("augment/snowy_landscape")
class SnowyLandscape(Augmenter):
    """Covers what is light with snow."""

    Config = SnowyLandscapeConfig
    operation = _HERE + "snowy_landscape"


class FrostConfig(AugmenterConfig):
    """Settings of `Frost`."""

    strength: Annotated[Pair, Within(0, 1)] = setting((0.4, 0.9), help="how much ice", search=_AMOUNTS)


@primitive("augment/frost")
class Frost(Augmenter):
    """Grows ice crystals from the edges of the picture."""

    Config = FrostConfig
    operation = _HERE + "frost"


class SpatterConfig(AugmenterConfig):
    """Settings of `Spatter`."""

    cover: Annotated[Pair, Within(0, 1)] = setting((0.2, 0.35), help="how much is covered", search=_AMOUNTS)
    liquid: Literal["water", "mud"] = setting("water", help="what is on the lens", search=choice("water", "mud"))


@primitive("augment/spatter")
class Spatter(Augmenter):
    """Puts drops of water or mud on the lens."""

    Config = SpatterConfig
    operation = _HERE + "spatter"


class SunFlareConfig(AugmenterConfig):
    """Settings of `SunFlare`."""

    strength: Annotated[Pair, Within(0, 1)] = setting((0.6, 1.0), help="how bright", search=_AMOUNTS)
    size: float = setting(0.15, help="of the glare", unit="shares of the height", gt=0, le=1, search=floats(0.05, 0.4))


@primitive("augment/sun_flare")
class SunFlare(Augmenter):
    """Puts a glare and a row of ghosts over the scene."""

    Config = SunFlareConfig
    operation = _HERE + "sun_flare"


class ShadowConfig(AugmenterConfig):
    """Settings of `Shadow`."""

    darkness: Annotated[Pair, Within(0, 1)] = setting((0.35, 0.7), help="how dark", search=_AMOUNTS)


@primitive("augment/shadow")
class Shadow(Augmenter):
    """Darkens one side of a line."""

    Config = ShadowConfig
    operation = _HERE + "shadow"


class PlasmaLightConfig(AugmenterConfig):
    """Settings of `PlasmaLight`."""

    strength: Annotated[Pair, Within(0, 1)] = setting((0.15, 0.4), help="largest change", search=_AMOUNTS)


@primitive("augment/plasma_light")
class PlasmaLight(Augmenter):
    """Makes the light uneven."""

    Config = PlasmaLightConfig
    operation = _HERE + "plasma_light"
