"""MoViNet: mobile video networks that were searched for, and that see a video frame by frame."""

from training.core.checkpoint import load_state, read_model_info
from training.core.config import DataConfig, validate
from training.core.stage import Report, ScoreInputs, Stage, StageInputs
from training.core.system import System
from training.core.trials import Scorer, Search
from training.movinet.config import (
    EnsembleConfig,
    EvalConfig,
    HalfConfig,
    StreamConfig,
    TrainConfig,
)
from training.movinet.config_search import FoundConfig, NasStageConfig, ReportConfig, SupernetStageConfig
from training.movinet.presets import MODELS
from training.movinet.report.stage import MoViNetReport
from training.movinet.search_stage import FAMILY, FOUND, SUPERNET, SupernetScorer, SupernetSearch
from training.movinet.start import start_from_base, start_from_file
from training.movinet.supernet_system import SupernetSystem
from training.movinet.system import Ensemble, MoViNetSystem, StreamSystem

__all__ = ["MODELS", "STAGES"]

_SHARED = {"model": "movinet_model", "data": "movinet_data"}
_RECIPE = {**_SHARED, "fit": "movinet_fit"}


def _train(inputs: StageInputs) -> MoViNetSystem:
    config = inputs.config
    member = int(config.member) if isinstance(config, HalfConfig) else None
    system = MoViNetSystem(config.model, config.variant.variant(), config.data, inputs.classes, member)
    if inputs.root is not None and config.weights is not None:
        start_from_file(system.net, config.weights, config.weights_layout, inputs.root)
    return system


def _stream(inputs: StageInputs) -> StreamSystem:
    system = StreamSystem(inputs.config, inputs.classes)
    if "movinet_train" in inputs.upstream:
        start_from_base(system.net, load_state(inputs.upstream["movinet_train"]))
    return system


def _trained(inputs: StageInputs, name: str, data: DataConfig) -> MoViNetSystem:
    """Build the system of an upstream with the data block of this stage, and load its weights."""
    folder = inputs.upstream[name]
    kinds: dict[str, type[StreamConfig] | type[TrainConfig]]
    kinds = {"movinet_stream": StreamConfig, "movinet_half": HalfConfig}
    kind = kinds.get(name.split("-")[0], TrainConfig)
    values = {**read_model_info(folder)["config"], "data": data.model_dump()}
    config: StreamConfig | TrainConfig = validate(kind, values, f"config of {folder}")
    build = _stream if kind is StreamConfig else _train
    system: MoViNetSystem = build(StageInputs(config, inputs.classes, upstream={}))
    system.load_state_dict(load_state(folder))
    return system


def _evaluation(inputs: StageInputs) -> System:
    (name,) = inputs.upstream
    return _trained(inputs, name, inputs.config.data)


def _ensemble(inputs: StageInputs) -> System:
    data = inputs.config.data
    members = tuple(_trained(inputs, f"movinet_half-{member}", data) for member in (0, 1))
    return Ensemble((members[0], members[1]), data)


def _supernet(inputs: StageInputs) -> System:
    return SupernetSystem(inputs.config, inputs.config.data, inputs.classes)


def _search(inputs: StageInputs) -> Search:
    return SupernetSearch(inputs)


def _scorer(inputs: ScoreInputs) -> Scorer:
    return SupernetScorer(inputs)


def _report(inputs: StageInputs) -> Report:
    return MoViNetReport(inputs.config, inputs.classes, inputs.results)


_SEARCHES = {axis: f"movinet_search.{axis}" for axis in ("engine", "control", "seed")}

STAGES = (
    Stage(name="movinet_train", kind="fit", config=TrainConfig, build=_train, shared=_RECIPE),
    Stage(
        name="movinet_eval",
        kind="evaluate",
        config=EvalConfig,
        build=_evaluation,
        upstream=("movinet_train",),
        subject="movinet_train",
        shared=_SHARED,
        metric="test/top1",
        split="test",
    ),
    Stage(
        name="movinet_stream",
        kind="fit",
        config=StreamConfig,
        build=_stream,
        upstream=("movinet_train",),
        shared=_RECIPE,
    ),
    Stage(
        name="movinet_stream_eval",
        kind="evaluate",
        config=EvalConfig,
        build=_evaluation,
        upstream=("movinet_stream",),
        subject="movinet_stream",
        shared=_SHARED,
        metric="test/top1",
        split="test",
    ),
    Stage(
        name="movinet_half",
        kind="fit",
        config=HalfConfig,
        build=_train,
        matrix={"member": ("0", "1")},
        shared=_RECIPE,
    ),
    Stage(
        name="movinet_ensemble",
        kind="evaluate",
        config=EnsembleConfig,
        build=_ensemble,
        upstream=("movinet_half-0", "movinet_half-1"),
        shared=_SHARED,
        metric="test/top1",
        split="test",
    ),
    Stage(
        name=SUPERNET,
        kind="fit",
        config=SupernetStageConfig,
        build=_supernet,
        shared={"space": "movinet_space", "data": "movinet_data"},
    ),
    Stage(
        name="movinet_search",
        kind="search",
        config=NasStageConfig,
        build=_search,
        scorer=_scorer,
        upstream=(SUPERNET,),
        matrix=_SEARCHES,
        shared={"space": "movinet_space", "data": "movinet_data"},
        leaves=(FOUND, FAMILY),
    ),
    Stage(
        name="movinet_found",
        kind="fit",
        config=FoundConfig,
        build=_train,
        upstream=("movinet_search-{engine}-{control}-{seed}",),
        found={"found": f"movinet_search/{FOUND}"},
        matrix=_SEARCHES,
        shared=_RECIPE,
    ),
    Stage(
        name="movinet_report",
        kind="report",
        config=ReportConfig,
        build=_report,
        upstream=(
            "movinet_search",
            "movinet_found",
            "movinet_train",
            "movinet_stream",
            "movinet_half",
            "movinet_eval",
            "movinet_stream_eval",
            "movinet_ensemble",
        ),
        shared={"data": "movinet_data"},
        metric="val/best_top1",
    ),
)
