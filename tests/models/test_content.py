"""Files known by their content, and read once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from fastdiff.models import content
from fastdiff.models.content import content_hash, weight_bytes


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read to be hashed, in a cache folder that only this test has."""
    found: list[Path] = []
    plain = content.sha256_of

    def counted(path: Path) -> str:
        found.append(path)
        return plain(path)

    monkeypatch.setattr(content, "sha256_of", counted)
    monkeypatch.setenv("FASTDIFF_CACHE_DIR", str(tmp_path / "cache"))
    return found


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"weights")
    return file


def test_a_file_is_read_once_and_known_by_its_link(read: list[Path], weights: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    link = weights.with_name("link")
    link.symlink_to(weights)
    assert [content_hash(weights), content_hash(weights), content_hash(link)] == [digest] * 3
    assert read == [weights]


def test_a_new_size_or_time_is_read_again(read: list[Path], weights: Path) -> None:
    first = content_hash(weights)
    state = weights.stat()
    weights.write_bytes(b"longer weights")
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert content_hash(weights) != first
    weights.write_bytes(b"other! weights")
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert content_hash(weights) == hashlib.sha256(b"other! weights").hexdigest()
    assert len(read) == 3


@pytest.mark.parametrize("kept", [b"\xff\xfe", b"{", b"[1]"])
def test_what_cant_be_read_of_earlier_is_made_anew(
    read: list[Path], weights: Path, tmp_path: Path, kept: bytes
) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / "hashes.json").write_bytes(kept)
    first = content_hash(weights)
    assert content_hash(weights) == first
    assert len(read) == 1


def test_what_others_may_have_written_is_not_believed(
    read: list[Path], weights: Path, tmp_path: Path
) -> None:
    digest = content_hash(weights)
    place = tmp_path / "cache" / "hashes.json"
    place.write_text(place.read_text().replace(digest, "0" * 64))
    place.chmod(0o666)
    assert content_hash(weights) == digest
    assert len(read) == 2


def test_without_a_folder_to_keep_it_in_it_is_read_again(
    read: list[Path], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDIFF_CACHE_DIR", str(weights / "below a file"))
    assert content_hash(weights) == content_hash(weights)
    assert len(read) == 2


def test_a_quantized_weight_weighs_what_it_is_made_of() -> None:
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Sequential(torch.nn.Linear(256, 128, bias=False))
    assert weight_bytes(layer[0].weight) == 256 * 128 * 4
    quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
    rows_scales = 128 * 4
    assert 256 * 128 < weight_bytes(layer[0].weight) <= 256 * 128 + 2 * rows_scales
    assert layer[0].weight.nbytes == 256 * 128 * 4  # what the library says of it
