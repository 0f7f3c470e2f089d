"""Commands on finished models: register, promote, finish, lineage, predict, report."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.settings import Settings
from training.core.answers import LEAST_SCORE, object_lines
from training.core.stage import StageRef

if TYPE_CHECKING:
    from training.core.answers import Result
    from training.core.promotion import Promotion
    from training.core.serving import VideoClassifier

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Dataset = Annotated[str, typer.Argument(help="Data set, e.g. demo.")]
Family = Annotated[str | None, typer.Option(help="Only this model family; without it, all that have a model.")]
Accept = Annotated[bool, typer.Option("--accept", help="Let a model pass whose test set is too small to judge.")]


@app.command()
def register(
    stage: Annotated[str, typer.Argument(help="Evaluate stage instance, e.g. adafocus_eval@demo.")],
    as_json: Json = False,
) -> None:
    """Put the model that an evaluation judged into the registry, as challenger."""
    from training.core.registration import register as register_model

    with _user_errors():
        version = register_model(Settings(), StageRef.parse(stage))
    if as_json:
        print(
            json.dumps({"model": str(version), "aliases": version.aliases, "gate": version.gate, "tags": version.tags})
        )
    else:
        print(f"{version} ({', '.join(version.aliases) or 'no alias'}; {version.gate})")


@app.command()
def promote(
    dataset: Dataset,
    family: Family = None,
    accept: Accept = False,
    reevaluate: Annotated[
        bool, typer.Option("--reevaluate", help="Evaluate a champion of other data on the challenger's data first.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 when a challenger is refused.")] = False,
    as_json: Json = False,
) -> None:
    """Let the gate judge the challenger and move the alias champion."""
    from training.core.promotion import promote as promote_model

    settings = Settings()
    with _user_errors():
        outcomes = [
            promote_model(settings, dataset, name, accept=accept, reevaluate=reevaluate)
            for name in _families(settings, dataset, family)
        ]
    if as_json:
        print(json.dumps([_promotion_row(outcome) for outcome in outcomes], indent=1))
    else:
        for outcome in outcomes:
            _print_promotion(outcome)
    if check and any(outcome.refused for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def finish(dataset: Dataset, accept: Accept = False) -> None:
    """Register, promote and report in one process: what follows a data set's last stage. Idempotent."""
    from training.core.promotion import promote as promote_model
    from training.core.registration import evaluations
    from training.core.registration import register as register_model
    from training.core.report import write_report

    settings = Settings()
    with _user_errors():
        done = evaluations(settings, dataset)
        if not done:
            print(f"{dataset}: no evaluation of a model has been run; nothing to register", file=sys.stderr)
        for family, ref in done:
            version = register_model(settings, ref)
            print(f"registered {version} ({', '.join(version.aliases) or 'no alias'}; {version.gate})")
            _print_promotion(promote_model(settings, dataset, family, accept=accept))
        print(f"report: {write_report(settings, dataset)}")


@app.command()
def lineage(
    model: Annotated[str, typer.Argument(help="Registered name, name@alias, name/version, or a model folder.")],
    as_json: Json = False,
) -> None:
    """Print where a model comes from: runs, code, data, and what is missing."""
    from rich.console import Console

    from training.core.lineage import as_tree
    from training.core.lineage import lineage as walk

    with _user_errors():
        node = walk(Settings(), model)
    if as_json:
        print(json.dumps(node.as_dict(), indent=1))
    else:
        Console().print(as_tree(node))


@app.command()
def predict(
    model: Annotated[
        str, typer.Argument(help="Registered name (its champion), name@alias, name/version, or a folder.")
    ],
    path: Annotated[Path, typer.Argument(help="A video, or a folder of them.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to name.")] = 5,
    least_score: Annotated[
        float, typer.Option(min=0, max=1, help="Of a model that finds objects: leave out those with a lower score.")
    ] = LEAST_SCORE,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="Write the video as .mp4 with what the model saw: objects or patches drawn, a timeline below."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Name what happens in videos, or find their objects. Exit code 1 when one of them could not be read."""
    from training.core.prediction import find_model, videos_of
    from training.core.prediction import predict as predict_videos
    from training.core.serving import VideoClassifier

    settings = Settings()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary, _user_errors():
        videos = videos_of(path)
        if overlay is not None and len(videos) != 1:
            raise typer.BadParameter("--overlay takes one video, not a folder", param_hint="--overlay")
        found = find_model(settings, model, Path(temporary))
        print(f"model: {found.name}", file=sys.stderr)
        classifier = VideoClassifier(found.folder, settings.device or "cpu")
        if overlay is not None:
            _predict_overlay(settings, classifier, videos[0], overlay, top, least_score, as_json)
            return
        for result in _progress(settings, predict_videos(classifier, videos, top, least_score), len(videos)):
            failed += bool(result.error)
            _print_result(result, as_json)
    if failed:
        print(f"{failed} of {len(videos)} videos could not be predicted", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def report(
    dataset: Annotated[str | None, typer.Option(help="Only this data set's models get new pages.")] = None,
) -> None:
    """Write the static page of all registered models."""
    from training.core.report import write_report

    with _user_errors():
        print(write_report(Settings(), dataset))


# --- parts ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one line and exit code 1."""
    from training.core.checkpoint import CheckpointError
    from training.core.config import ConfigError
    from training.core.data import DataError, SampleError
    from training.core.decode import DecodeError
    from training.core.overlay import OverlayError
    from training.core.prediction import PredictError
    from training.core.registration import RegistryError

    try:
        yield
    except (
        RegistryError,
        PredictError,
        OverlayError,
        DataError,
        SampleError,
        DecodeError,
        ConfigError,
        CheckpointError,
        FileNotFoundError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _families(settings: Settings, dataset: str, family: str | None) -> list[str]:
    """Return the families with a registered model for a data set; the named one in any case."""
    from training.core.registration import Registry, RegistryError
    from training.registry import FAMILIES

    if family is not None:
        return [family]
    names = Registry.open(settings).names()
    found = [name for name in FAMILIES if f"{name}-{dataset}" in names]
    if not found:
        raise RegistryError(
            f"no model is registered for data set {dataset!r}; `fovea register <evaluate stage>` adds one"
        )
    return found


def _promotion_row(outcome: "Promotion") -> dict[str, Any]:
    return {
        "model": outcome.name,
        "champion": outcome.champion.version if outcome.champion else None,
        "judged": outcome.judged.version if outcome.judged else None,
        "decision": outcome.report.decision if outcome.report else None,
        "gate": outcome.report.table() if outcome.report else None,
        "text": outcome.text,
    }


def _print_promotion(outcome: "Promotion") -> None:
    if outcome.report is not None:
        print(outcome.report.text())
    print(outcome.text)


def _print_result(result: "Result", as_json: bool) -> None:
    if as_json:
        row = result.as_dict() | {"score": result.scores[0] if result.scores else None}
        if result.choices:
            row["choices"] = {name: list(flags) for name, flags in result.choices.items()}
        if result.watched is not None:
            row |= result.watched.as_dict()
        print(json.dumps(row))
    elif result.error:
        print(f"{result.video}: ERROR {result.error}")
    elif result.watched is not None:
        print(f"{result.video}: " + "\n".join(object_lines(result.watched)))
    else:
        named = ", ".join(f"{name} {score:.1%}" for name, score in zip(result.classes, result.scores, strict=True))
        print(f"{result.video}: {named}")


def _predict_overlay(
    settings: Settings,
    classifier: "VideoClassifier",
    video: Path,
    target: Path,
    top: int,
    least_score: float,
    as_json: bool,
) -> None:
    from imageio_ffmpeg import get_ffmpeg_exe

    from training.core.prediction import predict_overlay

    with _bar(settings, "overlay") as update:
        result, written = predict_overlay(
            classifier,
            video,
            target,
            top=top,
            least_score=least_score,
            ffmpeg_program=settings.ffmpeg or get_ffmpeg_exe(),
            on_frame=update,
        )
    _print_result(result, as_json)
    print(f"{target}: {written.frames} frames, sound {written.sound}", file=sys.stderr)


def _progress(settings: Settings, results: "Iterator[Result]", total: int) -> "Iterator[Result]":
    with _bar(settings, "videos") as update:
        for done, result in enumerate(results, 1):
            update(done, total)
            yield result


@contextlib.contextmanager
def _bar(settings: Settings, title: str) -> Iterator[Callable[[int, int], None]]:
    """Draw a progress bar on a terminal's stderr; yields `(done, total)`."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (settings.progress and console.is_terminal)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=max(done, total))
