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
from training.autovideo.commands.shared import Dataset, Executor, Json, executor_of, talk
from training.autovideo.document import Document, examine_file
from training.core.program import run_program

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split("\n")[0]
)

File = Annotated[Path, typer.Argument(help="A pipeline document (YAML).")]


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


@app.command()
def run(
    file: File,
    dataset: Dataset = "",
    only: Annotated[str | None, typer.Option(help="Run no more than this step and what it needs.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs of this pipeline left.")] = False,
    executor: Executor = "local",
    save: Annotated[Path | None, typer.Option(help="Write the fitted pipeline into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Run a pipeline; steps whose result is known are not run again."""
    from rich.console import Console
    from rich.table import Table

    from training.autovideo.fitted import FittedPipeline, check_place
    from training.autovideo.pipeline import Pipeline, as_json_text

    talk()
    pipeline = Pipeline.from_yaml(file)
    if save is not None:
        check_place(save.absolute())  # said now, and not after hours of training
    done = pipeline.run(dataset=dataset, only=only, resume=not fresh, executor=executor_of(executor))
    if save is not None:
        FittedPipeline.of(done).save(save)
    if as_json:
        print(as_json_text(done))
        return
    table = Table("step", "primitive", "seconds", "outputs", title=f"pipeline {pipeline.document.name}")
    steps = pipeline.document.checked().steps
    for ran in done.steps.values():
        outputs = ", ".join(f"{name} ({value.port})" for name, value in ran.values.items())
        table.add_row(ran.step, steps[ran.step].primitive.id, "known" if ran.cached else f"{ran.seconds:.1f}", outputs)
    Console().print(table)
    for name, value in sorted(done.metrics().items()):
        print(f"{name:<32} {value:.4g}")
    print(f"page: {done.workspace / 'page' / 'page.html'}" if only is None else "")
    print(f"workspace: {done.workspace}" + (f"; saved: {save}" if save else ""))


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="A saved pipeline (`fovea pipeline run --save`).")],
    videos: Annotated[list[Path], typer.Argument(help="Videos, or folders of videos.")],
    top: Annotated[int, typer.Option(help="Classes to name.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Name what happens in videos; exit code 1 if one of them cannot be read."""
    from training.autovideo.fitted import FittedPipeline
    from training.core.prediction import videos_of

    fitted = FittedPipeline.load(folder, device)
    failed = False
    for video in [item for path in videos for item in videos_of(path)]:
        try:
            answer = fitted.predict(video, top)
        except Exception as error:
            failed = True
            print(f"{video}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        if as_json:
            print(json.dumps({"video": answer.video, "classes": answer.classes, "scores": answer.scores}))
        else:
            pairs = zip(answer.classes, answer.scores, strict=True)
            print(f"{video}: " + ", ".join(f"{name} {score:.3f}" for name, score in pairs))
    raise typer.Exit(1 if failed else 0)


def main() -> int:
    """Run `fovea pipeline`."""
    return run_program(app, "fovea pipeline")


if __name__ == "__main__":
    sys.exit(main())
