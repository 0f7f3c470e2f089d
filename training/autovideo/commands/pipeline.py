"""`fovea pipeline`: check, draw, explain and compare pipeline documents.

Further commands are functions with `@app.command()`, here or in a module that imports `app`.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.autovideo import explain as explaining
from training.autovideo.document import Document, examine_file
from training.core.program import run_program

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split("\n")[0]
)

File = Annotated[Path, typer.Argument(help="A pipeline document (YAML).")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


class Drawing(StrEnum):
    """Forms of a drawn graph."""

    text = "text"
    mermaid = "mermaid"
    dot = "dot"


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Pipeline documents (YAML).")], as_json: Json = False
) -> None:
    """Say everything that is wrong with documents; exit code 1 if there is anything."""
    rows = []
    for file in files:
        document, problems, warnings = examine_file(file)
        digest = document.digest() if document is not None and not problems else None
        rows.append(
            {"file": str(file), "valid": not problems, "problems": problems, "warnings": warnings, "digest": digest}
        )
        if as_json:
            continue
        for problem in problems:
            print(problem, file=sys.stderr)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if digest is not None and document is not None:
            print(f"{file}: valid, {len(document.steps)} steps, digest {digest[:12]}")
    if as_json:
        print(json.dumps(rows, indent=1))
    raise typer.Exit(0 if all(row["valid"] for row in rows) else 1)


@app.command()
def graph(file: File, drawing: Annotated[Drawing, typer.Option("--format", help="Form.")] = Drawing.text) -> None:
    """Draw the graph of a document."""
    print(explaining.graph_text(Document.from_file(file), drawing.value))


@app.command()
def explain(file: File, as_json: Json = False) -> None:
    """Say what each step takes and gives, what was set, and what it costs as far as it is known."""
    document = Document.from_file(file)
    print(json.dumps(explaining.explain(document), indent=1) if as_json else explaining.explain_text(document))


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="A pipeline document (YAML).")],
    new: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: Json = False,
) -> None:
    """Say what differs between two documents when variables and defaults are in place; exit code 0 either way."""
    found = explaining.diff(Document.from_file(old), Document.from_file(new))
    print(json.dumps(found.as_dict(), indent=1) if as_json else found.text())


@app.command()
def resolve(file: File) -> None:
    """Print a document with nothing left open: variables, defaults, inputs by name, versions."""
    print(Document.from_file(file).resolved().to_yaml(), end="")


def main() -> int:
    """Run `fovea pipeline`."""
    return run_program(app, "fovea pipeline")


if __name__ == "__main__":
    sys.exit(main())
