"""What searches preferred: groups of searches, shares of temporal kernels and of options, rank correlation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from training.backbones.movinet_layout import Layer, MoViNetLayout
from training.movinet.report.paired import Share, accuracy
from training.movinet.report.records import Net, Results
from training.movinet.report.search_records import UNIFORM, Candidate, LayerOptions, Search

FEWEST_NETS = 5
"""For a rank correlation."""
UNTRAINED = "untrained"
"""Control whose inherited accuracies mean nothing: they are left out of the rank correlation."""


@dataclass(frozen=True)
class OptionShares:
    """How often an option was taken."""

    kind: str
    """kernel, expansion or gate."""
    names: tuple[str, ...]
    all: tuple[float, ...]
    """Share among all candidates' layers, per option."""
    best: tuple[float, ...]
    """Among those of the best quarter."""
    uniform: float | None
    """Share that each option would have if it were drawn uniformly; None: unknown."""


@dataclass(frozen=True, eq=False)
class Group:
    """Searches that differ in the seed only, and the nets trained from what they found."""

    engine: str
    control: str
    searches: tuple[Search, ...]
    nets: tuple[Net, ...]
    inherited: tuple[float, ...]
    """Best accuracy with inherited weights of each search, at the wanted cost."""
    top1: Share | None
    """Of the found nets, trained by themselves: their mean."""
    temporal_last: Share | None
    """Layers with k_t > 1 in the last quarter of the candidates."""
    temporal_best: Share | None
    """In the best quarter."""
    temporal_found: Share | None
    """In the found architectures."""
    expected: float | None
    """That share where every choice is uniform."""
    p_temporal: float | None
    """Exact binomial test, two-sided, of `temporal_found` against `expected`."""
    options: tuple[OptionShares, ...]

    @property
    def name(self) -> str:
        """Engine, and the control where there is one."""
        return self.engine if self.control == "none" else f"{self.engine}, {self.control}"

    @property
    def searched(self) -> bool:
        """Whether it is the search itself, and no control."""
        return self.control == "none" and self.engine != UNIFORM

    @property
    def uniform(self) -> bool:
        """Whether it is random search: the best of candidates drawn uniformly."""
        return self.control == UNIFORM or (self.engine, self.control) == (UNIFORM, "none")


@dataclass(frozen=True)
class RankPoint:
    """A found net."""

    name: str
    inherited: float
    """Accuracy of the candidate with inherited weights."""
    alone: float
    """Accuracy of the net trained by itself."""
    control: bool
    counts: bool
    """Whether its supernet was trained."""


@dataclass(frozen=True)
class RankCorrelation:
    """Inherited against stand-alone accuracy of the found nets."""

    points: tuple[RankPoint, ...]
    value: float | None
    """Kendall's τ-b; None: too few nets, or all equal."""
    p: float | None
    nets: int
    """That count."""


def groups_of(results: Results) -> list[Group]:
    """Return searches and found nets by engine and control: the searches themselves first, then the controls."""
    searches: dict[tuple[str, str], list[Search]] = {}
    nets: dict[tuple[str, str], list[Net]] = {}
    for search in results.searches:
        searches.setdefault(search.group, []).append(search)
    for net in results.nets:
        if net.stage == "movinet_found":
            nets.setdefault((str(net.config["engine"]), str(net.config["control"])), []).append(net)
    made = [_group(*key, searches.get(key, []), nets.get(key, [])) for key in sorted({*searches, *nets})]
    return sorted(made, key=lambda group: (not group.searched, group.uniform, group.engine, group.control))


def _group(engine: str, control: str, searches: Sequence[Search], nets: Sequence[Net]) -> Group:
    ordered = [best_of(search) for search in searches]
    best = [candidate for found in ordered for candidate in found[: _quarter(found)]]
    last = []
    for search in searches:
        scored = [candidate for candidate in search.candidates if candidate.top1 is not None]
        last += scored[len(scored) - _quarter(scored) :]
    layouts = [search.layout for search in searches if search.layout] or [net.layout for net in nets]
    found = temporal_share(layouts)
    known = {search.options.temporal for search in searches if search.options}
    expected = known.pop() if len(known) == 1 else None
    return Group(
        engine=engine,
        control=control,
        searches=tuple(searches),
        nets=tuple(nets),
        inherited=tuple(float(found[0].top1 or 0.0) for found in ordered if found),
        top1=accuracy(nets) if nets else None,
        temporal_last=temporal_share(candidate.layout for candidate in last),
        temporal_best=temporal_share(candidate.layout for candidate in best),
        temporal_found=found,
        expected=expected,
        p_temporal=_binomial(found, expected),
        options=tuple(options_of(searches, best)),
    )


def best_of(search: Search) -> list[Candidate]:
    """Return the scored candidates of the wanted cost, all scored ones where there are none, best first."""
    scored = [candidate for candidate in search.candidates if candidate.top1 is not None]
    inside = [candidate for candidate in scored if search.inside(candidate)]
    return sorted(inside or scored, key=lambda candidate: -(candidate.top1 or 0.0))


def _quarter(items: Sequence[object]) -> int:
    return -(-len(items) // 4)


def layers_of(layout: MoViNetLayout) -> list[Layer]:
    """Return the layers of all blocks."""
    return [layer for block in layout.blocks for layer in block.layers]


def temporal_share(layouts: Iterable[MoViNetLayout]) -> Share | None:
    """Return the share of layers with k_t > 1; None: no layers."""
    layers = [layer for layout in layouts for layer in layers_of(layout)]
    return Share.of(sum(layer.kernel[0] > 1 for layer in layers), len(layers)) if layers else None


def _binomial(share: Share | None, expected: float | None) -> float | None:
    if share is None or expected is None or not 0 < expected < 1:
        return None
    from scipy.stats import binomtest

    return float(binomtest(int(share.count), share.total, expected).pvalue)


# --- options ------------------------------------------------------------------------------------


def options_of(searches: Sequence[Search], best: Sequence[Candidate]) -> list[OptionShares]:
    """Return how often each kernel, expansion and gate was taken, by all candidates and by the best."""
    everyone = [candidate for search in searches for candidate in search.candidates]
    if not everyone or not best:
        return []
    space = next((search.options for search in searches if search.options), None)
    # What is named by index needs the space; kernels and gates can be read off the architectures as well.
    by_index = space is not None and all(candidate.genotype for candidate in everyone)
    made = []
    for kind in ("kernel", "expansion", "gate"):
        if kind == "expansion" and not by_index:
            continue
        taken = [[name for c in candidates for name in _taken(kind, c, space)] for candidates in (everyone, best)]
        options = _names(kind, space) or sorted(set(taken[0]))
        shares = [tuple(names.count(option) / len(names) for option in options) for names in taken]
        made.append(OptionShares(kind, tuple(options), shares[0], shares[1], 1 / len(options) if space else None))
    return made


def _names(kind: str, space: LayerOptions | None) -> list[str]:
    if space is None:
        return []
    if kind == "kernel":
        return [str(Layer.parse(f"{kernel}:1")).split(":")[0] for kernel in space.kernels]
    if kind == "expansion":
        return [f"{value:g}" for value in space.expansions]
    return ["with gate" if gate else "without" for gate in space.gates]


def _taken(kind: str, candidate: Candidate, space: LayerOptions | None) -> list[str]:
    if kind == "expansion":
        names = _names(kind, space)
        assert candidate.genotype is not None  # asked before
        return [names[genes[1]] for block in candidate.genotype["blocks"] for genes in block["layers"]]
    layers = layers_of(candidate.layout)
    if kind == "kernel":
        return [str(layer).split(":")[0] for layer in layers]
    return ["with gate" if layer.gate else "without" for layer in layers]


# --- inherited and stand-alone accuracy ---------------------------------------------------------


def ranks_of(results: Results) -> RankCorrelation:
    """Correlate inherited with stand-alone accuracy over the found nets; those of untrained supernets do not count."""
    searches = {search.name: search for search in results.searches}
    points = []
    for net in results.nets:
        if net.stage != "movinet_found":
            continue
        search = searches.get(net.name)
        if search is None or search.inherited is None:
            continue
        control = search.control != "none" or search.engine == UNIFORM
        points.append(RankPoint(net.name, search.inherited, net.top1, control, search.control != UNTRAINED))
    counted = np.asarray([(point.inherited, point.alone) for point in points if point.counts]).reshape(-1, 2)
    tau = p = None
    if len(counted) >= FEWEST_NETS and all(len(set(column)) > 1 for column in counted.T):
        from scipy.stats import kendalltau

        found = kendalltau(counted[:, 0], counted[:, 1])
        tau, p = float(found.statistic), float(found.pvalue)
    return RankCorrelation(tuple(points), tau, p, len(counted))
