"""What a file says about itself survives, and files of others or of the future are handled."""

import pytest
import torch

from gcfg.nulltext.formats.checkpoint import CheckpointError
from gcfg.nulltext.formats.provenance import Provenance, architecture_hash, fingerprint


def test_round_trip():
    stated = Provenance("SD15", "abc", "def", "converted", {"mid": 0.25, "up": 0.75}, "500 pictures")
    metadata = stated.to_metadata("null_text")
    assert all(isinstance(value, str) for value in metadata.values())
    assert metadata["gcfg.kind"] == "null_text" and metadata["gcfg.format_version"] == "1"
    assert Provenance.from_metadata(metadata) == stated
    assert stated.mean_residual == 0.5


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"gcfg.residual": "no json"}, {"gcfg.residual": "[1]"},
                                      {"gcfg.residual": '{"a": "b"}'}])
def test_files_of_others(metadata):
    assert Provenance.from_metadata(metadata) == Provenance()
    assert Provenance().mean_residual is None


@pytest.mark.parametrize("version", ["2", "10", "1.5", "x", "-1"])
def test_newer_formats_are_refused(version):
    with pytest.raises(CheckpointError, match="update the pack"):
        Provenance.from_metadata({"gcfg.format_version": version}, "file")


def test_hash_depends_on_names_and_shapes_only():
    assert architecture_hash({"a": (1, 2), "b": (3,)}) == architecture_hash({"b": (3,), "a": torch.Size((1, 2))})
    assert architecture_hash({"a": (1, 2)}) != architecture_hash({"a": (2, 1)})


def test_fingerprint_sees_training_and_not_the_type():
    weights = {"a": torch.randn(100, 100).half().float(), "b": torch.randn(5).half().float()}
    same = {key: weights[key].half() for key in ("b", "a")}
    assert fingerprint(weights) == fingerprint(same)
    trained = {key: value + 1e-2 for key, value in weights.items()}
    assert fingerprint(weights) != fingerprint(trained)
