"""`fovea search`: a search over whole pipelines, under a budget."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from training.autovideo.commands.shared import Dataset, Executor, Json, executor_of, talk
from training.core.config import ConfigError, parse_yaml
from training.core.program import run_program

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

File = Annotated[Path, typer.Argument(help="The pipeline that the search begins with (YAML).")]


@app.command()
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
    from training.autovideo.pipeline import Pipeline
    from training.autovideo.search.budget import parse_budget
    from training.autovideo.searching import AutoVideoSearch

    talk()
    if not space.is_file():
        raise ConfigError(f"{space} does not exist")
    pipeline = Pipeline.from_yaml(file)
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
    ).run(dataset=dataset, executor=executor_of(executor), register=register, resume=resume)
    board = found.leaderboard
    if as_json:
        print(json.dumps({"winner": found.winner.to_dict(), "metrics": dict(found.metrics), "page": str(found.page),
                          "model": str(found.model), "version": found.version, "leaderboard": board}))  # fmt: skip
        return
    _print_board(board)
    videos, top1 = found.metrics.get("test/num_evaluated", 0), found.metrics["test/top1"]
    print(f"winner on test, {videos:.0f} videos: top-1 {top1:.3f}")
    print(f"model: {found.model}" + (f", registered as {found.version}" if found.version else ""))
    print(f"page: {found.page}")


def _print_board(board: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "trial", "val top-1", "GMAC", "parameters", "status", "")
    for place, trial in enumerate(board["trials"][:15], start=1):
        value = "" if trial["value"] is None else f"{trial['value']:.3f}"
        mark = "winner" if trial["winner"] else "front" if trial["front"] else trial["error_class"] or ""
        figures = (value, f"{trial['gmac']:.3g}", f"{trial['params']:,.0f}", trial["status"], mark)
        table.add_row(str(place), trial["name"], *figures)
    Console().print(table)
    winner = next(trial for trial in board["trials"] if trial["winner"])
    print(
        "winner's choices: " + ", ".join(f"{name} {_short(value)}" for name, value in _chosen(winner["flat"]).items())
    )
    if board["refused"]:
        print(
            f"{len(board['refused'])} candidates cost more than the limits, or were no pipelines, and were not trained"
        )


def _chosen(flat: dict[str, Any]) -> dict[str, Any]:
    from training.autovideo.report.stage import with_lists

    return {name: value for name, value in with_lists(flat).items() if value is not None}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Run the command line and return the exit code."""
    return run_program(app, "fovea search")
