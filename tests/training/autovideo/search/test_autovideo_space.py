"""Spaces: what exists when, documents of choices, sizes, and what is refused."""

import copy
import itertools
import json
import math
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.autovideo.search.space import Space, apply, build_space, parse_space, size
from training.autovideo.search.space_tree import in_domain
from training.core.config import ConfigError

FINITE = {
    "schema": "space/v1",
    "slots": {"flip": [None, "toy/flip"], "net": ["toy/small", "toy/deep"]},
    "lists": {"aug.of": {"of": ["toy/noise", "toy/blur", "toy/flip"], "min": 1, "max": 2}},
    "set": {
        "clip.frames": [4, 8],
        "flip.p": [0.1, 0.5, 0.9],
        "net:toy/deep.depth": {"kind": "int", "low": 1, "high": 3},
        "net:toy/deep.fit.steps": {"kind": "choice", "values": [5, 10], "when": {"depth": [2, 3]}},
        "net:toy/small.dropout": {"kind": "choice", "values": [0.0, 0.5], "when": {"clip.frames": 8}},
        "aug.of:toy/noise.level": {"kind": "int", "low": 1, "high": 5, "step": 2},
        "aug.of:toy/blur.shape": ["gauss", "box"],
        "aug.of:toy/blur.size": {"kind": "choice", "values": [3, 5], "when": {"shape": "box"}},
    },
}
"""Everything conditional that there is, without ranges of numbers."""


def finite(toy, **changes) -> Space:
    return build_space({**copy.deepcopy(FINITE), **changes}, toy.base())


def test_auto_collects_what_primitives_declare(toy):
    space = toy.space()
    assert [p.name for p in space.parameters] == [
        "flip", "net", "aug.of", "net.fit.steps", "vars.batch", "clip.frames", "flip:toy/flip.p",
        "aug.of:toy/noise.level", "aug.of:toy/blur.shape", "aug.of:toy/blur.sigma", "aug.of:toy/blur.size",
        "net:toy/small.lr", "net:toy/small.dropout", "net:toy/deep.lr", "net:toy/deep.depth",
    ]  # fmt: skip  # not p of the list's flip, which the space gives itself
    names = [p.name for p in toy.space(auto=["net"]).parameters]
    assert names[3:] == [
        "net.fit.steps", "vars.batch",
        *(f"net:toy/{field}" for field in ("small.lr", "small.dropout", "deep.lr", "deep.depth")),
    ]  # fmt: skip
    assert len(toy.space(auto=False).parameters) == 5
    # What the document takes from a variable stays tied to it; a list that is not searched keeps its items.
    base = toy.base()
    base["steps"][0]["with"] = {"frames": "${batch}"}
    space = build_space({"schema": "space/v1", "auto": True}, base)
    assert [p.name for p in space.parameters] == ["flip.p", "aug.of:toy/noise.level", "net.lr", "net.dropout"]
    document = apply(space, base, space.sample(random.Random(0)))
    assert list(document["steps"][2]["with"]["of"][0]["with"]) == ["level"]
    # An explicit domain stands in the place of the declared one.
    space = toy.space(set={"net:toy/small.lr": [0.5], "aug.of:toy/noise.level": [5]})
    assert [p.domain.values for p in space.parameters if p.name in ("net:toy/small.lr", "aug.of:toy/noise.level")] == [
        (0.5,), (5,)
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_candidates_have_only_settings_of_what_was_chosen_and_are_valid(toy, seed):
    space, base = toy.space(), toy.base()
    choices = space.sample(random.Random(seed))
    document = apply(space, base, choices)
    assert base == toy.BASE
    steps = {step["id"]: step for step in document["steps"]}
    net, of = steps["net"]["use"], choices["aug.of"]
    assert net == choices["net"]
    for name in choices:
        alternative = re.match(r"net:([^.]+)\.", name)
        assert alternative is None or alternative[1] == net, name
        item = re.match(r"aug\.of:([^.]+)\.", name)
        assert item is None or item[1] in of, name
    assert ("net.fit.steps" in choices) == (net == "toy/deep")
    assert ("flip:toy/flip.p" in choices) == ("flip" in steps)
    assert ("aug.of:toy/blur.sigma" in choices) == (choices.get("aug.of:toy/blur.shape") == "gauss")
    assert ("aug.of:toy/blur.size" in choices) == (choices.get("aug.of:toy/blur.shape") == "box")
    assert [item["use"] for item in steps["aug"]["with"]["of"]] == of
    # Each candidate is taken by each of its primitives, and every value stands where it belongs.
    for step in document["steps"]:
        values = toy.settings_of(document, step["id"])
        for field in ("frames", "p", "lr", "depth", "dropout"):
            for name in (f"{step['id']}.{field}", f"{step['id']}:{step['use']}.{field}"):
                assert name not in choices or choices[name] == values[field]
    for item in steps["aug"]["with"]["of"]:
        for field, value in toy.configure(item["use"], item["with"], "of").model_dump().items():
            assert choices.get(f"aug.of:{item['use']}.{field}", value) == value
    assert document["vars"]["batch"] == choices["vars.batch"]
    if net == "toy/deep":
        assert toy.settings_of(document, "net")["fit"] == {
            "batch": choices["vars.batch"], "steps": choices["net.fit.steps"]
        }  # fmt: skip
    # A step that is left out is gone, and its consumers take what it took.
    edges = [steps["aug"]["in"], steps["eval"]["in"]]
    assert edges == (["flip.clip", ["net", "flip.clip"]] if "flip" in steps else ["clip", ["net", "clip"]])
    # The flat form has the same columns always, and None for what does not exist.
    row = space.encode(choices)
    assert list(row) == space.columns()
    assert {p.name for p in space.parameters if row[p.name] is not None} == set(choices)
    assert space.has(choices)
    assert not space.has({**choices, "other": 1})
    assert not space.has({name: value for name, value in choices.items() if name != "clip.frames"})
    # Repaired choices keep what fits.
    moved = space.complete({**choices, "net": "toy/deep" if net == "toy/small" else "toy/small"}, random.Random(seed))
    assert space.has(moved)
    kept = {name: value for name, value in choices.items() if not name.startswith("net")}
    assert kept.items() <= moved.items()


def test_a_wrong_setting_would_be_noticed(toy):
    """The property above can fail: the same candidate with a setting of the other net is not valid."""
    space = toy.space()
    choices = {**space.sample(random.Random(1)), "net": "toy/small"}
    document = apply(space, toy.base(), space.complete(choices, random.Random(0)))
    next(step for step in document["steps"] if step["id"] == "net")["with"]["depth"] = 2
    with pytest.raises(ConfigError, match="depth: Extra inputs"):
        toy.compile_document(document)


def test_tree_survives_json(toy):
    for space in (toy.space(), finite(toy), build_space({"schema": "space/v1", "auto": True}, toy.base())):
        again = Space.from_dict(json.loads(json.dumps(space.to_dict())))
        assert again == space
        assert again.sample(random.Random(3)) == space.sample(random.Random(3))


LEVELS = {"aug.of:toy/noise.level": [1, 2, 3]}
BLUR = {name: domain for name, domain in FINITE["set"].items() if "blur" in name}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"slots": {}, "set": {name: domain for name, domain in FINITE["set"].items() if "deep" not in name}},
        {"slots": {"flip": [None, "toy/flip"]}, "set": {"flip.p": [0.1, 0.2], "clip.frames": [4, 8]}},
        {"lists": {"aug.of": {"of": ["toy/noise", "toy/blur"], "max": 3, "repeats": True}}, "set": LEVELS | BLUR},
        {"lists": {}, "set": LEVELS},
        {"lists": {}, "set": {"clip.frames": {"kind": "int", "low": 1, "high": 64, "log": True}}},
    ],
)
def test_size_is_the_number_of_candidates(toy, changes):
    space = finite(toy, **changes)
    rows = [json.dumps(choices, sort_keys=True) for choices in space.grid()]
    assert len(set(rows)) == len(rows) == size(space)
    drawn = {json.dumps(space.sample(random.Random(n)), sort_keys=True) for n in range(200)}
    assert drawn <= set(rows)
    assert all(space.has(json.loads(row)) for row in rows[:50])


def test_size_of_infinite_and_of_large_spaces(toy):
    assert size(toy.space()) is None
    with pytest.raises(ValueError, match="no end of values"):
        list(toy.space().grid())
    assert size(build_space({"schema": "space/v1"}, toy.base())) == 1
    assert list(build_space({"schema": "space/v1"}, toy.base()).grid()) == [{}]
    # A range in an alternative only: infinite all the same. Of one value: not.
    some = {"kind": "float", "low": 0.1, "high": 0.2}
    assert size(finite(toy, set={"net:toy/deep.lr": {**some, "high": 0.1}})) is not None
    assert size(finite(toy, set={"net:toy/deep.lr": some})) is None
    # Ordered lists of up to 12 of 12 are counted, not listed.
    class_of = ["toy/noise", "toy/flip", "toy/blur"] * 4
    space = build_space({"schema": "space/v1", "lists": {"aug.of": {"of": class_of, "max": 4}}}, toy.base())
    assert size(space) == sum(math.perm(12, n) for n in range(1, 5))


def test_two_of_a_kind_are_told_apart(toy):
    of = [{"use": "toy/blur", "with": {"sigma": 1.0}}, {"use": "toy/blur", "with": {"sigma": 2.0}}]
    lists = {"aug.of": {"of": of, "min": 2, "max": 2}}
    space = finite(toy, slots={"net": ["toy/small", {"use": "toy/small", "with": {"lr": 0.5}}]}, lists=lists,
                   set={"net:toy/small-2.dropout": [0.25], "aug.of:toy/blur-2.size": [3, 7]})  # fmt: skip
    for choices in space.grid():
        document = apply(space, toy.base(), choices)
        net = toy.settings_of(document, "net")
        assert (net["lr"], net["dropout"]) == ((0.5, 0.25) if choices["net"] == "toy/small-2" else (0.1, 0.5))
        items = {item["with"]["sigma"]: item["with"] for item in toy.settings_of(document, "aug")["of"]}
        assert "size" not in items[1.0]
        assert items[2.0]["size"] == choices["aug.of:toy/blur-2.size"]
    repeated = {"aug.of": {"of": ["toy/noise", "toy/blur"], "min": 3, "max": 3, "repeats": True}}
    space = finite(toy, lists=repeated, set={"aug.of:toy/noise.level": [1, 2], "aug.of:toy/noise:2.salt": [True]})
    for choices in space.grid():
        items = toy.settings_of(apply(space, toy.base(), choices), "aug")["of"]
        levels = [item["with"]["level"] for item in items if item["use"] == "toy/noise"]
        names = [f"aug.of:toy/noise{':' + str(n) if n > 1 else ''}.level" for n in range(1, len(levels) + 1)]
        assert levels == [choices[name] for name in names]
        assert [item["with"].get("salt") for item in items if item["use"] == "toy/noise"][1:2] in ([], [True])


def test_lists_of_all_lengths_are_drawn_alike(toy):
    space = finite(toy)
    lengths = Counter(len(space.sample(random.Random(n))["aug.of"]) for n in range(600))
    assert set(lengths) == {1, 2}
    assert abs(lengths[1] - 300) < 49  # 4 standard deviations
    kinds = Counter(tuple(space.sample(random.Random(n))["aug.of"]) for n in range(600))
    assert set(kinds) == {*((x,) for x in FINITE["lists"]["aug.of"]["of"]),
                          *itertools.permutations(FINITE["lists"]["aug.of"]["of"], 2)}  # fmt: skip


def test_values_belong_to_their_domains_and_nothing_else_does(toy):
    domains = {p.name: p.domain for p in toy.space().parameters}
    assert not in_domain(True, domains["clip.frames"])
    assert not in_domain(8.0, domains["clip.frames"])
    assert not in_domain(4, domains["aug.of:toy/blur.size"])
    assert not in_domain(2.0, domains["net:toy/small.lr"])
    assert not in_domain(["toy/flip", "toy/flip"], domains["aug.of"])
    assert not in_domain([], domains["aug.of"])


BARE = {**FINITE, "set": {}}
TIED = {"use": "toy/deep", "with": {"fit": {"batch": "${batch}"}}}


def changed(section: str, **entries) -> dict:
    return {**BARE, section: {**BARE[section], **entries}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**BARE, "slot": {}}, r"slot: .*did you mean 'slots'"),
        ({**BARE, "schema": "space/v2"}, "space/v1"),
        (changed("set", **{"clip.frame": [4]}),
         r"set\.clip\.frame: toy/clips has no setting 'frame'; did you mean 'frames'"),
        (changed("set", **{"clips.frames": [4]}), r"set\.clips\.frames: .*no step 'clips'; did you mean 'clip'"),
        (changed("set", **{"clip.frames": [4, 65]}), r"set\.clip\.frames: toy/clips does not take frames = 65"),
        (changed("set", **{"clip.frames": {"kind": "int", "low": 0, "high": 8}}),
         r"frames = 0: .*greater than or equal"),
        (changed("set", **{"net.lr": {"kind": "float", "low": 0.1, "high": 3}}), r"net\.lr: toy/small .* lr = 3"),
        (changed("set", **{"net.fit.step": [4]}),
         r"net\.fit\.step: toy/deep does not take fit\.step = 4: fit\.step: Extra"),
        (changed("set", **{"net.lr": {"kind": "float", "low": 1, "high": 0.1}}), r"low 1.0 is above high"),
        (changed("set", **{"vars.frames": [4]}), r"no variable 'frames'; there are batch"),
        ({**changed("set", **{"vars.batch": ["many"]}), "slots": {"net": [TIED]}},
         r"vars\.batch \(in net:toy/deep\).*fit\.batch: .*valid integer"),
        (changed("set", **{"net:toy/tiny.lr": [0.1]}), r"step 'net' has no alternative 'toy/tiny'"),
        (changed("set", **{"net:toy/small.depth": [1]}), r"toy/small has no setting 'depth'"),
        (changed("set", **{"net:toy/deep.depth": [1], "net.depth": [2]}),
         r"the same setting as set\.net:toy/deep\.depth"),
        (changed("set", **{"aug.of": [[]]}), "is a list of the space's `lists`"),
        (changed("set", **{"aug.of:toy/nose.level": [1]}), r"aug\.of has no item 'toy/nose'; did you mean 'toy/noise'"),
        (changed("set", **{"aug.of:toy/noise.level": [6]}), r"toy/noise does not take level = 6"),
        (changed("set", **{"aug.of:toy/noise.levels": [1]}), r"no setting 'levels'; did you mean 'level'"),
        (changed("set", frames=[4]), r"set\.frames: write <step>\.<field>"),
        (changed("set", **{"clip.frames": {"kind": "choice", "values": [4], "when": {"nets": "x"}}}),
         "has no setting 'nets'"),
        (changed("set", **{"clip.frames": {"kind": "choice", "values": [4], "when": {"net": "toy/dep"}}}),
         r"clip\.frames: when: step 'net' is never 'toy/dep'; did you mean 'toy/deep'"),
        (changed("set", **{"net.dropout": {"kind": "choice", "values": [0.0], "when": {"net": "toy/deep"}}}),
         r"toy/deep has no setting 'dropout'"),
        (changed("set", **{"net:toy/deep.lr": {"kind": "float", "low": 0.1, "high": 0.2},
                           "clip.frames": {"kind": "choice", "values": [4], "when": {"net.lr": 0.1}}}),
         r"clip\.frames depends on net:toy/deep\.lr, a range of numbers"),
        (changed("set", **{"clip.frames": {"kind": "choice", "values": [4], "when": {"flip.p": 0.1}},
                           "flip.p": {"kind": "choice", "values": [0.1], "when": {"clip.frames": 4}}}),
         r"wait for one another: clip\.frames → flip\.p → clip\.frames"),
        (changed("slots", nett=["toy/deep"]), r"slots\.nett: .*did you mean 'net'"),
        (changed("slots", net=["toy/deap"]), r"slots\.net: no primitive is called 'toy/deap'; did you mean 'toy/deep'"),
        (changed("slots", net=["toy/small", "toy/deep", {"use": "toy/deep", "with": {"depht": 2}}]),
         r"slots\.net \(toy/deep\).*depht.*did you mean 'depth'"),
        (changed("slots", net=[None, "toy/small", "toy/deep"]),
         r"slots\.net: only a step with one Clip input and one Clip output.*toy/small has \['Clip'\] → \['Model'\]"),
        (changed("slots", flip=[None]), "null is its only alternative"),
        (changed("slots", clip=[None, "toy/clips"]), r"toy/clips has \[\] → \['Clip'\]"),
        (changed("lists", **{"aug.off": {"of": ["toy/flip"]}}), r"lists\.aug\.off: .*did you mean 'of'"),
        (changed("lists", **{"aug.n": {"of": ["toy/flip"]}}), r"lists\.aug\.n: toy/some_of does not take n"),
        (changed("lists", **{"aug.of": {"of": ["toy/flip"], "max": 2}}), "max 2 is more than the 1 there are"),
        (changed("lists", **{"aug.of": {"of": ["toy/flip"], "min": 2, "max": 1}}), "min 2 is above max 1"),
        (changed("lists", **{"aug.of": {"of": ["toy/flip"], "min": 0}}), "at least 1 item"),
        (changed("lists", **{"aug.of": {"of": ["toy/flip"], "max": 5, "repeats": True}}), "at most 4 items"),
        (changed("lists", **{"aug.of": {"of": [{"use": "toy/flip", "with": {"p": 2}}]}}),
         r"aug\.of\.of \(toy/flip\).*p: "),
        ({**BARE, "auto": ["aug", "nets"]}, r"auto: .*no step 'nets'; did you mean 'net'"),
        ({**BARE, "limits": {"gmac": 0}}, r"limits\.gmac"),
    ],
)  # fmt: skip
def test_spaces_that_do_not_fit_are_refused(toy, values, message):
    with pytest.raises(ConfigError, match=re.compile(message, re.DOTALL)):
        build_space(copy.deepcopy(values), toy.base())


def test_an_output_cannot_be_left_out(toy):
    base = {**toy.base(), "outputs": ["flip.clip"]}
    with pytest.raises(ConfigError, match="'flip' is an output"):
        build_space({"schema": "space/v1", "slots": {"flip": [None, "toy/flip"]}}, base)
    parse_space({"schema": "space/v1"})


def test_conditions_look_at_steps_that_are_left_out_and_at_what_is_not_searched(toy):
    def names(when: dict, **fixed) -> set[bool]:
        """Whether the parameter is there, over all candidates that agree with `fixed`."""
        domain = {"kind": "choice", "values": [4, 8], "when": when}
        space = finite(toy, set={"clip.frames": domain, "net:toy/deep.depth": [1, 2]}, lists={})
        return {"clip.frames" in row for row in space.grid() if fixed.items() <= row.items()}

    assert names({"flip": None}, flip="none") == {True}
    assert names({"flip": None}, flip="toy/flip") == {False}
    assert names({"flip.p": 0.25}, flip="toy/flip") == {True}  # as the document has it
    assert names({"flip.p": 0.25}, flip="none") == {False}  # a step that is not there has no settings
    assert names({"net.depth": [2, 3]}, net="toy/small") == {False}
    assert names({"net.depth": [2, 3]}, **{"net:toy/deep.depth": 2}) == {True}
    assert names({"net.depth": [2, 3]}, **{"net:toy/deep.depth": 1}) == {False}
    assert names({"vars.batch": 8}) == {True}
    assert names({"vars.batch": 8, "net": "toy/deep"}, net="toy/small") == {False}
    sigma = {"kind": "choice", "values": [1.0], "when": {"net": "toy/deep"}}
    with pytest.raises(ConfigError, match="only its own fields"):
        finite(toy, set={"aug.of:toy/blur.sigma": sigma})
