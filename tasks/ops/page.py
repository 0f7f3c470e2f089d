"""The static page of a data set: `reports/data/<dataset>/index.html`, one folder that opens without any service."""

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_specs.flows import FLOW_MEMBER
from data_specs.load import LABEL_SEPARATOR, class_names
from data_specs.schema import SPLITS, ClipRecord, DatasetSpec, ListedVideo, ShardIndex, digest, read_index
from infra.settings import Settings
from tasks.ops import acquire
from tasks.ops.box_checks import Objects, count_objects
from tasks.ops.init_text import human_bytes
from tasks.ops.listing import build_listing, manifest_path, part_root, read_manifest
from tasks.ops.page_charts import histogram, scatter
from tasks.ops.page_previews import Preview, choose, preview
from tasks.ops.quarantine import QuarantineRow, read_quarantine
from tasks.ops.shard_reader import StoredSample, some, stored_samples
from tasks.ops.survey import SizeEstimate, VideoFacts, estimate_sizes, frame_rates, local_rows, pick, survey
from tasks.ops.validate import check_listing

_PROBES = 1000
_RECORDS = 5000
_REJECTS_SHOWN = 100
_THREADS = 2


@dataclass(frozen=True)
class Shards:
    """What is stored of a data set."""

    index: ShardIndex
    samples: list[StoredSample]
    records: list[ClipRecord]
    """Of all samples, or of `_RECORDS` chosen by seed."""
    rejects: list[QuarantineRow]
    objects: Objects | None = None
    """Of these samples; None when they have no boxes."""


def write_page(
    spec: DatasetSpec,
    settings: Settings,
    progress: Callable[[int, int], None] | None = None,
    sizes: SizeEstimate | None = None,
) -> Path:
    """Write the page of a data set.

    The listing is read from its manifest, or made when there is none; shards and sources are shown as far as
    they are on this machine.

    Args:
        spec: Specification.
        settings: Settings of the project.
        progress: Called with (done, total), once per probe and once per preview.
        sizes: Estimate of sizes, when it was made already.

    Returns:
        Its `index.html`.
    """
    manifest = manifest_path(spec.name, settings)
    rows = read_manifest(manifest) if manifest.exists() else build_listing(spec, settings).rows
    roots = {part.name: part_root(part, settings) for part in spec.parts}
    here = local_rows([row for row in rows if row.part in roots], roots)
    rates = frame_rates(spec)
    facts = survey(spec.name, pick(here, _PROBES), roots, settings, progress, rates)
    shards = read_shards(spec, settings)
    if sizes is None and here:
        sizes = estimate_sizes(here, roots, spec.clip, settings, rates=rates)
    folder = settings.reports / "data" / spec.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{spec.name}.") as name:
        work = Path(name) / spec.name
        (work / "previews").mkdir(parents=True)
        previews = make_previews(here, shards, rows, roots, work / "previews", progress)
        (work / "index.html").write_text(
            render(spec, rows, facts, len(here), shards, sizes, previews), encoding="utf-8"
        )
        old = Path(name) / "old"
        if folder.exists():
            os.replace(folder, old)
        os.replace(work, folder)
        shutil.rmtree(old, ignore_errors=True)
    return folder / "index.html"


def read_shards(spec: DatasetSpec, settings: Settings) -> Shards | None:
    """Return what is stored, or None when the ingest has not finished."""
    folder = settings.shards / spec.name
    if not (folder / "index.json").exists():
        return None
    index = read_index(folder)
    samples = stored_samples(folder, index)
    quarantine = folder / "quarantine.csv"
    rejects = read_quarantine(quarantine) if quarantine.exists() else []
    chosen = some(samples, _RECORDS)
    objects = count_objects(chosen, index.classes)
    return Shards(index, samples, [sample.record() for sample in chosen], rejects, objects)


def make_previews(
    here: Sequence[ListedVideo],
    shards: Shards | None,
    rows: Sequence[ListedVideo],
    roots: dict[str, str],
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> list[Preview]:
    """Make the contact sheet from stored clips, or from the sources where nothing is stored yet."""
    stored = {sample.entry.key: sample for sample in shards.samples} if shards else {}
    chosen = choose([row for row in rows if row.key in stored] if stored else list(here))
    places: list[str | StoredSample] = [
        stored[row.key] if stored else str(acquire.local_path(acquire.join(roots[row.part], row.path)))
        for row in chosen
    ]
    found = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for item in pool.map(preview, chosen, places, [folder] * len(chosen)):
            found.append(item)
            if progress is not None:
                progress(len(found), len(chosen))
    return found


def render(
    spec: DatasetSpec,
    rows: Sequence[ListedVideo],
    facts: Sequence[VideoFacts],
    local: int,
    shards: Shards | None,
    sizes: SizeEstimate | None,
    previews: Sequence[Preview],
) -> str:
    """Return the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    good = [f for f in facts if not f.reason]
    charts = [
        ("Duration, s", histogram([f.duration_s for f in good], "durations of source videos", "s")),
        ("Frame rate, fps", histogram([f.fps for f in good], "frame rates of source videos", "fps")),
        (
            "Picture size, px high over px wide",
            scatter([(f.width, f.height) for f in good], "sizes of source videos", ("px wide", "px high")),
        ),
        ("File size, MB", histogram([r.size / 1e6 for r in rows if r.size], "sizes of source files", "MB")),
    ]
    if shards:
        charts.append(
            ("Frames of stored clips", histogram([r.num_frames for r in shards.records], "frames per clip", "frames"))
        )
    return environment.get_template(
        "data_page.html.j2"
    ).render(
        spec=spec,
        digest=digest(spec)[:12],
        splits=split_table(spec, rows, shards),
        classes=class_table(spec, rows),
        objects=shards.objects if shards else None,
        facts=len(facts),
        local=local,
        missing=sum(row.size is None for row in rows),
        charts=[(title, Markup(svg)) for title, svg in charts if svg],  # page_charts escapes
        tables=fact_tables(good),
        expected_rejects=Counter(f.reason for f in facts if f.reason).most_common(),
        findings=[result for result in check_listing(spec, rows) if result.level != "ok"],
        rejects=shards.rejects[:_REJECTS_SHOWN] if shards else [],
        reasons=Counter(row.reason.value for row in shards.rejects).most_common() if shards else [],
        reject_total=len(shards.rejects) if shards else 0,
        storage=storage_table(spec, rows, shards, sizes),
        sizes=sizes,
        previews=preview_groups(previews),
        tiles=tiles(spec, rows, good, shards),
        stored=shards is not None,
        index=shards.index if shards else None,
    )


def tiles(
    spec: DatasetSpec, rows: Sequence[ListedVideo], facts: Sequence[VideoFacts], shards: Shards | None
) -> list[tuple[str, str, str]]:
    """Return the figures at the top: (value, what, detail)."""
    found = [
        (f"{len(rows):,}", "listed videos", f"{sum(r.size is None for r in rows):,} missing"),
        (str(len(class_names(spec))), "classes", f"{len({r.group for r in rows}):,} groups"),
    ]
    if shards:
        stored = len(shards.samples)
        mean = sum(r.duration_s for r in shards.records) / max(1, len(shards.records))
        total = sum(s.bytes for s in shards.index.shards)
        found += [
            (f"{stored:,}", "stored samples", f"{len(shards.rejects):,} rejected"),
            (duration(mean * stored), "of stored clips", f"{mean:.1f} s each"),
            (human_bytes(total), "in shards", f"{len(shards.index.shards)} files, {shards.index.representation}"),
        ]
    elif facts:
        mean = sum(f.duration_s for f in facts) / len(facts)
        found.append((duration(mean * len(rows)), "of video", f"{mean:.1f} s each"))
    size = sum(r.size or 0 for r in rows)
    found.append((human_bytes(size), "of sources", ""))
    return found


def duration(seconds: float) -> str:
    """Return a length of time for reading."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def split_table(spec: DatasetSpec, rows: Sequence[ListedVideo], shards: Shards | None) -> list[dict[str, Any]]:
    """Return one line per split: counts, groups, classes present, coverage of the official number."""
    stored = Counter(sample.info.split for sample in shards.samples) if shards else None
    table = []
    for split in SPLITS:
        mine = [row for row in rows if row.split == split]
        expected = spec.expected.get(split)
        if not mine and not expected:
            continue
        have = stored[split] if stored is not None else sum(row.size is not None for row in mine)
        table.append(
            {
                "name": split,
                "listed": len(mine),
                "stored": stored[split] if stored is not None else None,
                "groups": len({row.group for row in mine}),
                "classes": len({name for row in mine if row.label for name in row.label.split(LABEL_SEPARATOR)}),
                "expected": expected,
                "coverage": f"{have / expected:.1%}" if expected else "",
            }
        )
    return table


def class_table(spec: DatasetSpec, rows: Sequence[ListedVideo]) -> list[dict[str, Any]]:
    """Return one line per class in index order: samples per split, and shares of the largest class in percent."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    groups: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for name in row.label.split(LABEL_SEPARATOR) if row.label else ():
            counts[name][row.split] += 1
            groups[name].add(row.group)
    largest = max((c.total() for c in counts.values()), default=1)
    return [
        {
            "index": number,
            "name": name,
            "total": counts[name].total(),
            "groups": len(groups[name]),
            "bars": [(split, counts[name][split], 100 * counts[name][split] / largest) for split in SPLITS],
        }
        for number, name in enumerate(class_names(spec))
    ]


def fact_tables(facts: Sequence[VideoFacts]) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """Return (title, [(value, count, percent)]) of what containers and codecs the sources have."""
    columns: list[tuple[str, Callable[[VideoFacts], str]]] = [
        ("Container", lambda f: f.container.split(",")[0]),
        ("Video codec", lambda f: f.codec),
        ("Pixel format", lambda f: f.pix_fmt),
        ("Sound", lambda f: f.audio or "none"),
    ]
    return [
        (title, [(name, count, 100 * count / len(facts)) for name, count in Counter(map(get, facts)).most_common(8)])
        for title, get in columns
        if facts
    ]


def storage_table(
    spec: DatasetSpec, rows: Sequence[ListedVideo], shards: Shards | None, sizes: SizeEstimate | None
) -> list[tuple[str, str, str]]:
    """Return (form, bytes, how known)."""
    table = [("Sources", human_bytes(sum(r.size or 0 for r in rows)), "sum of the files")]
    real = shards.index.representation if shards else None
    for form in ("mp4", "jpgs"):
        name = f"{form}, short side {spec.clip.short_side}"
        if form == "jpgs":
            name += f", {spec.clip.num_frames or (sizes.jpgs_frames if sizes else 16)} frames"
        if shards and form == real:
            total = sum(s.bytes for s in shards.index.shards)
            table.append((f"{name} (stored)", human_bytes(total), "sum of the shards"))
            flow = [s.entry.members[FLOW_MEMBER][1] for s in shards.samples if FLOW_MEMBER in s.entry.members]
            if flow:
                table.append(("of these optical flow", human_bytes(sum(flow)), f"members of {len(flow):,} samples"))
        elif sizes:
            value = sizes.mp4 if form == "mp4" else sizes.jpgs
            table.append((name, human_bytes(value), f"extrapolated from {sizes.sampled} videos encoded for this page"))
    return table


def preview_groups(previews: Sequence[Preview]) -> list[tuple[str, list[Preview]]]:
    """Return previews by class, in the order of the page."""
    by_class: dict[str, list[Preview]] = defaultdict(list)
    for item in previews:
        by_class[item.row.label].append(item)
    return list(by_class.items())
