"""Upstreams that are searches, and upstreams with the instance's own items: paths, DVC's entries, runs, lineage."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings import Settings
from training.core.checkpoint import load_model, read_model_info
from training.core.config import ConfigError, StageConfig
from training.core.dvcfile import training_entries
from training.core.failures import StageFailed
from training.core.lineage import lineage
from training.core.run import resolve, run_stage
from training.core.stage import Stage, StageRef, check_upstream, paths_of, upstream_key, upstream_ref
from training.registry import FAMILIES, all_stages

SECTIONS = yaml.safe_load((Path(__file__).parents[2] / "params.tiny.yaml").read_text())

FAMILY = '''
"""A family that searches for a learning rate, per engine and seed, and trains with what was found."""

from typing import Any

from training.adafocus.config import PretrainConfig
from training.adafocus.system import FrameClassifier
from training.core.config import StageConfig
from training.core.stage import Stage
from training.core.trials import SearchConfig, Trial


class Config(SearchConfig):
    engine: str
    seed: str


class Rates:
    total = 2

    def __init__(self, inputs):
        self._rates, self.best = [0.5, 0.25], None
        self._config = inputs.config

    def ask(self):
        if not self._rates:
            return None
        rate = self._rates.pop(0)
        return Trial(f"lr{rate}", "all", config={"lr": rate, "engine": self._config.engine})

    def tell(self, outcome):
        self.best = max(self.best or (0.0, 0.0), (outcome.value, outcome.trial.config["lr"]))

    def summary(self):
        return {}

    def files(self):
        return {"found.yaml": f"lr: {self.best[1]}\\nby: {self._config.engine}-{self._config.seed}\\n"}


class Rate:
    def __init__(self, inputs):
        self._seed = int(inputs.config.seed)

    def score(self, trial):
        return {"val/top1": trial.config["lr"] * (1 if self._seed else 0.5)}


class FoundConfig(PretrainConfig):
    found: dict[str, Any]
    engine: str
    seed: str


def build(inputs):
    if inputs.upstream:  # in training: the file that the config has the content of
        text = (inputs.upstream["rate_search"] / "found.yaml").read_text()
        assert f"by: {inputs.config.found['by']}" in text
    return FrameClassifier(inputs.config, inputs.classes, inputs.root)


AXES = {"engine": ("random", "evolution"), "seed": "rate_grid.seed"}
STAGES = (
    Stage(
        "rate_search", "search", Config, Rates, matrix=AXES, scorer=Rate, leaves=("found.yaml",),
        shared={"data": "adafocus_data"},
    ),
    Stage(
        "rate_train", "fit", FoundConfig, build, upstream=("rate_search-{engine}-{seed}",), matrix=AXES,
        found={"found": "rate_search/found.yaml"}, shared={"data": "adafocus_data", "model": "adafocus_model"},
    ),
)
MODELS = {}
'''


@pytest.fixture
def rates(tmp_path: Path, tiny_shards: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose family is registered in this process."""
    root = tmp_path / "here"
    (root / "params").mkdir(parents=True)
    train = {**SECTIONS["adafocus_pretrain"], "net": "local"}
    values = {**SECTIONS, "rate_search": {"stopping": None}, "rate_train": train}
    (root / "params" / "tiny.yaml").write_text(yaml.safe_dump(values))
    (root / "params.yaml").write_text("rate_grid:\n  seed: [0, 1]\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "rate_family").mkdir()
    (root / "rate_family" / "__init__.py").write_text(FAMILY)
    shutil.copytree(tiny_shards, root / "data" / "shards" / "tiny")
    shutil.copy(empty_store, root)
    monkeypatch.setitem(FAMILIES, "rate", "rate_family")
    monkeypatch.syspath_prepend(root)
    monkeypatch.chdir(root)
    yield root
    sys.modules.pop("rate_family", None)


def make_settings(root: Path) -> Settings:
    return Settings(root=root, train_workers=0, train_cpus_per_worker=1, progress=False)


def stage(kind: Any = "fit", name: str = "a_train", **fields: Any) -> Stage:
    return Stage(name, kind, StageConfig, lambda inputs: None, **fields)


# --- names ---------------------------------------------------------------------------------------


def test_placeholders_are_the_items_of_the_instance():
    own = stage(matrix={"engine": ("random", "evolution"), "seed": "grid.seed"}, upstream=("b_search-{engine}-7",))
    assert upstream_key("b_search-{engine}-7") == "b_search"
    assert upstream_key("b_search-evolution-7") == "b_search-evolution-7"
    assert upstream_key("b_search") == "b_search"
    ref = StageRef.parse("a_train@demo-evolution-3")
    assert str(upstream_ref(own, ref, "b_search-{engine}-7")) == "b_search@demo-evolution-7"
    assert str(upstream_ref(own, ref, "b_search-{seed}-{engine}")) == "b_search@demo-3-evolution"
    assert upstream_ref(own, None, "b_search-{engine}-7").folder == "b_search/${item.engine}-7"
    with pytest.raises(ConfigError, match=r"names the axis 'net', its matrix has \['engine', 'seed'\]"):
        upstream_ref(own, ref, "b_search-{net}")
    with pytest.raises(ConfigError, match="not an instance of a_train"):
        upstream_ref(own, StageRef.parse("a_train@demo"), "b_search-{engine}")


def test_wrong_stages_are_refused():
    with pytest.raises(ValueError, match="only a search has a scorer"):
        stage(scorer=lambda inputs: None)
    with pytest.raises(ValueError, match="no plain file names"):
        stage(leaves=("found.yaml", "../found.yaml"))
    with pytest.raises(ValueError, match=r"'b_train'.*named twice"):
        stage(matrix={"n": ("1",)}, upstream=("b_train-{n}-1", "b_train-{n}-2"))


@pytest.mark.parametrize(
    ("upstream", "matrix", "message"),
    [
        ("b_search-{engine}-{seed}", {"engine": ("x", "y"), "seed": "grid.seed"}, None),
        ("b_search-{e}-{s}", {"s": "grid.seed", "e": ("y",)}, None),  # part of the upstream's own values
        ("b_search-x-{seed}", {"seed": "grid.seed"}, None),
        ("c_train-{n}", {"n": ("1", "2")}, None),
        ("b_search-{engine}-{seed}", {"engine": ("x", "z"), "seed": "grid.seed"}, "both must name the same list"),
        ("b_search-{engine}-{seed}", {"engine": ("x",), "seed": "other.seed"}, "both must name the same list"),
        ("b_search-{engine}-{seed}", {"engine": ("x",), "seed": ("1",)}, "both must name the same list"),
        ("b_search-{engine}-{seed}", {"engine": ("x",)}, "names the axis 'seed'"),
        ("b_search-{engine}", {"engine": ("x",)}, "one item.*for each of"),
        ("b_search", {}, "one item.*for each of"),
        ("b_search-z-{seed}", {"seed": "grid.seed"}, "'z' must be one of x, y"),
        ("b_search-x-1", {}, "'1' must be one of the list 'grid.seed' of params.yaml"),
        ("d_search", {}, "without Stage.leaves"),
        ("e_train", {}, "not a registered stage"),
    ],
)
def test_upstreams_must_exist_for_every_instance(upstream, matrix, message):
    own = stage(matrix=matrix, upstream=(upstream,))
    axes = {"engine": ("x", "y"), "seed": "grid.seed"}
    others = (
        stage("search", "b_search", matrix=axes, leaves=("found.yaml",)),
        stage("fit", "c_train", matrix={"n": ("1", "2", "3")}),
        stage("search", "d_search"),
    )
    stages = {item.name: item for item in (own, *others)}
    if message is None:
        check_upstream(own, upstream, stages)
    else:
        with pytest.raises(ConfigError, match=message):
            check_upstream(own, upstream, stages)


def test_entries_in_dvc(rates):
    entries = training_entries(rates)
    search, train = entries["rate_search"], entries["rate_train"]
    run = "runs/${item.data}/rate_search/${item.engine}-${item.seed}"
    # Scored trials leave no folder, and what downstream depends on is the leaf alone.
    assert search["outs"] == [f"{run}/config.json", f"{run}/trials.json", f"{run}/found.yaml"]
    assert [dep for dep in train["deps"] if dep.startswith("runs/")] == [f"{run}/found.yaml"]
    assert train["matrix"] == {
        "data": "${rate}", "engine": ["random", "evolution"], "seed": "${rate_grid.seed}"
    }  # fmt: skip
    assert "trials" in {Path(path).name for path in entries["resnet_rs_search"]["outs"]}


def test_dvc_sees_the_same_graph(rates):
    """DVC itself puts each training behind the search with the same items, and no other."""
    from dvc.repo import Repo

    entries = {name: entry for name, entry in training_entries(rates).items() if name.startswith("rate_")}
    (rates / "dvc.yaml").write_text(yaml.safe_dump({"stages": entries}))
    (rates / "params.yaml").write_text("rate: [tiny, demo]\nrate_grid:\n  seed: [0, 1]\n")
    with Repo.init(str(rates), no_scm=True) as repo:
        edges = {(after.addressing, before.addressing) for after, before in repo.index.graph.edges}
    assert edges == {
        (f"rate_train@{items}", f"rate_search@{items}")
        for items in (
            f"{data}-{engine}-{seed}"
            for data in ("tiny", "demo")
            for engine in ("random", "evolution")
            for seed in "01"
        )
    }


def test_paths_of_an_instance(rates):
    settings, stages = make_settings(rates), all_stages()
    for known in (stages, None):
        paths = paths_of(stages["rate_train"], StageRef.parse("rate_train@tiny-evolution-1"), settings, known)
        folder = rates / "runs/tiny/rate_search/evolution-1"
        assert paths.upstream == {"rate_search": folder}
        assert paths.leaves == {"rate_search": (folder / "found.yaml",)}


# --- runs ----------------------------------------------------------------------------------------


def test_fit_depends_on_what_a_search_found(rates):
    settings = make_settings(rates)
    train, search = (StageRef.parse(f"rate_{name}@tiny-evolution-1") for name in ("train", "search"))
    with pytest.raises(FileNotFoundError, match=r"found.yaml is missing: run the upstream stage 'rate_search'"):
        resolve(train, settings)
    run_stage(StageRef.parse("rate_search@tiny-random-1"), settings)  # another instance does not count
    with pytest.raises(FileNotFoundError, match=r"evolution-1/found\.yaml is missing"):
        resolve(train, settings)
    found = run_stage(search, settings) / "found.yaml"
    assert found.read_text() == "lr: 0.5\nby: evolution-1\n"
    output = run_stage(train, settings)

    # The model carries what was found: it is loaded where there is no search any more.
    moved = found.rename(rates / "away.yaml")
    assert read_model_info(output / "model")["config"]["found"] == {"lr": 0.5, "by": "evolution-1"}
    assert load_model(output / "model").system is not None
    moved.rename(found)

    # Lineage goes from the model to the search, and not to the other one.
    titles = {node.title: node.kind for node in lineage(settings, str(output / "model")).walk()}
    assert titles["rate_train@tiny-evolution-1"] == "run"
    assert titles["rate_search@tiny-evolution-1"] == "run"
    assert "rate_search@tiny-random-1" not in titles
    assert "run of rate_search" not in titles

    # Other content is another input; the rest of what the search writes is none.
    first = json.loads((output / "run.json").read_text())["input_digest"]
    (found.parent / "trials.json").write_text("[]\n")
    assert json.loads((run_stage(train, settings) / "run.json").read_text())["input_digest"] == first
    found.write_text("lr: 0.25\nby: evolution-1\n")
    assert json.loads((run_stage(train, settings) / "run.json").read_text())["input_digest"] != first
    links = {node.title for node in lineage(settings, str(output / "model")).walk()}
    assert "run of rate_search" in links  # no run made this file: shown as missing


def test_what_a_config_takes_must_be_a_leaf(rates):
    for old, new in (("rate_search/found.yaml", "rate_search/trials.json"), ("rate_search/found", "other/found")):
        (rates / "rate_family" / "__init__.py").write_text(FAMILY.replace(f'"{old}', f'"{new}'))
        sys.modules.pop("rate_family", None)
        with pytest.raises(ConfigError, match=r"is none of the leaves of its upstreams: \['rate_search/found.yaml'\]"):
            resolve(StageRef.parse("rate_train@tiny-random-0"), make_settings(rates))


def test_leaf_that_was_not_made_is_named(rates):
    text = FAMILY.replace('found={"found"', 'leaves=("front.json",), found={"found"')
    (rates / "rate_family" / "__init__.py").write_text(text)
    sys.modules.pop("rate_family", None)
    settings = make_settings(rates)
    run_stage(StageRef.parse("rate_search@tiny-random-0"), settings)
    with pytest.raises(StageFailed, match=r"rate_train@tiny-random-0 made no 'front.json'"):
        run_stage(StageRef.parse("rate_train@tiny-random-0"), settings)
    assert not (rates / "runs/tiny/rate_train").exists()
