import hashlib
from pathlib import Path

from data_specs.files import sha256_of


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"x").hexdigest()
