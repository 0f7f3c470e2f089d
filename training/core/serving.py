"""The saved model as MLflow serves it: paths or bytes of videos in, class names and scores out.

`VideoClassifier` knows nothing of MLflow; `fovea predict` uses it directly. `write_pyfunc` logs it as one
pyfunc for all families, with the code it needs beside it, so that it loads where this repository is not.
"""

import importlib.metadata
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.core.answers import LEAST_SCORE, Result, choices_of, watched_of
from training.core.decode import frame_times
from training.core.decode_rungs import DecodeError
from training.core.sample_reader import load_pictures
from training.core.serving_inputs import as_source, items_of, name_of
from training.core.tracking import quiet

if TYPE_CHECKING:
    from training.core.checkpoint import LoadedModel
    from training.core.detections import VideoAnswer
    from training.core.system import ClipBatch, Prediction

log = logging.getLogger(__name__)

REQUIREMENTS = (
    "mlflow",
    "torch",
    "numpy",
    "pandas",
    "av",
    "opencv-python-headless",
    "simplejpeg",
    "pydantic",
    "pydantic-settings",
    "PyYAML",
    "safetensors",
    "torchmetrics",
    "scipy",
)
"""What the saved model needs; written with the versions that are installed when it is saved."""

PACKAGES = ("training", "data_specs", "infra")
"""Copied into the saved model."""

COPIED = (".py", ".yaml", ".txt", ".j2")

SCRIPT = '''"""Entry of the saved model: MLflow runs this file when it loads the model."""

from pathlib import Path

import mlflow

from training.core.serving import VideoClassifier


class VideoModel(mlflow.pyfunc.PythonModel):
    """Videos (paths, bytes or base64) to class names and scores."""

    def load_context(self, context):
        self.classifier = VideoClassifier(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):
        given = params or {}
        chosen = {name: kind(given[name]) for name, kind in (("top", int), ("least_score", float)) if name in given}
        return self.classifier.predict_frame(model_input, **chosen)


mlflow.models.set_model(VideoModel())
'''


class VideoClassifier:
    """A model folder, ready to name what happens in videos."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from training.core.checkpoint import load_model

        self.folder = folder
        self.device = device
        self.model: LoadedModel = load_model(folder, device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.model.classes

    def forward(self, source: Path | bytes, key: str = "0") -> tuple["Prediction", "ClipBatch"]:
        """Decode one video and predict; returns the prediction and the network input that it saw.

        A system that decides what it looks at (`System.predict_lazily`) decodes no more than that; its network input
        then has crop and flip, but no pictures.

        Raises:
            Exception: what the decoder raises for a file that it cannot read.
        """
        import torch

        if (answer := self._lazily(source, key)) is not None:
            return answer
        if self.finds_objects:
            raise ValueError("a model that finds objects answers with boxes; see `watch`")
        raw = load_pictures(source, self.model.data_config(), decoder=self.model.decoder, key=key)
        with torch.inference_mode():
            batch = self.model.system.prepare(raw.to(torch.device(self.device)), train=False)
            return self.model.system.predict(batch), batch

    @property
    def finds_objects(self) -> bool:
        """Whether the model finds objects in frames, instead of naming the whole video."""
        return self.model.data_config().sampling == "frames"

    def watch(self, source: Path | bytes, key: str = "0", num_frames: int | None = None) -> "VideoAnswer":
        """Find the objects of one video, all frames of it.

        Args:
            source: the video.
            key: its name in the batches.
            num_frames: how many can be decoded; None counts them.

        Raises:
            Exception: what the decoder raises for a file that it cannot read.
        """
        import torch

        from training.core.data import video_blocks
        from training.core.evaluate_frames import watch

        config, decoder = self.model.data_config(), self.model.decoder
        blocks = video_blocks(source, config, decoder=decoder, key=key, num_frames=num_frames)
        with torch.inference_mode():
            return watch(self.model.system, blocks, torch.device(self.device), arms=False)["main"]

    def _lazily(self, source: Path | bytes, key: str) -> "tuple[Prediction, ClipBatch] | None":
        """Predict from what is looked at; None where the system, or this video, wants to be decoded whole."""
        import torch

        from training.core.lazy_video import LazyVideo
        from training.core.system import System

        model, config = self.model, self.model.data_config()
        if type(model.system).predict_lazily is System.predict_lazily or config.sampling != "clips":
            return None
        try:
            video = LazyVideo(source, config, model.decoder, key=key)
            if not video.pays:
                return None
            with torch.inference_mode():
                return model.system.predict_lazily(video, torch.device(self.device))
        except DecodeError as error:
            # Pictures, damage, or fewer frames than packets: what there is to say or to save, the whole clip's
            # reader does.
            log.info("%s is read whole: %s", name_of(source), error)
            return None

    def scores(self, source: Path | bytes) -> NDArray[np.float32]:
        """Return the score of each class (K,) for one video; of a model that finds objects the largest of any."""
        if self.finds_objects:
            from training.core.evaluate_frames import class_scores

            return class_scores(self.watch(source).detections, len(self.classes))
        prediction, _ = self.forward(source)
        return np.asarray(prediction.scores_BK[0].float().cpu().numpy())

    def classify(self, item: object, top: int = 5, least_score: float = LEAST_SCORE) -> Result:
        """Classify one video given as path, bytes or base64; a broken one gives a result with `error` set.

        Args:
            item: the video.
            top: classes to name.
            least_score: of a model that finds objects, those with a lower score are not returned.
        """
        name = name_of(item)
        try:
            if self.finds_objects:
                return self.find(name, as_source(item), top, least_score)
            prediction, _ = self.forward(as_source(item))
            return self.result(name, prediction, top)
        except Exception as error:
            return Result(name, (), (), f"{type(error).__name__}: {error}")

    def find(self, name: str, source: Path | bytes, top: int, least_score: float = LEAST_SCORE) -> Result:
        """Find the objects of one video.

        Args:
            name: of the video in the result.
            source: the video.
            top: classes to name.
            least_score: objects with a lower score are left out.

        Raises:
            Exception: what the decoder raises for a file that it cannot read.
        """
        from training.core.evaluate_frames import class_scores
        from training.core.linking import link

        times = frame_times(source)
        answer = self.watch(source, num_frames=len(times))
        # Tracks are of what is returned: what is left out links nothing.
        found = link(answer.detections[answer.detections.score_N >= least_score])
        best = self._best(class_scores(answer.detections, len(self.classes)), top)
        return Result(name, *best, watched=watched_of(answer, found, times, self.classes))

    def result(self, name: str, prediction: "Prediction", top: int) -> Result:
        """Return the answer that a prediction of one video gives."""
        best = self._best(prediction.scores_BK[0].float().cpu().numpy(), top)
        return Result(name, *best, choices=choices_of(prediction, self.model.system.choice_names))

    def _best(self, scores: NDArray[np.float32], top: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Return names and scores of the best classes."""
        order = np.argsort(-scores, kind="stable")[: max(1, top)]
        return tuple(self.classes[i] for i in order), tuple(float(scores[i]) for i in order)

    def predict_frame(self, model_input: object, top: int = 5, least_score: float = LEAST_SCORE) -> Any:
        """Answer a DataFrame, list or mapping of videos with a DataFrame of one row per video.

        Of a model that finds objects it has the column `objects`, too: a JSON list of `FoundObject.as_dict`.
        """
        import pandas as pd

        results = [self.classify(item, top, least_score) for item in items_of(model_input)]
        return pd.DataFrame([result.as_dict(self.finds_objects) for result in results])


# --- saving -----------------------------------------------------------------------------------


def requirements() -> list[str]:
    """Return pinned requirements of the saved model, without local version labels (`+cpu`)."""
    pins = []
    for name in REQUIREMENTS:
        try:
            pins.append(f"{name}=={importlib.metadata.version(name).partition('+')[0]}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return pins


def copy_code(target: Path) -> list[str]:
    """Copy the packages of `PACKAGES` below `target` and return their folders."""
    import importlib.util

    folders = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError(f"package {package!r} is not importable; install the project (`make setup`)")
        source = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.suffix in COPIED and "__pycache__" not in path.parts:
                copy = target / package / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        folders.append(str(target / package))
    return folders


def signature(finds_objects: bool = False) -> Any:
    """Return the MLflow signature: one column of videos and the parameter `top`.

    Args:
        finds_objects: with the column `objects` and the parameter `least_score`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    columns = [
        ColSpec(DataType.string, "video"),
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "score"),
        ColSpec(Array(DataType.string), "top_classes"),
        ColSpec(Array(DataType.double), "top_scores"),
        ColSpec(DataType.string, "error"),
    ]
    params = [ParamSpec("top", DataType.long, 5)]
    if finds_objects:
        columns.append(ColSpec(DataType.string, "objects"))
        params.append(ParamSpec("least_score", DataType.double, LEAST_SCORE))
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "video")]), outputs=Schema(columns), params=ParamSchema(params)
    )


def save_pyfunc(model_folder: Path, target: Path, metadata: Mapping[str, Any]) -> None:
    """Save a model folder as a pyfunc directory that loads without this repository.

    Args:
        model_folder: `model.safetensors` and `model.json`.
        target: must not exist yet.
        metadata: facts for the `MLmodel` file.
    """
    quiet()
    import pandas as pd

    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import mlflow.pyfunc

        script = Path(temporary) / "video_model.py"
        script.write_text(SCRIPT)
        mlflow.pyfunc.save_model(
            path=str(target),
            python_model=str(script),
            artifacts={"model": str(model_folder)},
            code_paths=copy_code(Path(temporary) / "code"),
            pip_requirements=requirements(),
            signature=signature(_finds_objects(model_folder)),
            input_example=pd.DataFrame({"video": ["clip.mp4"]}),
            metadata=dict(metadata),
        )
    for warning in caught:
        # MLflow recommends type hints for `predict`, even for its own classes, and changes the warning filters.
        if "type hint" not in str(warning.message) and issubclass(warning.category, UserWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _finds_objects(model_folder: Path) -> bool:
    from training.core.checkpoint import read_model_info

    data: Mapping[str, Any] = read_model_info(model_folder)["config"].get("data", {})
    return data.get("sampling") == "frames"


def model_folder(saved: Path) -> Path:
    """Return where `save_pyfunc` put the model folder inside a pyfunc directory."""
    return saved / "artifacts" / "model"
