"""`fovea data check`: is a data set what its specification says, from listing to shards."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from data_specs.boxes import BOXES_MEMBER
from data_specs.files import sha256_of
from data_specs.flows import FLOW_MEMBER, count_fields, unpack_flow
from data_specs.jpgs import unpack_jpgs
from data_specs.load import LABEL_SEPARATOR, SpecError, class_names, load_spec
from data_specs.schema import SPLITS, DatasetSpec, ListedVideo, ShardIndex, SplitPolicy, read_index
from infra.settings import Settings
from tasks.ops.box_checks import lacking_boxes, stored_problem
from tasks.ops.listing import manifest_path, part_root, read_manifest
from tasks.ops.quarantine import QuarantineRow, read_quarantine
from tasks.ops.shard_reader import StoredSample, some, stored_samples
from tasks.ops.shards import ShardError, verify_shards
from tasks.ops.survey import frame_rates, local_rows, pick, survey

_FEW_TEST = 100
_IMBALANCE = 10
_SHOWN = 5


class Result(NamedTuple):
    """Outcome of one check."""

    level: Literal["ok", "warn", "fail"]
    check: str
    detail: str


def check_dataset(name: str, settings: Settings, sample: int = 24, all_bytes: bool = False) -> list[Result]:
    """Run all checks of one data set.

    Args:
        name: Data set.
        settings: Settings of the project.
        sample: How many sources and how many stored clips to decode.
        all_bytes: Read every shard and compare its checksum (else its size).
    """
    try:
        spec = load_spec(name)
    except SpecError as error:
        return [Result("fail", "specification", str(error))]
    results = [Result("ok", "specification", f"{len(class_names(spec))} classes, {len(spec.parts)} parts")]
    path = manifest_path(name, settings)
    try:
        rows = read_manifest(path)
    except (FileNotFoundError, ValueError) as error:
        return [*results, Result("fail", "listing", str(error))]
    results += check_listing(spec, rows)
    roots = {part.name: part_root(part, settings) for part in spec.parts}
    here = local_rows([row for row in rows if row.part in roots], roots)
    if here:
        chosen = pick(here, sample)
        bad = [facts for facts in survey(name, chosen, roots, settings, rates=frame_rates(spec)) if facts.reason]
        shown = "; ".join(f"{facts.path}: {facts.reason}" for facts in bad[:_SHOWN])
        results.append(
            Result("warn", "sources", f"{len(bad)} of {len(chosen)} sampled videos will be rejected: {shown}")
            if bad
            else Result("ok", "sources", f"{len(chosen)} sampled videos open and decode")
        )
    folder = settings.shards / name
    if not (folder / "index.json").exists():
        results.append(Result("warn", "shards", f"not built yet: dvc repro shards@{name} (or dvc pull {folder})"))
        return results
    return results + check_shards(spec, rows, folder, sample, all_bytes)


def _examples(values: Iterable[str]) -> str:
    """Return some values for a message."""
    values = list(values)
    return ", ".join(values[:_SHOWN]) + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")


def check_listing(spec: DatasetSpec, rows: Sequence[ListedVideo]) -> list[Result]:
    """Check a listing against its specification: names, groups, duplicates, balance."""
    results: list[Result] = []
    if not rows:
        return [Result("fail", "listing", "is empty")]
    parts = {part.name: part for part in spec.parts}
    foreign = {row.part for row in rows} - set(parts)
    if foreign:
        results.append(
            Result("fail", "listing", f"parts not in the specification: {_examples(sorted(foreign))}; list again")
        )
    known = set(class_names(spec))
    unknown = {name for row in rows for name in row.label.split(LABEL_SEPARATOR) if row.label} - known
    if unknown:
        results.append(
            Result("fail", "listing", f"classes not in the specification: {_examples(sorted(unknown))}; list again")
        )
    splits = Counter(row.split for row in rows)
    results.append(Result("ok", "listing", ", ".join(f"{splits[s]} {s}" for s in SPLITS)))
    if 0 < splits["test"] < _FEW_TEST:
        results.append(
            Result(
                "warn", "test size", f"{splits['test']} samples are too few to tell two models apart (want {_FEW_TEST})"
            )
        )
    missing = [row for row in rows if row.size is None]
    if missing:
        level: Literal["warn", "fail"] = "fail" if len(missing) > spec.max_reject_share * len(rows) else "warn"
        results.append(
            Result(
                level,
                "missing",
                f"{len(missing)} of {len(rows)} listed videos are not at their source "
                f"(max_reject_share {spec.max_reject_share:g}): {_examples(row.path for row in missing)}",
            )
        )
    results.append(_check_groups(spec, rows))
    results.append(_check_duplicates(rows))
    results += _check_balance(spec, rows)
    return results


def _check_groups(spec: DatasetSpec, rows: Sequence[ListedVideo]) -> Result:
    """Look for groups that lie in several splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    parts: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[row.group].add(row.split)
        parts[row.group].add(row.part)
    leaking = sorted(group for group, found in splits.items() if len(found) > 1)
    if not leaking:
        return Result("ok", "leakage", f"{len(splits)} groups, each in one split")
    ours = {part.name for part in spec.parts if isinstance(part.split, SplitPolicy)}
    divided = [group for group in leaking if parts[group] & ours]
    if divided:
        return Result(
            "fail", "leakage", f"{len(divided)} groups lie in several splits: {_examples(divided)}; list again"
        )
    return Result(
        "warn", "leakage", f"{len(leaking)} groups lie in several of the official splits: {_examples(leaking)}"
    )


def _check_duplicates(rows: Sequence[ListedVideo]) -> Result:
    """Look for equal bytes under different splits or labels (spans of one file are no duplicates of each other)."""
    by_bytes: dict[tuple[str, float | None, float | None], list[ListedVideo]] = defaultdict(list)
    for row in rows:
        if row.checksum:
            by_bytes[row.checksum, row.start_s, row.end_s].append(row)
    same = [found for found in by_bytes.values() if len(found) > 1]
    across = [found for found in same if len({row.split for row in found}) > 1]
    conflicting = [found for found in same if len({row.label for row in found}) > 1]
    if not same:
        return Result("ok", "duplicates", "no two samples have the same bytes")
    bad = across or conflicting
    detail = f"{len(same)} sets of equal files, {len(across)} across splits, {len(conflicting)} under different classes"
    if not bad:
        return Result("warn", "duplicates", f"{detail}; the same video counts more than once")
    pair = " = ".join(f"{row.path} ({row.split}, {row.label})" for row in bad[0][:2])
    return Result("warn", "duplicates", f"{detail}, such as {pair}; the ingest puts these into quarantine")


def _check_balance(spec: DatasetSpec, rows: Sequence[ListedVideo]) -> list[Result]:
    """Look for classes without samples, and for great differences."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for row in rows:
        counts[row.split].update(row.label.split(LABEL_SEPARATOR) if row.label else ())
    results = []
    for split in SPLITS:
        if not counts[split]:
            if split == "train":
                results.append(Result("fail", "balance", "no labelled sample in train"))
            continue
        absent = [name for name in class_names(spec) if not counts[split][name]]
        if absent:
            results.append(Result("warn", "balance", f"{split} has no sample of {_examples(absent)}"))
    present = [count for count in counts["train"].values() if count]
    if present:
        ratio = max(present) / min(present)
        majority = max(counts["test"].values(), default=0) / max(1, counts["test"].total())
        detail = f"largest class {ratio:.1f} × the smallest in train; majority class is {majority:.0%} of test"
        results.append(Result("warn" if ratio > _IMBALANCE else "ok", "balance", detail))
    return results


def check_shards(
    spec: DatasetSpec, rows: Sequence[ListedVideo], folder: Path, sample: int, all_bytes: bool
) -> list[Result]:
    """Check finished shards: index, files, offsets, records, and that nothing was lost or doubled."""
    try:
        index = read_index(folder)
    except ValueError as error:
        return [Result("fail", "index", str(error))]
    problems = _index_problems(spec, index, folder)
    try:
        if all_bytes and not problems:
            problems = list(verify_shards(folder).values())
        if problems:
            return [Result("fail", "shards", problem) for problem in problems[:_SHOWN]]
        samples = stored_samples(folder, index)
        listed = folder / "quarantine.csv"
        quarantine = read_quarantine(listed) if listed.exists() else []
    except (OSError, ValueError, ShardError) as error:
        return [Result("fail", "shards", str(error))]
    total = sum(shard.bytes for shard in index.shards)
    how = "checksums compared" if all_bytes else "sizes compared"
    results = [
        Result("ok", "shards", f"{len(index.shards)} shards, {len(samples)} samples, {total / 1e6:.1f} MB ({how})")
    ]
    results += _account(rows, samples, index, quarantine)
    chosen = some(samples, sample)
    lacking = [sample.entry.key for sample in samples if spec.clip.flow and FLOW_MEMBER not in sample.entry.members]
    if lacking:
        detail = f"{len(lacking)} samples have no optical flow, the specification asks for it: {_examples(lacking)}"
        results.append(Result("fail", "flow", f"{detail}; run the ingest again"))
    bad = [problem for problem in map(_clip_problem, chosen) if problem]
    results += _check_boxes(rows, samples, samples if all_bytes else chosen, len(class_names(spec)))
    results += [Result("fail", "clips", problem) for problem in bad[:_SHOWN]]
    if not bad:
        results.append(
            Result("ok", "clips", f"{len(chosen)} stored clips decode to the frames that their records state")
        )
    return results


def _check_boxes(
    rows: Sequence[ListedVideo], samples: Sequence[StoredSample], chosen: Sequence[StoredSample], num_classes: int
) -> list[Result]:
    """Check the boxes of some samples, and that all have some that are listed with them."""
    with_boxes = [sample for sample in chosen if BOXES_MEMBER in sample.entry.members]
    bad = [problem for problem in (stored_problem(sample, num_classes) for sample in with_boxes) if problem]
    results = [Result("fail", "boxes", problem) for problem in bad[:_SHOWN]]
    wrong = lacking_boxes(rows, samples)
    if wrong:
        detail = f"{len(wrong)} samples are stored without the boxes that they are listed with, or the other way round"
        results.append(Result("fail", "boxes", f"{detail}: {_examples(wrong)}; run the ingest again"))
    if with_boxes and not results:
        detail = f"the boxes of {len(with_boxes)} stored clips lie inside of pictures and frames"
        results.append(Result("ok", "boxes", detail))
    return results


def _index_problems(spec: DatasetSpec, index: ShardIndex, folder: Path) -> list[str]:
    """Return what is wrong with the files that `index.json` lists."""
    problems = []
    if index.dataset != spec.name:
        problems.append(f"index.json is of data set {index.dataset!r}")
    if index.classes != class_names(spec):
        problems.append("the classes of index.json are not those of the specification; run the ingest again")
    for shard in index.shards:
        tar = folder / shard.name
        for path in (tar, tar.with_suffix(".idx")):
            if not path.exists():
                problems.append(f"{path} is missing; run dvc pull {folder}, or the ingest again")
            elif path == tar and path.stat().st_size != shard.bytes:
                problems.append(f"{path} has {path.stat().st_size} bytes, index.json says {shard.bytes}")
            elif path != tar and sha256_of(path) != shard.idx_sha256:
                problems.append(f"{path} is not the file that index.json lists (sha256 differs)")
    return problems


def _account(
    rows: Sequence[ListedVideo],
    samples: Sequence[StoredSample],
    index: ShardIndex,
    quarantine: Sequence[QuarantineRow],
) -> list[Result]:
    """Compare listed videos with stored samples and rejects."""
    listed = {row.key: row for row in rows}
    stored = Counter(sample.entry.key for sample in samples)
    doubled = [key for key, count in stored.items() if count > 1]
    foreign = [key for key in stored if key not in listed]
    moved = [s.entry.key for s in samples if s.entry.key in listed and listed[s.entry.key].split != s.info.split]
    results = []
    if doubled:
        results.append(Result("fail", "samples", f"stored twice: {_examples(doubled)}"))
    if foreign or moved:
        results.append(
            Result(
                "fail",
                "samples",
                f"{len(foreign)} stored samples are not in the listing, {len(moved)} lie in another split than listed: "
                f"{_examples(foreign + moved)}; the listing is newer than the shards, run the ingest",
            )
        )
    rejected = {row.key for row in quarantine}
    if len(rejected) != sum(index.rejects.values()):
        results.append(
            Result(
                "fail",
                "samples",
                f"quarantine.csv has {len(rejected)} videos, index.json counts {sum(index.rejects.values())}",
            )
        )
    lost = [key for key in listed if key not in stored and key not in rejected]
    if lost:
        detail = f"{len(lost)} listed videos are neither stored nor in quarantine: {_examples(lost)}; run the ingest"
        results.append(Result("fail", "samples", detail))
    if not results:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(index.rejects.items())) or "none"
        results.append(
            Result("ok", "samples", f"{len(stored)} of {len(listed)} listed videos stored; rejected: {reasons}")
        )
    return results


def _clip_problem(sample: StoredSample) -> str | None:
    """Decode one stored clip and compare it with its record; None when all is well."""
    import io

    import av

    where = f"{sample.shard.name}: {sample.entry.key}"
    try:
        record = sample.record()
        if record.key != sample.entry.key or record.split != sample.info.split or record.label != sample.entry.label:
            return f"{where}: the record says {record.key} in {record.split} with label {record.label}"
        if "jpgs" in sample.entry.members:
            frames = len(unpack_jpgs(sample.read("jpgs")))
            expected = len(record.frame_index or ()) or record.num_frames
        elif "mp4" in sample.entry.members:
            with av.open(io.BytesIO(sample.read("mp4"))) as container:
                frames = sum(1 for _ in container.decode(video=0))
            expected = record.num_frames
        else:
            return f"{where}: has neither mp4 nor jpgs, only {', '.join(sample.entry.members)}"
        if FLOW_MEMBER in sample.entry.members:
            flow = sample.read(FLOW_MEMBER)
            size = unpack_flow(flow, [0]).shape[1:3]
            if (count_fields(flow), *size) != (record.num_frames - 1, record.height, record.width):
                return (
                    f"{where}: {count_fields(flow)} flow fields of {size[1]}x{size[0]}, its record says "
                    f"{record.num_frames} frames of {record.width}x{record.height}"
                )
    except (ValueError, OSError, av.error.FFmpegError) as error:
        return f"{where}: {error}"
    return None if frames == expected else f"{where}: {frames} frames decode, its record says {expected}"
