"""Command line of the training half: `fovea run …` and `python -m training run …` are the same thing."""

import json
import logging
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from infra.environment import apply_defaults
from infra.settings import Settings
from infra.startup import tame_collector
from training.core.config import ConfigError
from training.core.program import run_program

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command("list")
def list_(
    models: Annotated[bool, typer.Option(help="Models that `cost` knows.")] = False, as_json: Json = False
) -> None:
    """List stages and their instances, or models."""
    if models:
        from training.core.cost import list_models

        names = list_models()
        print(json.dumps(sorted(names)) if as_json else "\n".join(f"{n:<20} {f}" for n, f in sorted(names.items())))
        return
    import yaml

    from training.registry import all_stages, family_of

    root = Settings().root
    lists = yaml.safe_load((root / "params.yaml").read_text())
    rows = [
        {"stage": str(ref), "kind": stage.kind, "metric": stage.metric, "upstream": list(stage.upstream)}
        for stage in all_stages().values()
        for dataset in lists.get(family_of(stage.name), [])
        for ref in stage.instances(dataset, root)
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(Column("instance", no_wrap=True), "kind", "primary metric", "upstream")
    for row in rows:
        table.add_row(row["stage"], row["kind"], row["metric"], ", ".join(row["upstream"]) or "shards")
    Console().print(table)


Overrides = Annotated[
    list[str], typer.Option("--set", help="key=value; the run goes to scratch/ and is tagged `overridden`.")
]


@app.command()
def show(instance: str, overrides: Overrides = []) -> None:  # noqa: B006 -- typer reads the default once
    """Print the resolved config of a stage instance."""
    from training.core.run import resolve
    from training.core.stage import StageRef

    resolved = resolve(StageRef.parse(instance), Settings(), overrides)
    print(json.dumps(resolved.config.model_dump(mode="json"), indent=1))


@app.command()
def run(
    instance: str,
    overrides: Overrides = [],  # noqa: B006 -- typer reads the default once
    allow_decoder_change: Annotated[
        bool, typer.Option("--allow-decoder-change", help="Resume a checkpoint made with another decoder.")
    ] = False,
) -> None:
    """Run a stage instance: what DVC calls."""
    from infra.locks import die_with_parent
    from training.core.run import run_stage
    from training.core.stage import StageRef

    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("alembic", "mlflow", "ray"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    settings = Settings()
    if allow_decoder_change:
        settings = settings.model_copy(update={"allow_decoder_change": True})
    output = run_stage(StageRef.parse(instance), settings, overrides)
    print(f"{instance}: outputs in {output}", file=sys.stderr)


@app.command()
def cost(
    model: str,
    overrides: Annotated[list[str], typer.Option("--set", help="key=value of the model's config.")] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Print parameters and multiply-accumulates of a model, from the network on the meta device."""
    from training.core.cost import cost_of

    values = {}
    for item in overrides:
        key, sep, value = item.partition("=")
        if not sep:
            raise ConfigError(f"--set {item!r} must look like key=value")
        values[key] = value
    row = cost_of(model, values).as_dict()
    if as_json:
        print(json.dumps(row))
        return
    print(
        f"{row['model']}: {row['gmac']:.4g} GMAC ({row['gflop']:.4g} GFLOP) per {row['per']}, "
        f"{row['params']:,} parameters, input {row['input']}"
    )


@app.command()
def dvc(
    write: Annotated[bool, typer.Option("--write", help="Rewrite the training stages of dvc.yaml.")] = False,
) -> None:
    """Compare dvc.yaml with the registered stages (exit code 1 when they differ)."""
    from training.core import dvcfile

    root = Settings().root
    if write:
        dvcfile.write(root)
    differences = dvcfile.check(root)
    for line in differences:
        print(line, file=sys.stderr)
    raise typer.Exit(1 if differences else 0)


def _add_registry_commands() -> None:
    """Add predict, register, promote, report, lineage and finish."""
    from training.core.registry_cli import app as registry_app

    app.registered_commands += registry_app.registered_commands


def _add_family_programs() -> None:
    """Add the typer app of each family that exports one, under the family's first word."""
    from training.registry import FAMILIES, load_family

    words = {word for word in sys.argv[1:2] if not word.startswith("-")}
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    if words and words <= known:
        return  # a core command: no need to import every family
    for family in FAMILIES:
        program = getattr(load_family(family), "app", None)
        if program is not None:
            app.add_typer(program)


def main() -> int:
    """Run the command line; user errors are one message, not a stack trace."""
    apply_defaults()
    tame_collector()
    _add_registry_commands()
    _add_family_programs()
    return run_program(app, "fovea")


if __name__ == "__main__":
    sys.exit(main())
