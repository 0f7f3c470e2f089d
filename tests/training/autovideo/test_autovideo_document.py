"""The pipeline document: what is read, what is refused and with which words, and what its identity is made of."""

import copy
import datetime
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.autovideo.document import Document, Step, examine
from training.autovideo.plain import plain, read_yaml, write_yaml
from training.autovideo.resolve import step_key
from training.core.config import ConfigError

pytestmark = pytest.mark.usefixtures("small")


def refused(values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Document.from_dict(values, "some.yaml")  # type: ignore[arg-type]
    return str(caught.value)


# --- reading and writing -----------------------------------------------------------------------


def test_the_example_is_read_from_dict_yaml_and_file(example: dict[str, Any], tmp_path: Path) -> None:
    before = copy.deepcopy(example)
    document = Document.from_dict(example)
    assert example == before
    example["steps"][2]["with"]["frames"] = 32  # nor does the document hang on what it was made from
    assert document.to_dict() == before
    assert list(document.to_dict()["steps"][1]) == ["id", "use", "in"]
    assert document.model_dump() == document.to_dict()
    text = document.to_yaml()
    assert Document.from_yaml(text) == document
    (tmp_path / "a.yaml").write_text(text)
    assert Document.from_file(tmp_path / "a.yaml") == document
    assert "  - {id: shards, use: extractor/small, in: data}\n" in text
    assert text.startswith("schema: pipeline/v1\nname: hmdb-baseline\n")


def test_what_is_given_out_is_a_copy(example: dict[str, Any]) -> None:
    document = Document.from_dict(example)
    document.to_dict()["steps"][0]["with"]["media"] = "elsewhere"
    assert document.steps[0].settings == {"media": "media/"}
    with pytest.raises(ValueError, match="frozen"):
        document.seed = 8  # type: ignore[misc]


YAML_PROBLEMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a: 1\nb: 2\na: 3\n", ("p.yaml: line 3", "'a' stands twice", "line 1")),
    ("a:\n  - {b: 1, c: 2, b: 1}\n", ("line 2", "'b' stands twice")),
    ("a: &x 1\nb: *x\n", ("line 1", "anchors", "`vars`")),
    ("a: {<<: {b: 1}}\n", ("merge keys",)),
    ("a: !!python/object/apply:os.system [ls]\n", ("line 1", "could not determine a constructor")),
    ("a: [1, 2\n", ("line 2",)),
    ("a: 1\n---\na: 2\n", ("line 2", "but found another document")),
    ("{[a]: 1}: 2\n", ("unhashable",)),
)


@pytest.mark.parametrize(("text", "parts"), YAML_PROBLEMS)
def test_yaml_is_data_only(text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "p.yaml")
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_yaml_without_these_is_read() -> None:
    assert read_yaml("a: {b: [1, x]}\n", "p.yaml") == {"a": {"b": [1, "x"]}}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        Document.from_file(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: \xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8"):
        Document.from_file(tmp_path / "latin.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.yaml: a pipeline is a mapping"):
        Document.from_file(tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (Path("x"), ("with.media", "PosixPath", "plain values only")),
        (datetime.date(2020, 1, 1), ("with.media", "is a date", "quotes")),
        (float("nan"), ("with.media", "not a finite number")),
        ({1: 2}, ("with.media", "key 1 is not text")),
        ([len], ("with.media[0]", "builtin_function")),
    ],
)
def test_only_plain_values(example: dict[str, Any], value: object, parts: tuple[str, ...]) -> None:
    example["steps"][0]["with"]["media"] = value
    message = refused(example)
    assert all(part in message for part in ("some.yaml: steps[0]", *parts)), message


# --- structure ---------------------------------------------------------------------------------


Change = Callable[[dict[str, Any]], object]


def set_step(number: int, **fields: Any) -> Change:
    return lambda values: values["steps"][number].update(fields)


def setting(number: int, **fields: Any) -> Change:
    return lambda values: values["steps"][number].setdefault("with", {}).update(fields)


REFUSED: tuple[tuple[Change, tuple[str, ...]], ...] = (
    (lambda v: v.update(schema="pipeline/v2"), ("schema", "'pipeline/v1'", "'pipeline/v2'")),
    (lambda v: v.pop("schema"), ("schema", "Field required")),
    (lambda v: v.pop("seed"), ("seed", "Field required")),
    (lambda v: v.update(seed="7"), ("seed", "valid integer")),
    (lambda v: v.update(seed=True), ("seed", "valid integer")),
    (lambda v: v.update(seed=-1), ("seed", "greater than or equal to 0")),
    (lambda v: v.update(name="a/b"), ("name", "'a/b'")),
    (lambda v: v.update(name=".."), ("name", "'..'")),
    (lambda v: v.update(ouputs=[]), ("unknown key 'ouputs'", "did you mean 'outputs'")),
    (lambda v: v.update(steps=[]), ("steps", "at least 1")),
    (lambda v: v.update(outputs=[]), ("outputs", "at least 1")),
    (lambda v: v.update(steps={"a": 1}), ("steps", "valid tuple")),
    (lambda v: v["steps"].append("data"), ("steps[6]", "dictionary")),
    (set_step(2, id="Clip"), ("step Clip", "id", "pattern")),
    (set_step(2, id="shards"), ("steps", "several steps are called shards")),
    (lambda v: v["steps"][2].pop("use"), ("step clip", "use", "Field required")),
    (set_step(2, usse="x"), ("step clip", "unknown key 'usse'", "did you mean 'use'")),
    (set_step(2, settings={}), ("step clip", "unknown key 'settings'")),
    (lambda v: v["steps"][2].update({"in": 3}), ("step clip", "in", "write a step, step.port")),
    (lambda v: v["steps"][2].update({"in": [["shards"]]}), ("step clip", "in", "write a step, step.port")),
    (lambda v: v["steps"][2].update({"with": [1]}), ("step clip", "with", "dictionary")),
    (set_step(2, version=2), ("step clip", "version", "resolved with version 2 of decoder/small", "installed is 1")),
    # primitives and their settings
    (set_step(2, use="decoder/smal"), ("step clip", "'decoder/smal'", "did you mean 'decoder/small'")),
    (setting(2, frmes=3), ("step clip (decoder/small)", "frmes", "did you mean 'frames'")),
    (setting(2, frames=0), ("step clip (decoder/small)", "frames", "greater than or equal to 1")),
    (setting(2, mode="other"), ("step clip (decoder/small)", "mode", "'tsn' or 'dense'")),
    (lambda v: v["steps"][4].pop("with"), ("step net (recognition/small)", "width", "Field required")),
    # primitives inside configs
    (setting(3, of=[{"use": "augment/small_flop"}]), ("step aug: of[0]", "did you mean 'augment/small_flip'")),
    (
        setting(3, of=[{"use": "augment/small_flip", "wiht": {}}]),
        ("step aug (combine/small_some_of)", "of.0", "unknown key 'wiht'", "did you mean 'with'"),
    ),
    (
        setting(3, of=["augment/small_flip", {"use": "augment/small_flip", "with": {"p": 2}}]),
        ("step aug: of[1] (augment/small_flip)", "p", "less than or equal to 1"),
    ),
    (
        setting(3, named={"x": {"use": "combine/small_some_of",
                                "with": {"of": [{"use": "augment/small_flip", "with": {"q": 1}}]}}}),
        ("step aug: named.x.of[0] (augment/small_flip)", "q"),
    ),
    # variables
    (setting(2, frames="${frmes}"), ("step clip: with.frames", "`${frmes}`", "did you mean 'frames'")),
    (setting(2, note="${zzz}"), ("step clip: with.note", "vars has: frames, p")),
    (setting(2, note="x ${frames + 1}"), ("step clip: with.note", "'${frames + 1}'", "no expressions")),
    (setting(2, note="x ${"), ("step clip: with.note", "no expressions")),
    (setting(2, **{"${frames}": 1}), ("step clip: with", "'${frames}'", "only values may")),
    (setting(3, of=[{"use": "augment/small_flip", "with": {"p": "${q}"}}]), ("step aug: with.of[0].with.p", "${q}")),
    (lambda v: v["vars"].update({"a b": 1}), ("vars: 'a b' is no name",)),
    (lambda v: v["vars"].update(a="${b}", b="x ${a}"), ("vars: a -> b -> a", "circle")),
    (lambda v: v["vars"].update(a="${nothing}"), ("vars.a", "`${nothing}`", "not in vars")),
    (lambda v: (v["vars"].update(a=[1]), setting(2, note="x ${a}")(v)), ("step clip: with.note", "inside a text")),
)  # fmt: skip


@pytest.mark.parametrize(("change", "parts"), REFUSED)
def test_what_is_wrong_is_named(example: dict[str, Any], change: Change, parts: tuple[str, ...]) -> None:
    Document.from_dict(example, "some.yaml")  # the control
    change(example)
    message = refused(example)
    assert all(part in message for part in ("some.yaml", *parts)), message
    assert Document.__name__ not in message


def test_everything_wrong_is_said_at_once(example: dict[str, Any]) -> None:
    example["ouputs"] = 1
    example["steps"][2]["with"]["frmes"] = 1
    example["steps"][4]["use"] = "recognition/smll"
    example["steps"][5]["in"] = ["net", "clop"]
    document, problems, warnings = examine(example, "some.yaml")
    assert document is not None
    assert len(problems) == 4
    assert all(line.startswith("some.yaml: ") for line in problems)
    assert warnings == []


def test_unused_steps_and_variables_are_warnings(example: dict[str, Any]) -> None:
    example["outputs"] = ["net.model"]
    example["vars"]["left"] = 1
    _, problems, warnings = examine(example, "some.yaml")
    assert problems == []
    assert warnings == ["some.yaml: step eval: no output needs it", "some.yaml: vars.left: nothing refers to it"]


# --- variables ---------------------------------------------------------------------------------


def test_variables_keep_their_type_or_become_text(example: dict[str, Any]) -> None:
    example["vars"] = {"frames": "${base}", "base": 16, "p": 0.25, "yes": True, "where": "in ${base}",
                       "of": ["${flip}"], "flip": "augment/small_flip", "source": "shards"}  # fmt: skip
    example["steps"][2]["in"] = "${source}"
    example["steps"][2]["with"]["note"] = "${where}: $${base} ${p} ${yes} $ 5 $x"
    example["steps"][3]["with"]["of"] = "${of}"
    checked = Document.from_dict(example).checked()
    config: Any = checked.steps["clip"].config
    assert config.frames == 16
    assert config.note == "in 16: ${base} 0.25 true $ 5 $x"
    resolved = Document.from_dict(example).resolved()
    assert resolved.vars == {}
    assert resolved.steps[2].settings["note"] == "in 16: $${base} 0.25 true $ 5 $x"  # may be read once more
    assert resolved.resolved() == resolved
    assert [str(edge) for edge in checked.graph.edges][1] == "shards.shards -> clip.shards"


# --- resolved form, digest and keys ------------------------------------------------------------


def test_resolved_leaves_nothing_open(example: dict[str, Any]) -> None:
    resolved = Document.from_dict(example).resolved()
    steps = {step["id"]: step for step in resolved.to_dict()["steps"]}
    assert "vars" not in resolved.to_dict()
    assert steps["data"] == {
        "id": "data", "use": "reader/small", "with": {"media": "media/", "classes": []}, "version": 3,
    }  # fmt: skip
    assert steps["clip"]["in"] == {"shards": "shards.shards"}
    assert steps["clip"]["with"] == {"frames": 8, "mode": "dense", "scale": 1.0, "note": ""}
    assert steps["aug"]["with"]["of"] == [
        {"use": "augment/small_flip", "with": {"p": 0.25}},
        {"use": "augment/small_flip", "with": {"p": 0.5}},
    ]
    assert steps["eval"]["in"] == {"model": "net.model", "clips": "clip.clips"}
    assert resolved.outputs == ("net.model", "eval.metrics")
    assert Document.from_yaml(resolved.to_yaml()) == resolved


SAME: tuple[Change, ...] = (
    lambda v: v.update(name="other"),
    lambda v: v.update(vars={"frames": 8.0, "p": 0.25, "more": 1}),
    lambda v: v.update(outputs=["eval.metrics", "net.model"]),
    lambda v: v["steps"].reverse(),
    setting(2, frames=8),
    setting(2, scale=1),
    set_step(5, **{"in": {"clips": "clip", "model": "net.model"}}),
    set_step(1, **{"in": ["data.manifest"]}),
    setting(3, n="2"),
)
OTHER: tuple[Change, ...] = (
    lambda v: v.update(seed=8),
    lambda v: v.update(vars={"frames": 9, "p": 0.25}),
    lambda v: v.update(outputs=["net.model"]),
    setting(2, frames=10),
    setting(3, of=["augment/small_flip", {"use": "augment/small_flip", "with": {"p": 0.25}}]),
    set_step(5, **{"in": ["net", "aug"]}),
    set_step(3, use="augment/small_flip", **{"with": {}}),
    lambda v: v["steps"].append({"id": "more", "use": "augment/small_clock", "in": "clip"}),
)


def test_digest_is_of_what_is_computed(example: dict[str, Any]) -> None:
    digest = Document.from_dict(example).digest()
    assert Document.from_dict(example).resolved().digest() == digest
    for change in SAME:
        values = copy.deepcopy(example)
        change(values)
        assert Document.from_dict(values).digest() == digest, values
    others = set()
    for change in OTHER:
        values = copy.deepcopy(example)
        change(values)
        others.add(Document.from_dict(values).digest())
    assert len(others) == len(OTHER)
    assert digest not in others


def test_digest_and_key_have_the_versions_inside_configs(small: ModuleType, example: dict[str, Any]) -> None:
    document = Document.from_dict(example)
    digest = document.digest()
    bound = document.checked().steps["aug"]
    assert bound.versions == {"combine/small_some_of": 1, "augment/small_flip": 1}
    key = step_key(bound, {"clips": "x"}, 1, "c")
    small.Flip.version = 2
    assert document.digest() != digest
    assert step_key(document.checked().steps["aug"], {"clips": "x"}, 1, "c") != key


def test_step_keys(example: dict[str, Any]) -> None:
    example["steps"].append({"id": "clock", "use": "augment/small_clock", "in": "clip"})
    example["steps"].append({"id": "hidden", "use": "combine/small_some_of", "in": "clip",
                             "with": {"of": ["augment/small_clock"]}})  # fmt: skip
    steps = Document.from_dict(example).checked().steps
    clip = step_key(steps["clip"], {"shards": "x"}, 1, "c")
    assert clip is not None
    assert clip == step_key(steps["clip"], {"shards": "x"}, 2, "c")  # pure: no seed in it
    assert clip != step_key(steps["clip"], {"shards": "y"}, 1, "c")
    assert clip != step_key(steps["clip"], {"shards": "x"}, 1, "d")
    example["steps"][2]["with"]["frames"] = 9
    changed = Document.from_dict(example).checked().steps
    assert clip != step_key(changed["clip"], {"shards": "x"}, 1, "c")
    for seeded in ("net", "aug"):  # aug: a pure combiner of something seeded
        keys = {step_key(steps[seeded], {"clips": "x"}, seed, "c") for seed in (1, 2)}
        assert len(keys) == 2
        assert steps[seeded].determinism == "seeded"
    for impure in ("clock", "hidden"):
        assert step_key(steps[impure], {"clips": "x"}, 1, "c") is None
    with pytest.raises(ValueError, match=r"step clip has the inputs \['shards'\]"):
        step_key(steps["clip"], {}, 1, "c")


def test_a_primitive_of_a_step(small: ModuleType, example: dict[str, Any]) -> None:
    made = Document.from_dict(example).checked().steps["clip"].make()
    assert isinstance(made, small.Decoder)
    assert made.config.frames == 8


def test_a_step_by_its_yaml_keys() -> None:
    step = Step.model_validate({"id": "a", "use": "b/c", "in": {"x": ["y.z"]}, "with": {"k": 1}})
    assert step.inputs == {"x": ("y.z",)}
    assert step.model_dump() == {"id": "a", "use": "b/c", "in": {"x": ["y.z"]}, "with": {"k": 1}}


# --- properties --------------------------------------------------------------------------------

_texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=12,
)
_pieces = st.lists(
    st.sampled_from(["${v}", "${w}", "$${v}", "$", "{", "}", "$$", "é", "a: b", "#", "\n", " "]), max_size=6
)


@given(value=st.dictionaries(_texts, _plain, max_size=5))
@settings(max_examples=60, deadline=None)
def test_yaml_is_read_back_equal(value: dict[str, Any]) -> None:
    assert read_yaml(write_yaml(value), "x") == plain(value, "x")


@given(
    v=_texts | st.integers(), pieces=_pieces, frames=st.integers(1, 64), scale=st.floats(1e-9, 1e9),
    p=st.floats(0, 1), depth=st.integers(0, 3), chain=st.integers(0, 3), seed=st.integers(0, 2**63 - 1),
    names=st.lists(_texts, max_size=3), lr=st.dictionaries(_texts, st.floats(-1e6, 1e6), max_size=3),
)  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_yaml_and_resolving_keep_the_digest(
    v: str | int, pieces: list[str], frames: int, scale: float, p: float, depth: int, chain: int, seed: int,
    names: list[str], lr: dict[str, float],
) -> None:  # fmt: skip
    note = "".join(pieces)
    if "${" in note.replace("$${", "").replace("${v}", "").replace("${w}", ""):
        note = note.replace("{", "")
    inner: dict[str, Any] = {"use": "augment/small_flip", "with": {"p": p}}
    for _ in range(depth):
        inner = {"use": "combine/small_some_of", "with": {"of": [inner, "augment/small_flip"]}}
    values: dict[str, Any] = {
        "schema": "pipeline/v1", "name": "x", "seed": seed,
        "vars": {"v": str(v).replace("$", "") if isinstance(v, str) else v, "w": "<${v}>"},
        "steps": [
            {"id": "data", "use": "reader/small", "with": {"classes": [name.replace("$", "") for name in names]}},
            {"id": "shards", "use": "extractor/small", "in": "data"},
            {"id": "clip", "use": "decoder/small", "in": "shards",
             "with": {"frames": frames, "scale": scale, "note": f"t {note}"}},
            {"id": "aug0", "use": "combine/small_some_of", "in": "clip", "with": {"of": [inner]}},
            *({"id": f"aug{i + 1}", "use": "augment/small_flip", "in": f"aug{i}"} for i in range(chain)),
            {"id": "net", "use": "recognition/small", "in": f"aug{chain}",
             "with": {"width": 8, "lr": {key.replace("$", ""): item for key, item in lr.items()}}},
        ],
        "outputs": ["net.model"],
    }  # fmt: skip
    document = Document.from_dict(values)
    again = Document.from_yaml(document.to_yaml())
    assert again == document
    resolved = document.resolved()
    assert Document.from_yaml(resolved.to_yaml()) == resolved == resolved.resolved()
    assert document.digest() == again.digest() == resolved.digest()


def test_documents_are_light() -> None:
    code = "import sys, training.autovideo.document, training.autovideo.explain, training.autovideo.commands.pipeline\n"
    code += "import training.autovideo.commands.primitives\n"
    code += "found = {'torch', 'numpy', 'pandas', 'ray', 'mlflow'} & set(sys.modules); assert not found, found\n"
    code += "assert 'yaml' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
