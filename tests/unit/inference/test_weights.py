"""Weights files: read by the safetensors library, written without a copy, refused when damaged."""

import resource
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gear_dist.config.schema import RunConfig
from gear_dist.errors import DataError, StorageError
from gear_dist.inference.weights import check_fit, read_weights, write_weights
from refusals import refused


def test_the_library_reads_every_kind_of_tensor_back(tmp_path):
    random = torch.Generator().manual_seed(0)
    state = {
        "wide": torch.randn(3, 5, generator=random, dtype=torch.float64),
        "half": torch.randn(7, generator=random).half(),
        "brain": torch.randn(2, 3, generator=random).bfloat16(),
        "turned": torch.randn(4, 6, generator=random).T,
        "count": torch.tensor(5),
        "bits": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    path = tmp_path / "weights.safetensors"
    write_weights(path, state, {"step": 3, "note": "text"})
    for found in (load_file(path), read_weights(path)):
        assert found.keys() == state.keys()
        for key, value in state.items():
            assert found[key].dtype == value.dtype
            assert found[key].shape == value.shape
            assert torch.equal(found[key], value)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"step": "3", "note": "text", "format": "pt"}
    assert path.stat().st_mode & 0o444 == 0o444 & ~_umask(), "others may read it"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_writing_takes_no_copy_of_the_tensors(tmp_path):
    """64 MB in tensors: the peak of the process grows by less than a quarter of that."""
    program = f"""
import resource, torch
from pathlib import Path
from gear_dist.inference.weights import write_weights
state = {{str(i): torch.ones(1 << 20) for i in range(16)}}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
write_weights(Path({str(tmp_path)!r}) / "big.safetensors", state, {{}})
print(peak() - before)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(found.stdout) < 16 * 1024


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_weights(path, {"a": torch.zeros(2)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with refused(StorageError, path):
            write_weights(path, {"a": torch.zeros(1 << 20)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_weights(path)["a"].shape == (2,)


def test_a_state_of_another_network_is_described(tmp_path):
    state = {"main.0.weight": torch.zeros(3), "other": torch.zeros(1)}
    with pytest.raises(DataError) as caught:
        check_fit("discriminator", state, RunConfig(), "file.pt")
    message = str(caught.value)
    for words in (
        "file.pt: does not fit the discriminator",
        "21 missing (main.0.bias, main.2.weight, main.3.weight, main.3.bias, ...)",
        "1 not expected (other)",
        "1 of another shape (main.0.weight is (3,) and should be (64, 3, 4, 4))",
    ):
        assert words in message, message
