"""The model registry: versions, aliases, and registering the model that an evaluation judged.

Registration is not a DVC stage (it would be skipped after a pull or a cache hit): it is idempotent, keyed by
model, evaluation data and evaluation settings. A registered version carries its evaluation with it
(`evaluation/predictions.npz`), so that later versions are compared with it clip by clip.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_specs.schema import ShardIndex, digest, read_index
from infra.settings import Settings
from training.core.config import ConfigError, DataConfig, validate
from training.core.stage import Stage, StagePaths, StageRef, paths_of, upstream_key, upstream_ref
from training.core.tracking import (
    Run,
    RunRecord,
    client,
    download_artifacts,
    ensure_store,
    file_lock,
    find_runs,
    start_run,
)

CHAMPION, CHALLENGER = "champion", "challenger"


class RegistryError(RuntimeError):
    """A model, version or alias cannot be found or used; the message says what to do."""


@dataclass(frozen=True)
class Version:
    """A registered model version."""

    name: str
    version: str
    run_id: str
    """The registration run; it holds the evaluation and the gate's tables."""
    source: str
    tags: dict[str, str]
    aliases: tuple[str, ...]
    description: str
    created: float
    """Seconds since 1970."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def gate(self) -> str:
        """What the gate said: passed, accepted, failed, underpowered; `not gated` where it was never asked."""
        return self.tags.get("gate", "not gated")


@dataclass(frozen=True)
class Registry:
    """Versions and aliases of one MLflow registry."""

    settings: Settings
    _mlflow: Any = field(repr=False)

    @classmethod
    def open(cls, settings: Settings) -> "Registry":
        """Open (or create) the registry of the settings' store."""
        return cls(settings, client(ensure_store(settings)))

    def names(self) -> list[str]:
        """Return all registered models."""
        return sorted(model.name for model in self._mlflow.search_registered_models())

    def versions(self, name: str) -> list[Version]:
        """Return the versions of a model, oldest first; empty where there is no such model."""
        aliases = self._aliases(name)
        if aliases is None:
            return []
        found = self._mlflow.search_model_versions(f"name = '{name}'", max_results=10_000)
        return sorted((_version(item, aliases) for item in found), key=lambda v: int(v.version))

    def by_alias(self, name: str, alias: str) -> Version | None:
        """Return the version that an alias names, or None."""
        number = (self._aliases(name) or {}).get(alias)
        return None if number is None else self.version(name, number)

    def version(self, name: str, number: str) -> Version:
        """Return one version.

        Raises:
            RegistryError: there is none.
        """
        from mlflow.exceptions import MlflowException

        try:
            return _version(self._mlflow.get_model_version(name, number), self._aliases(name) or {})
        except MlflowException as error:
            raise RegistryError(f"no version {number} of model {name!r} in {self.settings.tracking_uri}") from error

    def resolve(self, text: str) -> Version:
        """Return the version that `name@alias`, `name/version`, `models:/…` or a bare name (its champion) means.

        Raises:
            RegistryError: nothing of that name; the message lists what there is.
        """
        name, alias, number = text.removeprefix("models:/"), "", ""
        if "@" in name:
            name, alias = name.split("@", 1)
        elif "/" in name:
            name, number = name.split("/", 1)
        else:
            alias = CHAMPION
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise RegistryError(f"no registered model {name!r}; registered: {known}. `fovea register` adds one")
        if number:
            return self.version(name, number)
        found = self.by_alias(name, alias)
        if found is None:
            versions = ", ".join(f"{v.version}" for v in self.versions(name))
            raise RegistryError(
                f"model {name!r} has no alias {alias!r} (versions: {versions}); name a version as {name}/<n>, "
                f"or run `fovea promote` to choose a champion"
            )
        return found

    def set_alias(self, version: Version, alias: str) -> None:
        """Let an alias name this version."""
        self._mlflow.set_registered_model_alias(version.name, alias, version.version)

    def drop_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""
        self._mlflow.delete_registered_model_alias(name, alias)

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self._mlflow.set_model_version_tag(version.name, version.version, key, value)

    def describe(self, version: Version, text: str) -> None:
        """Set the description (markdown); the store takes 5,000 characters, the rest lies in the run."""
        note = "\n\n… (cut; whole in the run's `model_card.md`)"
        if len(text) > 5000:
            text = text[: 5000 - len(note)] + note
        self._mlflow.update_model_version(version.name, version.version, description=text)

    def fetch_evaluation(self, version: Version, target: Path) -> Path:
        """Download what was evaluated: `predictions.npz`, `metrics.json`, `facts.json`.

        Raises:
            RegistryError: the version was not registered by `fovea register`.
        """
        from mlflow.exceptions import MlflowException

        try:
            return download_artifacts(self.settings, version.run_id, "evaluation", target)
        except (MlflowException, OSError) as error:
            raise RegistryError(
                f"{version} has no evaluation beside it, so it cannot be compared; "
                f"register it with `fovea register <evaluation stage>`"
            ) from error

    def fetch_model(self, version: Version, target: Path) -> Path:
        """Return the pyfunc directory of a version: in place where the store is local, else downloaded."""
        from mlflow.artifacts import download_artifacts as fetch

        uri = self._mlflow.get_model_version_download_uri(version.name, version.version)
        local = Path(uri.removeprefix("file://"))
        if local.is_dir():
            return local
        return Path(fetch(artifact_uri=uri, dst_path=str(target), tracking_uri=self.settings.tracking_uri))

    def create(self, name: str, run: Run, tags: Mapping[str, str]) -> Version:
        """Register the model that lies in a run under `model`."""
        from mlflow.exceptions import MlflowException

        try:
            self._mlflow.create_registered_model(name)
        except MlflowException:
            if self._aliases(name) is None:
                raise
        source = f"{self._mlflow.get_run(run.run_id).info.artifact_uri}/model"
        made = self._mlflow.create_model_version(name, source, run.run_id, tags=dict(tags))
        return self.version(name, str(made.version))

    def _aliases(self, name: str) -> dict[str, str] | None:
        """Return alias → version number of a model, or None where there is no such model."""
        from mlflow.exceptions import MlflowException

        try:
            aliases = self._mlflow.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return {alias: str(number) for alias, number in aliases.items()}


def _version(item: Any, aliases: Mapping[str, str]) -> Version:
    number = str(item.version)
    return Version(
        name=item.name,
        version=number,
        run_id=item.run_id or "",
        source=item.source,
        tags=dict(item.tags),
        aliases=tuple(sorted(alias for alias, of in aliases.items() if of == number)),
        description=item.description or "",
        created=item.creation_timestamp / 1000,
    )


# --- registering ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluated:
    """An evaluation on disk and the model that it judged."""

    ref: StageRef
    stage: Stage
    family: str
    paths: StagePaths
    subject: StageRef
    model: Path
    model_digest: str
    index: ShardIndex
    config: dict[str, Any]
    metrics: dict[str, float]

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return f"{self.family}-{self.ref.dataset}"

    @property
    def key(self) -> str:
        """Identity of the registration: what model, evaluated on what, and how."""
        return digest([self.model_digest, self.index.data_digest(self.stage.split), digest(self.config)])


def read_evaluated(settings: Settings, ref: StageRef, stage: Stage, family: str) -> Evaluated:
    """Find an evaluation's outputs and the model folder of its subject.

    Raises:
        ConfigError: not an evaluation, or one without a subject.
        FileNotFoundError: the outputs are not there.
    """
    from training.core.checkpoint import model_digest

    if stage.kind != "evaluate" or stage.subject is None:
        raise ConfigError(f"{ref} is not an evaluation of a model; `fovea register` takes an evaluate stage")
    paths = paths_of(stage, ref, settings)
    for path in (paths.metrics, paths.predictions, paths.config):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run `dvc repro {ref}` (or `dvc pull`) first")
    model = paths.upstream.get(stage.subject)
    entry = next((name for name in stage.upstream if upstream_key(name) == stage.subject), None)
    if model is None or entry is None:
        raise ConfigError(f"stage {stage.name}: subject {stage.subject!r} is not one of its upstreams")
    if not model.is_dir():
        raise FileNotFoundError(f"{model} is missing: run `dvc repro` (or `dvc pull`) of {stage.subject} first")
    return Evaluated(
        ref=ref,
        stage=stage,
        family=family,
        paths=paths,
        subject=upstream_ref(stage, ref, entry),
        model=model,
        model_digest=model_digest(model),
        index=read_index(paths.shards),
        config=json.loads(paths.config.read_text()),
        metrics=json.loads(paths.metrics.read_text()),
    )


def evaluations(settings: Settings, dataset: str) -> list[tuple[str, StageRef]]:
    """Return (family, evaluate instance) of every evaluation of a model whose outputs are on disk."""
    from training.registry import all_stages, family_of

    return [
        (family_of(stage.name), ref)
        for stage in all_stages().values()
        # Without results its instances are not asked for: a project need not list the axes of systems it does not run.
        if stage.kind == "evaluate" and stage.subject is not None and (settings.runs / dataset / stage.name).is_dir()
        for ref in stage.instances(dataset, settings.root)
        if paths_of(stage, ref, settings).predictions.exists()
    ]


def register(settings: Settings, ref: StageRef) -> Version:
    """Register the model that an evaluation judged; a second call returns the same version.

    The new version gets the alias `challenger`. The alias is set once, when the version is made: if a
    person moves it afterwards, a later call leaves it where it is.

    Raises:
        ConfigError: `ref` is not an instance of an evaluate stage.
        FileNotFoundError: outputs are missing.
    """
    from training.registry import all_stages, family_of

    stages = all_stages()
    if ref.stage not in stages:
        raise ConfigError(f"unknown stage {ref.stage!r}; known: {', '.join(stages)}")
    evaluated = read_evaluated(settings, ref, stages[ref.stage], family_of(ref.stage))
    registry = Registry.open(settings)
    with file_lock(settings.work / "registry.lock"):
        version = next(
            (v for v in registry.versions(evaluated.name) if v.tags.get("registration_key") == evaluated.key), None
        )
        if version is None:
            version = _create(settings, registry, evaluated)
        if "announced" not in version.tags:
            # Last step of a registration; a process killed before it is completed by the next call.
            registry.set_alias(version, CHALLENGER)
            registry.tag(version, {"announced": "true"})
            version = registry.version(version.name, version.version)
    return version


def _create(settings: Settings, registry: Registry, evaluated: Evaluated) -> Version:
    """Log model and evaluation into a run, try the stored model out, and make a version of it."""
    from training.core.gate import load_gate_config
    from training.core.modelcard import collect_facts
    from training.core.round_trip import round_trip
    from training.core.sample_reader import evaluated_clips
    from training.core.serving import save_pyfunc

    training_run = find_model_run(settings, evaluated.model_digest)
    evaluation_run = _evaluation_run(settings, evaluated)
    facts = collect_facts(settings, evaluated, training_run, evaluation_run)
    tags = {
        "model_digest": evaluated.model_digest,
        "eval_data_digest": evaluated.index.data_digest(evaluated.stage.split),
        "data_digest": evaluated.index.data_digest(),
        "registration_key": evaluated.key,
        "evaluation": str(evaluated.ref),
        "subject": str(evaluated.subject),
        "family": evaluated.family,
        "dataset": evaluated.ref.dataset,
        **({"training_run_id": training_run.run_id} if training_run else {}),
        **({"evaluation_run_id": evaluation_run.run_id} if evaluation_run else {}),
    }
    # The run's own `model_digest` tag would pass for the training run's: lineage looks for that one.
    run_tags = {key: value for key, value in tags.items() if key != "model_digest"}
    run = start_run(
        settings,
        experiment=evaluated.family,
        name=f"register {evaluated.name}",
        tags={**run_tags, "kind": "register", "registered_model_digest": evaluated.model_digest},
        params={},
        resume_tag=("registration_key", evaluated.key),
    )
    run.log_metrics(evaluated.metrics)
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "model"
        save_pyfunc(evaluated.model, saved, {"model_digest": evaluated.model_digest, "evaluation": str(evaluated.ref)})
        run.log_artifacts(saved, "model")
        # What comes back from the store is tried, not what was sent.
        stored = download_artifacts(settings, run.run_id, "model", Path(temporary) / "stored")
        clips, expected, classes = evaluated_clips(
            evaluated.paths.shards,
            evaluated.paths.predictions,
            evaluated.stage.split,
            load_gate_config(evaluated.paths.params).round_trip_clips,
            validate(DataConfig, evaluated.config["data"], f"data block of {evaluated.paths.config}"),
        )
        facts = facts.model_copy(update={"round_trip": round_trip(stored, clips, expected, classes)})
        evaluation = Path(temporary) / "evaluation"
        evaluation.mkdir()
        for path in (evaluated.paths.predictions, evaluated.paths.metrics, evaluated.paths.config):
            shutil.copyfile(path, evaluation / path.name)
        (evaluation / "facts.json").write_text(facts.as_json())
        run.log_artifacts(evaluation, "evaluation")
    version = registry.create(evaluated.name, run, tags)
    run.finish()
    return version


def find_model_run(settings: Settings, model_digest: str) -> RunRecord | None:
    """Return the newest run that made a model of this digest, or None where the store has none."""
    return next(iter(find_runs(settings, {"model_digest": model_digest}, finished=True)), None)


def _evaluation_run(settings: Settings, evaluated: Evaluated) -> RunRecord | None:
    """Return the run of the evaluation: by its tags; `run.json` only chooses among several that fit."""
    fitting = [
        run
        for run in find_runs(settings, {"instance": str(evaluated.ref)}, finished=True)
        if json.loads(run.tags.get("upstream_model_digests", "{}")).get(evaluated.stage.subject)
        == evaluated.model_digest
        and run.tags.get("eval_data_digest") == evaluated.index.data_digest(evaluated.stage.split)
        and run.tags.get("config_digest") == digest(evaluated.config)
    ]
    hint = json.loads(evaluated.paths.info.read_text()).get("run_id") if evaluated.paths.info.exists() else None
    return next((run for run in fitting if run.run_id == hint), fitting[0] if fitting else None)
