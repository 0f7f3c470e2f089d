"""Edges from types, what is refused and with which edge, orders, and everything that no output needs."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.autovideo.catalogue import find
from training.autovideo.graph import Graph, Node, build

pytestmark = pytest.mark.usefixtures("small")

START: tuple[tuple[str, str, Any], ...] = (
    ("data", "reader/small", None),
    ("shards", "extractor/small", "data"),
    ("clip", "decoder/small", "shards"),
    ("net", "recognition/small", "clip"),
)


def nodes(*rows: tuple[str, str | None, Any]) -> list[Node]:
    return [Node(name, find(use) if use else None, inputs) for name, use, inputs in rows]


def graph(*rows: tuple[str, str | None, Any], outputs: Sequence[str] = ("net.model",)) -> Graph:
    problems: list[str] = []
    found = build(nodes(*START, *rows), outputs, problems.append)
    assert problems == []
    assert found is not None
    return found


def refused(
    *rows: tuple[str, str | None, Any], outputs: Sequence[str] = ("net.model",), start: bool = True
) -> list[str]:
    problems: list[str] = []
    assert build(nodes(*(START if start else ()), *rows), outputs, problems.append) is None
    assert problems
    return problems


def edges(found: Graph, step: str) -> list[str]:
    return [str(edge) for edge in found.edges if edge.target == step]


# --- which source goes into which input --------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        ["net", "clip"],
        ["clip", "net"],
        ["net.model", "clip.clips"],
        {"clips": "clip", "model": "net"},
        {"model": ["net.model"], "clips": "clip.clips"},
    ],
)
def test_sources_find_their_inputs_by_type(written: Any) -> None:
    found = graph(("eval", "evaluator/small", written))
    assert edges(found, "eval") == ["net.model -> eval.model", "clip.clips -> eval.clips"]
    assert [str(edge.port) for edge in found.inputs("eval")["model"]] == ["Model"]


EVALS = (("e1", "evaluator/small", ["net", "clip"]), ("e2", "evaluator/small", ["net", "clip"]))
SPLIT = ("split", "transform/small_split", "clip")


def test_inputs_of_one_type_are_filled_in_order() -> None:
    found = graph(*EVALS, ("cmp", "evaluator/small_compare", ["e2.predictions", "e1.predictions"]))
    assert edges(found, "cmp") == ["e2.predictions -> cmp.first", "e1.predictions -> cmp.second"]
    more = graph(*EVALS, ("cmp", "evaluator/small_compare", ["net.figures", "e1.predictions", "e2.predictions"]))
    assert edges(more, "cmp")[2] == "net.figures -> cmp.extra"


def test_an_input_that_takes_several() -> None:
    many = ["e2.predictions", "e1.predictions"]
    for written in (many, {"predictions": many}):
        found = graph(*EVALS, ("mean", "ensembler/small", written))
        assert edges(found, "mean") == [f"{name} -> mean.predictions" for name in many]
    one = graph(*EVALS, ("mean", "ensembler/small", "e1.predictions"))
    assert edges(one, "mean") == ["e1.predictions -> mean.predictions"]
    rest = graph(*EVALS, ("rest", "ensembler/small_rest", many))
    assert edges(rest, "rest") == ["e2.predictions -> rest.base", "e1.predictions -> rest.others"]
    base = graph(*EVALS, ("rest", "ensembler/small_rest", "e1.predictions"))
    assert edges(base, "rest") == ["e1.predictions -> rest.base"]


def test_optional_inputs() -> None:
    assert edges(graph(("loose", "exporter/small_loose", None)), "loose") == []
    assert edges(graph(("loose", "exporter/small_loose", "net")), "loose") == ["net.model -> loose.model"]
    both = {"a": "clip", "c": "clip"}  # one output may go into two inputs when these are named
    assert edges(graph(("loose", "exporter/small_loose", both)), "loose") == [
        "clip.clips -> loose.a",
        "clip.clips -> loose.c",
    ]
    three = graph(SPLIT, ("loose", "exporter/small_loose", ["split.left", "split.right", "clip"]))
    assert edges(three, "loose")[2] == "clip.clips -> loose.c"


REFUSED: tuple[tuple[tuple[tuple[str, str | None, Any], ...], tuple[str, ...]], ...] = (
    # another type
    ((("n2", "recognition/small", "shards"),),
     ("edge shards.shards -> n2.clips: n2 (recognition/small) takes Clip there, ",
      "shards (extractor/small) gives Shards")),
    ((("n2", "recognition/small", {"clips": "net"}),),
     ("edge net -> n2.clips", "takes Clip there", "gives Model, Metrics")),
    ((("n2", "recognition/small", {"clips": "net.model"}),), ("edge net.model -> n2.clips", "gives Model")),
    ((("n2", "evaluator/small", ["net", "shards"]),), ("edge shards.shards -> n2: ", "takes Model, Clip there")),
    ((("r2", "reader/small", "clip"),), ("edge clip -> r2: r2 (reader/small) has no inputs",)),
    ((("out", "exporter/small_broken_cost", "net"), ("n2", "recognition/small", "out")),
     ("edge out -> n2.clips", "out (exporter/small_broken_cost) gives nothing")),
    # missing
    ((("n2", "recognition/small", None),),
     ("edge ? -> n2.clips: n2 (recognition/small) needs Clip there and gets nothing",)),
    ((("n2", "recognition/small", []),), ("edge ? -> n2.clips",)),
    ((("n2", "recognition/small", {"clips": []}),), ("edge ? -> n2.clips",)),
    ((("eval", "evaluator/small", "net"),), ("edge ? -> eval.clips", "needs Clip")),
    ((*EVALS, ("cmp", "evaluator/small_compare", "e1.predictions")), ("edge ? -> cmp.second", "needs Predictions")),
    ((("mean", "ensembler/small", None),), ("edge ? -> mean.predictions",)),
    # too many
    ((("n2", "recognition/small", ["clip", "clip2"]), ("clip2", "decoder/small", "shards")),
     ("edge clip2.clips -> n2: one too many", "takes one Clip (clips)", "the last from clip.clips")),
    ((("n2", "recognition/small", {"clips": ["clip", "clip2"]}), ("clip2", "decoder/small", "shards")),
     ("edge clip2 -> n2.clips", "takes one Clip there, which clip already gives")),
    ((("n2", "recognition/small", ["clip", "clip"]),), ("edge clip.clips -> n2: stands there twice",)),
    ((*EVALS, ("mean", "ensembler/small", {"predictions": ["e1.predictions", "e1"]})),
     ("edge e1.predictions -> mean.predictions: stands there twice",)),
    # not clear
    ((SPLIT, ("n2", "recognition/small", "split")), ("edge split -> n2: ambiguous: write split.left or split.right",)),
    ((SPLIT, ("n2", "recognition/small", {"clips": "split"})), ("edge split -> n2.clips: ambiguous", "split.right")),
    ((*EVALS, ("cmp", "evaluator/small_compare", ["e1", "e2.predictions"])),
     ("edge e1 -> cmp: ambiguous: write e1.metrics or",)),
    ((SPLIT, ("loose", "exporter/small_loose", "clip")),
     ("edge clip.clips -> loose: ambiguous", "a, b, c", "in: {a: clip.clips, …}")),
    # unknown
    ((("n2", "recognition/small", "clp"),), ("edge clp -> n2: there is no step 'clp'; did you mean 'clip'?",)),
    ((("n2", "recognition/small", "clip.clip"),),
     ("edge clip.clip -> n2", "no output 'clip'; did you mean 'clips'", "clips)")),
    ((("n2", "recognition/small", {"clip": "clip"}),),
     ("edge clip -> n2.clip", "no input 'clip'; did you mean 'clips'")),
    ((("x", None, "nothing"),), ("edge nothing -> x: there is no step 'nothing'",)),
    # circles
    ((("n2", "augment/small_flip", "n2"),), ("edge n2 -> n2: a step cannot take what it gives itself",)),
    ((("a", "augment/small_flip", "c"), ("b", "augment/small_flip", "a"), ("c", "augment/small_flip", {"clips": "b"})),
     ("steps in a cycle: ", "a -> b -> c -> a")),
    ((("a", None, "b"), ("b", "augment/small_flip", "a")), ("steps in a cycle", "a -> b -> a")),
)  # fmt: skip


@pytest.mark.parametrize(("rows", "parts"), REFUSED)
def test_the_edge_that_is_wrong_is_named(rows: tuple[tuple[str, str | None, Any], ...], parts: tuple[str, ...]) -> None:
    problems = refused(*rows)
    assert len(problems) == 1, problems  # what follows from it is not said as well
    assert all(part in problems[0] for part in parts), problems[0]


def test_two_circles_are_two_problems() -> None:
    flip = "augment/small_flip"
    problems = refused(("a", flip, "b"), ("b", flip, "a"), ("c", flip, "d"), ("d", flip, "c"), ("e", flip, "d"))
    assert problems == ["steps in a cycle: a -> b -> a", "steps in a cycle: c -> d -> c"]


OUTPUTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("ne.model",), ("outputs: ne.model: there is no step 'ne'", "did you mean 'net'")),
    (("net.modl",), ("outputs: net.modl: net (recognition/small) has no output 'modl'", "did you mean 'model'")),
    (("net",), ("outputs: net: ambiguous: write net.model or net.figures",)),
    (("clip", "clip.clips"), ("outputs: clip.clips stands there twice",)),
    (("out",), ("outputs: out: out (exporter/small_broken_cost) has no output", "none")),
)


@pytest.mark.parametrize(("outputs", "parts"), OUTPUTS)
def test_outputs_that_are_wrong(outputs: tuple[str, ...], parts: tuple[str, ...]) -> None:
    (problem,) = refused(("out", "exporter/small_broken_cost", "net"), outputs=outputs)
    assert all(part in problem for part in parts), problem


def test_outputs_get_their_port() -> None:
    found = graph(outputs=("clip", "net.figures", "net.model"))
    assert [str(item) for item in found.outputs] == ["clip.clips", "net.figures", "net.model"]


# --- order -------------------------------------------------------------------------------------


def test_order_is_that_of_the_document_where_it_may_be() -> None:
    rows = [("eval", "evaluator/small", ["net", "clip"]), *reversed(START), ("other", "reader/small", None)]
    problems: list[str] = []
    found = build(nodes(*rows), ["eval.metrics"], problems.append)
    assert found is not None
    assert found.steps == ("eval", "net", "clip", "shards", "data", "other")
    assert found.order() == ("data", "shards", "clip", "net", "eval", "other")
    assert found.levels() == (("data", "other"), ("shards",), ("clip",), ("net",), ("eval",))
    assert found.unused() == ("other",)
    assert found.upstream("clip") == ("data", "shards", "clip")
    straight = graph(("eval", "evaluator/small", ["net", "clip"]))
    assert straight.order() == straight.steps
    assert straight.unused() == ("eval",)


@given(count=st.integers(1, 14), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_acyclic_shape_is_taken(count: int, seed: int) -> None:
    rng = random.Random(seed)
    names = [f"s{number}" for number in range(count)]
    rows: list[tuple[str, str | None, Any]] = list(START[:3])
    for number, name in enumerate(names):
        before = [*names[:number], "clip"]
        if rng.random() < 0.5:
            rows.append((name, "augment/small_flip", rng.choice(before)))
        else:
            sources = {port: rng.choice(before) for port in "abc" if rng.random() < 0.7}
            rows.append((name, "exporter/small_loose", {port: source for port, source in sources.items()}))
    gives = {name for name, use, _ in rows if use != "exporter/small_loose"}
    kept = [(name, use, {port: s for port, s in item.items() if s in gives} if isinstance(item, dict) else
             item if item is None or item in gives else "clip") for name, use, item in rows]  # fmt: skip
    rng.shuffle(kept)
    problems: list[str] = []
    found = build(nodes(*kept), ["clip"], problems.append)
    assert problems == []
    assert found is not None
    order, level = found.order(), {step: number for number, group in enumerate(found.levels()) for step in group}
    assert sorted(order) == sorted(name for name, _, _ in kept)
    for edge in found.edges:
        assert order.index(edge.source) < order.index(edge.target)
        assert level[edge.source] < level[edge.target]
    for step, number in level.items():
        assert number == 0 or any(level[edge.source] == number - 1 for edge in found.edges if edge.target == step)


def test_long_chains_need_no_deep_stack() -> None:
    rows = [(f"a{number}", "augment/small_flip", f"a{number - 1}" if number else "clip") for number in range(1100)]
    assert graph(*rows).order()[-1] == "a1099"
    looped = [("a0", "augment/small_flip", "a1099"), *rows[1:]]
    assert "a0 -> a1 -> a2" in refused(*looped)[0]
