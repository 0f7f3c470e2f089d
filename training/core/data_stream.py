"""Source `stream`: a webdataset pipeline that reads tars from front to back; for remote and foreign tars.

Per epoch the shards are permuted, dealt out to the ranks (`split_by_node` with explicit ranks, since the
library's own looks at environment variables) and mixed in a shuffle buffer. Order of shards and every
draw of the buffer come from (seed, epoch, rank) and depend on counts only, never on contents. So the
order of samples is known before anything is read, and the buffer need not be saved: a resumed run
re-reads the running epoch from its start, drops the samples already used without decoding them, and
arrives at the same buffer. Each sample that arrives is checked against the order that was worked out.

The order depends on the number of ranks here; for a change of rank count use source `index`.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from data_specs.schema import ClipRecord, digest, read_index
from training.core.config import DataConfig
from training.core.data_index import DataError, read_entries
from training.core.data_sample import EXTRAS, Label, Sample
from training.core.sampling import clip_seed, epoch_order

__all__ = ["SHUFFLE_BUFFER", "StreamSource", "open_folder", "open_urls"]

SHUFFLE_BUFFER = 256
"""Samples; encoded clips of about 100 KB, so some 25 MB per rank."""

EXTENSIONS = ("mp4", "jpgs", "webm", "mkv", "avi", "mov", "m4v", "mpg")
"""Members taken as the clip of a sample, in this order."""


@dataclass(frozen=True)
class Shard:
    """What is known of a tar before it is streamed."""

    url: str
    keys: tuple[str, ...]
    labels: tuple[Label, ...]


class StreamSource:
    """Batches of one rank from tars that are read in sequence."""

    world_bound = True

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        classes: tuple[str, ...],
        data_digest: str,
        num_listed: int | None,
        batch_size: int,
        train: bool,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        shards = [shard for shard in shards if shard.keys]  # rejects can leave a shard empty
        if len(shards) < world:
            raise DataError(
                f"{len(shards)} shards cannot be dealt out to {world} ranks by source stream; use fewer workers, "
                "smaller shards or source index"
            )
        keys = [key for shard in shards for key in shard.keys]
        if len(set(keys)) < len(keys):
            doubled = sorted({key for key in keys if keys.count(key) > 1})
            raise DataError(f"keys occur more than once: {', '.join(doubled[:5])}")
        for shard in shards:
            for key, label in zip(shard.keys, shard.labels, strict=True):
                if any(not 0 <= value < len(classes) for value in ((label,) if isinstance(label, int) else label)):
                    raise DataError(
                        f"{shard.url}: sample {key!r} has label {label}, but there are {len(classes)} classes"
                    )
        self._shards = tuple(shards)
        self._share = batch_size // world
        self._train = train
        self._seed = seed
        self._rank = rank
        self._world = world
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}
        self.classes = classes
        self.data_digest = data_digest
        self.num_samples = len(keys)
        self.num_listed = num_listed or len(keys)
        self.expected_keys: Sequence[str] = keys
        self.multi_label = any(isinstance(label, tuple) for shard in shards for label in shard.labels)
        # Equal on all ranks: collectives in an evaluation must not wait for a rank that has ended.
        longest = max(sum(len(s.keys) for s in shards[r::world]) for r in range(world))
        self.num_batches = None if train else -(-longest // self._share)

    def batches(self, position: int) -> Iterator[list[Sample]]:
        """Yield this rank's samples: endless in training, padded with invalid ones at the end of an evaluation."""
        if self._train:
            yield from _grouped(self._endless(position), self._share)
            return
        samples: list[Sample] = []
        left = self.num_batches or 0
        for samples in _grouped(self._epoch(0, 0), self._share):
            if len(samples) == self._share:
                yield samples
                left -= 1
        # What remains: an incomplete batch, or whole batches that only longer ranks have.
        padding = samples[-1]._replace(valid=False)
        rest = samples if len(samples) < self._share else []
        for _ in range(left):
            yield rest + [padding] * (self._share - len(rest))
            rest = []

    def place(self, position: int) -> dict[str, Any]:
        """Describe the next sample of rank 0."""
        epoch, used = self._locate(position, 0)
        shard, number = self._order(epoch, 0)[used].tolist()
        return {
            "epoch": epoch,
            "shard": self._shards[shard].url.rsplit("/", 1)[-1],
            "offset": number,
            "key": self._shards[shard].keys[number],
            "shuffle_buffer": SHUFFLE_BUFFER if self._train else 0,
        }

    def _locate(self, position: int, rank: int) -> tuple[int, int]:
        """Return the epoch of a rank and how many of its samples in it are used."""
        used, epoch = position // self._world, 0
        while used >= (count := sum(len(self._shards[s].keys) for s in self._dealt(epoch, rank))):
            used, epoch = used - count, epoch + 1
        return epoch, used

    def _shard_order(self, epoch: int) -> list[int]:
        count = len(self._shards)
        order: list[int] = epoch_order(count, self._seed, epoch).tolist() if self._train else list(range(count))
        return order

    def _dealt(self, epoch: int, rank: int) -> list[int]:
        return self._shard_order(epoch)[rank :: self._world]

    def _order(self, epoch: int, rank: int) -> NDArray[np.int64]:
        """Return (N,2) shard and place of each sample of a rank's epoch, in the order of delivery."""
        if (epoch, rank) not in self._orders:
            self._orders = {known: o for known, o in self._orders.items() if known[0] == epoch - 1}
            tokens = ((s, i) for s in self._dealt(epoch, rank) for i in range(len(self._shards[s].keys)))
            order = self._shuffled(tokens, epoch, rank) if self._train else tokens
            self._orders[epoch, rank] = np.array(list(order), dtype=np.int64).reshape(-1, 2)
        return self._orders[epoch, rank]

    def _shuffled(self, samples: Iterable[Any], epoch: int, rank: int) -> Iterator[Any]:
        import webdataset as wds

        rng = random.Random(clip_seed(self._seed, epoch, f"shuffle/{rank}"))
        shuffle = wds.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=rng)
        return iter(shuffle(iter(samples)))

    def _endless(self, position: int) -> Iterator[Sample]:
        epoch, used = self._locate(position, self._rank)
        while True:
            yield from self._epoch(epoch, used)
            epoch, used = epoch + 1, 0

    def _epoch(self, epoch: int, skip: int) -> Iterator[Sample]:
        """Yield the samples of this rank's epoch after the first `skip`."""
        import webdataset as wds

        order = self._order(epoch, self._rank)
        pipeline = wds.DataPipeline(
            wds.SimpleShardList([self._shards[s].url for s in self._shard_order(epoch)]),
            lambda urls: islice(urls, self._rank, None, self._world),
            _members,
            (lambda samples: self._shuffled(samples, epoch, self._rank)) if self._train else None,
        )
        arrived = 0
        for found in pipeline:
            if arrived == len(order):
                raise DataError(f"{found['__url__']} has more samples than expected; its listing does not belong to it")
            shard, number = order[arrived].tolist()
            arrived += 1
            expected = self._shards[shard].keys[number]
            if found["__key__"] != expected:
                raise DataError(
                    f"{found['__url__']}: sample {found['__key__']!r} came where {expected!r} was expected; "
                    "the tar is not the one that was listed, or is incomplete"
                )
            if arrived > skip:
                yield _sample(found, self._shards[shard].labels[number], epoch)
        if arrived < len(order):
            shard, number = order[arrived].tolist()
            raise DataError(f"{self._shards[shard].url} ended before sample {self._shards[shard].keys[number]!r}")


# --- opening ----------------------------------------------------------------------------------


def open_folder(
    folder: Path,
    split: str,
    *,
    batch_size: int,
    train: bool,
    seed: int,
    rank: int,
    world: int,
    needs_label: bool = True,
) -> StreamSource:
    """Open a shard folder, or a folder of foreign tars (`labels.txt` and tars with the split in name or folder).

    Without `needs_label`, samples of a shard folder that have no class are taken, too.

    Raises:
        DataError: no shards of this split, fewer shards than ranks, or samples without clip or label.
    """
    if (folder / "index.json").exists():
        index = read_index(folder)
        infos = index.of_split(split)
        shards = []
        for info in infos:
            entries = read_entries(folder, info)
            unlabelled = [entry.key for entry in entries if entry.label is None]
            if unlabelled and needs_label:
                raise DataError(f"{info.name}: sample {unlabelled[0]!r} has no class label, which a clip loader needs")
            labels = tuple(() if entry.label is None else entry.label for entry in entries)
            shards.append(Shard(str(folder / info.name), tuple(entry.key for entry in entries), labels))
        classes, data_digest, listed = index.classes, index.data_digest(split), index.listed.get(split)
    else:
        labels_file = folder / "labels.txt"
        if not labels_file.exists():
            raise DataError(f"{folder} has neither index.json nor labels.txt (class names, one per line)")
        classes = tuple(labels_file.read_text().split("\n")[:-1])
        shards, data_digest = scan_urls([str(path) for path in _foreign_tars(folder, split)], classes)
        listed = None
    if not shards:
        raise DataError(f"{folder} has no shards of split {split!r}")
    return StreamSource(
        shards,
        classes=classes,
        data_digest=data_digest,
        num_listed=listed,
        batch_size=batch_size,
        train=train,
        seed=seed,
        rank=rank,
        world=world,
    )


def open_urls(
    urls: Sequence[str],
    config: DataConfig,
    *,
    classes: tuple[str, ...],
    split: str,
    train: bool,
    seed: int,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> Any:
    """Open a `ClipLoader` on tars anywhere (paths, `s3://`, whatever webdataset opens).

    The tars are read once beforehand to count and digest their samples.

    Raises:
        DataError: as in `open_folder`.
    """
    from training.core.data import ClipLoader, check_ranks
    from training.core.decode import resolve_decoder

    check_ranks(config, rank, world)
    shards, data_digest = scan_urls(urls, classes)
    source = StreamSource(
        shards,
        classes=classes,
        data_digest=data_digest,
        num_listed=None,
        batch_size=config.batch_size,
        train=train,
        seed=seed,
        rank=rank,
        world=world,
    )
    config = config.model_copy(update={"source": "stream"})
    decoder = resolve_decoder(config.decoder)
    return ClipLoader(source, config, split=split, train=train, seed=seed, world=world, decoder=decoder, pin=pin)


def scan_urls(urls: Sequence[str], classes: tuple[str, ...]) -> tuple[list[Shard], str]:
    """Read tars once; return their keys and labels and a digest of all contents."""
    shards, digests = [], []
    for url in urls:
        keys: list[str] = []
        labels: list[Label] = []
        content = hashlib.sha256()
        for found in _members([{"url": url}]):
            keys.append(found["__key__"])
            labels.append(_foreign_label(found, classes))
            for extension in sorted(name for name in found if not name.startswith("__")):
                content.update(f"{found['__key__']}.{extension} {len(found[extension])}\n".encode())
                content.update(found[extension])
        if not keys:
            raise DataError(f"{url} has no samples")
        shards.append(Shard(url, tuple(keys), tuple(labels)))
        digests.append([url.rsplit("/", 1)[-1], content.hexdigest()])
    return shards, digest(sorted(digests))  # type: ignore[arg-type]


def _foreign_tars(folder: Path, split: str) -> list[Path]:
    tars = list((folder / split).glob("*.tar"))
    tars += [path for path in folder.glob("*.tar") if split in re.split(r"[^A-Za-z0-9]+", path.stem)]
    return sorted(tars)


def _foreign_label(found: dict[str, Any], classes: tuple[str, ...]) -> Label:
    """Return the label of a sample: member `cls` (a number), or `label` in its `json` (number, name or list)."""
    key, url = found["__key__"], found["__url__"]
    value: Any = None
    try:
        if "cls" in found:
            value = int(found["cls"])
        elif "json" in found:
            value = json.loads(found["json"]).get("label")
        numbers = [
            classes.index(v) if isinstance(v, str) else int(v) for v in (value if isinstance(value, list) else [value])
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{url}: sample {key!r} has no usable label ({value!r}: {error}); "
            "it needs a member `cls` with a class number, or a `json` with `label` as number or class name"
        ) from None
    return tuple(numbers) if isinstance(value, list) else numbers[0]


# --- stages -----------------------------------------------------------------------------------


def _members(urls: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the samples of tars as dictionaries extension → bytes, with `__key__` and `__url__`.

    Raises:
        DataError: a tar that cannot be opened or ends within a sample.
    """
    import webdataset as wds

    _teach_s3()
    for entry in urls:
        url = entry["url"]
        try:
            yield from wds.tarfile_to_samples()(iter([{"url": url}]))
        except GeneratorExit:
            raise
        except Exception as error:
            raise DataError(f"{url} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def _teach_s3() -> None:
    """Let webdataset open s3:// addresses; it has no handler of its own."""
    from webdataset.gopen import gopen_schemes

    def open_s3(url: str, mode: str = "rb", bufsize: int = 8192, **_: Any) -> Any:
        import fsspec  # type: ignore[import-untyped]

        return fsspec.open(url, mode).open()

    gopen_schemes.setdefault("s3", open_s3)


def _grouped(samples: Iterator[Sample], count: int) -> Iterator[list[Sample]]:
    while group := list(islice(samples, count)):
        yield group


def _sample(found: dict[str, Any], label: Label, epoch: int) -> Sample:
    extension = next((name for name in EXTENSIONS if name in found), None)
    if extension is None:
        members = ", ".join(name for name in found if not name.startswith("__"))
        raise DataError(f"{found['__url__']}: sample {found['__key__']!r} has no clip (members: {members})")
    content = found[extension]
    try:
        record = ClipRecord.model_validate_json(found.get("json", b""))
    except ValidationError:
        record = None  # foreign: the clip itself tells length and size
    return Sample(
        key=found["__key__"],
        label=label,
        epoch=epoch,
        valid=True,
        num_frames=record.num_frames if record else None,
        size=(record.height, record.width) if record else None,
        frame_index=record.frame_index if record else None,
        origin=found["__url__"],
        extension=extension,
        read=lambda: bytes(content),
        fps=record.fps if record else None,
        extras={name: partial(bytes, found[name]) for name in EXTRAS if name in found},
    )
