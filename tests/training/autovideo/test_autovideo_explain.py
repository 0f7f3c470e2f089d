"""What documents say about themselves: tables, drawings, differences."""

import copy
import json
import re
from typing import Any

import pytest

from training.autovideo.document import Document
from training.autovideo.explain import MISSING, diff, explain, explain_text, graph_text, table

pytestmark = pytest.mark.usefixtures("small")


def test_explain_says_what_each_step_is(example: dict[str, Any]) -> None:
    example["steps"].append({"id": "out", "use": "exporter/small_broken_cost", "in": "net"})
    document = Document.from_dict(example)
    facts = explain(document)
    json.dumps(facts)
    rows = {row["id"]: row for row in facts["steps"]}
    assert facts["digest"] == document.digest()
    assert facts["outputs"] == ["net.model", "eval.metrics"]
    assert facts["warnings"] == ["pipeline hmdb-baseline: step out: no output needs it"]
    assert rows["data"]["settings"] == {"media": "media/"}  # not `classes`, an empty list by default
    assert rows["clip"]["settings"] == {"mode": "dense"}  # not `frames`, whose variable is the default
    assert rows["net"]["settings"] == {"width": 16}  # no default
    assert rows["clip"]["cost"] == {"frames": 8}
    assert rows["net"]["cost"] == {}  # it needs its input
    assert rows["out"]["cost"] == {"error": "TypeError: no idea"}
    assert rows["aug"]["determinism"] == "seeded"
    assert rows["eval"]["inputs"] == [
        {"input": "model", "from": "net.model", "port": "Model"},
        {"input": "clips", "from": "clip.clips", "port": "Clip"},
    ]
    assert [row["level"] for row in facts["steps"]] == [0, 1, 2, 3, 4, 5, 5]


def test_explain_as_a_table(example: dict[str, Any]) -> None:
    text = explain_text(Document.from_dict(example))
    assert re.search(
        r"^eval +evaluator/small +model = net\.model \(Model\), clips = clip\.clips \(Clip\) +metrics", text, re.M
    )
    assert re.search(r"^clip +decoder/small .* frames 8$", text, re.M)
    assert "\n  clip.mode: dense\n" in text
    assert "clip.frames" not in text
    assert "outputs: net.model, eval.metrics" in text
    plain = {**example, "steps": example["steps"][:2], "outputs": ["shards"], "vars": {}}
    plain["steps"][0]["with"] = {}
    assert "settings other than the defaults:\n  none\n" in explain_text(Document.from_dict(plain))


def test_tables_are_aligned_and_whole() -> None:
    long = "x" * 300
    assert table(("a", "b"), [("1", long), ("22", "")]) == f"a   b\n1   {long}\n22"


def test_graph_in_three_forms(example: dict[str, Any]) -> None:
    example["steps"][5]["id"] = "end"  # a word of Mermaid's own
    example["outputs"][1] = "end.metrics"
    document = Document.from_dict(example)
    text = graph_text(document)
    assert re.search(
        r"^5 +end +evaluator/small +model <- net\.model \(Model\), clips <- clip\.clips \(Clip\)$", text, re.M
    )
    mermaid = graph_text(document, "mermaid")
    assert mermaid.startswith("flowchart LR\n")
    assert '  s_end["end<br/>evaluator/small"]' in mermaid
    assert "  s_net -->|model: Model| s_end" in mermaid
    assert not re.search(r"^  end\b", mermaid, re.M)
    dot = graph_text(document, "dot")
    assert '  "net" -> "end" [label="model: Model"];' in dot
    assert dot.count("{") == dot.count("}")
    for drawing, arrow in ((mermaid, "-->|"), (dot, '[label="')):
        lines = [line for line in drawing.splitlines() if arrow in line and "->" in line]
        assert len(lines) == len(document.checked().graph.edges) == 6
    with pytest.raises(ValueError, match="'svg' is none of text, mermaid, dot"):
        graph_text(document, "svg")  # type: ignore[arg-type]


def test_diff_of_equals_says_so(example: dict[str, Any]) -> None:
    document = Document.from_dict(example)
    found = diff(document, document)
    assert found.equal
    assert found.text() == f"both compute the same, digest {document.digest()[:12]}"
    other = diff(document, Document.from_dict({**document.resolved().to_dict(), "name": "other"}))
    assert other.equal
    assert other.text().splitlines()[0] == "name: hmdb-baseline -> other"
    assert not diff(document, Document.from_dict({**example, "seed": 8})).equal  # the control


def test_diff_names_steps_fields_and_edges(example: dict[str, Any]) -> None:
    old = Document.from_dict(example)
    values = copy.deepcopy(example)
    values["seed"] = 8
    values["vars"]["frames"] = 16
    values["steps"][3]["with"]["of"][0]["with"]["p"] = 1
    values["steps"][3]["with"]["of"].append("augment/small_clock")
    values["steps"][4]["in"] = "flip"
    values["steps"][5] = {"id": "flip", "use": "augment/small_flip", "in": "aug"}
    values["outputs"] = ["net.model"]
    found = diff(old, Document.from_dict(values))
    assert not found.equal
    assert dict(found.document) == {"seed": (7, 8), "outputs": (["eval.metrics", "net.model"], ["net.model"])}
    assert found.added == ("flip (augment/small_flip)",)
    assert found.removed == ("eval (evaluator/small)",)
    assert set(found.changed) == {"clip", "aug"}
    assert found.changed["clip"] == {"with.frames": (8, 16)}
    assert found.changed["aug"]["with.of[0].with.p"] == (0.25, 1.0)
    assert found.changed["aug"]["with.of[2].use"] == (MISSING, "augment/small_clock")
    assert found.edges_removed == ("aug.clips -> net.clips", "net.model -> eval.model", "clip.clips -> eval.clips")
    assert found.edges_added == ("flip.clips -> net.clips", "aug.clips -> flip.clips")
    lines = found.text().splitlines()
    assert "step clip: with.frames: 8 -> 16" in lines
    assert "step aug: with.of[2].use: (not there) -> augment/small_clock" in lines
    assert "+ edge flip.clips -> net.clips" in lines
    assert lines[-1].startswith("digest: ")
    json.dumps(found.as_dict())


def test_diff_shows_the_order_of_several_sources(example: dict[str, Any]) -> None:
    example["steps"].append({"id": "e2", "use": "evaluator/small", "in": ["net", "clip"]})
    example["steps"].append({"id": "mean", "use": "ensembler/small", "in": ["eval.predictions", "e2.predictions"]})
    example["outputs"] = ["mean"]
    values = copy.deepcopy(example)
    values["steps"][-1]["in"].reverse()
    found = diff(Document.from_dict(example), Document.from_dict(values))
    assert not found.equal
    assert list(found.changed["mean"]) == ["in.predictions"]
