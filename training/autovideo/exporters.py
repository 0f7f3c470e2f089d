"""Exporters: the network of a model as a file that other programs run, with what has to be done before and after it."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data_specs.schema import digest
from training.autovideo.primitive import Input, Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.values import Context, Model, Report, Value
from training.core.config import ConfigError

if TYPE_CHECKING:
    from training.core.checkpoint import LoadedModel


class ExportConfig(PrimitiveConfig):
    """What exporters have."""

    batch: int | None = setting(None, help="Views per call; None: any number.", ge=1, le=4096)
    tolerance: float = setting(
        1e-4, help="Largest difference between the outputs of file and network, over the largest output.", gt=0, lt=1
    )


class _Exporter(Primitive):
    """Writes a folder with the network, `preprocessing.json`, `labels.json` and `export.json`."""

    kind = "exporter"
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input(Port.MODEL)}
    outputs: ClassVar[Mapping[str, Port]] = {"report": Port.REPORT}
    Config = ExportConfig
    format: ClassVar[str]

    def written(self, model: "LoadedModel", folder: Path, where: str) -> dict[str, Any]:
        """Write the network's file into a folder, check it, and return facts of it."""
        raise NotImplementedError

    def produce(self, inputs: "Mapping[str, Value]", state: Any, context: Context) -> "dict[str, Value]":
        """Return `report`, the folder.

        Raises:
            ConfigError: a system that is not one network of pictures, or a network that cannot be exported.
            ExportError: the file does not compute what the network does.
        """
        import json
        import shutil
        import tempfile

        import torch

        from training.autovideo.exporting import preprocessing
        from training.core.checkpoint import load_model, replace_folder

        model = inputs["model"]
        assert isinstance(model, Model)
        loaded = load_model(model.folder)
        target = context.work / "export"
        context.work.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=context.work))
        try:
            facts = self.written(loaded, temporary, f"step {context.step}")
            facts |= {"format": self.format, "model": model.digest, "stage": model.stage, "torch": torch.__version__}
            texts = {
                "preprocessing": preprocessing(loaded, f"step {context.step}"),
                "labels": list(loaded.classes),
                "export": facts,
            }
            for name, value in texts.items():
                (temporary / f"{name}.json").write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
            temporary.chmod(0o755)
            replace_folder(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        identity = {"model": model.digest, "format": self.format, "torch": torch.__version__}
        return {"report": Report(target, digest(identity | self.config.model_dump(mode="json")))}


@primitive("exporter/torch_export", version=1)
class TorchExport(_Exporter):
    """The network as `network.pt2`, for `torch.export.load` and ahead-of-time compilation.

    The file is read back and run beside the network before it is kept. It maps normalised views (N,3,T,H,W) to what the
    network returns (logits); `preprocessing.json` says what comes before, and how views and logits become scores.
    """

    format = "torch_export"
    example = "{id: file, use: exporter/torch_export, in: net}"

    def written(self, model: "LoadedModel", folder: Path, where: str) -> dict[str, Any]:
        """Write `network.pt2`."""
        from training.autovideo.exporting import export_torch

        config = self.config
        return export_torch(model, folder / "network.pt2", batch=config.batch, tolerance=config.tolerance, where=where)


class OnnxConfig(ExportConfig):
    """Settings of `exporter/onnx`."""

    opset: int = setting(20, help="Version of the ONNX operators.", ge=18, le=30)


@primitive("exporter/onnx", version=1)
class Onnx(_Exporter):
    """The network as `network.onnx`; needs the packages onnx, onnxscript and onnxruntime, which runs the check."""

    Config = OnnxConfig
    format = "onnx"
    example = "{id: file, use: exporter/onnx, in: net, with: {opset: 20}}"

    def produce(self, inputs: "Mapping[str, Value]", state: Any, context: Context) -> "dict[str, Value]":
        """Return `report`, the folder; see `_Exporter.produce`."""
        if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
            raise ConfigError(
                f"step {context.step}: exporter/onnx needs {', '.join(missing)}: `pip install {' '.join(missing)}`; "
                "exporter/torch_export needs nothing more"
            )
        return super().produce(inputs, state, context)

    def written(self, model: "LoadedModel", folder: Path, where: str) -> dict[str, Any]:
        """Write `network.onnx`."""
        from training.autovideo.exporting import export_onnx

        path, config = folder / "network.onnx", self.config
        return export_onnx(model, path, batch=config.batch, tolerance=config.tolerance, opset=config.opset, where=where)
