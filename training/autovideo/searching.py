"""Searches over pipelines: the stage's ask/tell object, and `AutoVideoSearch`, which runs all of it in a workspace."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_specs.schema import digest
from infra.locks import stage_lock
from infra.settings import Settings
from training.autovideo.config import SearchConfig, TrainConfig
from training.autovideo.document import Document
from training.autovideo.pipeline import Executor, Pipeline, workspace_settings
from training.autovideo.plan import only_learner
from training.autovideo.search.budget import Budget
from training.autovideo.search.pipeline_search import Compiled, PipelineSearch, check_fingerprints
from training.autovideo.search.space import build_space
from training.autovideo.shard_sets import num_samples, open_shards
from training.autovideo.training import absolute_weights, counted, link, write_params
from training.autovideo.values import Clips, Shards
from training.core.config import ConfigError, validate
from training.core.pages import write_text

SEARCH, FOUND, FOUND_EVAL, REPORT = "autovideo_search", "autovideo_found", "autovideo_found_eval", "autovideo_report"


def make_search(config: SearchConfig, num_classes: int, shards: Path | None) -> PipelineSearch:
    """Return the ask/tell object of a search stage.

    Raises:
        ConfigError: a space, an engine or a budget that is not valid; two splits with the same videos.
    """
    if shards is not None:
        prints = open_shards(shards, shards.name).fingerprints
        if missing := [split for split in ("train", "val") if split not in prints]:
            raise ConfigError(f"{shards} has no split {missing[0]!r}: a search trains on train and compares on val")
        check_fingerprints(prints["train"], prints["val"], prints.get("test"))
    only_learner(Document.from_dict(config.document))
    return PipelineSearch(
        build_space(config.space, config.document, "autovideo_search.space"),
        config.document,
        Compiler(num_classes),
        config.engine_config(),
        config.seed,
        config.budget,
        objectives=config.objectives,
    )


@dataclass(frozen=True)
class Compiler:
    """Turns a candidate document into the config of its training, and says what it costs; nothing is allocated."""

    num_classes: int

    def __call__(self, document: Mapping[str, Any]) -> Compiled:
        """Return the candidate's training and cost.

        Raises:
            ConfigError: the document is not valid, or its net cannot take its clips.
        """
        from training.autovideo.system import network_cost

        config = validate(TrainConfig, {"document": dict(document)}, "candidate")
        data = config.data
        gmac, params = network_cost(
            config.recogniser(), self.num_classes, data.num_frames, data.transform.eval_side, data.eval_views
        )
        values = config.model_dump(mode="json")
        identity = digest({name: values[name] for name in ("data", "augment", "learner", "fit")})
        return Compiled(config=values, gmac=gmac, params=params, digest=identity)


@dataclass(frozen=True)
class SearchResult:
    """What a search came to."""

    winner: Document
    leaderboard: Mapping[str, Any]
    """As `leaderboard.json`."""
    model: Path
    """Folder of the winner, trained once more."""
    metrics: Mapping[str, float]
    """Of the winner on test, which nothing else was evaluated on."""
    page: Path
    version: str | None
    """Registered version, or None."""


class AutoVideoSearch:
    """A search over the pipelines of a space, beginning with one of them.

    Args:
        pipeline: with one recogniser.
        space: a space document as plain values.
        budget: trials, seconds, or both.
        engine: random, tpe, evolution or grid.
        objectives: `metric`, the accuracy on val, and then what shall be small: gmac, params.
        seed: of the engine.
        longer: factor of the steps with which the winner is trained.
        stopping: successive halving, `{grace_steps, reduction_factor}`; the recipe must then evaluate in between.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        space: Mapping[str, Any],
        budget: Budget,
        *,
        engine: str = "tpe",
        objectives: tuple[str, ...] = ("metric", "gmac"),
        seed: int = 0,
        longer: float = 1.0,
        stopping: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipeline, self.space, self.budget, self.engine = pipeline, dict(space), budget, engine
        self.objectives, self.seed, self.longer = objectives, seed, longer
        self.stopping = None if stopping is None else dict(stopping)
        build_space(self.space, pipeline.to_dict())  # what is wrong with it is said before anything runs

    def run(
        self,
        *,
        settings: Settings | None = None,
        dataset: str = "",
        executor: Executor = "local",
        register: bool = True,
        resume: bool = True,
    ) -> SearchResult:
        """Search, train the winner once more, evaluate it once on test, write the page, and register it.

        Started again after any kind of death it goes on where it was: finished trials are not repeated, and a search
        that has come to its end is not made again. `resume=False` forgets what there was.

        Raises:
            ConfigError: see `make_search`; or the pipeline has no recogniser, or several.
            StageFailed: no trial could be trained.
        """
        from training.core.run import run_stage
        from training.core.stage import StageRef

        project = settings or Settings()
        root = project.root.absolute() / "pipelines" / self.pipeline.document.name
        own = workspace_settings(project, root, executor)
        items = (self.engine, str(self.seed))
        with stage_lock(root / ".search.lock"):
            shards = self._shards(project, dataset, executor, resume)
            document = self._judged(counted(self.pipeline.document, num_samples(shards.folder, "train")))
            link(own, shards)
            sections = absolute_weights(self._sections(document), project.root)
            write_params(root, shards.dataset, lists=self._lists(shards.dataset), sections=sections)
            identity = digest({"sections": sections, "shards": shards.digest, "items": list(items)})
            refs = [StageRef(name, shards.dataset, items) for name in (SEARCH, FOUND, FOUND_EVAL)]
            refs.append(StageRef(REPORT, shards.dataset))
            for ref in refs:
                mark = root / "done" / f"{ref.slug}.json"
                known = mark.is_file() and json.loads(mark.read_text())["identity"] == identity
                if known and _left(ref, own):
                    continue
                run_stage(ref, own)
                mark.parent.mkdir(parents=True, exist_ok=True)
                write_text(mark, json.dumps({"identity": identity}))
        return self._result(own, refs, register)

    def _shards(self, project: Settings, dataset: str, executor: Executor, resume: bool) -> Shards:
        """Run the pipeline as far as the clips of the learner: decoded and packed once, for all trials."""
        checked = self.pipeline.document.checked()
        (edge,) = checked.graph.inputs(only_learner(self.pipeline.document))["clips"]
        ran = self.pipeline.run(settings=project, dataset=dataset, executor=executor, resume=resume, only=edge.source)
        clips = ran.value(str(f"{edge.source}.{edge.output}"))
        assert isinstance(clips, Clips)
        if clips.shards is None:
            raise ConfigError(f"pipeline {self.pipeline.document.name!r}: the clips of its learner come from no shards")
        return clips.shards

    def _judged(self, document: Document) -> Document:
        """Return the document with evaluations where early stopping compares, if its recipe has none in between."""
        if self.stopping is None:
            return document
        values, name = document.to_dict(), only_learner(document)
        for step in values["steps"]:
            if step["id"] == name and not step.get("with", {}).get("eval_every"):
                step["with"] = {**step.get("with", {}), "eval_every": int(self.stopping["grace_steps"])}
        return Document.from_dict(values)

    def _lists(self, dataset: str) -> dict[str, Any]:
        searches = {"engine": [self.engine], "seed": [self.seed]}
        return {"autovideo": [dataset], "autovideo_grid": {"pipeline": []}, "autovideo_searches": searches}

    def _sections(self, document: Document) -> dict[str, Any]:
        search: dict[str, Any] = {
            "pipeline": "base",
            "space": self.space,
            "budget": self.budget.model_dump(exclude_none=True),
            "objectives": list(self.objectives),
            "engines": {self.engine: {}},
            "stopping": self.stopping,
        }
        return {
            "autovideo_pipelines": {"base": document.to_dict()},
            SEARCH: search,
            FOUND: {"longer": self.longer},
            FOUND_EVAL: {},
            REPORT: {"pipeline": "base", "bootstrap": 1000, "seed": 0},
        }

    def _result(self, own: Settings, refs: list[Any], register: bool) -> SearchResult:
        from training.core.stage import paths_of
        from training.registry import all_stages

        stages = all_stages()
        search, found, evaluation, report = (paths_of(stages[ref.stage], ref, own, stages) for ref in refs)
        version: str | None = None
        if register:
            from training.core.promotion import promote
            from training.core.registration import register as register_model

            version = str(register_model(own, refs[2]))
            promote(own, refs[2].dataset, "autovideo")
        return SearchResult(
            winner=Document.from_file(search.run / "winner.yaml"),
            leaderboard=json.loads((search.run / "leaderboard.json").read_text()),
            model=found.model,
            metrics=json.loads(evaluation.metrics.read_text()),
            page=report.run / "page.html",
            version=version,
        )


def _left(ref: Any, own: Settings) -> bool:
    """Whether what a finished stage left is still there."""
    from training.core.stage import paths_of
    from training.registry import all_stages

    stages = all_stages()
    paths = paths_of(stages[ref.stage], ref, own, stages)
    needed = {SEARCH: [paths.run / "winner.yaml", paths.run / "leaderboard.json"], FOUND: [paths.model],
              FOUND_EVAL: [paths.predictions, paths.config], REPORT: [paths.run / "page.html"]}  # fmt: skip
    return paths.metrics.is_file() and all(path.exists() for path in needed[ref.stage])
