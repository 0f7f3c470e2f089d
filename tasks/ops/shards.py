"""Writes shards into the store, recognises finished ones, and publishes a data set.

The store, `.work/shards/`, holds `<plan digest>.{tar,idx,json}`; the json is written last, so its existence means
that the shard is whole. Files are named after what they were made from: two writers of one name (an orphan of a
killed run beside the new one) write the same bytes, each through a temporary file of its own.

Publishing hard-links the shards into `data/shards/<dataset>/` and writes `index.json` last.
"""

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from data_specs.files import sha256_of
from data_specs.schema import SHARD_FORMAT, IndexEntry, ShardIndex, ShardInfo, Strict, digest, read_index
from tasks.ops.plan import IngestPlan, ShardPlan
from tasks.ops.probe import Reject
from tasks.ops.quarantine import QuarantineRow, count_reasons, write_quarantine
from tasks.ops.sample import SampleContext, check_encoder, make_sample, quarantine_row

RECORD_MEMBER = "json"


class ShardError(RuntimeError):
    """A shard or data set folder is not what its index says."""


class StoredShard(Strict):
    """`<plan digest>.json`: a finished shard and the videos that did not get into it."""

    info: ShardInfo
    rejects: tuple[QuarantineRow, ...]


@dataclass(frozen=True)
class ShardJob:
    """Everything that a worker needs to make one shard."""

    plan: ShardPlan
    context: SampleContext
    store: Path
    temporary: Path
    """Folder of this ingest's work in progress, on the same file system as the store."""


def stored_path(store: Path, plan_digest: str, suffix: str) -> Path:
    """Return the path of a stored shard's `tar`, `idx` or `json`."""
    return store / f"{plan_digest}.{suffix}"


def progress_path(job: ShardJob) -> Path:
    """Return the file that grows by one byte with each video of a running job."""
    return job.temporary / f"{job.plan.digest}.progress"


def read_stored(store: Path, plan: ShardPlan) -> StoredShard | None:
    """Return the stored shard of a plan, or None when it has to be made (again)."""
    path = stored_path(store, plan.digest, "json")
    try:
        stored = StoredShard.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):  # unreadable: of another version, or damaged
        return None
    if stored.info.samples == 0:
        return stored
    try:
        whole = stored_path(store, plan.digest, "tar").stat().st_size == stored.info.bytes
        whole = whole and stored_path(store, plan.digest, "idx").stat().st_size > 0
    except FileNotFoundError:
        return None
    return stored if whole else None


def evict(store: Path, plan_digest: str) -> None:
    """Remove a stored shard; the json first, so that it counts as unfinished at once."""
    for suffix in ("json", "idx", "tar"):
        stored_path(store, plan_digest, suffix).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(source: Path, target: Path) -> None:
    """Move a finished file to its place: flushed, read-only (it is hard-linked into outputs and caches), atomic."""
    os.chmod(source, 0o444)
    _sync(source)
    os.replace(source, target)


def write_shard(job: ShardJob) -> StoredShard:
    """Make one shard and put it into the store.

    Args:
        job: plan, context and folders.

    Raises:
        SampleError: a sample could not be made for a reason that is not the video's.
    """
    check_encoder(job.context)
    job.store.mkdir(parents=True, exist_ok=True)
    job.temporary.mkdir(parents=True, exist_ok=True)
    plan = job.plan
    rejects: list[QuarantineRow] = []
    entries: dict[str, IndexEntry] = {}
    with tempfile.TemporaryDirectory(dir=job.temporary, prefix=f"{plan.digest[:12]}-") as own:
        folder = Path(own)
        tar = folder / "shard.tar"
        with open(tar, "wb") as file, open(progress_path(job), "ab", buffering=0) as progress:
            _write_tar(job, file, folder, entries, rejects, progress)
        offsets = read_offsets(tar)
        lines = [
            entry.model_copy(update={"members": offsets[key]}).model_dump_json() + "\n"
            for key, entry in entries.items()
        ]
        idx = folder / "shard.idx"
        idx.write_text("".join(lines))
        info = ShardInfo(
            name=plan.name,
            part=plan.part,
            split=plan.split,
            sha256=sha256_of(tar),
            bytes=tar.stat().st_size,
            samples=len(entries),
            idx_sha256=sha256_of(idx),
            plan_digest=plan.digest,
        )
        stored = StoredShard(info=info, rejects=tuple(rejects))
        record = folder / "shard.json"
        record.write_text(stored.model_dump_json() + "\n")
        if entries:
            _place(tar, stored_path(job.store, plan.digest, "tar"))
            _place(idx, stored_path(job.store, plan.digest, "idx"))
        _sync(job.store)
        _place(record, stored_path(job.store, plan.digest, "json"))
        _sync(job.store)
    return stored


def _write_tar(
    job: ShardJob,
    file: object,
    folder: Path,
    entries: dict[str, IndexEntry],
    rejects: list[QuarantineRow],
    progress: object,
) -> None:
    """Make all samples of a shard and write them; fills `entries` (offsets still empty) and `rejects`."""
    from webdataset.writer import TarWriter  # imports torch where torch is installed

    # Owner, mode and time are fixed: the same samples must give the same bytes on every machine.
    with TarWriter(file, user="fovea", group="fovea", mode=0o444, mtime=0.0, encoder=False) as writer:
        for planned in job.plan.videos:
            made = make_sample(planned, job.context, folder)
            if isinstance(made, Reject):
                rejects.append(quarantine_row(planned, made))
            else:
                record = made.record
                content = (record.model_dump_json() + "\n").encode()
                writer.write({"__key__": record.key, RECORD_MEMBER: content, **made.members})
                entries[record.key] = IndexEntry(
                    key=record.key, label=record.label, num_frames=record.num_frames, members={}
                )
            progress.write(b".")  # type: ignore[attr-defined]


def read_offsets(tar: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Return key → extension → (offset of the data, size) of a tar file, in its order."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            found.setdefault(key, {})[extension] = (member.offset_data, member.size)
    return found


def read_entries(idx: Path) -> list[IndexEntry]:
    """Read an `.idx` file.

    Raises:
        ShardError: a line is not an index entry.
    """
    entries = []
    for number, line in enumerate(idx.read_text().splitlines(), start=1):
        try:
            entries.append(IndexEntry.model_validate_json(line))
        except ValidationError as error:
            raise ShardError(f"{idx}:{number}: not an index entry: {error}") from error
    return entries


def _link(source: Path, target: Path) -> None:
    """Hard-link a stored file (copy across file systems), atomically."""
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _write(path: Path, text: str) -> None:
    """Write a small file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)


def assemble(plan: IngestPlan, stored: Sequence[StoredShard], store: Path, folder: Path) -> ShardIndex:
    """Publish a data set: link its shards, write labels, quarantine and, last, `index.json`.

    Args:
        plan: of the data set.
        stored: the stored shard of each planned one.
        store: `.work/shards`.
        folder: `data/shards/<dataset>`; what does not belong to the data set is removed from it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)  # not whole from here on
    shards = tuple(sorted((s.info for s in stored if s.info.samples), key=lambda info: info.name))
    wanted = {"labels.txt", "quarantine.csv"}
    for info in shards:
        for suffix in ("tar", "idx"):
            target = folder / Path(info.name).with_suffix(f".{suffix}")
            _link(stored_path(store, info.plan_digest, suffix), target)
            wanted.add(target.name)
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    rows = [row for shard in stored for row in shard.rejects]
    _write(folder / "labels.txt", "".join(f"{name}\n" for name in plan.classes))
    write_quarantine(folder / "quarantine.csv", rows)
    index = ShardIndex(
        format=SHARD_FORMAT,
        dataset=plan.spec.name,
        spec_digest=digest(plan.spec),
        representation=plan.spec.clip.representation,
        encoder=plan.encoder,
        classes=plan.classes,
        shards=shards,
        rejects=count_reasons(rows),
        listed=plan.listed,
    )
    _write(folder / "index.json", index.model_dump_json(indent=2) + "\n")
    _sync(folder)
    return index


def verify_shards(folder: Path) -> dict[str, str]:
    """Compare a data set folder with its index: bytes, offsets, keys.

    Returns:
        Plan digest of each damaged shard → what is wrong with it; empty when all is well.

    Raises:
        FileNotFoundError: no `index.json`.
        ShardError: a key in two shards, or files that the index does not name.
    """
    index = read_index(folder)
    problems: dict[str, str] = {}
    seen: dict[str, str] = {}
    for info in index.shards:
        problem, keys = _verify_one(folder, info)
        if problem:
            problems[info.plan_digest] = f"{folder / info.name}: {problem}"
        for key in keys:
            if key in seen:
                raise ShardError(f"{folder}: sample {key!r} is in {seen[key]} and in {info.name}")
            seen[key] = info.name
    named = {info.name for info in index.shards}
    extra = sorted(path.name for path in folder.glob("*.tar") if path.name not in named)
    if extra:
        raise ShardError(f"{folder}: index.json does not name {', '.join(extra)}")
    return problems


def _verify_one(folder: Path, info: ShardInfo) -> tuple[str, Iterable[str]]:
    """Return what is wrong with one shard (empty: nothing) and its keys."""
    tar = folder / info.name
    idx = tar.with_suffix(".idx")
    if not tar.exists() or not idx.exists():
        return "the tar or its .idx is missing", ()
    if tar.stat().st_size != info.bytes:
        return f"{tar.stat().st_size} bytes, index.json says {info.bytes}", ()
    if hashlib.sha256(idx.read_bytes()).hexdigest() != info.idx_sha256:
        return "the .idx is not the one of index.json", ()
    if sha256_of(tar) != info.sha256:
        return "sha256 is not the one of index.json", ()
    entries = read_entries(idx)
    if {entry.key: entry.members for entry in entries} != read_offsets(tar):
        return "the offsets in .idx are not those of the tar", ()
    if len(entries) != info.samples:
        return f"{len(entries)} samples, index.json says {info.samples}", ()
    return "", [entry.key for entry in entries]


def main(arguments: list[str]) -> int:
    """Check data set folders from the command line: `python -m tasks.ops.shards <folder> …`."""
    bad = 0
    for name in arguments:
        problems = verify_shards(Path(name))
        print("\n".join(problems.values()) if problems else f"{name}: whole")
        bad += bool(problems)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
