"""`fovea pipeline run` and `fovea search`."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.settings import Settings
from training.core.config import ConfigError, parse_yaml

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
File = Annotated[Path, typer.Argument(help="Pipeline document, YAML.")]
Dataset = Annotated[str, typer.Option(help="Data set that `reader/dataset` reads where it names none.")]
Executor = Annotated[str, typer.Option(help="`local` trains in this process, `ray` through Ray.")]


def _talk() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("alembic", "mlflow", "ray"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _executor(name: str) -> Any:
    if name not in ("local", "ray"):
        raise ConfigError(f"--executor must be local or ray, got {name!r}")
    return name


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

    from training.autovideo.fitted import FittedPipeline
    from training.autovideo.pipeline import Pipeline, as_json_text

    _talk()
    pipeline = Pipeline.from_yaml(file)
    done = pipeline.run(dataset=dataset, only=only, resume=not fresh, executor=_executor(executor))
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
    print(f"workspace: {done.workspace}" + (f"; saved: {save}" if save else ""))


def search(
    file: File,
    space: Annotated[Path, typer.Option(help="Space document, YAML: what may be tried.")],
    budget: Annotated[str, typer.Option(help="20m, 4h, 30trials, 4gpuh, or several joined by commas.")],
    engine: Annotated[str, typer.Option(help="random, tpe, evolution or grid.")] = "tpe",
    objective: Annotated[str, typer.Option(help="top1, then what shall be small: gmac, params.")] = "top1,gmac",
    seed: Annotated[int, typer.Option(help="Of what the engine draws.")] = 0,
    longer: Annotated[float, typer.Option(help="Steps of the winner's own training, as a factor of a trial's.")] = 1.0,
    grace_steps: Annotated[
        int | None, typer.Option(help="Stop poor trials early: first rung, in steps (ASHA).")
    ] = None,
    reduction: Annotated[float, typer.Option(help="Of ASHA: at a rung the best 1/n go on.")] = 3.0,
    gpus: Annotated[int | None, typer.Option(help="Processes that hold a GPU, for a budget in gpuh.")] = None,
    dataset: Dataset = "",
    executor: Executor = "local",
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on where an earlier search of these inputs stopped.")
    ] = True,
    register: Annotated[bool, typer.Option(help="Register the winner and let the gate judge it.")] = True,
    as_json: Json = False,
) -> None:
    """Search over whole pipelines; the winner is trained once more, evaluated once on test, and registered."""
    from training.autovideo.budget import parse_budget
    from training.autovideo.pipeline import Pipeline
    from training.autovideo.searching import AutoVideoSearch

    _talk()
    if not space.is_file():
        raise ConfigError(f"{space} does not exist")
    pipeline = Pipeline.from_yaml(file)
    if not resume:
        import shutil

        shutil.rmtree(Settings().root / "pipelines" / pipeline.document.name, ignore_errors=True)
    stopping = None if grace_steps is None else {"grace_steps": grace_steps, "reduction_factor": reduction}
    found = AutoVideoSearch(
        pipeline,
        parse_yaml(space.read_text()),
        parse_budget(budget, gpus, "--budget"),
        engine=engine,
        objectives=tuple("metric" if name == "top1" else name for name in objective.split(",")),
        seed=seed,
        longer=longer,
        stopping=stopping,
    ).run(dataset=dataset, executor=_executor(executor), register=register)
    board = found.leaderboard
    if as_json:
        print(json.dumps({"winner": found.winner.to_dict(), "metrics": dict(found.metrics), "page": str(found.page),
                          "model": str(found.model), "version": found.version, "leaderboard": board}))  # fmt: skip
        return
    _print_board(board)
    print(
        f"winner on test, {found.metrics.get('test/num_evaluated', 0):.0f} videos: top-1 {found.metrics['test/top1']:.3f}"
    )
    print(f"model: {found.model}" + (f", registered as {found.version}" if found.version else ""))
    print(f"page: {found.page}")


def _print_board(board: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "trial", "val top-1", "GMAC", "parameters", "status", "choices")
    shown = sorted(board["trials"], key=lambda trial: -(trial["value"] if trial["value"] is not None else -1.0))
    for place, trial in enumerate(shown[:15], start=1):
        value = "" if trial["value"] is None else f"{trial['value']:.3f}"
        choices = ", ".join(f"{name}={_short(item)}" for name, item in trial["flat"].items() if item is not None)
        mark = ("*" if trial["winner"] else "") + ("front" if trial["front"] else "")
        table.add_row(
            f"{place} {mark}",
            trial["name"],
            value,
            f"{trial['gmac']:.3g}",
            f"{trial['params']:,.0f}",
            trial["status"],
            choices,
        )
    Console().print(table)
    if board["refused"]:
        print(f"{len(board['refused'])} candidates cost more than the limits and were not trained")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
