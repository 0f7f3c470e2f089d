"""Gets source videos: lists, downloads and checks files of `file://` (or plain) paths and of `s3://` buckets.

The only module that talks to S3 itself (DVC moves everything else). A source that differs from its listing is an
error, never a reject: a shard's digest names the bytes it was made from.
"""

import functools
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from data_specs.files import sha256_of

_CHUNK = 1 << 20
ATTEMPTS = 5
"""Tries per object before a download fails."""


class SourceChangedError(RuntimeError):
    """The file at the source is not the one that the manifest lists."""


class SourceUnavailableError(RuntimeError):
    """The source cannot be reached or refuses access; nothing is known about the video itself."""


class SourceFile(NamedTuple):
    """One file below a root."""

    path: str
    """Relative to the root, with `/`."""
    size: int
    """Bytes."""
    checksum: str
    """sha256 of local files, etag (without quotes) of remote ones."""


class Fetched(NamedTuple):
    """A source file that lies on this machine and was checked."""

    path: Path
    sha256: str


def is_remote(location: str) -> bool:
    """Tell whether a root or path is an S3 URL.

    Raises:
        ValueError: another scheme than `file` or `s3`.
    """
    scheme, separator, _ = location.partition("://")
    if not separator or scheme == "file":
        return False
    if scheme == "s3":
        return True
    raise ValueError(f"{location}: scheme {scheme!r} is not supported; use a path, file:// or s3://")


def local_path(location: str) -> Path:
    """Return the path that a plain path or `file://` URL names."""
    if location.startswith("file://"):
        parts = urlsplit(location)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"{location}: names host {parts.netloc!r}; a file URL has three slashes, file:///folder")
        return Path(unquote(parts.path))
    return Path(location)


def join(root: str, path: str) -> str:
    """Return the location of a listed path: below its part's root, or itself when it is a URL."""
    if "://" in path:
        return path
    if is_remote(root):
        return f"{root.rstrip('/')}/{path}"
    return str(local_path(root) / path)


def _split_s3(url: str) -> tuple[str, str]:
    """Return (bucket, key); not by urlsplit, since `?` and `#` are ordinary characters of a key."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"{url}: no bucket in this URL; s3://<bucket>/<prefix> is expected")
    return bucket, key


@functools.lru_cache(maxsize=8)
def _client(endpoint_url: str | None, attempts: int = 3) -> Any:
    """Return this process's S3 client (threads may share it) that tries each request so often."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=32,
    )
    return boto3.client("s3", endpoint_url=endpoint_url, config=config)


def list_files(root: str, extensions: tuple[str, ...] = (), endpoint_url: str | None = None) -> Iterator[SourceFile]:
    """List the files below a root, sorted by path; hidden files and folders are left out.

    Args:
        root: folder, `file://` URL or `s3://bucket/prefix`.
        extensions: keep only these (lower case, with dot); all when empty.
        endpoint_url: S3 server, when not AWS's own.

    Raises:
        FileNotFoundError: a local root that is no folder.
        SourceUnavailableError: the bucket cannot be listed.
    """
    if is_remote(root):
        yield from _list_s3(root, extensions, endpoint_url)
        return
    folder = local_path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: it is the root of a part of the data set")
    found: list[Path] = []
    for parent, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        found.extend(Path(parent, name) for name in files if not name.startswith("."))
    for path in sorted(found, key=lambda p: p.relative_to(folder).as_posix()):
        if not extensions or path.suffix.lower() in extensions:
            yield SourceFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path))


def _list_s3(root: str, extensions: tuple[str, ...], endpoint_url: str | None) -> Iterator[SourceFile]:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, prefix = _split_s3(root)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    try:
        pages = _client(endpoint_url).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for item in page.get("Contents", ()):
                path = item["Key"][len(prefix) :]
                hidden = any(name.startswith(".") for name in path.split("/"))
                suffix = Path(path).suffix.lower()
                if path and not path.endswith("/") and not hidden and (not extensions or suffix in extensions):
                    yield SourceFile(path, item["Size"], item["ETag"].strip('"'))
    except (BotoCoreError, ClientError) as error:
        raise SourceUnavailableError(f"{root} cannot be listed: {error}") from error


def stat(location: str, endpoint_url: str | None = None) -> tuple[int, str] | None:
    """Return (size in bytes, checksum) of one file, or None when the source does not have it."""
    if not is_remote(location):
        path = local_path(location)
        return (path.stat().st_size, sha256_of(path)) if path.is_file() else None
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _split_s3(location)
    try:
        head = _client(endpoint_url).head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
            return None
        raise SourceUnavailableError(f"{location} cannot be read: {error}") from error
    except BotoCoreError as error:
        raise SourceUnavailableError(f"{location} cannot be read: {error}") from error
    return head["ContentLength"], head["ETag"].strip('"')


@contextmanager
def fetch(
    location: str, folder: Path, size: int, checksum: str, endpoint_url: str | None = None, backoff_s: float = 0.5
) -> Iterator[Fetched]:
    """Give a checked local copy of a source file for the length of the block.

    A local file is used where it lies; a remote one is downloaded into `folder` and removed afterwards. A broken
    connection continues at the byte where it broke, after `backoff_s`, 2 × `backoff_s`, 4 × …

    Args:
        location: path or URL of the file, see `join`.
        folder: the caller's own temporary folder.
        size: bytes, as listed.
        checksum: sha256 or etag, as listed.
        endpoint_url: S3 server, when not AWS's own.
        backoff_s: seconds before the second try.

    Raises:
        SourceChangedError: size or checksum are not those of the listing, or the file is gone.
        SourceUnavailableError: not reachable after `ATTEMPTS` tries.
    """
    if not is_remote(location):
        path = local_path(location)
        if not path.is_file():
            raise changed(location, "it is gone")
        if path.stat().st_size != size:
            raise changed(location, f"it has {path.stat().st_size} bytes, listed are {size}")
        sha256 = sha256_of(path)
        if checksum and sha256 != checksum:
            raise changed(location, f"its sha256 is {sha256[:12]}…, listed is {checksum[:12]}…")
        yield Fetched(path, sha256)
        return
    target = folder / f"source{Path(location).suffix}"
    try:
        yield Fetched(target, download(location, target, size, checksum, endpoint_url, backoff_s))
    finally:
        target.unlink(missing_ok=True)


def changed(location: str, how: str) -> SourceChangedError:
    """Return the error for a source that is not what was listed."""
    return SourceChangedError(
        f"{location} changed after it was listed: {how}; list the sources again (`dvc repro manifest@<dataset>`)"
    )


def download(
    location: str, target: Path, size: int, checksum: str, endpoint_url: str | None = None, backoff_s: float = 0.5
) -> str:
    """Download one object into `target` and return its sha256; errors are those of `fetch`."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _split_s3(location)
    condition = {"IfMatch": f'"{checksum}"'} if checksum else {}
    sha256 = hashlib.sha256()
    done = 0
    with open(target, "wb") as file:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(backoff_s * 2 ** (attempt - 1))
            span = {"Range": f"bytes={done}-"} if done else {}
            try:
                client = _client(endpoint_url, attempts=1)  # the tries are counted here
                body = client.get_object(Bucket=bucket, Key=key, **condition, **span)["Body"]
                for chunk in body.iter_chunks(_CHUNK):
                    file.write(chunk)
                    sha256.update(chunk)
                    done += len(chunk)
                if done >= size:
                    break
                last: Exception = OSError(f"connection ended after {done} of {size} bytes")
            except ClientError as error:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if status == 404:
                    raise changed(location, "it is gone") from error
                if status == 412:
                    raise changed(location, f"its etag is not {checksum}") from error
                if status == 416:  # the object is shorter than what was already read
                    raise changed(location, f"it has not the listed {size} bytes") from error
                if status is not None and 400 <= status < 500 and status not in (408, 429):
                    raise SourceUnavailableError(f"{location} cannot be read: {error}") from error
                last = error
            except (BotoCoreError, OSError) as error:
                last = error
        else:
            raise SourceUnavailableError(f"{location} cannot be read after {ATTEMPTS} tries: {last}") from last
    if done != size:
        raise changed(location, f"it has {done} bytes, listed are {size}")
    return sha256.hexdigest()
