"""Whole documents run: what is made, what is kept, what is made again, and what is said when a step fails."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings import Settings
from training.autovideo.fitted import FittedPipeline
from training.autovideo.pipeline import Pipeline, PipelineRun, StepFailed, as_json_text
from training.autovideo.values import Metrics, Model, Predictions, Report, Shards
from training.core.checkpoint import model_digest, read_model_info
from training.core.config import ConfigError

pytestmark = pytest.mark.timeout(300)
Make = Callable[..., dict[str, Any]]
Change = Callable[..., dict[str, Any]]
REPOSITORY = Path(__file__).parents[4]


def fresh(run: PipelineRun) -> set[str]:
    """Return the steps that were run and not known."""
    return {name for name, ran in run.steps.items() if not ran.cached}


def model_of(run: PipelineRun, step: str = "net") -> Model:
    model = run.value(f"{step}.model")
    assert isinstance(model, Model)
    return model


def test_a_whole_document_runs(ran: PipelineRun, project: Settings) -> None:
    assert fresh(ran) == {"data", "shards", "clip", "crop", "aug", "net", "eval", "confusion"}
    shards, model, page = ran.value("shards"), ran.value("net"), ran.value("confusion.page")
    assert isinstance(shards, Shards)
    assert isinstance(page, Report)
    assert shards.classes == ("blue", "green", "red")
    assert set(shards.fingerprints) == {"train", "val", "test"}
    assert isinstance(model, Model)
    assert model.digest == model_digest(model.folder)
    assert model.gmac is not None
    assert model.gmac > 0
    assert list(page.folder.glob("*.html"))
    assert set(ran.outputs()) == {"net.model", "eval.metrics", "confusion.page"}
    figures = ran.metrics()
    assert 0 <= figures["val/top1"] <= 1
    assert figures["eval.test/samples"] == figures["confusion.test/samples"] == 6
    assert figures["eval.test/top1"] == figures["confusion.test/top1"]
    info = read_model_info(model.folder)
    assert info["stage"] == "autovideo_train"
    assert [use["use"] for use in info["config"]["augment"]] == ["augment/hflip"]
    assert info["config"]["data"]["transform"]["train_crop"] == "random"
    assert Pipeline.from_yaml(ran.workspace / "resolved.yaml").document.digest() == ran.document.digest()
    rows = json.loads(as_json_text(ran))["steps"]
    assert rows[0]["step"] == "data"
    assert not list(project.root.rglob(".*.tmp*"))


def test_a_second_run_makes_nothing_again(ran: PipelineRun, project: Settings, document: dict[str, Any]) -> None:
    weights = model_of(ran).folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = Pipeline.from_dict(document).run(settings=project)
    assert fresh(again) == {"data", "shards"}  # these look at the folder each time
    assert weights.stat().st_mtime_ns == before
    assert again.metrics() == ran.metrics()
    assert again.value("shards") == ran.value("shards")


def test_without_resume_everything_is_made_again_and_is_the_same(short: Make, project: Settings) -> None:
    pipeline = Pipeline.from_dict(short("afresh"))
    first = pipeline.run(settings=project)
    assert fresh(pipeline.run(settings=project)) == {"data"}  # the control
    again = pipeline.run(settings=project, resume=False)
    assert fresh(again) == {"data", "clip", "net", "eval"}
    assert model_of(again).digest == model_of(first).digest


def test_a_changed_setting_reruns_what_depends_on_it(short: Make, change: Change, project: Settings) -> None:
    base = short("changes")
    first = Pipeline.from_dict(base).run(settings=project)
    judged = Pipeline.from_dict(change(base, "eval", splits=["val", "test"])).run(settings=project)
    assert fresh(judged) == {"data", "eval"}
    assert "test/top1" in judged.metrics()
    assert "test/top1" not in first.metrics()
    trained = Pipeline.from_dict(change(base, "net", lr=0.02)).run(settings=project)
    assert fresh(trained) == {"data", "net", "eval"}
    assert model_of(trained).digest != model_of(first).digest
    sampled = Pipeline.from_dict(change(base, "clip", frames=3)).run(settings=project)
    assert fresh(sampled) == {"data", "clip", "net", "eval"}
    seeded = Pipeline.from_dict({**base, "seed": 4}).run(settings=project)
    assert fresh(seeded) == {"data", "net", "eval"}


@pytest.mark.parametrize("harm", ["deleted", "tampered"])
def test_a_model_that_is_gone_or_another_is_trained_again(short: Make, project: Settings, harm: str) -> None:
    pipeline = Pipeline.from_dict(short(f"model_{harm}"))
    first = model_of(pipeline.run(settings=project))
    weights = first.folder / "model.safetensors"
    if harm == "deleted":
        shutil.rmtree(first.folder)
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    again = pipeline.run(settings=project)
    assert fresh(again) == {"data", "net"}  # the same model: what was judged stays
    assert model_of(again).digest == first.digest == model_digest(first.folder)


def test_only_runs_what_a_step_needs(short: Make, project: Settings) -> None:
    pipeline = Pipeline.from_dict(short("part"))
    assert set(pipeline.run(settings=project, only="clip").steps) == {"data", "clip"}
    with pytest.raises(ConfigError, match="no step is called 'clpi'; did you mean 'clip'"):
        pipeline.run(settings=project, only="clpi")


def test_a_dataset_named_from_outside(short: Make, project: Settings) -> None:
    base = short("outside")
    base["steps"][0] = {"id": "data", "use": "reader/dataset"}
    pipeline = Pipeline.from_dict(base)
    with pytest.raises(ConfigError, match=r"step 'data'.*needs a name"):
        pipeline.run(settings=project, only="data")
    shards = pipeline.run(settings=project, only="data", dataset="tiny").value("data")
    assert isinstance(shards, Shards)
    assert shards.dataset == "tiny"
    with pytest.raises(ConfigError, match=r"step 'data'.*none_such has no shards"):
        pipeline.run(settings=project, only="data", dataset="none_such")


def test_on_replaces_what_the_reader_reads(document: dict[str, Any], short: Make, tmp_path: Path) -> None:
    pipeline = Pipeline.from_dict(document)
    before = pipeline.to_dict()
    other, dataset = pipeline.on(str(tmp_path))
    assert dataset == ""
    assert other.to_dict()["steps"][0]["with"] == {**before["steps"][0]["with"], "root": str(tmp_path)}
    assert other.to_dict()["steps"][1:] == before["steps"][1:]
    assert pipeline.to_dict() == before
    named, dataset = Pipeline.from_dict(short("named")).on("other")
    assert dataset == "other"
    assert named.to_dict()["steps"][0]["with"] == {"name": "other"}
    two = short("readers")
    two["steps"].append({"id": "more", "use": "reader/dataset"})
    with pytest.raises(ConfigError, match="has 2 readers"):
        Pipeline.from_dict(two).on("other")


def test_from_dict_leaves_what_it_is_given(ran: PipelineRun, document: dict[str, Any], project: Settings) -> None:
    before = copy.deepcopy(document)
    pipeline = Pipeline.from_dict(document)
    pipeline.validate()
    pipeline.run(settings=project, only="clip")
    pipeline.to_dict()["steps"].clear()
    assert document == before
    document["steps"][5]["with"]["lr"] = 99.0
    assert pipeline.to_dict() == Pipeline.from_dict(before).to_dict()


def test_a_failing_step_is_named_with_its_cause(short: Make, ran: PipelineRun, project: Settings) -> None:
    shards = ran.value("shards")
    assert isinstance(shards, Shards)
    broken = project.shards / "broken"
    shutil.copytree(shards.folder, broken)
    for path in broken.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))  # as long as before, and nothing in it
    values = short("fails")
    values["steps"][0]["with"] = {"name": "broken"}
    with pytest.raises(StepFailed, match=r"step 'net' \(recognition/tsn\) failed") as caught:
        Pipeline.from_dict(values).run(settings=project)
    cause = caught.value.__cause__
    assert cause is not None
    assert cause is not caught.value
    assert cause.__traceback__ is not None
    assert str(cause) in str(caught.value)
    assert "sample 'g" in str(caught.value), "the sample that cannot be read"
    # The control: mended in place, the same document runs, and nothing of the failure was kept.
    shutil.rmtree(broken)
    shutil.copytree(shards.folder, broken)
    assert fresh(Pipeline.from_dict(values).run(settings=project)) == {"data", "net", "eval"}


def test_wrong_settings_found_while_running_name_the_step(short: Make, change: Change, project: Settings) -> None:
    values = change(short("wrong"), "data", name="none_such")
    with pytest.raises(ConfigError, match="step 'data'") as caught:
        Pipeline.from_dict(values).run(settings=project)
    assert str(caught.value).count("step 'data'") == 1
    chain, error = [], caught.value
    while error is not None:
        assert error not in chain, "an error that is its own cause"
        chain.append(error)
        error = error.__cause__


def test_two_learners_an_ensemble_and_a_comparison(short: Make, project: Settings, videos: Path) -> None:
    values = short("two", steps=3)
    learner = values["steps"][2]
    scores = {"splits": ["val", "test"]}
    values["steps"][3:] = [
        {**learner, "id": "other", "use": "recognition/tsm"},
        {"id": "first", "use": "extractor/predictions", "in": ["net", "clip"], "with": scores},
        {"id": "second", "use": "extractor/predictions", "in": ["other", "clip"], "with": scores},
        {"id": "both", "use": "ensembler/mean", "in": {"predictions": ["first", "second"]}},
        {"id": "compare", "use": "evaluator/mcnemar", "in": {"predictions": ["first", "second"]},
         "with": {"splits": ["test"]}},
        {"id": "judged", "use": "evaluator/topk", "in": {"predictions": "both"}, "with": scores},
    ]  # fmt: skip
    values["outputs"] = ["both.predictions", "compare.metrics", "judged.metrics"]
    run = Pipeline.from_dict(values).run(settings=project)
    one, two = model_of(run), model_of(run, "other")
    assert one.digest != two.digest
    assert one.folder != two.folder
    assert model_digest(one.folder) == one.digest, "the second training left the first model alone"
    both = run.value("both.predictions")
    assert isinstance(both, Predictions)
    assert set(both.files) == {"val", "test"}
    assert any(name.startswith("test/") for name in run.metrics())
    compared = run.value("compare.metrics")
    assert isinstance(compared, Metrics)
    assert compared.values
    assert fresh(Pipeline.from_dict(values).run(settings=project)) == {"data"}
    # What predicts is the ensemble, with a single video, too.
    fitted = FittedPipeline.of(run)
    assert fitted.answers == "both"
    video = next(videos.rglob("*.mp4"))
    mean = fitted.scores(video)
    alone = [FittedPipeline(run.document, {n: model_of(run, n).folder}, {}, {}) for n in ("net", "other")]
    singles = [item._score(n, video) for item, n in zip(alone, ("net", "other"), strict=True)]
    assert mean == pytest.approx((singles[0] + singles[1]) / 2, abs=1e-6)
    assert mean != pytest.approx(singles[0], abs=1e-6)  # the control


@pytest.fixture
def with_templates(ran: PipelineRun, new_project: Callable[[], Settings]) -> Settings:
    """A project with the settings that learners of other systems begin with."""
    settings = new_project()
    shards = ran.value("shards")
    assert isinstance(shards, Shards)
    settings.shards.mkdir(parents=True)
    (settings.shards / "tiny").symlink_to(shards.folder, target_is_directory=True)
    shutil.copytree(REPOSITORY / "params" / "templates", settings.root / "params" / "templates")
    shutil.copy(REPOSITORY / "tests" / "params.yaml", settings.root / "params.yaml")
    return settings


def small_system(steps: int) -> dict[str, Any]:
    tiny = yaml.safe_load((REPOSITORY / "tests" / "params.tiny.yaml").read_text())
    sections = {name: tiny[name] for name in ("resnet_rs_data", "resnet_rs_model", "resnet_rs_fit")}
    sections["resnet_rs_fit"] |= {"steps": steps, "eval_every": 0}
    return sections


def test_learners_of_another_system(with_templates: Settings, videos: Path) -> None:
    def learner(name: str, steps: int) -> dict[str, Any]:
        return {"id": name, "use": "learner/resnet_rs", "in": "data", "with": {"settings": small_system(steps)}}

    values = {
        "schema": "pipeline/v1",
        "name": "systems",
        "seed": 0,
        "steps": [
            {"id": "data", "use": "reader/dataset", "with": {"name": "tiny"}},
            learner("long", 3),
            learner("brief", 2),
            {"id": "eval", "use": "evaluator/topk", "in": {"model": "long"}, "with": {"splits": ["val", "test"]}},
        ],
        "outputs": ["long.model", "brief.model", "eval.metrics"],
    }
    run = Pipeline.from_dict(values).run(settings=with_templates)
    for name, steps in (("long", 3), ("brief", 2)):
        model = model_of(run, name)
        assert model.stage == "resnet_rs_train"
        assert model.digest == model_digest(model.folder), "each learner keeps its own model"
        assert read_model_info(model.folder)["config"]["fit"]["steps"] == steps
    assert 0 <= run.metrics()["test/top1"] <= 1
    answer = FittedPipeline.of(run).predict(next(videos.rglob("*.mp4")))
    assert set(answer.classes) == {"blue", "green", "red"}
    assert sum(answer.scores) == pytest.approx(1, abs=1e-4)
    assert fresh(Pipeline.from_dict(values).run(settings=with_templates)) == {"data"}


def test_an_unknown_section_of_a_system_is_refused(with_templates: Settings) -> None:
    values = {
        "schema": "pipeline/v1",
        "name": "unknown",
        "seed": 0,
        "steps": [
            {"id": "data", "use": "reader/dataset", "with": {"name": "tiny"}},
            {"id": "net", "use": "learner/resnet_rs", "in": "data", "with": {"settings": {"resnet_rs_fitt": {}}}},
        ],
        "outputs": ["net.model"],
    }
    with pytest.raises(ConfigError, match=r"step 'net'.*no section 'resnet_rs_fitt'"):
        Pipeline.from_dict(values).run(settings=with_templates)
    shutil.rmtree(with_templates.root / "params" / "templates")
    values["steps"][1]["with"] = {}
    with pytest.raises(ConfigError, match=r"resnet_rs\.yaml is missing"):
        Pipeline.from_dict(values).run(settings=with_templates)
