import hashlib
import os
import socket
import threading

import pytest

from tasks.ops import acquire
from tasks.ops.acquire import SourceChangedError, SourceUnavailableError, fetch, is_remote, join, list_files, local_path

CONTENT = os.urandom(3 << 20)


@pytest.fixture(scope="module")
def s3_server(s3_url):
    """The S3 server with one bucket."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3_url)
    client.create_bucket(Bucket="videos")
    for key in ("set/a/1.mp4", "set/a/2 #?.MP4", "set/b/.hidden.mp4", "set/b/notes.txt", "settled/3.mp4"):
        client.put_object(Bucket="videos", Key=key, Body=CONTENT)
    yield s3_url
    acquire._client.cache_clear()


def md5() -> str:
    return hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


def test_locations():
    assert is_remote("s3://bucket/x")
    assert not is_remote("/data")
    assert not is_remote("file:///data")
    with pytest.raises(ValueError, match="'https' is not supported"):
        is_remote("https://example.org/x.mp4")
    with pytest.raises(ValueError, match="three slashes"):
        local_path("file://data/x.mp4")
    assert join("file:///data/my%20set", "a/1.mp4") == "/data/my set/a/1.mp4"
    assert join("s3://bucket/set/", "a/1.mp4") == "s3://bucket/set/a/1.mp4"
    assert join("/data", "s3://bucket/1.mp4") == "s3://bucket/1.mp4"
    assert join("/data", "-1.mp4") == "/data/-1.mp4"


def test_local_listing(tmp_path):
    for name in ("b/2.mp4", "a/1.MP4", "a/.hidden.mp4", ".git/3.mp4", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = list(list_files(str(tmp_path), (".mp4",)))
    assert [file.path for file in found] == ["a/1.MP4", "b/2.mp4"]
    assert found[1].size == 7
    assert found[1].checksum == hashlib.sha256(b"b/2.mp4").hexdigest()
    assert list(list_files(tmp_path.as_uri(), (".mp4",))) == found
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        list(list_files(str(tmp_path / "none")))


def test_local_file_is_used_where_it_lies_and_checked(tmp_path):
    path = tmp_path / "1.mp4"
    path.write_bytes(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    with fetch(str(path), tmp_path, len(CONTENT), sha256) as got:
        assert got == (path, sha256)
    assert path.exists()
    for size, checksum, message in ((1, sha256, "listed are 1"), (len(CONTENT), "0" * 64, "its sha256 is")):
        with pytest.raises(SourceChangedError, match=message), fetch(str(path), tmp_path, size, checksum):
            pass
    with pytest.raises(SourceChangedError, match="is gone"), fetch(str(tmp_path / "2.mp4"), tmp_path, 1, ""):
        pass


def test_remote_listing(s3_server):
    found = list(list_files("s3://videos/set", (".mp4",), s3_server))
    assert [file.path for file in found] == ["a/1.mp4", "a/2 #?.MP4"]
    assert found[0] == ("a/1.mp4", len(CONTENT), md5())
    with pytest.raises(SourceUnavailableError, match="cannot be listed"):
        list(list_files("s3://nothing/set", (), s3_server))


def test_remote_stat(s3_server):
    assert acquire.stat("s3://videos/set/a/1.mp4", s3_server) == (len(CONTENT), md5())
    assert acquire.stat("s3://videos/set/a/none.mp4", s3_server) is None


def test_remote_file_is_downloaded_and_removed(s3_server, tmp_path):
    for name in ("1.mp4", "2 #?.MP4"):
        with fetch(f"s3://videos/set/a/{name}", tmp_path, len(CONTENT), md5(), s3_server) as got:
            assert got.path.read_bytes() == CONTENT
            assert got.path.parent == tmp_path
            assert got.sha256 == hashlib.sha256(CONTENT).hexdigest()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "size", "etag", "message"),
    [
        ("1.mp4", len(CONTENT), "0" * 32, "its etag is not"),
        ("1.mp4", 17, "", "listed are 17"),
        ("none.mp4", 17, "", "is gone"),
    ],
)
def test_remote_changes_are_noticed(s3_server, tmp_path, name, size, etag, message):
    url = f"s3://videos/set/a/{name}"
    with pytest.raises(SourceChangedError, match=message), fetch(url, tmp_path, size, etag, s3_server):
        pass
    assert list(tmp_path.iterdir()) == []


class BreakingProxy:
    """Passes bytes to a server and breaks each of the first `breaks` connections after `after` bytes of answer."""

    def __init__(self, url: str, breaks: int, after: int) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._left, self._after = breaks, after
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            limit = self._after if self._left > 0 else None
            self._left -= 1
            server = socket.create_connection(self._target)
            threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, limit), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, limit: int | None) -> None:
        sent = 0
        try:
            while (data := source.recv(65536)) and (limit is None or sent < limit):
                target.sendall(data)
                sent += len(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        self._listener.close()


def test_broken_connection_continues_where_it_broke(s3_server, tmp_path):
    proxy = BreakingProxy(s3_server, breaks=2, after=1 << 20)
    url = "s3://videos/set/a/1.mp4"
    try:
        with fetch(url, tmp_path, len(CONTENT), md5(), proxy.url, backoff_s=0.01) as got:
            assert got.path.read_bytes() == CONTENT
        assert proxy.connections >= 3
    finally:
        proxy.close()


def test_gives_up_on_a_server_that_always_breaks(s3_server, tmp_path):
    proxy = BreakingProxy(s3_server, breaks=1000, after=0)
    url = "s3://videos/set/a/1.mp4"
    try:
        with (
            pytest.raises(SourceUnavailableError, match="after 5 tries"),
            fetch(url, tmp_path, len(CONTENT), md5(), proxy.url, backoff_s=0.01),
        ):
            pass
        assert list(tmp_path.iterdir()) == []
    finally:
        proxy.close()
