"""AutoVideo: pipelines of declared steps, seven recognisers, and a search over whole pipelines.

Importing this package, and everything that only declares or checks, does not import torch.
"""

from typing import TYPE_CHECKING

from training.autovideo.config import (
    EvalConfig,
    FoundConfig,
    FoundEvalConfig,
    ReportConfig,
    SearchConfig,
    TrainConfig,
)
from training.autovideo.presets import MODELS
from training.core.stage import Report, Stage, StageInputs

if TYPE_CHECKING:
    from training.core.system import System
    from training.core.trials import Search

__all__ = ["MODELS", "STAGES"]

LEADERBOARD, WINNER = "leaderboard.json", "winner.yaml"
"""What a search leaves."""


def _train(inputs: StageInputs) -> "System":
    from training.autovideo.system import AutoVideoSystem

    system = AutoVideoSystem(inputs.config, inputs.classes, inputs.root)
    system.freeze()
    return system


def _evaluation(inputs: StageInputs) -> "System":
    from training.core.checkpoint import load_model

    models = [
        folder for name, folder in inputs.upstream.items() if name.startswith(("autovideo_train", "autovideo_found"))
    ]
    return load_model(models[0]).system


def _search(inputs: StageInputs) -> "Search":
    from training.autovideo.searching import make_search

    return make_search(inputs.config, len(inputs.classes), inputs.shards)


def _report(inputs: StageInputs) -> Report:
    from training.autovideo.report.stage import AutoVideoReport

    return AutoVideoReport(inputs.config, inputs.classes, inputs.results)


_PIPELINES = {"pipelines": "autovideo_pipelines"}
_GRID = {"pipeline": "autovideo_grid.pipeline"}
_SEARCHES = {axis: f"autovideo_searches.{axis}" for axis in ("engine", "seed")}

STAGES = (
    Stage(name="autovideo_train", kind="fit", config=TrainConfig, build=_train, matrix=_GRID, shared=_PIPELINES),
    Stage(
        name="autovideo_eval",
        kind="evaluate",
        config=EvalConfig,
        build=_evaluation,
        upstream=("autovideo_train-{pipeline}",),
        subject="autovideo_train",
        matrix=_GRID,
        shared=_PIPELINES,
        metric="test/top1",
        split="test",
    ),
    Stage(
        name="autovideo_search",
        kind="search",
        config=SearchConfig,
        build=_search,
        matrix=_SEARCHES,
        shared=_PIPELINES,
        leaves=(WINNER, LEADERBOARD),
    ),
    Stage(
        name="autovideo_found",
        kind="fit",
        config=FoundConfig,
        build=_train,
        upstream=("autovideo_search-{engine}-{seed}",),
        found={"document": f"autovideo_search/{WINNER}"},
        matrix=_SEARCHES,
    ),
    Stage(
        name="autovideo_found_eval",
        kind="evaluate",
        config=FoundEvalConfig,
        build=_evaluation,
        upstream=("autovideo_found-{engine}-{seed}", "autovideo_search-{engine}-{seed}"),
        subject="autovideo_found",
        found={"document": f"autovideo_search/{WINNER}"},
        matrix=_SEARCHES,
        metric="test/top1",
        split="test",
    ),
    Stage(
        name="autovideo_report",
        kind="report",
        config=ReportConfig,
        build=_report,
        upstream=("autovideo_search", "autovideo_found", "autovideo_found_eval", "autovideo_train", "autovideo_eval"),
        shared=_PIPELINES,
        metric="val/best_top1",
    ),
)
