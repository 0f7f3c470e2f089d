"""A catalogue of small primitives, a pipeline of them, and what a candidate would score: no training, no files."""

import copy
import math
from types import MappingProxyType
from typing import Any

from data_specs.schema import digest
from data_specs.strict import Strict
from training.autovideo.catalogue import configure
from training.autovideo.domains import choice, floats, integers
from training.autovideo.primitive import Input, Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.search.pipeline_search import Compiled
from training.autovideo.search.space import apply, build_space
from training.autovideo.use import Use
from training.core.config import ConfigError


class ClipsConfig(PrimitiveConfig):
    frames: int = setting(8, ge=1, le=64, help="Frames per clip.", search=choice(4, 8, 16))


@primitive("toy/clips")
class Clips(Primitive):
    """Makes clips."""

    kind = "decoder"
    Config = ClipsConfig
    outputs = MappingProxyType({"clip": Port.CLIP})


class OneClip(Primitive):
    inputs = MappingProxyType({"clip": Input(Port.CLIP)})
    outputs = MappingProxyType({"clip": Port.CLIP})


class FlipConfig(PrimitiveConfig):
    p: float = setting(0.5, ge=0, le=1, help="Share.", search=floats(0, 1))


@primitive("toy/flip")
class Flip(OneClip):
    """Flips."""

    kind = "augment"
    Config = FlipConfig


class BlurConfig(PrimitiveConfig):
    shape: str = setting("gauss", pattern="gauss|box", help="Kernel.", search=choice("gauss", "box"))
    sigma: float = setting(1.0, gt=0, le=5, help="Width.", search=floats(0.1, 3.0, when={"shape": "gauss"}))
    size: int = setting(3, ge=3, le=9, help="Side.", search=integers(3, 9, step=2, when={"shape": "box"}))


@primitive("toy/blur")
class Blur(OneClip):
    """Blurs."""

    kind = "augment"
    Config = BlurConfig


class NoiseConfig(PrimitiveConfig):
    level: int = setting(1, ge=1, le=5, help="Severity.", search=integers(1, 5))
    salt: bool = setting(False, help="Salt and pepper.")


@primitive("toy/noise")
class Noise(OneClip):
    """Adds noise."""

    kind = "augment"
    Config = NoiseConfig


class SomeOfConfig(PrimitiveConfig):
    of: tuple[Use, ...] = setting(min_length=1, max_length=4, help="Augmenters.")
    n: int = setting(1, ge=1, help="How many of them per clip.")


@primitive("toy/some_of")
class SomeOf(OneClip):
    """Some of its augmenters."""

    kind = "combine"
    Config = SomeOfConfig


class SmallConfig(PrimitiveConfig):
    lr: float = setting(0.01, gt=0, le=1, help="Learning rate.", search=floats(1e-4, 1.0, log=True))
    dropout: float = setting(0.5, ge=0, lt=1, help="Dropout.", search=choice(0.0, 0.5))


class Net(Primitive):
    kind = "learner"
    inputs = MappingProxyType({"clips": Input(Port.CLIP)})
    outputs = MappingProxyType({"model": Port.MODEL})


@primitive("toy/small")
class Small(Net):
    """A small net."""

    Config = SmallConfig


class Fit(Strict):
    steps: int = 10
    batch: int = 8


class DeepConfig(PrimitiveConfig):
    lr: float = setting(0.01, gt=0, le=1, help="Learning rate.", search=floats(1e-5, 1e-2, log=True))
    depth: int = setting(2, ge=1, le=8, help="Layers.", search=integers(1, 6))
    fit: Fit = setting(Fit(), help="How long.")


@primitive("toy/deep")
class Deep(Net):
    """A deep net."""

    Config = DeepConfig


@primitive("toy/score")
class Score(Primitive):
    """Scores a model."""

    kind = "evaluator"
    inputs = MappingProxyType({"model": Input(Port.MODEL), "clips": Input(Port.CLIP)})
    outputs = MappingProxyType({"metrics": Port.METRICS})


BASE: dict[str, Any] = {
    "schema": "pipeline/v1",
    "name": "toy",
    "seed": 7,
    "vars": {"batch": 8},
    "steps": [
        {"id": "clip", "use": "toy/clips"},
        {"id": "flip", "use": "toy/flip", "in": "clip", "with": {"p": 0.25}},
        {"id": "aug", "use": "toy/some_of", "in": "flip.clip", "with": {"of": [{"use": "toy/noise"}], "n": 1}},
        {"id": "net", "use": "toy/small", "in": "aug", "with": {"lr": 0.1}},
        {"id": "eval", "use": "toy/score", "in": ["net", "flip.clip"]},
    ],
    "outputs": ["net.model", "eval.metrics"],
}

SPACE: dict[str, Any] = {
    "schema": "space/v1",
    "auto": True,
    "slots": {
        "flip": [None, "toy/flip"],
        "net": ["toy/small", {"use": "toy/deep", "with": {"fit": {"batch": "${batch}"}}}],
    },
    "lists": {"aug.of": {"of": ["toy/noise", "toy/blur", {"use": "toy/flip", "with": {"p": 1.0}}], "min": 1, "max": 2}},
    "set": {
        "net.fit.steps": {"kind": "choice", "values": [10, 20], "when": {"net": "toy/deep"}},
        "vars.batch": [4, 8],
    },
}


def base() -> dict[str, Any]:
    return copy.deepcopy(BASE)


def space(**changes: Any) -> Any:
    return build_space({**copy.deepcopy(SPACE), **changes}, base())


def settings_of(document: dict[str, Any], step_id: str) -> dict[str, Any]:
    """Return all settings of a step of a candidate, defaults included; checks them on the way."""
    (step,) = (step for step in document["steps"] if step["id"] == step_id)
    text = {key: _resolved(value, document.get("vars", {})) for key, value in step.get("with", {}).items()}
    return {"use": step["use"], **configure(step["use"], text, step_id).model_dump(mode="json")}


def _resolved(value: Any, variables: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(item, variables) for key, item in value.items()}
    return variables[value[2:-1]] if isinstance(value, str) and value.startswith("${") else value


def compile_document(document: dict[str, Any]) -> Compiled:
    """Check a document and say what it costs; a net of depth 5 on 4 frames is no valid pipeline."""
    resolved = {step["id"]: settings_of(document, step["id"]) for step in document["steps"]}
    for use in resolved["aug"]["of"]:
        configure(use["use"], use["with"], "aug.of")
    for step in document["steps"]:
        edges = step.get("in", [])
        for edge in [edges] if isinstance(edges, str) else edges:
            if edge.split(".")[0] not in resolved:
                raise ConfigError(f"{step['id']}: no step {edge!r}")
    net, frames = resolved["net"], resolved["clip"]["frames"]
    depth = net.get("depth", 1)
    if (depth, frames) == (5, 4):
        raise ConfigError("a net of depth 5 needs more than 4 frames")
    config = {"steps": resolved, "fit": {"steps": 6}}
    return Compiled(config=config, gmac=0.5 * depth * frames, params=1000 * depth, digest=digest(config))


def score(document: dict[str, Any]) -> float:
    """Return a quality with conditions in it: each net has a learning rate of its own, and order counts in lists."""
    net, frames = settings_of(document, "net"), settings_of(document, "clip")["frames"]
    rate = math.log10(net["lr"])
    if net["use"] == "toy/small":
        value = 0.4 + 0.2 * math.exp(-((rate + 1) ** 2)) - 0.05 * net["dropout"]
    else:
        value = 0.3 + 0.4 * math.exp(-(((rate + 4) / 0.7) ** 2)) + 0.03 * net["depth"]
    augment = settings_of(document, "aug")["of"]
    names = [use["use"] for use in augment]
    for use in augment:
        values = configure(use["use"], use["with"], "aug").model_dump()
        if use["use"] == "toy/noise":
            value -= 0.04 * values["level"]
        if use["use"] == "toy/blur" and values["shape"] == "gauss":
            value += 0.1 - 0.1 * abs(values["sigma"] - 1)
    value += 0.05 * (names[:1] == ["toy/flip"])
    return value + 0.02 * math.log2(frames / 4)


def value_of(tree: Any, choices: dict[str, Any]) -> float:
    return score(apply(tree, base(), choices))
