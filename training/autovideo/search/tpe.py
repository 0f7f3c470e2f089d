"""Optuna's tree-structured Parzen estimator behind `Engine`.

The study is made anew from the history for each proposal and its sampler seeded by the proposal's number: what Optuna
proposes is then a function of both. It takes milliseconds beside trainings of minutes.
"""

import contextlib
import math
import random
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from training.autovideo.domains import Choice, Domain, FloatRange, IntRange
from training.autovideo.search.history import History, Seen
from training.autovideo.search.space_tree import Choices, Parameter, Picks, Space, canonical

if TYPE_CHECKING:
    import optuna

_FAILED = 1.0
"""How far a failed or invalid candidate counts as outside what is allowed: like one of twice the cost."""


class Tpe:
    """See `TpeConfig`. Maximises the metric; with `minimise`, also minimises costs."""

    redraws = True

    def __init__(self, space: Space, seed: int, startup: int, candidates: int, minimise: tuple[str, ...]) -> None:
        self._space, self._seed = space, seed
        self._startup, self._candidates = startup, candidates
        self._minimise = minimise
        self._spreads: dict[str, dict[str, Any]] = {}
        """Parameter → its distributions; made once."""

    def propose(self, history: History, number: int) -> Choices | None:
        """Return the next candidate that Optuna suggests."""
        import optuna
        from optuna.study import StudyDirection

        # Refused and failed ones are no knowledge of what is good: they do not shorten the random start.
        startup = self._startup + sum(seen.status in ("refused", "invalid", "failed") for seen in history.seen)
        with _quiet():
            sampler = optuna.samplers.TPESampler(
                seed=random.Random(f"{self._seed}/tpe/{number}").getrandbits(32),
                n_startup_trials=startup,
                n_ei_candidates=self._candidates,
                multivariate=True,
                group=True,
                constant_liar=True,
            )
            directions = [StudyDirection.MAXIMIZE] + [StudyDirection.MINIMIZE] * len(self._minimise)
            study = optuna.create_study(directions=directions, sampler=sampler)
        for seen in history.seen:
            if (trial := self._trial(seen)) is not None:
                study.add_trial(trial)
        asked = study.ask()
        return self._space.walk(lambda parameter: _suggest(asked, parameter, self._spread(parameter)))

    def _spread(self, parameter: Parameter) -> dict[str, Any]:
        if parameter.name not in self._spreads:
            self._spreads[parameter.name] = _distributions(parameter)
        return self._spreads[parameter.name]

    def _trial(self, seen: Seen) -> "optuna.trial.FrozenTrial | None":
        from optuna.trial import TrialState, create_trial

        params: dict[str, Any] = {}
        distributions: dict[str, Any] = {}
        for name, value in seen.choices.items():
            parameter = self._space.by_name[name]
            own, spread = _as_optuna(parameter, value), self._spread(parameter)
            params |= own
            distributions |= {key: spread[key] for key in own}
        common: dict[str, Any] = {"params": params, "distributions": distributions}
        if seen.status == "running":
            return create_trial(state=TrialState.RUNNING, **common)
        if seen.status == "finished" and seen.value is not None:
            values = [seen.value, *(seen.costs.get(name, math.nan) for name in self._minimise)]
            if all(map(math.isfinite, values)):
                return create_trial(state=TrialState.COMPLETE, values=values, **common)
        if seen.status == "stopped":
            # With several objectives Optuna has no place for the last value of a trial that was stopped.
            value = None if self._minimise else seen.value
            steps = {seen.steps: value} if value is not None and math.isfinite(value) else {}
            return create_trial(state=TrialState.PRUNED, intermediate_values=steps, **common)
        # Optuna ignores trials that fail; as ones outside a limit they are the last that it imitates.
        excess = seen.excess if seen.status == "refused" else _FAILED
        return create_trial(state=TrialState.PRUNED, constraints={"limit": max(excess, 1e-9)}, **common)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out that `group` is experimental, since 2021, and a line for each new study; both come per proposal."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match domain:
        case Choice():
            return CategoricalDistribution(list(range(len(domain.values))))
        case IntRange():
            step = 1 if domain.log else domain.step
            high = domain.low + (domain.high - domain.low) // step * step
            return IntDistribution(domain.low, high, log=domain.log, step=step)
        case FloatRange():
            return FloatDistribution(domain.low, domain.high, log=domain.log)


def _distributions(parameter: Parameter) -> dict[str, Any]:
    """Return Optuna's parameters: one, or of a list its length and the item at each place."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if not isinstance(parameter.domain, Picks):
        return {parameter.name: _distribution(parameter.domain)}
    picks = parameter.domain
    places = {
        f"{parameter.name} {n}": CategoricalDistribution(list(range(len(picks.items)))) for n in range(picks.most)
    }
    return {parameter.name: IntDistribution(picks.least, picks.most), **places}


def _suggest(trial: "optuna.trial.Trial", parameter: Parameter, spread: dict[str, Any]) -> Any:
    if not isinstance(parameter.domain, Picks):
        found = _suggest_one(trial, parameter.name, spread)
        return parameter.domain.values[found] if isinstance(parameter.domain, Choice) else found
    labels, chosen = list(parameter.domain.items), list[str]()
    for place in range(_suggest_one(trial, parameter.name, spread)):
        number = _suggest_one(trial, f"{parameter.name} {place}", spread)
        while not parameter.domain.repeats and labels[number] in chosen:  # already there: the next that is not
            number = (number + 1) % len(labels)
        chosen.append(labels[number])
    return chosen


def _suggest_one(trial: "optuna.trial.Trial", name: str, spread: dict[str, Any]) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    match spread[name]:
        case IntDistribution() as ints:
            return trial.suggest_int(name, ints.low, ints.high, step=ints.step, log=ints.log)
        case FloatDistribution() as floats:
            return trial.suggest_float(name, floats.low, floats.high, log=floats.log)
        case other:
            return trial.suggest_categorical(name, other.choices)


def _as_optuna(parameter: Parameter, value: Any) -> dict[str, Any]:
    """Return a value as Optuna has it: choices and items by number."""
    domain = parameter.domain
    if isinstance(domain, Picks):
        labels = list(domain.items)
        places = {f"{parameter.name} {n}": labels.index(label) for n, label in enumerate(value)}
        return {parameter.name: len(value), **places}
    if isinstance(domain, Choice):
        return {parameter.name: [canonical(other) for other in domain.values].index(canonical(value))}
    return {parameter.name: value}
