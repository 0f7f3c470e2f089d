"""Searches, as the report reads them from their run folders."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from training.backbones.movinet_layout import Layer, MoViNetLayout
from training.movinet.report.run_folder import RecordError, get_field, read_json

UNIFORM = "random"
"""Engine, or control, that draws candidates uniformly: nothing is learned."""


@dataclass(frozen=True)
class LayerOptions:
    """What a layer of the searched space can be; all of it is drawn uniformly."""

    kernels: tuple[str, ...]
    expansions: tuple[float, ...]
    gates: tuple[bool, ...]

    @property
    def temporal(self) -> float:
        """Share of the kernels that see more than one frame."""
        return sum(Layer.parse(f"{text}:1").kernel[0] > 1 for text in self.kernels) / len(self.kernels)


@dataclass(frozen=True)
class Candidate:
    """An architecture that a search looked at."""

    name: str
    order: int
    """Place in the order in which the search asked."""
    layout: MoViNetLayout
    genotype: Mapping[str, Any] | None
    cost: float
    """In the unit of the target."""
    gmac: float | None
    status: str
    top1: float | None
    """Accuracy with inherited weights; None: the trial failed."""
    baseline: float | None
    """The engine's running mean reward, where it has one."""


@dataclass(frozen=True)
class Search:
    """An instance of the search."""

    name: str
    """`<engine>-<control>-<seed>`."""
    engine: str
    control: str
    seed: int
    kind: str
    """Quantity of the target: gmac, params, state_mb, latency_ms."""
    target: float
    tolerance: float
    """Share of the target."""
    candidates: tuple[Candidate, ...]
    """In order."""
    failed: int
    found: str | None
    """Name of the candidate that was chosen."""
    layout: MoViNetLayout | None
    """Its architecture."""
    side: int
    options: LayerOptions | None
    """None: the config does not say them."""

    @property
    def group(self) -> tuple[str, str]:
        """Engine and control: searches of a group differ in the seed."""
        return (self.engine, self.control)

    def inside(self, candidate: Candidate) -> bool:
        """Whether a candidate costs what is wanted."""
        return abs(candidate.cost / self.target - 1) <= self.tolerance * (1 + 1e-9)

    @property
    def inherited(self) -> float | None:
        """Accuracy of the chosen candidate with inherited weights."""
        return next((c.top1 for c in self.candidates if c.name == self.found), None)


def read_search(folder: Path) -> Search:
    """Read `config.json`, `trials.json` and `found.yaml` of a search.

    Raises:
        RecordError: a file is missing, or lacks something.
    """
    config = read_json(folder / "config.json")
    where = folder / "config.json"
    target = get_field(config, "target", where)
    kind = str(get_field(target, "kind", where))
    rows = read_json(folder / "trials.json")
    read = [_candidate(row, place, kind, folder / "trials.json") for place, row in enumerate(rows)]
    path = folder / "found.yaml"
    found = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
    engine = get_field(config, "engine", where)
    # In the order in which the engine heard of them; afterwards in that in which it asked.
    read = list(_with_baseline(read, config))
    transform = config.get("data", {}).get("transform", {})
    return Search(
        name=folder.name,
        engine=str(get_field(engine, "name", where) if isinstance(engine, Mapping) else engine),
        control=str(get_field(config, "control", where)),
        seed=int(get_field(config, "seed", where)),
        kind=kind,
        target=float(get_field(target, "value", where)),
        tolerance=float(get_field(target, "tolerance", where)),
        candidates=tuple(sorted(read, key=lambda candidate: candidate.order)),
        failed=sum(candidate.top1 is None for candidate in read),
        found=found.get("trial"),
        layout=MoViNetLayout.parse(found["architecture"]) if found.get("architecture") else None,
        side=int(transform.get("eval_size") or transform.get("size") or 0),
        options=_options(config.get("space")),
    )


def _candidate(row: Mapping[str, Any], place: int, kind: str, where: Path) -> Candidate:
    name, facts, config = (get_field(row, field, where) for field in ("name", "facts", "config"))
    metrics = row.get("metrics") or {}
    top1 = metrics.get("val/top1", row.get("value"))
    if top1 is not None and not math.isfinite(top1):
        top1 = None
    cost = facts.get("cost", facts.get(kind))
    if cost is None:
        raise RecordError(f"{where}: trial {name!r} has neither the fact `cost` nor {kind!r}; search again")
    baseline = facts.get("baseline", metrics.get("baseline", metrics.get("search/baseline")))
    return Candidate(
        name=name,
        order=int(facts.get("order", place)),
        layout=MoViNetLayout.parse(get_field(config, "architecture", where)),
        genotype=config.get("genotype"),
        cost=float(cost),
        gmac=facts.get("gmac"),
        status=row.get("status", "finished"),
        top1=None if top1 is None or row.get("status") == "failed" else float(top1),
        baseline=None if baseline is None else float(baseline),
    )


def _with_baseline(read: Sequence[Candidate], config: Mapping[str, Any]) -> Iterator[Candidate]:
    """Yield candidates with the policy's running mean of rewards, computed again where the trials do not say it.

    Not with shuffled rewards: which reward a candidate was given is not known.
    """
    momentum, reward = _momentum(config), config.get("reward")
    if momentum is None or not isinstance(reward, Mapping) or config.get("control") == "shuffled":
        yield from read
        return
    mean: float | None = None
    for candidate in read:
        if candidate.top1 is None or candidate.baseline is not None:
            yield candidate
            continue
        ratio, beta = candidate.cost / float(config["target"]["value"]), float(reward.get("beta", 0.0))
        heard = {
            "quality": candidate.top1,
            "absolute": candidate.top1 + beta * abs(ratio - 1),
            "soft": candidate.top1 * ratio**beta,
            "hard_exponential": candidate.top1 * min(1.0, ratio**beta),
        }.get(str(reward.get("kind")))
        if config.get("control") == "cost_only":
            heard = -abs(ratio - 1)
        if heard is None:
            yield candidate
            continue
        mean = heard if mean is None else momentum * mean + (1 - momentum) * heard
        yield replace(candidate, baseline=mean)


def _momentum(config: Mapping[str, Any]) -> float | None:
    """Return the momentum of a policy's baseline; None: the engine is no policy."""
    engine = config.get("engine")
    if isinstance(engine, str):
        places = [config.get(engine), *(value.get(engine) for value in config.values() if isinstance(value, Mapping))]
        engine = next((place for place in places if isinstance(place, Mapping)), None)
    value = engine.get("baseline") if isinstance(engine, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _options(space: Any) -> LayerOptions | None:
    if not isinstance(space, Mapping) or not all(space.get(name) for name in ("kernels", "expansions", "gates")):
        return None
    return LayerOptions(
        tuple(str(kernel) for kernel in space["kernels"]),
        tuple(float(value) for value in space["expansions"]),
        tuple(bool(value) for value in space["gates"]),
    )
