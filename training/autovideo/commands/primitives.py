"""`fovea primitives`: which primitives there are, and what each of them takes, gives and can be set to."""

import json
import re
import sys
import textwrap
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any, get_args

import typer

from training.autovideo.catalogue import GROUP, catalogue, find
from training.autovideo.domains import Choice, Domain
from training.autovideo.explain import default, table
from training.autovideo.plain import hint, one_line
from training.autovideo.primitive import Kind, Primitive
from training.core.config import ConfigError
from training.core.program import run_program

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤",
           "pattern": "pattern"}  # fmt: skip


def package_of(cls: type[Primitive]) -> str:
    """Return the installed package that a primitive comes from; `fovea` for ours."""
    module = cls.__module__
    for point in entry_points(group=GROUP):
        if point.dist is not None and module.partition(".")[0] == point.module.partition(".")[0]:
            return point.dist.name
    return "fovea" if module.startswith("training.") else module.partition(".")[0]


def facts(cls: type[Primitive]) -> dict[str, Any]:
    """Return all declarations of a primitive as plain values, with its package, JSON schema and an example."""
    described = cls.describe()
    for name, field in cls.Config.model_fields.items():
        if not field.is_required():
            described["config"][name]["default"] = default(field)
    return {
        **described,
        "package": package_of(cls),
        "example": cls.example or example_of(cls),
        "schema": cls.Config.model_json_schema(),
    }


def example_of(cls: type[Primitive]) -> str:
    """Return a step as it stands in a document; what has to be given and has no obvious value is in `<>`."""
    step: dict[str, Any] = {"id": re.sub(r"^[^a-z]+", "", cls.id.partition("/")[2]) or "step", "use": cls.id}
    needed = [name for name, item in cls.inputs.items() if not item.optional]
    if needed:
        step["in"] = {name: f"<{cls.inputs[name].port}>" for name in needed}
    domains = cls.domains()
    required = {}
    for name, field in cls.Config.model_fields.items():
        if field.is_required():
            required[name] = _some_value(field.annotation, domains.get(name))
    if required:
        step["with"] = required
    return one_line(step)


def _some_value(annotation: Any, domain: Domain | None) -> Any:
    if domain is not None:
        return domain.values[0] if isinstance(domain, Choice) else domain.low
    name = _type(annotation)
    return [{"use": "<primitive>"}] if re.fullmatch(r"(tuple|list)\[Use\b.*\]", name) else f"<{name}>"


def _type(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+", "", name)


def _ports(ports: Mapping[str, Any]) -> str:
    marks = []
    for name, item in ports.items():
        port, some, many = (
            (item, False, False) if isinstance(item, str) else (item["port"], item["optional"], item["several"])
        )
        marks.append(f"{name}: {port}{'…' if many else ''}{'?' if some else ''}")
    return ", ".join(marks) or "-"


@app.command("list")
def list_(kind: Annotated[str, typer.Option(help="Only this kind, e.g. augment.")] = "", as_json: Json = False) -> None:
    """List primitives; `…` marks an input that takes several sources, `?` one that may be left out."""
    kinds = get_args(Kind)
    if kind and kind not in kinds:
        raise ConfigError(f"no kind is called {kind!r}{hint(kind, kinds)} (kinds: {', '.join(kinds)})")
    rows = []
    for name, cls in sorted(catalogue().items()):
        if not kind or cls.kind == kind:
            described = cls.describe()
            rows.append({key: described[key] for key in ("id", "kind", "inputs", "outputs", "summary")})
            rows[-1] |= {"version": cls.version, "package": package_of(cls)}
            assert rows[-1]["id"] == name
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print(table(("id", "kind", "in", "out", "summary", "package"), [
        (row["id"], row["kind"], _ports(row["inputs"]), _ports(row["outputs"]), row["summary"], row["package"])
        for row in rows
    ]))  # fmt: skip


@app.command()
def show(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="e.g. augment/hflip")], as_json: Json = False
) -> None:
    """Show ports, settings with bounds and search domains, documentation and an example of a primitive."""
    found = facts(find(identifier))
    print(json.dumps(found, indent=1) if as_json else page(found))


def page(found: Mapping[str, Any]) -> str:
    """Return `facts` as text."""
    lines = [
        f"{found['id']}, version {found['version']}: {found['kind']}, {found['determinism']}, of {found['package']}",
        "",
        textwrap.indent(_cleaned(found["doc"]), "  "),
        "",
        f"in:  {_ports(found['inputs'])}",
        f"out: {_ports(found['outputs'])}",
        "",
    ]
    rows = []
    for name, field in found["config"].items():
        preset = "required" if field["required"] else one_line(field["default"])
        limits = ", ".join(_bound(item) for item in field["bounds"]) or "-"
        rows.append(
            (
                name,
                _short_type(field["type"]),
                preset,
                limits,
                field["unit"] or "-",
                _domain(field["search"]),
                field["help"],
            )
        )
    if rows:
        lines += [
            "settings:",
            textwrap.indent(table(("name", "type", "default", "bounds", "unit", "search", "help"), rows), "  "),
        ]
    else:
        lines += ["settings: none"]
    return "\n".join([*lines, "", "example:", f"  - {found['example']}"])


def _cleaned(doc: str) -> str:
    first, _, rest = doc.partition("\n")
    return f"{first}\n{textwrap.dedent(rest)}".strip()


def _short_type(name: str) -> str:
    return re.sub(r"\b(?:[a-z_]\w*\.)+", "", name)


def _bound(text: str) -> str:
    match = re.search(r"(\w+)=(.*)\)$", text)
    return f"{_BOUNDS.get(match[1], match[1])} {match[2]}" if match else text


def _domain(search: Mapping[str, Any] | None) -> str:
    if search is None:
        return "-"
    if search["kind"] == "choice":
        text = " | ".join(one_line(value) for value in search["values"])
    else:
        text = f"{search['low']} … {search['high']}"
        text += f" step {search['step']}" if search.get("step", 1) != 1 else ""
        text += " log" if search["log"] else ""
    conditions = [f"{name} = {one_line(value)}" for name, value in search["when"].items()]
    return f"{text} when {' and '.join(conditions)}" if conditions else text


def main() -> int:
    """Run `fovea primitives`."""
    return run_program(app, "fovea primitives")


if __name__ == "__main__":
    sys.exit(main())
