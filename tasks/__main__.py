"""Data sets and this machine: list sources, set up, check, look at and retry data sets; `doctor`."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.bar import bar
from tasks.synth import synth

# Commands import what they need when they run: DVC starts the listing at every `repro`, so it has to start fast.
if TYPE_CHECKING:
    from infra.settings import Settings
    from tasks.ops.init import Proposal
    from tasks.ops.survey import SizeEstimate

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: set up, check, look at, retry, make.")
app.add_typer(data_app, name="data")
data_app.command()(synth)

Dataset = Annotated[str, typer.Argument(help="Name of the data set.")]


@app.command()
def manifest(dataset: Dataset) -> None:
    """List the sources of a data set with size and checksum: data/manifests/<dataset>.csv."""
    from data_specs.load import load_spec
    from infra.settings import Settings
    from tasks.ops.listing import write_manifest

    print(write_manifest(load_spec(dataset), Settings()))


@app.command()
def synthesize(
    params_file: Annotated[Path, typer.Argument(help="File with a section `synthetic`.")],
    out: Annotated[Path, typer.Argument(help="Folder that is made, or replaced.")],
) -> None:
    """Make the videos of the procedural demo set."""
    from infra.settings import Settings
    from tasks.ops.synthetic import read_config, synthesize

    config = read_config(params_file)
    if not Settings().progress:
        print(f"{synthesize(out, config)} videos in {out}")
        return
    with bar("videos") as step:
        count = synthesize(out, config, step)
    print(f"{count} videos in {out}")


@app.command()
def doctor() -> None:
    """Say what this machine has for videos, training and storage, and what to do about what is missing."""
    from infra.settings import Settings
    from tasks.ops.doctor import examine, print_findings

    raise typer.Exit(print_findings(examine(Settings())))


@data_app.command("list")
def list_datasets() -> None:
    """List the data sets and how far each is."""
    from data_specs.load import SpecError, class_names, list_specs, load_spec
    from infra.settings import Settings
    from tasks.ops.listing import manifest_path

    settings = Settings()
    for name in list_specs():
        try:
            spec = load_spec(name)
        except SpecError as error:
            print(f"{name:<16}  broken: {str(error).splitlines()[0]}")
            continue
        listed = manifest_path(name, settings)
        state = "specified"
        if listed.exists():
            with listed.open("rb") as file:
                state = f"{sum(1 for _ in file) - 1} listed"
        if (settings.shards / name / "index.json").exists():
            state = "shards ready"
        print(f"{name:<16}  {len(class_names(spec)):>4} classes  {state:<14}  {spec.description}")


@data_app.command()
def init(
    target: Annotated[Path, typer.Argument(help="Folder of videos, or a csv, tsv or COCO-video json.")],
    name: Annotated[str | None, typer.Option(help="Name of the data set; default: from the folder.")] = None,
    path_column: Annotated[str | None, typer.Option(help="Column with the files.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the classes.")] = None,
    group_column: Annotated[str | None, typer.Option(help="Column whose equal values stay in one split.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column with train, val or test.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="column=value: only these rows; repeatable.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that the files of a table are in.")] = None,
    val: Annotated[float, typer.Option(help="Share of validation samples.")] = 0.15,
    test: Annotated[float, typer.Option(help="Share of test samples.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    system: Annotated[
        list[str] | None, typer.Option(help="System to run on it (params/templates); repeatable; default: adafocus.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option(help="Replace existing files of this name.")] = False,
) -> None:
    """Set up a data set: guess its layout, propose splits and clip policy, write its files and a preview page."""
    from infra.settings import Settings
    from tasks.ops.init import Request, propose, write_proposal
    from tasks.ops.init_guess import Options
    from tasks.ops.init_text import next_commands, relative

    settings = Settings()
    rules = dict(_rule(rule) for rule in where or ())
    options = Options(path_column, label_column, group_column, split_column, rules, root)
    systems = tuple(dict.fromkeys(system or ["adafocus"]))
    proposal = propose(Request(target, name, options, val, test, seed, force, systems), settings)
    _print_proposal(proposal)
    if not yes and sys.stdin.isatty() and not typer.confirm(f"Write {relative(proposal.spec_file)}?", default=True):
        raise typer.Exit(1)
    for path in write_proposal(proposal, settings, force, systems):
        print(f"wrote {relative(path)}")
    print(f"wrote {relative(_make_page(proposal.spec.name, settings, proposal.sizes))}")
    print("\nNext:")
    for command in next_commands(proposal.spec.name):
        print(f"  {command}")


@data_app.command("add-system")
def add_system(
    dataset: Annotated[str, typer.Argument(help="A data set that is set up.")],
    system: Annotated[list[str], typer.Argument(help="Systems to run on it, as in params/templates.")],
) -> None:
    """Let further systems run on a data set: adds their settings to its params file and its name to params.yaml."""
    from infra.settings import Settings
    from tasks.ops.init import add_systems
    from tasks.ops.init_text import relative

    changed = add_systems(dataset, system, Settings())
    for path in changed:
        print(f"wrote {relative(path)}")
    if not changed:
        print(f"{', '.join(system)} already run on {dataset}")


def _rule(text: str) -> tuple[str, str]:
    """Split `column=value`."""
    column, equals, value = text.partition("=")
    if not equals or not column:
        raise ValueError(f"--where {text!r}: must be column=value")
    return column, value


def _print_proposal(proposal: "Proposal") -> None:
    """Print what was seen and the proposed split."""
    from rich.console import Console
    from rich.table import Table

    from tasks.ops.init_text import table_of_splits

    print(f"{len(proposal.listing.rows)} videos, {len(proposal.spec.labels)} classes")
    for reason in (*proposal.reasons, *proposal.listing.notes, *proposal.listing.warnings):
        print(f"- {reason}")
    table = Table("class", "train", "val", "test", "groups", title=f"Proposed split of {proposal.spec.name}")
    lines = table_of_splits(proposal.listing.rows)
    for line in lines[:-1]:
        table.add_row(*map(str, line))
    table.add_section()
    table.add_row(*map(str, lines[-1]))
    Console().print(table)


@data_app.command()
def check(
    dataset: Dataset,
    sample: Annotated[int, typer.Option(help="How many sources and stored clips to decode.")] = 24,
    all_bytes: Annotated[bool, typer.Option("--all-bytes", help="Read every shard and compare checksums.")] = False,
) -> None:
    """Check specification, listing and shards; exit code 1 when something is wrong."""
    from infra.settings import Settings
    from tasks.ops.validate import check_dataset

    results = check_dataset(dataset, Settings(), sample, all_bytes)
    width = max(len(result.check) for result in results)
    for level, name, detail in results:
        print(f"{level:<4}  {name:<{width}}  {detail}")
    raise typer.Exit(1 if any(result.level == "fail" for result in results) else 0)


@data_app.command()
def retry(
    dataset: Dataset,
    failed: Annotated[
        bool, typer.Option("--failed", help="All rejected videos (the default without --reason).")
    ] = False,
    reason: Annotated[list[str] | None, typer.Option(help="Only rejects of this reason; repeatable.")] = None,
) -> None:
    """Try rejected videos again: the next ingest redoes the shards that they belong to."""
    from data_specs.load import did_you_mean
    from data_specs.schema import RejectReason
    from infra.settings import Settings

    if failed and reason:
        raise ValueError("give --failed for all rejects, or --reason for some, not both")
    if not failed and not reason:
        raise ValueError("say what to retry: --failed, or --reason <reason>")
    known = [str(r) for r in RejectReason]
    for name in reason or ():
        if name not in known:
            raise ValueError(f"--reason {name!r} is unknown{did_you_mean(name, known)} (known: {', '.join(known)})")
    from tasks.shards import retry_failed  # starts slowly: only once it is known what to do

    shards = retry_failed(dataset, [RejectReason(name) for name in reason or ()], Settings())
    if not shards:
        print(f"no shard of {dataset} has such rejects; nothing to do")
        return
    print(f"{len(shards)} shards will be made again: {', '.join(shards)}")
    print(f"now run: dvc repro --single-item --force shards@{dataset}")


@data_app.command()
def page(dataset: Dataset) -> None:
    """Write the static page of a data set: reports/data/<dataset>/index.html."""
    from infra.settings import Settings

    print(_make_page(dataset, Settings()))


def _make_page(dataset: str, settings: "Settings", sizes: "SizeEstimate | None" = None) -> Path:
    """Write the page of a data set with a progress bar."""
    from data_specs.load import load_spec
    from tasks.ops.page import write_page

    spec = load_spec(dataset)
    if not settings.progress:
        return write_page(spec, settings, sizes=sizes)
    with bar("looking at videos") as step:
        return write_page(spec, settings, step, sizes)


def main() -> None:
    """Run the command line; errors in the user's input end with a message, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        app()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
