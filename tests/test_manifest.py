"""Manifests: nothing is loaded that is not what its manifest says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from streamer.errors import ManifestError
from streamer.manifest import read_manifest, sha256_of

NETWORK = b"a network"


def write(folder: Path, **changes: Any) -> Path:
    """A network with its manifest, some fields changed."""
    (folder / "net.onnx").write_bytes(NETWORK)
    fields: dict[str, Any] = {
        "name": "net",
        "kind": "classifier",
        "architecture": "test",
        "file": "net.onnx",
        "sha256": hashlib.sha256(NETWORK).hexdigest(),
        "input": {"layout": "NCHW", "height": 2, "width": 2, "mean": [0, 0, 0], "std": [1, 1, 1]},
        "outputs": ["logit"],
        "trained": False,
        "licence": "Apache-2.0",
        "origin": "this test",
        "measured": "nothing",
    }
    path = folder / "net.json"
    path.write_text(json.dumps(fields | changes))
    return path


def test_good(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path))
    assert manifest.name == "net"
    assert not manifest.trained
    assert manifest.calibration.temperature == 1
    assert manifest.path(tmp_path) == tmp_path / "net.onnx"


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"absent\.json: cannot read the manifest: No such file"):
        read_manifest(tmp_path / "absent.json")


def test_what_is_there_in_its_place(tmp_path: Path) -> None:
    write(tmp_path).rename(tmp_path / "mobilenet_v2.json")
    with pytest.raises(ManifestError, match=r"No such file or directory; did you mean mobilenet_v2\?"):
        read_manifest(tmp_path / "mobilenet_v3.json")
    with pytest.raises(ManifestError, match=r"; \S+ has no network of that name"):
        read_manifest(tmp_path / "xyz.json")
    with pytest.raises(
        ManifestError, match=r"; nor is \S+/none a folder: set classify\.engines to the folder"
    ):
        read_manifest(tmp_path / "none" / "mobilenet_v2.json")


@pytest.mark.parametrize("flip", range(len(NETWORK)))
def test_any_changed_byte_is_refused(tmp_path: Path, flip: int) -> None:
    path = write(tmp_path)
    damaged = bytearray(NETWORK)
    damaged[flip] ^= 1
    (tmp_path / "net.onnx").write_bytes(damaged)
    with pytest.raises(ManifestError, match=r"net\.onnx: SHA-256 is .* changed or damaged"):
        read_manifest(path)


def test_network_missing(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(ManifestError, match=r"net\.onnx: missing.*restore it"):
        read_manifest(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "oracle"},
        {"sha256": "abc"},
        {"surprise": 1},
        {"calibration": {"temperature": 0}},
        {"input": {"layout": "NCHW", "height": 0, "width": 2, "mean": [0, 0, 0], "std": [1, 1, 1]}},
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(write(tmp_path, **changes))
    assert "net.json: not a valid manifest" in str(caught.value)
    assert next(iter(changes)) in str(caught.value)


@pytest.mark.parametrize("file", ["../net.onnx", "/etc/passwd", "sub/net.onnx"])
def test_network_must_lie_beside_its_manifest(tmp_path: Path, file: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "net.onnx").write_bytes(NETWORK)
    with pytest.raises(ManifestError, match="plain file name"):
        read_manifest(write(inner, file=file))


def test_not_json(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    path.write_text("{")
    with pytest.raises(ManifestError, match="not a valid manifest"):
        read_manifest(path)
