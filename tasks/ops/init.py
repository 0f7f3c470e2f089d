"""`fovea data init`: from a folder or table of videos to a specification, a listing, a preview page and parameters.

Nothing is overwritten unless that is asked for, and every guess is written down where it can be changed: as a
comment in the specification.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_specs.box_sources import BoxSource
from data_specs.load import parse_spec
from data_specs.schema import NAME_PATTERN, ClipPolicy, DatasetSpec
from infra.settings import Settings
from tasks.ops.init_boxes import keeping_frames
from tasks.ops.init_guess import InitError, Layout, Options, Shown, guess_groups, guess_layout, raw_labels
from tasks.ops.init_text import LABELS_INLINE, spec_text, with_inline_labels
from tasks.ops.listing import Listing, build_listing, part_root, write_atomically
from tasks.ops.survey import SizeEstimate, VideoFacts, estimate_sizes, frame_rates, local_rows, pick, survey

_PROBES = 200
_SHORT_SIDE = 256


@dataclass(frozen=True)
class Request:
    """What `fovea data init` was asked for."""

    target: Path
    name: str | None
    options: Options
    val: float
    test: float
    seed: int
    force: bool = False
    systems: tuple[str, ...] = ("adafocus",)
    """Systems that shall run on the data set: each has a template of its sections in params/templates."""


@dataclass(frozen=True)
class Proposal:
    """What would be written."""

    spec: DatasetSpec
    spec_file: Path
    spec_text: str
    label_file: Path | None
    label_text: str
    reasons: tuple[str, ...]
    listing: Listing
    facts: tuple[VideoFacts, ...]
    sizes: SizeEstimate | None


def propose(request: Request, settings: Settings) -> Proposal:
    """Look at the target and make a proposal; nothing is written but caches in `.work`.

    Raises:
        InitError: nothing can be guessed, or the name is taken or not valid.
        ReaderError: the table or folder contradicts itself; names file and line.
        FileExistsError: the files exist already and `force` was not given.
    """
    target = request.target if request.target.is_absolute() else Path.cwd() / request.target
    name = request.name or _guess_name(target, request.options)
    if not re.match(NAME_PATTERN, name):
        raise InitError(f"name {name!r} must be lower-case letters, digits and _, starting with a letter; give --name")
    folder = settings.root / "data_specs"
    spec_file, label_file = folder / "datasets" / f"{name}.yaml", folder / "labels" / f"{name}.txt"
    if not request.force:
        for path in (spec_file, label_file):
            if path.exists():
                raise FileExistsError(f"{path} exists; give another --name, or --force to replace it")
    shown = Shown(settings.root)
    layout = guess_layout(target, request.options, shown)
    templates(request.systems, settings)  # an unknown system is named before the videos are looked at
    labels = raw_labels(layout, settings.root, target)
    reasons = [f"layout: {layout.source.kind}; {reason}" for reason in layout.reasons]
    reasons += [
        f"{path} is outside the project: others need it at the same place" for path in dict.fromkeys(shown.outside)
    ]

    draft = _assemble(name, layout, labels, request, "source", None)
    rule = "source"
    with_boxes = isinstance(layout.source, BoxSource)
    if layout.split == "policy" and not with_boxes and not getattr(layout.source, "group", None):
        rows = _list(draft, settings).rows
        rule, told = guess_groups([row.path for row in rows], [row.label for row in rows])
        reasons += [f"groups: {reason}" for reason in told]
        draft = _assemble(name, layout, labels, request, rule, None)
    listing = _list(draft, settings)
    roots = {part.name: part_root(part, settings) for part in draft.parts}
    here = local_rows(listing.rows, roots)
    rates = frame_rates(draft)
    facts = survey(name, pick(here, _PROBES), roots, settings, rates=rates)
    clip, told = propose_clip(facts)
    if with_boxes:
        clip, why = keeping_frames(clip)
        told = [reason for reason in told if not reason.startswith(("fps", "audio"))] + [why]
    reasons += [f"clip: {reason}" for reason in told]
    sizes = estimate_sizes(here, roots, clip, settings, rates=rates)
    text = spec_text(
        name,
        layout.source,
        labels,
        split_of(layout, request, rule),
        request.seed,
        clip,
        len(listing.rows),
        reasons,
        sizes,
    )
    inline = len(labels) <= LABELS_INLINE
    label_text = "\n".join(labels) + "\n"
    spec = parse_spec(with_inline_labels(text, labels), spec_file)
    return Proposal(
        spec,
        spec_file,
        text,
        None if inline else label_file,
        "" if inline else label_text,
        tuple(reasons),
        listing,
        tuple(facts),
        sizes,
    )


def _guess_name(target: Path, options: Options) -> str:
    """Return a name from the value of --where, else from the folder or table."""
    base = next(iter(options.where.values()), "") or target.resolve().name.split(".")[0]
    name = re.sub(r"[^a-z0-9]+", "_", base.lower()).strip("_")
    return name if re.match(NAME_PATTERN, name) else f"set_{name}".rstrip("_")


def _assemble(
    name: str, layout: Layout, labels: Sequence[str], request: Request, rule: str, clip: ClipPolicy | None
) -> DatasetSpec:
    """Return the specification as an object, for listing."""
    policy = clip or ClipPolicy(representation="mp4", short_side=_SHORT_SIDE, fps=None, audio="drop")
    return DatasetSpec.model_validate(
        {
            "name": name,
            "version": "1",
            "licence": "unknown",
            "labels": tuple(labels),
            "parts": [{"name": "main", "source": layout.source.model_dump(), "split": split_of(layout, request, rule)}],
            "clip": policy.model_dump(),
            "shards": {"samples_per_shard": 64, "seed": request.seed},
            "max_reject_share": 0.05,
        }
    )


def split_of(layout: Layout, request: Request, rule: str) -> str | dict[str, object]:
    """Return the split of the only part."""
    if layout.split == "official":
        return "official"
    if request.val < 0 or request.test < 0 or request.val + request.test >= 1:
        raise InitError(f"--val {request.val:g} and --test {request.test:g} leave nothing for training")
    train = round(1 - request.val - request.test, 6)
    return {"train": train, "val": request.val, "test": request.test, "seed": request.seed, "group": rule}


def _list(spec: DatasetSpec, settings: Settings) -> Listing:
    """List the videos of a draft."""
    return build_listing(spec, settings)


def propose_clip(facts: Sequence[VideoFacts]) -> tuple[ClipPolicy, list[str]]:
    """Propose how clips are stored, from probes of a sample. Returns (policy, reasons)."""
    good = [f for f in facts if not f.reason]
    bad = Counter(f.reason for f in facts if f.reason)
    told = []
    if bad:
        listed = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
        told.append(f"{sum(bad.values())} of {len(facts)} probed videos will be rejected ({listed})")
    if not good:
        told.append("no video could be looked at here; the policy is a guess")
        return ClipPolicy(representation="mp4", short_side=_SHORT_SIDE, fps=None, audio="keep"), told
    sides = sorted(min(f.width, f.height) for f in good)
    median = sides[len(sides) // 2]
    side = max(16, min(_SHORT_SIDE, median // 2 * 2))
    told.append(f"short side {side}: the sources have {sides[0]} to {sides[-1]} px (median {median})")
    if side > 160:
        told[-1] += "; store no more than training needs, a 112 px crop reads a 128 px set 2.5 times as fast as this"
    rates = Counter(round(f.fps) for f in good)
    fps: float | None = None
    if len(rates) == 1:
        told.append(f"fps as in the source: all have {next(iter(rates))}")
    else:
        common = [rate for rate, _ in rates.most_common() if rate <= 31]
        fps = float(common[0]) if common else 30.0
        shown = ", ".join(f"{count} × {rate}" for rate, count in rates.most_common(4))
        told.append(f"fps {fps:g}: the rates differ ({shown}), and a frame should mean the same time everywhere")
    sounding = sum(bool(f.audio) for f in good)
    told.append(
        f"audio {'kept' if sounding else 'dropped'}: {sounding} of {len(good)} probed videos have sound"
        + ("; `drop` if no model listens" if sounding else "")
    )
    audio = "keep" if sounding else "drop"
    return ClipPolicy(representation="mp4", short_side=side, fps=fps, audio=audio), told  # type: ignore[arg-type]


def write_proposal(
    proposal: Proposal, settings: Settings, force: bool = False, systems: Sequence[str] = ("adafocus",)
) -> list[Path]:
    """Write specification, label file and parameters, and add the data set to params.yaml.

    Args:
        proposal: what to write.
        settings: where the project is.
        force: replace an existing params file.
        systems: systems that shall run on the data set.

    Returns:
        The files written or changed.

    Raises:
        InitError: params.yaml cannot be extended safely.
    """
    written = []
    if proposal.label_file is not None:
        write_atomically(proposal.label_file, proposal.label_text.encode("utf-8"))
        written.append(proposal.label_file)
    write_atomically(proposal.spec_file, proposal.spec_text.encode("utf-8"))
    written.append(proposal.spec_file)
    params = settings.root / "params" / f"{proposal.spec.name}.yaml"
    if force or not params.exists():
        write_atomically(params, PARAMS_HEAD.format(name=proposal.spec.name).encode("utf-8"))
    return list(dict.fromkeys([*written, *add_systems(proposal.spec.name, systems, settings)]))


PARAMS_HEAD = """# Settings of the systems on the data set {name}, one section per stage. Every value is part of the
# result: change one, and DVC reruns what depends on it.
"""


def templates(systems: Sequence[str], settings: Settings) -> dict[str, str]:
    """Return the template of each system's sections.

    Raises:
        InitError: a system without a template; the message lists those that have one.
    """
    folder = settings.root / "params" / "templates"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    unknown = [name for name in systems if name not in known]
    if unknown:
        raise InitError(
            f"no system {', '.join(map(repr, unknown))}; there are: {', '.join(known) or 'none'} ({folder})"
        )
    return {name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in systems}


def add_systems(dataset: str, systems: Sequence[str], settings: Settings) -> list[Path]:
    """Let systems run on a data set: their sections in its params file, its name in their lists of params.yaml.

    Sections that the file already has stay as they are.

    Returns:
        The files written or changed.

    Raises:
        InitError: unknown system, no params file, one that has only some of a system's sections, or a params.yaml that
            cannot be extended safely.
    """
    params, matrix = settings.root / "params" / f"{dataset}.yaml", settings.root / "params.yaml"
    if not params.exists():
        raise InitError(f"{params} does not exist; `fovea data init` sets a data set up")
    before = {path: path.read_text(encoding="utf-8") for path in (params, matrix) if path.exists()}
    after = dict(before)
    for system, text in templates(systems, settings).items():
        present = set(yaml.safe_load(after[params]) or {})
        sections = set(yaml.safe_load(text))
        if not sections & present:
            after[params] = f"{after[params].rstrip()}\n\n{text}"
        elif not sections <= present:
            lacking = ", ".join(sorted(sections - present))
            raise InitError(f"{params} has some sections of {system} and lacks {lacking}; complete it by hand")
    if matrix in after:
        for key in ("datasets", *systems):
            after[matrix] = add_dataset(after[matrix], dataset, matrix, key)
    changed = [path for path in after if after[path] != before[path]]
    for path in changed:
        write_atomically(path, after[path].encode("utf-8"))
    return changed


def add_dataset(text: str, name: str, path: Path, key: str = "datasets") -> str:
    """Return params.yaml with one more entry in a list of data sets; comments and order stay.

    Args:
        text: params.yaml.
        name: the data set.
        path: for messages.
        key: `datasets`, or a system.

    Raises:
        InitError: there is no such list, or it is written in a way that cannot be extended line by line.
    """
    old = yaml.safe_load(text)
    known = old.get(key) if isinstance(old, dict) else None
    if not isinstance(known, list):
        raise InitError(f"{path}: has no list `{key}`; add `{key}: [{name}]` by hand")
    if name in known:
        return text
    flow = re.search(rf"(?m)^{key}:[ \t]*\[([^\]]*)\]", text)
    block = re.search(
        rf"(?m)^{key}:[^\n]*\n(?:[ \t]*(?:#[^\n]*)?\n)*(?:([ \t]*)-[ \t][^\n]*(?:\n|\Z)(?:[ \t]*#[^\n]*\n)*)+", text
    )
    if flow:
        inside = flow[1].strip().rstrip(",")
        new = text[: flow.start(1)] + (f"{inside}, {name}" if inside else name) + text[flow.end(1) :]
    elif block:
        head = text[: block.end()]
        new = head + ("" if head.endswith("\n") else "\n") + f"{block[1]}- {name}\n" + text[block.end() :]
    else:
        new = text
    try:
        loaded = yaml.safe_load(new)
    except yaml.YAMLError:
        loaded = None
    if loaded != {**old, key: [*known, name]}:
        raise InitError(f"{path}: add `- {name}` to `{key}` by hand; the list is written in an unusual way")
    return new
