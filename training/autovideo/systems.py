"""The other systems as learners: their stages, with their own settings, inside a pipeline.

A system's stage is named, not imported: the registry knows it. What the stage needs before it (AdaFocus' four
trainings, say) is trained first, in the same workspace.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from training.autovideo.plain import merged
from training.autovideo.primitive import Input, Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.values import Context, Model, Shards, Value
from training.core.config import ConfigError, parse_yaml


class SystemConfig(PrimitiveConfig):
    """Settings of a system."""

    stage: str = setting("", help="stage whose model is wanted; '': the system's last one that trains")
    items: tuple[str, ...] = setting((), help="items of that stage's matrix, in its order")
    settings: dict[str, Any] = setting(
        {}, help="sections of params/<dataset>.yaml that differ from the system's template, or parts of them"
    )


class SystemLearner(Primitive):
    """Base of the systems as learners."""

    kind = "learner"
    determinism = "seeded"
    inputs: ClassVar[Mapping[str, Input]] = {"shards": Input(Port.SHARDS)}
    outputs: ClassVar[Mapping[str, Port]] = {"model": Port.MODEL}
    Config: ClassVar[type[PrimitiveConfig]] = SystemConfig

    family: ClassVar[str]
    target: ClassVar[str]
    """Stage whose model a user means by the system's name."""

    def fit(self, inputs: Mapping[str, Value], context: Context) -> Model:
        """Train the stage, and those before it."""
        from training.autovideo.training import link_shards, run, write_params
        from training.core.stage import StageRef, upstream_ref
        from training.registry import all_stages, load_family

        shards = inputs["shards"]
        assert isinstance(shards, Shards)
        name = self.config.stage or self.target
        stages = all_stages()
        if name not in {stage.name for stage in load_family(self.family).STAGES}:
            raise ConfigError(f"step {context.step!r}: {self.family} has no stage {name!r}")
        # A workspace of the step's own: the stages' folders do not have the step in their names.
        root = context.settings.root / "systems" / context.step
        context = replace(context, settings=context.settings.model_copy(update={"root": root}))
        sections, lists = self._params(context)
        link_shards(context, shards)
        write_params(
            context.settings.root, shards.dataset, lists={**lists, self.family: [shards.dataset]}, sections=sections
        )
        wanted = StageRef(name, shards.dataset, tuple(self.config.items))
        instances = stages[name].instances(shards.dataset, context.settings.root)
        if not self.config.items and len(instances) == 1:
            wanted = instances[0]
        if wanted not in instances:
            raise ConfigError(
                f"step {context.step!r}: {name} has the instances {', '.join('-'.join(i.items) for i in instances)}; "
                "name one in `items`"
            )
        order: list[StageRef] = []

        def before(ref: StageRef) -> None:
            for entry in stages[ref.stage].upstream:
                before(upstream_ref(stages[ref.stage], ref, entry))
            if ref not in order:
                order.append(ref)

        before(wanted)
        model: Model | None = None
        for ref in order:
            if stages[ref.stage].kind != "fit":
                raise ConfigError(
                    f"step {context.step!r}: {wanted} needs {ref}, which trains nothing: run it by `fovea`"
                )
            model = run(ref, shards, context)
        assert model is not None
        return model

    def _params(self, context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the system's sections with the changes of this step, and the axes of the project's grids."""
        root = context.project.root
        template = root / "params" / "templates" / f"{self.family}.yaml"
        if not template.is_file():
            raise ConfigError(f"step {context.step!r}: {template} is missing; it has the settings of {self.family}")
        sections: dict[str, Any] = parse_yaml(template.read_text())
        for name, values in self.config.settings.items():
            if name not in sections:
                raise ConfigError(
                    f"step {context.step!r}: settings: {self.family} has no section {name!r}: {list(sections)}"
                )
            sections[name] = merged(sections[name], values)
        given = root / "params.yaml"
        everything = parse_yaml(given.read_text()) if given.is_file() else {}
        return sections, {name: value for name, value in everything.items() if isinstance(value, dict)}

    def produce(self, inputs: Mapping[str, Value], state: Any, context: Context) -> dict[str, Value]:
        """See `Primitive.produce`."""
        return {"model": state}


@primitive("learner/adafocus")
class AdaFocus(SystemLearner):
    """AdaFocus: a glance at every frame, a learned place to look at closely."""

    family, target = "adafocus", "adafocus_finetune"


@primitive("learner/resnet_rs")
class ResNetRS(SystemLearner):
    """3D ResNet-RS: a plain 3D ResNet with a modern recipe."""

    family, target = "resnet_rs", "resnet_rs_train"


@primitive("learner/movinet")
class MoViNet(SystemLearner):
    """MoViNet: a mobile video network."""

    family, target = "movinet", "movinet_train"


@primitive("learner/adamml")
class AdaMML(SystemLearner):
    """AdaMML: chooses modalities per segment."""

    family, target = "adamml", "adamml_finetune"


@primitive("learner/lsts")
class LSTS(SystemLearner):
    """LSTS: video object detection; for shards with boxes."""

    family, target = "lsts", "lsts_train"
