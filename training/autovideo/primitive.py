"""What a primitive is: a declared, serialisable step of a pipeline.

A primitive declares a typed config, named and typed ports, a kind and how far it repeats itself; all of that is read
without torch. What it does is in its hooks, which import what they need when they are called. §3 of the README.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from data_specs.strict import Strict
from training.autovideo.domains import Domain, parse_domain

if TYPE_CHECKING:
    from training.autovideo.values import Context, Value

Kind = Literal[
    "reader", "selector", "decoder", "transform", "augment", "combine", "extractor", "learner", "evaluator",
    "ensembler", "exporter",
]  # fmt: skip
"""What a primitive is for; a closed set."""

Determinism = Literal["pure", "seeded", "impure"]
"""`pure`: a function of config and inputs; `seeded`: of config, inputs and the pipeline's seed; `impure`: neither.
Results of pure and seeded steps are cached."""

IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*/[a-z0-9][a-z0-9_]*")


class Port(StrEnum):
    """Types of what flows along an edge; a closed set. The classes of the values are in `values.py`."""

    MANIFEST = "Manifest"
    """A declared data set: sources, labels, splits."""
    SHARDS = "Shards"
    """A folder of webdataset shards with its index."""
    CLIP = "Clip"
    """Clips of shards: how they are decoded, cropped and changed; pixels are made when they are read."""
    BATCH = "Batch"
    """Batches of network input, on a device."""
    MODEL = "Model"
    """A folder with weights, preprocessing and class names."""
    PREDICTIONS = "Predictions"
    """Scores per video, by split."""
    METRICS = "Metrics"
    """Named figures."""
    REPORT = "Report"
    """A folder of files for people."""


@dataclass(frozen=True)
class Input:
    """One named input of a primitive."""

    port: Port
    optional: bool = False
    several: bool = False
    """Takes one edge or more; the value is then a tuple, in the order of the document."""


class PrimitiveConfig(Strict):
    """Base of the configs of primitives: frozen, unknown keys refused. Fields are declared by `setting`."""


def setting(
    default: Any = PydanticUndefined, *, help: str, unit: str = "", search: Domain | None = None, **bounds: Any
) -> Any:
    """Declare a field of a config.

    Args:
        default: omitted: the field has to be given.
        help: one line for people.
        unit: of the value, e.g. `pixels`.
        search: values that a search tries where nobody says otherwise; None: the field stays as it is.
        bounds: pydantic's `ge`, `gt`, `le`, `lt`, `min_length`, `max_length`, `pattern`.

    Raises:
        ValueError: no help.
    """
    if not help.strip():
        raise ValueError("a setting needs a line of help")
    extra: dict[str, Any] = {"unit": unit}
    if search is not None:
        extra["search"] = search.model_dump(mode="json")
    return Field(default, description=help, json_schema_extra=extra, **bounds)


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


class Primitive:
    """Base of all primitives; a subclass is named by `@primitive` and found by the catalogue.

    A step of a pipeline is one instance. `fit` learns something from the inputs of the training run (most primitives
    learn nothing), `produce` makes the outputs. Both get a `Context`: seed, folders, settings.
    """

    id: ClassVar[str]
    """`<group>/<name>`, the name in documents."""
    version: ClassVar[int]
    """Raised when the same config gives other results; part of every cache key."""
    kind: ClassVar[Kind]
    determinism: ClassVar[Determinism] = "pure"
    Config: ClassVar[type[PrimitiveConfig]] = PrimitiveConfig
    inputs: ClassVar[Mapping[str, Input]] = {}
    outputs: ClassVar[Mapping[str, Port]] = {}
    example: ClassVar[str] = ""
    """One line of YAML, the step as it stands in a document; made from the declarations where it is empty."""

    def __init__(self, config: PrimitiveConfig) -> None:
        if not isinstance(config, self.Config):
            raise TypeError(f"{self.id} takes a {self.Config.__qualname__}, got {type(config).__qualname__}")
        self.config: Any = config

    def fit(self, inputs: "Mapping[str, Value]", context: "Context") -> Any:
        """Learn from the inputs; the result is given to `produce` and kept by `save`. By default nothing."""
        return None

    def produce(self, inputs: "Mapping[str, Value]", state: Any, context: "Context") -> "dict[str, Value]":
        """Return the outputs by name, exactly those of `outputs`."""
        raise NotImplementedError

    def save(self, state: Any, folder: Path) -> None:
        """Write what `fit` learned into an empty folder; no pickle. By default there is nothing to write."""

    def load(self, folder: Path) -> Any:
        """Return what `save` wrote."""
        return None

    def cost(self, inputs: "Mapping[str, Value]") -> dict[str, float]:
        """Return what one video costs, as far as it is known without running: macs, params, bytes, seconds.

        Limits of a search are checked against it before anything starts.
        """
        return {}

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """Return all declarations as plain values: what `fovea primitives show` prints."""
        fields = {
            name: {
                "type": _type_name(field.annotation),
                "required": field.is_required(),
                "default": None if field.is_required() else _plain(field.get_default(call_default_factory=True)),
                "help": field.description or "",
                "unit": _extra(field).get("unit", ""),
                "search": _extra(field).get("search"),
                "bounds": [str(item) for item in field.metadata],
            }
            for name, field in cls.Config.model_fields.items()
        }
        return {
            "id": cls.id,
            "version": cls.version,
            "kind": cls.kind,
            "determinism": cls.determinism,
            "summary": next(iter((cls.__doc__ or "").strip().splitlines()), ""),
            "doc": (cls.__doc__ or "").strip(),
            "inputs": {name: {"port": str(item.port), "optional": item.optional, "several": item.several}
                       for name, item in cls.inputs.items()},
            "outputs": {name: str(port) for name, port in cls.outputs.items()},
            "config": fields,
            "example": cls.example,
            "module": cls.__module__,
        }  # fmt: skip

    @classmethod
    def domains(cls) -> dict[str, Domain]:
        """Return the declared search domains by field."""
        return {
            name: parse_domain(_extra(field)["search"])
            for name, field in cls.Config.model_fields.items()
            if _extra(field).get("search") is not None
        }


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Strict) else value


PrimitiveT = TypeVar("PrimitiveT", bound=type[Primitive])


def primitive(identifier: str, *, version: int = 1) -> Callable[[PrimitiveT], PrimitiveT]:
    """Name a primitive and check what it declares; nothing is registered at import.

    Args:
        identifier: `<group>/<name>` in lower case.
        version: see `Primitive.version`.

    Raises:
        ValueError: another form of name, a kind that does not exist, a field without help or an example that is missing
            where it cannot be made.
    """
    if not IDENTIFIER.fullmatch(identifier):
        raise ValueError(f"{identifier!r} is no name of a primitive: write <group>/<name> in lower case")

    def name(cls: PrimitiveT) -> PrimitiveT:
        if getattr(cls, "kind", None) not in Kind.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"{identifier}: kind {getattr(cls, 'kind', None)!r} is none of {Kind.__args__}")  # type: ignore[attr-defined]
        if undocumented := [name for name, field in cls.Config.model_fields.items() if not field.description]:
            raise ValueError(f"{identifier}: the settings {undocumented} have no help; declare them with setting()")
        cls.id, cls.version = identifier, version
        return cls

    return name
