"""Documents for people: what each step does and takes, the graph as text or drawing, what differs between two."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from training.autovideo.document import Bound, Checked, Document
from training.autovideo.plain import join, one_line
from training.autovideo.plan import clips_of
from training.autovideo.primitive import Port
from training.core.config import ConfigError

Format = Literal["text", "mermaid", "dot"]

MISSING = "(not there)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text in aligned columns; nothing is cut off."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def changed_settings(bound: Bound) -> dict[str, Any]:
    """Return the resolved settings that differ from the primitive's defaults, or have none."""
    fields = bound.primitive.Config.model_fields
    values = bound.config.model_dump(mode="json")
    return {
        name: value for name, value in values.items() if fields[name].is_required() or value != default(fields[name])
    }


def default(field: FieldInfo) -> Any:
    """Return the default of a field that has one, as a plain value."""
    value = field.get_default(call_default_factory=True)
    annotation: Any = field.annotation
    adapter = TypeAdapter(annotation)
    # Primitives inside configs are declared as they stand in documents.
    return adapter.dump_python(adapter.validate_python(value) if field.validate_default else value, mode="json")


def cost_of(checked: Checked, step: str) -> dict[str, Any]:
    """Return what one video costs as far as the step knows it before anything runs; empty where it does not.

    Recipes of clips are known before there are any, so that a net's cost follows from the document.
    """
    known: dict[str, Any] = {}
    try:
        for name, edges in checked.graph.inputs(step).items():
            if checked.steps[step].primitive.inputs[name].port is Port.CLIP and len(edges) == 1:
                with contextlib.suppress(ConfigError):  # another package's decoder: what depends on it is unknown
                    known[name] = clips_of(checked, edges[0].source)
        return dict(checked.steps[step].make().cost(known))
    except KeyError:
        return {}
    except Exception as error:  # of a primitive; the other steps are still explained
        return {"error": f"{type(error).__name__}: {error}"}


def explain(document: Document) -> dict[str, Any]:
    """Return everything about a document as plain values: digest, seed, outputs, warnings and a row per step.

    Steps are in the order in which they run; `level` is that of `Graph.levels`.
    """
    checked = document.checked()
    levels = {step: number for number, group in enumerate(checked.graph.levels()) for step in group}
    return {
        "name": document.name,
        "seed": document.seed,
        "digest": document.digest(),
        "outputs": [str(item) for item in checked.graph.outputs],
        "warnings": list(checked.warnings),
        "steps": [_row(checked, step, levels[step]) for step in checked.graph.order()],
    }


def _row(checked: Checked, step: str, level: int) -> dict[str, Any]:
    bound = checked.steps[step]
    return {
        "id": step,
        "use": bound.primitive.id,
        "version": bound.primitive.version,
        "kind": bound.primitive.kind,
        "determinism": bound.determinism,
        "level": level,
        "inputs": [
            {"input": edge.input, "from": f"{edge.source}.{edge.output}", "port": str(edge.port)}
            for edge in checked.graph.edges
            if edge.target == step
        ],
        "outputs": {name: str(port) for name, port in bound.primitive.outputs.items()},
        "settings": changed_settings(bound),
        "cost": cost_of(checked, step),
    }


def explain_text(document: Document) -> str:
    """Return `explain` as a table."""
    facts = explain(document)
    rows = []
    for row in facts["steps"]:
        taken = ", ".join(f"{item['input']} = {item['from']} ({item['port']})" for item in row["inputs"])
        given = ", ".join(f"{name} ({port})" for name, port in row["outputs"].items())
        cost = ", ".join(f"{name} {_figure(value)}" for name, value in row["cost"].items())
        rows.append((row["id"], row["use"], taken or "-", given or "-", cost or "unknown"))
    settings = [
        f"  {row['id']}.{name}: {one_line(value)}" for row in facts["steps"] for name, value in row["settings"].items()
    ]
    return "\n".join([
        f"{facts['name']}: {len(rows)} steps, seed {facts['seed']}, digest {facts['digest'][:12]}",
        "",
        table(("step", "primitive", "takes", "gives", "cost per video"), rows),
        "",
        "settings other than the defaults:",
        *(settings or ["  none"]),
        "",
        f"outputs: {', '.join(facts['outputs'])}",
        *(f"warning: {text}" for text in facts["warnings"]),
    ])  # fmt: skip


def _figure(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def graph_text(document: Document, form: Format = "text") -> str:
    """Return the graph as aligned text, for Mermaid or for Graphviz.

    Raises:
        ValueError: another form.
    """
    drawings = {"text": _as_text, "mermaid": _as_mermaid, "dot": _as_dot}
    if form not in drawings:
        raise ValueError(f"form {form!r} is none of {', '.join(drawings)}")
    return drawings[form](document, document.checked())


def _as_text(document: Document, checked: Checked) -> str:
    rows = []
    for number, group in enumerate(checked.graph.levels()):
        for step in group:
            taken = [f"{edge.input} <- {edge.source}.{edge.output} ({edge.port})" for edge in checked.graph.edges
                     if edge.target == step]  # fmt: skip
            rows.append((str(number), step, checked.steps[step].primitive.id, ", ".join(taken) or "-"))
    outputs = ", ".join(str(item) for item in checked.graph.outputs)
    return f"{table(('level', 'step', 'primitive', 'takes'), rows)}\n\noutputs: {outputs}"


def _as_mermaid(document: Document, checked: Checked) -> str:
    # A prefix, because Mermaid has words of its own (`end`, `graph`) that are no names of nodes.
    lines = ["flowchart LR"]
    lines += [f'  s_{step}["{step}<br/>{bound.primitive.id}"]' for step, bound in checked.steps.items()]
    lines += [f"  s_{edge.source} -->|{edge.input}: {edge.port}| s_{edge.target}" for edge in checked.graph.edges]
    for number, item in enumerate(checked.graph.outputs):
        lines += [f'  o_{number}(["{item}"])', f"  s_{item.step} --> o_{number}"]
    return "\n".join(lines)


def _as_dot(document: Document, checked: Checked) -> str:
    lines = [f'digraph "{document.name}" {{', "  rankdir=LR;", "  node [shape=box];"]
    lines += [f'  "{step}" [label="{step}\\n{bound.primitive.id}"];' for step, bound in checked.steps.items()]
    lines += [
        f'  "{edge.source}" -> "{edge.target}" [label="{edge.input}: {edge.port}"];' for edge in checked.graph.edges
    ]
    for item in checked.graph.outputs:
        lines += [f'  "{item}" [shape=oval];', f'  "{item.step}" -> "{item}";']
    return "\n".join([*lines, "}"])


@dataclass(frozen=True)
class Difference:
    """What differs between two documents when nothing is left open in either."""

    equal: bool
    """Whether the digests are the same: both compute the same."""
    digests: tuple[str, str]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: Mapping[str, Mapping[str, tuple[Any, Any]]]
    """Step → field → old and new value; `MISSING` where one has no such field."""
    edges_added: tuple[str, ...]
    edges_removed: tuple[str, ...]
    document: Mapping[str, tuple[Any, Any]]
    """Name, seed and outputs, where they differ."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "equal": self.equal,
            "digests": list(self.digests),
            "document": {field: list(pair) for field, pair in self.document.items()},
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": {s: {field: list(pair) for field, pair in rows.items()} for s, rows in self.changed.items()},
            "edges_added": list(self.edges_added),
            "edges_removed": list(self.edges_removed),
        }

    def text(self) -> str:
        """Return a line per difference, and whether the two compute the same."""
        lines = [f"{field}: {_pair(pair)}" for field, pair in self.document.items()]
        lines += [f"- step {step}" for step in self.removed] + [f"+ step {step}" for step in self.added]
        lines += [
            f"step {s}: {field}: {_pair(pair)}" for s, rows in self.changed.items() for field, pair in rows.items()
        ]
        lines += [f"- edge {edge}" for edge in self.edges_removed] + [f"+ edge {edge}" for edge in self.edges_added]
        old, new = (item[:12] for item in self.digests)
        lines.append(f"both compute the same, digest {old}" if self.equal else f"digest: {old} -> {new}")
        return "\n".join(lines)


def _pair(pair: tuple[Any, Any]) -> str:
    return " -> ".join(item if item is MISSING else one_line(item) for item in pair)


def diff(a: Document, b: Document) -> Difference:
    """Return what differs from `a` to `b`, with all defaults and variables in place; forms of writing do not count."""
    old, new = a.checked(), b.checked()
    steps = {name: (old.steps[name], new.steps[name]) for name in old.steps if name in new.steps}
    changed = {name: rows for name, pair in steps.items() if (rows := _changes(*map(_fields, pair)))}
    edges = [[str(edge) for edge in item.graph.edges] for item in (old, new)]
    whole = [
        {"name": doc.name, "seed": doc.seed, "outputs": sorted(str(item) for item in found.graph.outputs)}
        for doc, found in ((a, old), (b, new))
    ]
    digests = (a.digest(), b.digest())
    return Difference(
        equal=digests[0] == digests[1],
        digests=digests,
        added=tuple(f"{name} ({new.steps[name].primitive.id})" for name in new.steps if name not in old.steps),
        removed=tuple(f"{name} ({old.steps[name].primitive.id})" for name in old.steps if name not in new.steps),
        changed=changed,
        edges_added=tuple(edge for edge in edges[1] if edge not in edges[0]),
        edges_removed=tuple(edge for edge in edges[0] if edge not in edges[1]),
        document=_changes(*whole),
    )


def _fields(bound: Bound) -> dict[str, Any]:
    values = {"use": bound.primitive.id, **{f"version of {name}": item for name, item in bound.versions.items()}}
    for name, edges in bound.step.inputs.items() if isinstance(bound.step.inputs, dict) else ():
        if not isinstance(edges, str):
            values[f"in.{name}"] = list(edges)  # their order counts, which the sets of edges do not show
    return values | dict(_flat(bound.config.model_dump(mode="json"), "with"))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every value that is no mapping or list, with its path; empty ones stay."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, join(path, key))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _flat(item, f"{path}[{number}]")
    else:
        yield path, value


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (old.get(name, MISSING), new.get(name, MISSING))
        for name in {**old, **new}
        if name not in old or name not in new or old[name] != new[name]
    }
