"""Search over pipelines as an ask/tell object: candidates are documents, each trained by its compiled stage config.

What costs more than the limits, and what is no valid pipeline, is listed and never trained; no candidate is trained
twice. Only the training and validation splits are looked at: a trial's value is its validation metric.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from training.autovideo.search.budget import Budget
from training.autovideo.search.engines import Engine, EngineConfig, RandomConfig, make_engine
from training.autovideo.search.history import History, Seen
from training.autovideo.search.leaderboard import (
    Entry,
    Refusal,
    choose_winner,
    front_members,
    leaderboard_json,
    winner_yaml,
)
from training.autovideo.search.space_apply import apply
from training.autovideo.search.space_size import size
from training.autovideo.search.space_tree import Choices, Space, canonical
from training.core.config import ConfigError
from training.core.failures import StageFailed
from training.core.trials import Outcome, Trial

__all__ = ["COSTS", "Compile", "Compiled", "PipelineSearch", "check_fingerprints"]

STAGE = "autovideo_train"
COSTS = ("gmac", "params", "latency_ms")
"""Objectives that are minimised, besides the metric."""
REDRAWS = 100
"""Proposals in a row that came to nothing (refused, invalid or known) after which there is no further trial. The second
half of them is drawn at random, whatever the engine. A grid has no such bound: it goes to its end."""
WINNER, LEADERBOARD = "winner.yaml", "leaderboard.json"
LEAVES = (WINNER, LEADERBOARD)


@dataclass(frozen=True)
class Compiled:
    """What a pipeline document comes to."""

    config: dict[str, Any]
    """Complete config of the stage, plain JSON values."""
    gmac: float
    """Per view, 10^9 multiply-accumulates."""
    params: int
    digest: str
    """Identity of what is trained: two documents with the same digest are the same training."""
    stage: str = STAGE
    costs: Mapping[str, float] = field(default_factory=dict)
    """Further costs that are known beforehand, `latency_ms`."""

    def all_costs(self) -> dict[str, float]:
        """Return gmac, params and the further costs."""
        return {"gmac": float(self.gmac), "params": float(self.params), **self.costs}


Compile = Callable[[dict[str, Any]], Compiled]
"""Turns a candidate document into a training, without training; raises ConfigError where it is no valid pipeline."""


@dataclass
class _Draw:
    """What came of drawing candidates until one can be trained."""

    trial: Trial | None = None
    choices: Choices = field(default_factory=dict)
    compiled: Compiled | None = None
    document: dict[str, Any] = field(default_factory=dict)
    refused: list[tuple[Seen, Refusal]] = field(default_factory=list)
    proposals: int = 0
    repeated: int = 0


class PipelineSearch:
    """Implements `training.core.trials.Search` and `HasFiles`.

    Args:
        space: what may be chosen; its limits are hard.
        base: the pipeline document that is varied.
        compile_document: checks a candidate, and gives its stage config, cost and identity.
        engine: which proposes.
        seed: of everything that is drawn.
        budget: trials, seconds, or both.
        objectives: `metric` first, then costs to be minimised. One winner is named in any case (see `winner`).
        warm: (choices, value) of earlier searches with the same data, from which TPE and evolution learn; those that do
            not fit the space are counted and left out.
        group: of all trials, for early stopping: they have the same fidelity.

    Raises:
        ConfigError: no budget where there is no end; objectives that there are not; a base that is no valid pipeline's.
    """

    def __init__(
        self,
        space: Space,
        base: Mapping[str, Any],
        compile_document: Compile,
        engine: EngineConfig,
        seed: int,
        budget: Budget,
        *,
        objectives: Sequence[str] = ("metric",),
        warm: Sequence[tuple[Choices, float]] = (),
        group: str = "all",
    ) -> None:
        _check_objectives(objectives)
        self.space, self.budget, self.objectives = space, budget, tuple(objectives)
        self._base, self._compile, self._group = base, compile_document, group
        self._count = size(space)
        if budget.trials is None and budget.seconds is None and self._count is None:
            raise ConfigError("the space has no end, so the search needs a budget: trials, or a time")
        self._engine: Engine = make_engine(engine, space, seed, self.objectives[1:])
        self._engine_name = engine.name
        self._at_random = make_engine(RandomConfig(), space, seed)
        self._history = History()
        self._entries: dict[str, Entry] = {}
        self._numbers: dict[str, int] = {}
        self._known: set[str] = set()
        self._refused: list[Refusal] = []
        self._proposals = 0
        self._repeated = 0
        self._elapsed_s = 0.0
        self._told = 0
        self._vain: tuple[int, _Draw] | None = None
        """Outcomes told when the last draw came to nothing, and that draw."""
        self._warm, self._warm_outside = 0, 0
        # The worst first: where age counts, the best are the youngest.
        for choices, value in sorted(warm, key=lambda pair: pair[1] if math.isfinite(pair[1]) else -math.inf):
            self._learn(choices, value)

    @property
    def total(self) -> int | None:
        """The largest number of trials, where it is known."""
        known = [number for number in (self.budget.trials, self._count) if number is not None]
        return min(known) if known else None

    def ask(self) -> Trial | None:
        """Return the next candidate's training; None: the budget is used, or there is no other candidate for now."""
        if self.budget.trials is not None and len(self._entries) >= self.budget.trials:
            return None
        if self.budget.seconds is not None and self._elapsed_s >= self.budget.seconds:
            return None
        if self._vain is not None and self._vain[0] == self._told:
            return None  # nothing is known now that was not known then
        draw = self._draw()
        if draw.trial is None:
            self._vain = (self._told, draw)  # a replay does not come through here: nothing else may change
            return None
        self._vain = None
        self._take(draw)
        return draw.trial

    def tell(self, outcome: Outcome) -> None:
        """Note what became of a trial."""
        self._told += 1
        self._elapsed_s = max(self._elapsed_s, outcome.elapsed_s)
        name = outcome.trial.name
        entry = self._entries[name]
        value = outcome.value if outcome.value is not None and math.isfinite(outcome.value) else None
        costs = {**entry.costs}
        costs |= {key: outcome.metrics[key] for key in COSTS if key in outcome.metrics and key not in costs}
        # A finished training without a number has found out as little as a failed one.
        status = "failed" if outcome.status == "finished" and value is None else outcome.status
        error = outcome.error or ("its metric is no number" if status != outcome.status else None)
        nll = next((number for key, number in outcome.metrics.items() if key.endswith("/nll")), math.inf)
        self._entries[name] = replace(
            entry, status=status, value=value, costs=costs, error=error, steps=outcome.steps, nll=nll
        )
        seen = Seen(entry.choices, status, value if status != "failed" else None, costs, steps=outcome.steps)
        self._history.end(self._numbers[name], seen)

    def winner(self) -> Entry | None:
        """Return the finished trial with the best metric; of equals the cheaper, then the likelier."""
        return choose_winner(list(self._entries.values()))

    def front(self) -> list[str]:
        """Return the names of the finished trials that none beats in all objectives; those without a cost left out."""
        return front_members(list(self._entries.values()), self.objectives[1:])

    def entries(self) -> list[Entry]:
        """Return all trials in the order in which they were asked for."""
        return list(self._entries.values())

    def refused(self) -> list[Refusal]:
        """Return the candidates that were refused before training."""
        return [*self._refused, *(refusal for _, refusal in (self._vain[1].refused if self._vain else []))]

    def summary(self) -> dict[str, float]:
        """Return counts and the best figures."""
        winner, refused = self.winner(), self.refused()
        figures = {
            "search/trials": float(len(self._entries)),
            "search/refused": float(sum(item.reason == "limits" for item in refused)),
            "search/invalid": float(sum(item.reason == "invalid" for item in refused)),
            "search/repeated": float(self._repeated + (self._vain[1].repeated if self._vain else 0)),
            "search/front_size": float(len(self.front())),
            "search/warm": float(self._warm),
            "search/warm_outside": float(self._warm_outside),
        }
        if self._count is not None:
            figures["search/space_size"] = float(self._count)
        if winner is not None and winner.value is not None:
            figures["search/best"] = winner.value
            figures["search/gmac_best"] = winner.costs["gmac"]
            figures["search/params_best"] = winner.costs["params"]
        return figures

    def files(self) -> dict[str, str]:
        """Return `winner.yaml` and `leaderboard.json`.

        Raises:
            StageFailed: no trial has finished.
        """
        winner = self.winner()
        if winner is None:
            raise StageFailed("no trial of the search has finished with a number, so there is no winner")
        head: dict[str, Any] = {
            "engine": self._engine_name,
            "objectives": list(self.objectives),
            "limits": dict(self.space.limits),
            "budget": {**self.budget.model_dump(), "used_trials": len(self._entries), "used_seconds": self._elapsed_s},
            "figures": self.summary(),
            "space": self.space.to_dict(),
        }
        entries = list(self._entries.values())
        board = leaderboard_json(head, self.space, entries, self.refused(), set(self.front()), winner.name)
        return {WINNER: winner_yaml(winner), LEADERBOARD: board}

    # --- drawing ---------------------------------------------------------------------------------

    def _draw(self) -> _Draw:
        """Draw candidates until one can be trained, without noting anything."""
        draw = _Draw()
        known = {item.digest for item in self._refused if item.digest}
        history = self._history
        limit = REDRAWS if self._engine.redraws else math.inf
        while draw.proposals < limit:
            # An engine may insist on what is known already; the rest of the draws look for whatever is left.
            insists = self._engine.redraws and draw.proposals >= REDRAWS // 2
            engine = self._at_random if insists else self._engine
            choices = engine.propose(history, self._proposals + draw.proposals)
            if choices is None:
                return draw
            draw.proposals += 1
            document = apply(self.space, self._base, choices)
            try:
                compiled = self._compile(document)
            except ConfigError as error:
                text = canonical(document)
                if text not in known:
                    known.add(text)
                    refusal = Refusal("invalid", choices, {}, str(error), text)
                    draw.refused.append((Seen(choices, "invalid"), refusal))
                    history = self._history.with_more([seen for seen, _ in draw.refused])
                else:
                    draw.repeated += 1
                continue
            if compiled.digest in self._known or compiled.digest in known:
                draw.repeated += 1
                continue
            costs = compiled.all_costs()
            if message := self._over(costs):
                known.add(compiled.digest)
                excess = max(costs[name] / limit - 1 for name, limit in self.space.limits.items())
                refusal = Refusal("limits", choices, costs, message, compiled.digest)
                draw.refused.append((Seen(choices, "refused", costs=costs, excess=excess), refusal))
                history = self._history.with_more([seen for seen, _ in draw.refused])
                continue
            draw.choices, draw.compiled, draw.document = choices, compiled, document
            draw.trial = self._trial(choices, compiled, document)
            return draw
        return draw

    def _over(self, costs: Mapping[str, float]) -> str:
        over = [
            f"{name} {costs[name]:g} > {limit:g}" for name, limit in self.space.limits.items() if costs[name] > limit
        ]
        return ", ".join(over)

    def _trial(self, choices: Choices, compiled: Compiled, document: dict[str, Any]) -> Trial:
        facts: dict[str, float | str] = {**compiled.all_costs()}
        facts |= {key: value for key, value in self.space.encode(choices).items() if value is not None}
        facts["document"] = canonical(document)
        name = f"t{len(self._entries):03d}-{compiled.digest[:8]}"
        return Trial(name, self._group, compiled.stage, compiled.config, facts)

    def _take(self, draw: _Draw) -> None:
        assert draw.trial is not None
        assert draw.compiled is not None
        self._proposals += draw.proposals
        self._repeated += draw.repeated
        for seen, refusal in draw.refused:
            self._history.add(seen)
            self._refused.append(refusal)
        costs = draw.compiled.all_costs()
        self._known.add(draw.compiled.digest)
        self._numbers[draw.trial.name] = self._history.add(Seen(draw.choices, "running", costs=costs))
        self._entries[draw.trial.name] = Entry(draw.trial.name, "running", draw.choices, costs, draw.document)

    def _learn(self, choices: Choices, value: float) -> None:
        fits = math.isfinite(value) and self.space.has(choices)
        if fits:
            try:
                costs = self._compile(apply(self.space, self._base, choices)).all_costs()
            except ConfigError:
                fits = False
        if not fits:
            self._warm_outside += 1
            return
        self._warm += 1
        self._history.add(Seen(dict(choices), "finished", value, costs))


def _check_objectives(objectives: Sequence[str]) -> None:
    if not objectives or objectives[0] != "metric" or len(set(objectives)) < len(objectives):
        raise ConfigError(f"objectives are `metric` and then costs, each once; these are {list(objectives)}")
    if unknown := [name for name in objectives[1:] if name not in COSTS]:
        raise ConfigError(f"objectives: there is no cost {unknown[0]!r}; there are {', '.join(COSTS)}")


def check_fingerprints(train: str, val: str, test: str | None = None) -> None:
    """Check that no split is another one: a search that selects on the test split reports a number that means nothing.

    Single samples and groups that are in two splits are the business of what makes the splits.

    Args:
        train: digest of the samples of the split.
        val: likewise.
        test: likewise; None: there is none.

    Raises:
        ConfigError: two splits have the same samples.
    """
    splits: list[tuple[Literal["train", "val", "test"], str | None]] = [("train", train), ("val", val), ("test", test)]
    for number, (name, fingerprint) in enumerate(splits):
        for other, other_fingerprint in splits[:number]:
            if fingerprint is not None and fingerprint == other_fingerprint:
                raise ConfigError(
                    f"the splits {other!r} and {name!r} have the same samples (fingerprint {fingerprint[:16]}); a "
                    "search trains on train, compares on val and leaves test to the winner: give each its own videos"
                )
