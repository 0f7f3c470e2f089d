"""What flows along the edges of a pipeline, and what a primitive is lent while it runs.

Values are small and frozen: folders, settings, figures. Pixels are never in them; a `Clips` value says how clips come
about, as plain data that is hashed, stored with a model and compared. Every value has a digest, from which the cache
keys of the steps downstream are made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data_specs.schema import digest
from infra.settings import Settings
from training.autovideo.primitive import Port
from training.autovideo.use import Use

if TYPE_CHECKING:
    from training.autovideo.document import Document


@dataclass(frozen=True)
class Manifest:
    """A declared data set: what `data_specs/datasets/<name>.yaml` says, before anything is decoded."""

    port: ClassVar[Port] = Port.MANIFEST
    dataset: str
    spec: Mapping[str, Any]
    """Values of a `DatasetSpec`, maybe without `clip` and `shards`, which the extractor adds."""
    sources: str = ""
    """Digest of the listed files (path, size, checksum); empty until they are listed."""

    @property
    def digest(self) -> str:
        """Identity of the value."""
        return digest({"dataset": self.dataset, "spec": dict(self.spec), "sources": self.sources})


@dataclass(frozen=True)
class Shards:
    """A finished folder of shards."""

    port: ClassVar[Port] = Port.SHARDS
    folder: Path
    dataset: str
    fingerprints: Mapping[str, str]
    """Split → digest of its samples (`ShardIndex.data_digest`)."""
    classes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Identity of the value: of its samples, not of its place."""
        return digest({"fingerprints": dict(self.fingerprints), "classes": list(self.classes)})


@dataclass(frozen=True)
class Clips:
    """Clips of a data set, as a recipe: sampled frames, crop and scale, then augmenters in order.

    `data` has fields of `DataConfig` as far as they are decided; the learner adds batch size and the like.
    """

    port: ClassVar[Port] = Port.CLIP
    shards: Shards | None
    """None while a document is only checked."""
    data: Mapping[str, Any]
    augment: tuple[Use, ...] = ()
    """Applied in training only, clip by clip, on frames in 0…1 before normalisation."""

    def with_data(self, **fields: Any) -> "Clips":
        """Return the same with some fields of `data` set; nested mappings are merged."""
        merged = dict(self.data)
        for name, value in fields.items():
            old = merged.get(name)
            merged[name] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        return Clips(self.shards, merged, self.augment)

    def then(self, use: Use) -> "Clips":
        """Return the same with one more augmenter."""
        return Clips(self.shards, self.data, (*self.augment, use))

    @property
    def digest(self) -> str:
        """Identity of the value."""
        steps = [use.model_dump(mode="json") for use in self.augment]
        return digest({"shards": self.shards.digest if self.shards else "", "data": dict(self.data), "augment": steps})


@dataclass(frozen=True)
class Model:
    """A model folder (`training/core/checkpoint.py`), and the shards that it was trained on."""

    port: ClassVar[Port] = Port.MODEL
    folder: Path
    stage: str
    digest: str
    """`model_digest` of the folder."""
    shards: Shards | None
    gmac: float | None = None
    """Per video, of the main model."""


@dataclass(frozen=True)
class Predictions:
    """Scores of videos, in files that `training.core.evaluate.Predictions.load` reads."""

    port: ClassVar[Port] = Port.PREDICTIONS
    files: Mapping[str, Path]
    """Split → file."""
    classes: tuple[str, ...]
    fingerprints: Mapping[str, str]
    """Split → digest of the samples that were predicted."""
    digest: str
    gmac: float | None = None
    """Per video, of what made them."""


@dataclass(frozen=True)
class Metrics:
    """Figures with the split before their name, `test/top1`."""

    port: ClassVar[Port] = Port.METRICS
    values: Mapping[str, float]
    tables: Mapping[str, Any] = field(default_factory=dict)
    """Further plain values for pages (a confusion matrix, a row per class)."""

    @property
    def digest(self) -> str:
        """Identity of the value."""
        return digest({"values": dict(self.values), "tables": dict(self.tables)})


@dataclass(frozen=True)
class Report:
    """A folder of files for people or other programs."""

    port: ClassVar[Port] = Port.REPORT
    folder: Path
    digest: str


Value = Manifest | Shards | Clips | Model | Predictions | Metrics | Report
"""A value of an edge; an input that takes several edges gets a tuple of them."""


@dataclass(frozen=True)
class Context:
    """What a step is lent."""

    step: str
    """Its id in the document, for messages."""
    seed: int
    """Of the pipeline; streams of different steps are kept apart by the step's place."""
    work: Path
    """Folder of this step's own for files that are kept; named after the cache key, so a killed run finds its work."""
    settings: Settings
    """Of the workspace: its `root` has params, shards and runs of this pipeline."""
    project: Settings
    """Of the project that the pipeline is run in: its data sets, its tracking store."""
    data: Settings
    """Of the place where data sets lie that pipelines made; all pipelines of a project share it."""
    document: "Document | None" = None
    dataset: str = ""
    """Data set that the pipeline is run on, where it was named from outside."""

    @classmethod
    def alone(
        cls, step: str, seed: int, work: Path, settings: Settings, document: "Document | None" = None
    ) -> "Context":
        """Return the context of a step outside a run: all settings are the same."""
        return cls(step, seed, work, settings, settings, settings, document)
