"""The pipeline document, schema `pipeline/v1`: steps, what goes into them, and their settings.

    schema: pipeline/v1
    name: hmdb-baseline
    seed: 7
    vars: {frames: 8}
    steps:
      - {id: data, use: reader/folder, with: {media: media}}
      - {id: shards, use: extractor/webdataset, in: data}
      - {id: clip, use: decoder/segments, in: shards, with: {frames: "${frames}"}}
      - {id: net, use: recognition/tsm, in: clip}
    outputs: [net.model]

A document is read from YAML or from a dict and checked whole: everything that is wrong is said at once, with file,
step and field. `Document` keeps what was written; `resolved` is the same with nothing left open.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, StrictInt, field_validator, model_serializer

from data_specs.schema import digest
from data_specs.strict import Strict
from training.autovideo.catalogue import find
from training.autovideo.graph import Graph, Node, Say, Written, build
from training.autovideo.plain import hint, plain, read_yaml, read_yaml_file, write_yaml
from training.autovideo.primitive import Determinism, Primitive, PrimitiveConfig
from training.autovideo.resolve import children, determinism, resolve
from training.autovideo.variables import escape, names_in, solve, substitute
from training.core.config import ConfigError, validate

STEP_KEYS = ("id", "use", "in", "with", "version")
DOCUMENT_KEYS = ("schema", "name", "seed", "vars", "steps", "outputs")

_FORMS = "write a step, step.port, a list of these, or a mapping from input to these"


class Step(Strict):
    """One step as it is written; its keys in YAML are `id`, `use`, `in`, `with` and `version`."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    use: str
    """Name of a primitive."""
    inputs: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = Field(default=None, alias="in")
    """Steps or their outputs, `clip` or `clip.clips`; which input each of them fills follows from the types."""
    settings: dict[str, Any] = Field(default_factory=dict, alias="with")
    """Of the primitive's config."""
    version: StrictInt | None = None
    """Of the primitive; in resolved documents. It must then be that of the installed primitive."""

    @field_validator("inputs", mode="before")
    @classmethod
    def _form(cls, value: Any) -> Any:
        items = [value] if isinstance(value, str) else value
        parts = list(items.values()) if isinstance(items, Mapping) else [items]
        flat = [one for part in parts for one in (part if isinstance(part, list | tuple) else [part])]
        if value is not None and not all(isinstance(one, str) and one for one in flat):
            raise ValueError(_FORMS)
        return value

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        """Return the keys of YAML; what was left out stays out."""
        inputs = self.inputs
        if isinstance(inputs, dict):
            inputs = {name: list(item) if isinstance(item, tuple) else item for name, item in inputs.items()}  # type: ignore[misc]
        values = {
            "id": self.id,
            "use": self.use,
            "in": list(inputs) if isinstance(inputs, tuple) else inputs,
            "with": copy.deepcopy(self.settings) or None,
            "version": self.version,
        }
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class Bound:
    """A step with its primitive: nothing left open."""

    step: Step
    """Resolved."""
    primitive: type[Primitive]
    config: PrimitiveConfig
    versions: Mapping[str, int]
    """Of the primitive and of all primitives inside its config."""
    determinism: Determinism
    """The weakest of the primitive's and of those inside its config."""

    def make(self) -> Primitive:
        """Return an instance."""
        return self.primitive(self.config)


@dataclass(frozen=True)
class Checked:
    """A document that can run."""

    steps: Mapping[str, Bound]
    graph: Graph
    warnings: tuple[str, ...]
    """Steps that no output needs, variables that nothing refers to."""


class Document(Strict):
    """A pipeline as it is written."""

    schema_: Literal["pipeline/v1"] = Field(alias="schema")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Fit for a file name: letters, digits, `.`, `_` and `-`."""
    seed: StrictInt = Field(ge=0, lt=2**63)
    vars: dict[str, Any] = Field(default_factory=dict)
    """Values that settings, `use` and `in` refer to as `${name}`."""
    steps: tuple[Step, ...] = Field(min_length=1)
    outputs: tuple[str, ...] = Field(min_length=1)
    """`step.port`, or the step where it has one output."""

    @field_validator("steps")
    @classmethod
    def _different(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        ids = [step.id for step in steps]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"several steps are called {', '.join(twice)}")
        return steps

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        """Return the keys of YAML."""
        values: dict[str, Any] = {"schema": self.schema_, "name": self.name, "seed": self.seed}
        if self.vars:
            values["vars"] = copy.deepcopy(self.vars)
        return values | {"steps": [step.model_dump() for step in self.steps], "outputs": list(self.outputs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "pipeline") -> "Document":
        """Return the document of plain values, which stay as they are.

        Raises:
            ConfigError: everything that is wrong; `where` stands before each problem.
        """
        document, problems, _ = examine(values, where)
        if document is None or problems:
            raise ConfigError("\n".join(problems))
        return document

    @classmethod
    def from_yaml(cls, text: str, where: str = "pipeline") -> "Document":
        """Return the document of a YAML text; errors as `from_dict`."""
        return cls.from_dict(read_yaml(text, where), where)

    @classmethod
    def from_file(cls, path: Path | str) -> "Document":
        """Return the document of a YAML file; errors as `from_dict`, and when the file cannot be read."""
        return cls.from_dict(read_yaml_file(Path(path)), str(path))

    def to_dict(self) -> dict[str, Any]:
        """Return a copy as plain values with the keys of YAML."""
        return self.model_dump()

    def to_yaml(self) -> str:
        """Return YAML, a short step on one line; read again it is an equal document."""
        return write_yaml(self.to_dict(), blocks=("steps",))

    def checked(self, where: str = "") -> Checked:
        """Return the steps with their primitives, and the graph.

        Raises:
            ConfigError: everything that is wrong.
        """
        found, problems = _check(self, where or f"pipeline {self.name}")
        if found is None:
            raise ConfigError("\n".join(problems))
        return found

    def resolved(self) -> "Document":
        """Return the same with nothing left open.

        Variables are replaced, defaults written out, sources named as `step.port` under the input that they fill, and
        the primitives' versions recorded. It is a document again, and resolves to itself.
        """
        checked = self.checked()
        return Document(
            schema=self.schema_,
            name=self.name,
            seed=self.seed,
            steps=tuple(bound.step for bound in checked.steps.values()),
            outputs=tuple(str(item) for item in checked.graph.outputs),
        )

    def digest(self) -> str:
        """Return the identity of what the pipeline computes: sha256 of the resolved form.

        The name, variables, forms of writing and the order of steps and outputs are not in it; the versions of the
        primitives are, also of those inside configs.
        """
        checked = self.checked()
        steps = {name: {**bound.step.model_dump(), "versions": dict(bound.versions)}
                 for name, bound in checked.steps.items()}  # fmt: skip
        outputs = sorted(str(item) for item in checked.graph.outputs)
        parts: dict[str, object] = {"schema": self.schema_, "seed": self.seed, "steps": steps, "outputs": outputs}
        return digest(parts)


def examine(values: object, where: str) -> tuple[Document | None, list[str], list[str]]:
    """Return the document, everything that is wrong with it, and warnings.

    The document is None where the values have another form; with problems in it, it cannot run.
    """
    problems: list[str] = []
    document = _structure(values, where, problems.append)
    if document is None:
        return None, problems, []
    found, more = _check(document, where)
    return document, problems + more, list(found.warnings) if found else []


def examine_file(path: Path) -> tuple[Document | None, list[str], list[str]]:
    """Return what `examine` says of a file; one that cannot be read is a problem, too."""
    try:
        values = read_yaml_file(path)
    except ConfigError as error:
        return None, [str(error)], []
    return examine(values, str(path))


def _structure(values: object, where: str, say: Say) -> Document | None:
    """Return what the values say, without looking at primitives."""
    if not isinstance(values, Mapping):
        say(f"{where}: a pipeline is a mapping with {', '.join(DOCUMENT_KEYS)}, got {type(values).__name__}")
        return None
    try:
        content = plain(values, f"{where}: ")
    except ConfigError as error:
        say(str(error))
        return None
    _say_unknown(content, DOCUMENT_KEYS, where, say)
    known = {key: item for key, item in content.items() if key in DOCUMENT_KEYS}
    complete = True
    if isinstance(known.get("steps"), list):
        steps = []
        for number, item in enumerate(known["steps"]):
            place = f"{where}: steps[{number}]"
            if isinstance(item, dict):
                place = f"{where}: step {item['id']}" if isinstance(item.get("id"), str) else place
                _say_unknown(item, STEP_KEYS, place, say)
                item = {key: value for key, value in item.items() if key in STEP_KEYS}
            try:
                steps.append(validate(Step, item, place))
            except ConfigError as error:
                say(str(error))
                complete = False
        known["steps"] = steps
    if not complete:
        return None
    try:
        return validate(Document, known, where)
    except ConfigError as error:
        say(str(error))
        return None


def _say_unknown(values: Mapping[str, Any], known: tuple[str, ...], where: str, say: Say) -> None:
    for key in values:
        if key not in known:
            say(f"{where}: unknown key {key!r}{hint(key, known)} (known: {', '.join(known)})")


def _check(document: Document, where: str) -> tuple[Checked | None, list[str]]:
    """Return what can run, or None and everything that is wrong."""
    problems: list[str] = []
    variables = solve(document.vars, lambda text: problems.append(f"{where}: {text}"))
    if problems:
        return None, problems
    bound: dict[str, Bound] = {}
    nodes = []
    for step in document.steps:
        node, found = _bind(step, variables, f"{where}: step {step.id}", problems.append)
        nodes.append(node)
        if found is not None:
            bound[step.id] = found
    graph = build(nodes, document.outputs, lambda text: problems.append(f"{where}: {text}"))
    if problems or graph is None:
        return None, problems
    full = {name: _full(item, graph) for name, item in bound.items()}
    return Checked(full, graph, tuple(_warnings(document, graph, where))), []


def _bind(step: Step, variables: Mapping[str, Any], where: str, say: Say) -> tuple[Node, Bound | None]:
    """Return a step with its variables replaced, as the graph sees it, and with its config where that is valid."""
    problems: list[str] = []
    written = step.model_dump()
    for key in ("use", "in", "with"):
        if key in written:
            written[key] = substitute(written[key], variables, f"{where}: {key}", problems.append)
    cls = config = None
    inputs: Written = None
    try:
        if not problems:
            step = validate(Step, written, where)
            inputs = step.inputs
            cls = find(step.use, where)
            config = resolve(step.use, step.settings, where)
    except ConfigError as error:
        problems.append(str(error))
    if cls is not None and step.version not in (None, cls.version):
        problems.append(
            f"{where}: version: the document was resolved with version {step.version} of {cls.id}, installed is "
            f"{cls.version}, which may give other results; install the older one, or take the line out"
        )
    for problem in problems:
        say(problem)
    node = Node(step.id, cls, inputs)
    if cls is None or config is None:
        return node, None
    inside = [cls, *children(config)]
    return node, Bound(step, cls, config, {item.id: item.version for item in inside}, determinism(inside))


def _full(bound: Bound, graph: Graph) -> Bound:
    """Return a step with its inputs by name and every setting written out."""
    inputs: dict[str, str | tuple[str, ...]] = {}
    for name, edges in graph.inputs(bound.step.id).items():
        sources = tuple(f"{edge.source}.{edge.output}" for edge in edges)
        inputs[name] = sources if bound.primitive.inputs[name].several else sources[0]
    step = Step.model_validate({
        "id": bound.step.id,
        "use": bound.primitive.id,
        "in": inputs or None,
        "with": escape(bound.config.model_dump(mode="json")),
        "version": bound.primitive.version,
    })  # fmt: skip
    return Bound(step, bound.primitive, bound.config, bound.versions, bound.determinism)


def _warnings(document: Document, graph: Graph, where: str) -> list[str]:
    used: set[str] = set()
    for value in (*document.vars.values(), *(step.model_dump() for step in document.steps)):
        used |= names_in(value)
    return [
        *(f"{where}: step {name}: no output needs it" for name in graph.unused()),
        *(f"{where}: vars.{name}: nothing refers to it" for name in document.vars if name not in used),
    ]
