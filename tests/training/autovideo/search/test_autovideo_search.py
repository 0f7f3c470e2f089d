"""The search as an ask/tell object: replay, limits, budgets, no candidate twice, what it leaves; in the runner too."""

import copy
import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from infra.settings import Settings
from training.autovideo.search.budget import Budget, parse_budget
from training.autovideo.search.engines import EvolutionConfig, GridConfig, RandomConfig, TpeConfig
from training.autovideo.search.pipeline_search import LEAVES, REDRAWS, Compiled, PipelineSearch, check_fingerprints
from training.autovideo.search.space import apply, build_space
from training.core.config import ConfigError
from training.core.failures import StageFailed
from training.core.ray_runner import FitJob, source_digest
from training.core.search import run_search
from training.core.search_run import SearchRun
from training.core.trials import Outcome, Trial
from training.registry import all_stages

ENGINES = {"random": RandomConfig(), "tpe": TpeConfig(startup=3), "evolution": EvolutionConfig(population=4)}
SMALL = {"schema": "space/v1", "slots": {"net": ["toy/small", "toy/deep"]},
         "set": {"net:toy/deep.depth": [1, 2, 5], "clip.frames": [4, 8]}}  # fmt: skip
"""Eight candidates, of which one is no valid pipeline."""


TWELVE = Budget(trials=12)


def make(toy, engine=ENGINES["random"], *, space=None, seed=0, budget=TWELVE, compiles=None, **more):
    tree = build_space(copy.deepcopy(space or toy.SPACE), toy.base())
    return PipelineSearch(tree, toy.base(), compiles or toy.compile_document, engine, seed, budget, **more)


def outcome_of(toy, trial: Trial, number: int) -> Outcome:
    """What becomes of a trial: mostly a number."""
    status = {4: "failed", 6: "stopped"}.get(number % 8, "finished")
    value = None if status == "failed" else toy.score(json.loads(trial.facts["document"]))
    error = "OutOfMemoryError: no room" if status == "failed" else None
    return Outcome(trial, status, 6 if status == "finished" else 3, value, {}, [], error, elapsed_s=10.0 * number)


def play(toy, search, in_flight: int = 3) -> list[tuple[str, object]]:
    """Run a search with trials that end out of order; return its calls."""
    calls: list[tuple[str, object]] = []
    running: list[Trial] = []
    rng, ended = random.Random(0), 0
    while True:
        while len(running) < in_flight and (trial := search.ask()) is not None:
            calls.append(("ask", trial))
            running.append(trial)
        if not running:
            return calls
        outcome = outcome_of(toy, running.pop(rng.randrange(len(running))), ended)
        ended += 1
        search.tell(outcome)
        calls.append(("tell", outcome))


@pytest.mark.parametrize("name", [*ENGINES, "grid"])
def test_killed_at_any_point_it_goes_on_as_it_would_have(toy, name):
    """Only what was asked for and told is repeated, not the asks that came to nothing, as the journal has it."""
    space = {**copy.deepcopy(toy.SPACE), "limits": {"gmac": 30}} if name != "grid" else SMALL
    engine = ENGINES.get(name, GridConfig())
    search = make(toy, engine, space=space, objectives=("metric", "gmac"))
    calls = play(toy, search)
    assert len([what for what, _ in calls if what == "ask"]) == (12 if name != "grid" else 7)
    for cut in range(0, len(calls) + 1, 1 if name != "tpe" else 4):
        again = make(toy, engine, space=space, objectives=("metric", "gmac"))
        for what, value in calls[:cut]:
            if what == "ask":
                assert again.ask() == value
            else:
                again.tell(value)
        rest = [value for what, value in calls[cut:] if what == "ask"][:1]
        if cut < len(calls) and calls[cut][0] == "ask":
            assert again.ask() == rest[0]
    assert again.ask() is None
    assert (again.files(), again.summary()) == (search.files(), search.summary())
    other = make(toy, engine, space=space, seed=1)
    assert (other.ask() != calls[0][1]) == (name != "grid")


@pytest.mark.parametrize("engine", [*ENGINES.values(), GridConfig()])
def test_no_candidate_is_trained_twice_and_a_small_space_ends(toy, engine):
    search = make(toy, engine, space=SMALL, budget=Budget())
    assert search.total == 8
    calls = play(toy, search)
    configs = [json.dumps(value.config, sort_keys=True) for what, value in calls if what == "ask"]
    assert len(set(configs)) == len(configs) == 7
    assert len({value.name for what, value in calls if what == "ask"}) == 7
    (refusal,) = search.refused()  # listed once, however often it was drawn
    assert (refusal.reason, refusal.message) == ("invalid", "a net of depth 5 needs more than 4 frames")
    assert search.summary()["search/invalid"] == 1
    assert search.ask() is None


def test_different_choices_of_the_same_training_are_one_candidate(toy):
    """A variable that nothing reads makes no new training."""
    space = {
        "schema": "space/v1",
        "set": {"vars.batch": {"kind": "int", "low": 1, "high": 1000}, "clip.frames": [4, 8]},
    }
    search = make(toy, space=space, budget=Budget(trials=50))
    asked = [value for what, value in play(toy, search) if what == "ask"]
    assert sorted(trial.facts["gmac"] for trial in asked) == [2.0, 4.0]
    fails = make(toy, space=space, compiles=broken)
    assert fails.ask() is None
    assert sum(fails.summary()[f"search/{kind}"] for kind in ("invalid", "repeated")) == REDRAWS


def broken(document):
    raise ConfigError("nothing is ever right")


def test_over_the_limits_nothing_is_trained(toy):
    space = {**copy.deepcopy(SMALL), "limits": {"gmac": 4, "params": 1500}}
    search = make(toy, space=space, budget=Budget(trials=50))
    asked = [value for what, value in play(toy, search) if what == "ask"]
    assert {(t.facts["gmac"], t.facts["params"]) for t in asked} == {(2.0, 1000.0), (4.0, 1000.0)}
    refused = {(item.costs.get("gmac"), item.reason): item.message for item in search.refused()}
    assert refused == {
        (None, "invalid"): "a net of depth 5 needs more than 4 frames",
        (4.0, "limits"): "params 2000 > 1500",
        (8.0, "limits"): "gmac 8 > 4, params 2000 > 1500",
        (20.0, "limits"): "gmac 20 > 4, params 5000 > 1500",
    }
    board = json.loads(search.files()["leaderboard.json"])
    assert len(board["refused"]) == 4
    assert {row["gmac"] for row in board["refused"] if row["reason"] == "limits"} == {4.0, 8.0, 20.0}
    assert board["figures"]["search/refused"] == 3
    assert board["limits"] == {"gmac": 4.0, "params": 1500.0}


def test_trials_say_what_they_are(toy):
    trial = make(toy).ask()
    document = json.loads(trial.facts["document"])
    compiled = toy.compile_document(document)
    assert trial.name == f"t000-{compiled.digest[:8]}"
    assert (trial.stage, trial.group, trial.config) == ("autovideo_train", "all", compiled.config)
    assert trial.facts["gmac"] == compiled.gmac
    assert trial.facts["net"] == toy.settings_of(document, "net")["use"]
    assert trial.facts["clip.frames"] == toy.settings_of(document, "clip")["frames"]
    assert all(isinstance(value, float | str) for value in trial.facts.values())
    # Names that MLflow takes: letters, digits and `_-. :/`.
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-. :/") for name in trial.facts)
    assert json.loads(json.dumps(trial.config)) == trial.config


# --- budgets -------------------------------------------------------------------------------------


def test_budget_of_time_is_what_outcomes_say(toy):
    search = make(toy, budget=Budget(seconds=100))
    assert search.total is None
    trials = [search.ask() for _ in range(3)]
    search.tell(Outcome(trials[0], "finished", 6, 0.5, {}, [], elapsed_s=99.9))
    assert search.ask() is not None
    search.tell(Outcome(trials[2], "failed", 0, None, {}, [], elapsed_s=100.0))
    assert search.ask() is None
    search.tell(Outcome(trials[1], "finished", 6, 0.7, {}, [], elapsed_s=140.0))  # what runs, runs to its end
    assert search.ask() is None
    assert json.loads(search.files()["leaderboard.json"])["budget"] == {
        "trials": None, "seconds": 100.0, "used_trials": 4, "used_seconds": 140.0
    }  # fmt: skip
    with pytest.raises(ConfigError, match="needs a budget"):
        make(toy, budget=Budget())


@pytest.mark.parametrize(
    ("text", "gpus", "budget"),
    [
        ("30trials", None, Budget(trials=30)),
        ("1trial", None, Budget(trials=1)),
        ("90s", None, Budget(seconds=90)),
        ("20m", None, Budget(seconds=1200)),
        ("1.5h", None, Budget(seconds=5400)),
        ("1d", None, Budget(seconds=86400)),
        ("4gpuh", 2, Budget(seconds=7200)),
        ("30 trials, 4h", None, Budget(trials=30, seconds=14400)),
    ],
)
def test_budgets_as_people_write_them(text, gpus, budget):
    assert parse_budget(text, gpus) == budget


@pytest.mark.parametrize(
    ("text", "gpus", "message"),
    [
        ("4gpuh", None, "needs GPUs"),
        ("4gpuh", 0, "write hours: 4h"),
        ("", None, "is no budget; write"),
        ("4 weeks", None, "'4 weeks' is no budget"),
        ("-3h", None, "is no budget"),
        ("0h", None, "a time above 0"),
        ("2.5trials", None, "a whole number of trials"),
        ("4h,20m", None, "gives a time twice"),
        ("4gpuh,2h", 1, "gives a time twice"),
    ],
)
def test_wrong_budgets_are_refused(text, gpus, message):
    with pytest.raises(ConfigError, match=message):
        parse_budget(text, gpus)


# --- what it leaves ------------------------------------------------------------------------------


def test_winner_front_and_leaderboard(toy):
    search = make(toy, GridConfig(), space=SMALL, budget=Budget(), objectives=("metric", "gmac"))
    # small/4, small/8, deep1/4, deep1/8, deep2/4, deep2/8, deep5/8 in the grid's order; 2, 4, 2, 4, 4, 8, 20 GMAC.
    values = [0.5, 0.6, 0.5, 0.9, None, 0.9, math.nan]
    for value in values:
        trial = search.ask()
        status = "failed" if value is None else "finished"
        error = "OutOfMemoryError: no room" if value is None else None
        search.tell(Outcome(trial, status, 6, value, {}, [], error))
    assert search.ask() is None
    names = [entry.name for entry in search.entries()]
    assert search.front() == [names[0], names[2], names[3]]  # equals are both in it
    assert search.winner().name == names[3]  # not the dearer one of the same value
    files = search.files()
    assert sorted(files) == sorted(LEAVES)
    winner = yaml.safe_load(files["winner.yaml"])
    assert winner == search.winner().document
    assert toy.compile_document(winner).digest[:8] == names[3].split("-")[1]
    assert list(winner)[:3] == ["schema", "name", "seed"]
    board = json.loads(files["leaderboard.json"])
    assert [row["name"] for row in board["trials"]] == [names[n] for n in (3, 5, 1, 0, 2, 4, 6)]
    assert [row["rank"] for row in board["trials"]] == [1, 2, 3, 4, 5, None, None]
    assert [row["front"] for row in board["trials"]] == [True, False, False, True, True, False, False]
    assert [row["winner"] for row in board["trials"]] == [True] + [False] * 6
    failed, without = board["trials"][5:]
    assert (failed["status"], failed["error_class"], failed["value"]) == ("failed", "OutOfMemoryError", None)
    assert (without["status"], without["error"]) == ("failed", "its metric is no number")
    assert list(board["trials"][0]["flat"]) == board["columns"] == ["net", "net:toy/deep.depth", "clip.frames"]
    assert board["trials"][3]["flat"]["net:toy/deep.depth"] is None
    summary = search.summary()
    assert {key: summary[f"search/{key}"] for key in ("best", "gmac_best", "trials", "front_size", "invalid")} == {
        "best": 0.9, "gmac_best": 4.0, "trials": 7.0, "front_size": 3.0, "invalid": 1.0
    }  # fmt: skip


def test_latency_may_come_beforehand_or_from_the_trial(toy):
    def compiles(document) -> Compiled:
        return replace(toy.compile_document(document), costs={"latency_ms": 1.0})

    for compile_document, metrics in ((compiles, {}), (None, {"latency_ms": 1.0})):
        search = make(toy, compiles=compile_document, objectives=("metric", "latency_ms"))
        search.tell(Outcome(search.ask(), "finished", 6, 0.5, metrics, []))
        assert search.entries()[0].costs["latency_ms"] == 1.0
        assert len(search.front()) == 1
    search.tell(Outcome(search.ask(), "finished", 6, 0.9, {}, []))
    assert len(search.front()) == 1  # without its latency it cannot be compared


def test_without_a_finished_trial_there_is_no_winner(toy):
    search = make(toy)
    search.tell(Outcome(search.ask(), "stopped", 3, 0.5, {}, []))
    with pytest.raises(StageFailed, match="no trial of the search has finished"):
        search.files()


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (("gmac",), "are `metric` and then"),
        (("metric", "gmacs"), "no cost 'gmacs'"),
        (("metric", "gmac", "gmac"), "once"),
    ],
)
def test_wrong_objectives_are_refused(toy, objectives, message):
    with pytest.raises(ConfigError, match=message):
        make(toy, objectives=objectives)


@pytest.mark.parametrize("name", ["tpe", "evolution"])
def test_engines_learn_from_earlier_searches(toy, name):
    space = build_space(copy.deepcopy(toy.SPACE), toy.base())
    rng = random.Random(0)
    warm = [space.sample(rng) for _ in range(60)]
    told = [(choices, toy.value_of(space, choices)) for choices in warm]
    strange = [({"net": "toy/tiny"}, 0.9), ({**warm[0], "clip.frames": 5}, 0.9), (warm[0], math.nan)]
    search = make(toy, ENGINES[name], warm=[*told, *strange])
    summary = search.summary()
    assert summary["search/warm"] + summary["search/warm_outside"] == 63
    assert summary["search/warm_outside"] == 3 + sum(invalid(toy, space, choices) for choices in warm)
    assert summary["search/trials"] == 0  # they are no trials of this one
    assert make(toy, ENGINES[name]).ask() != search.ask()

    def mean(values: list[tuple[dict, float]], seed: int) -> float:
        """The mean of what is asked for first, before anything is told."""
        search = make(toy, ENGINES[name], warm=values, seed=seed, budget=Budget(trials=4))
        return sum(toy.score(json.loads(search.ask().facts["document"])) for _ in range(4)) / 4

    seeds = range(5)
    reversed_values = [(choices, -value) for choices, value in told]
    assert sum(mean(told, seed) for seed in seeds) > sum(mean(reversed_values, seed) for seed in seeds) + 5 * 0.1


def invalid(toy, space, choices) -> bool:
    try:
        toy.compile_document(apply(space, toy.base(), choices))
    except ConfigError:
        return True
    return False


def test_splits_must_differ():
    check_fingerprints("a", "b", "c")
    check_fingerprints("a", "b")
    for splits, named in ((("a", "a", "c"), "'train' and 'val'"), (("a", "b", "b"), "'val' and 'test'"),
                          (("a", "b", "a"), "'train' and 'test'")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"the splits {named} have the same samples"):
            check_fingerprints(*splits)


# --- in the runner -------------------------------------------------------------------------------


def job_in(work: Path) -> FitJob:
    return FitJob(
        stage="toy_search", dataset="toy", name="toy", config={}, classes=[], root=str(work), shards=str(work),
        upstream={}, work=str(work), tracking=None, source_digest=source_digest(), cpus=1, allow_decoder_change=False,
    )  # fmt: skip


def runner(work: Path, search: PipelineSearch) -> SearchRun:
    """A search under way in a folder, as `run_search` has it."""
    settings = Settings(root=work, progress=False)
    return SearchRun(search, job_in(work), settings, metric="val/top1", mode="max", stops=None)


def fit_stage(toy) -> Callable[[dict], Compiled]:
    """Compiles to a stage that is registered, which the runner asks for."""
    stage = next(name for name, item in all_stages().items() if item.kind == "fit")
    return lambda document: replace(toy.compile_document(document), stage=stage)


def train(toy, run: SearchRun, after: Callable[[], None] = lambda: None) -> None:
    """Leave what trainings would leave."""
    while (trial := run.next()) is not None:
        result = run.folder(trial.name) / "result"
        result.mkdir(exist_ok=True)
        value = toy.score(json.loads(trial.facts["document"]))
        (result / "metrics.json").write_text(json.dumps({"val/top1": value}))
        after()
        run.end(trial.name)
        after()


@pytest.mark.parametrize("name", ENGINES)
def test_it_is_resumed_from_the_journal_at_any_point(toy, tmp_path, name):
    """Killed after each thing that a trial leaves; what is found is the same."""

    def new() -> PipelineSearch:
        return make(toy, ENGINES[name], compiles=fit_stage(toy), budget=Budget(trials=6))

    whole = new()
    run = runner(tmp_path / "whole", whole)
    train(toy, run)
    outcomes = run.finish()
    assert len(outcomes) == 6
    for cut in range(12):
        steps = itertools.count()

        def kill(steps=steps, cut=cut) -> None:
            if next(steps) == cut:
                raise KeyboardInterrupt

        work = tmp_path / f"cut-{cut}"
        with pytest.raises(KeyboardInterrupt):
            train(toy, runner(work, new()), kill)
        again = new()
        second = runner(work, again)
        train(toy, second)
        assert second.finish() == outcomes
        assert again.files()["winner.yaml"] == whole.files()["winner.yaml"]
        assert again.summary() == whole.summary()


def test_time_is_up_in_a_real_run(toy, tmp_path):
    """Trials fail at once, for want of data: that takes time too, and the first outcome uses up the budget."""
    for seconds, trials in ((1e-9, 1), (None, 3)):
        search = make(toy, compiles=fit_stage(toy), budget=Budget(trials=3, seconds=seconds))
        work = tmp_path / str(trials)
        work.mkdir()
        settings = Settings(root=work, train_workers=0, progress=False)
        with pytest.raises(StageFailed, match=f"all {trials} trials failed"):
            run_search(search, job_in(work), settings, metric="val/top1")
        assert len(search.entries()) == trials
