"""The environment record names versions and hardware, and keeps secrets out."""

import json
import subprocess
from pathlib import Path

import pytest

from gear_dist import source_tree
from gear_dist.runs import environment
from gear_dist.runs.environment import collect_environment, unseen_gpu


def test_the_record_holds_what_a_reader_needs_to_repeat_a_run():
    command = ["/some/bin/gear-dist", "train", "token_dropout=0.5", "other_token=0.5"]
    record = collect_environment(7, frozenset({"token_dropout"}), {"world_size": 2}, command)
    assert record["versions"]["torch"]
    assert record["versions"]["gear-dist"]
    assert record["seed"] == 7
    assert record["world_size"] == 2
    assert record["hardware"]["cores"] >= 1
    assert record["hardware"]["memory_bytes"] > 0
    assert record["command"] == "gear-dist train token_dropout=0.5 'other_token=***'"
    json.dumps(record)


def test_no_environment_variable_reaches_the_record(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-in-environment")
    record = collect_environment(0, frozenset(), {}, ["gear-dist"])
    assert "s3cr3t" not in json.dumps(record)


def test_git_state_tells_a_clean_checkout_from_a_dirty_one(tmp_path):
    module = tmp_path / "module.py"
    module.write_text("")
    assert environment.git_state(tmp_path) is None, "the folder is no checkout"
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    state = environment.git_state(tmp_path)
    assert len(state["revision"]) == 40
    assert state["dirty"] is False
    module.write_text("changed")
    assert environment.git_state(tmp_path) == {"revision": state["revision"], "dirty": True}


def test_the_checkout_is_where_the_package_is():
    """However deep the module that asks for it."""
    root = Path(__file__).parents[3]
    assert root == source_tree.ROOT
    state = environment.git_state()
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (state["revision"] if state else "") == found.stdout.strip()


def test_memory_stays_within_the_container(monkeypatch):
    files = {
        "/proc/meminfo": ["MemTotal: 1000 kB", "MemAvailable: 900 kB"],
        "/sys/fs/cgroup/memory.max": ["512000"],
        "/sys/fs/cgroup/memory.current": ["112000"],
    }
    monkeypatch.setattr(environment, "_lines", lambda path: files.get(str(path), []))
    assert environment.memory_bytes() == (512000, 400000)
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert environment.memory_bytes() == (1024000, 921600)


@pytest.mark.parametrize(
    ("cuda", "driver", "visible", "problem", "fix"),
    [
        ("13.0", None, None, "", ""),
        ("13.0", "535.161.08", None, "driver 535.161.08", "driver 580"),
        ("13.0", "580.65", None, "driver 580.65", "CUDA_VISIBLE_DEVICES"),
        ("12.8", "470.82", None, "driver 470.82", "driver 525"),
        (None, "580.65", None, "without CUDA", "torch for CUDA"),
        ("13.0", "unknown (it fails)", None, "it fails", "restart"),
        (None, "unknown (it fails)", None, "it fails", "restart"),
        ("13.0", "580.65", "", "", ""),
        ("13.0", "535.1", "-1", "", ""),
    ],
)
def test_a_gpu_that_torch_does_not_see_has_a_reason(cuda, driver, visible, problem, fix):
    found = unseen_gpu(cuda, driver, visible)
    assert problem in found[0]
    assert fix in found[1]
    assert bool(problem) == bool(found[0])


MISMATCH = "Failed to initialize NVML: Driver/library version mismatch"


@pytest.mark.parametrize(
    ("tool", "loaded", "driver"),
    [
        ("echo 580.65.06; echo 580.65.06", True, "580.65.06"),
        (f"echo '{MISMATCH}'; exit 18", True, f"unknown ({MISMATCH})"),
        ("echo 'No devices were found'", True, "unknown (No devices were found)"),
        ("echo '[N/A]'", True, "unknown ([N/A])"),
        ("exit 9", True, "unknown (nvidia-smi says nothing)"),
        ("echo 'has failed'; exit 9", False, None),
        (None, True, "575.57.08"),
        (None, False, None),
    ],
)
def test_a_driver_that_does_not_answer_is_not_none(monkeypatch, tmp_path, tool, loaded, driver):
    version = tmp_path / "version"
    if loaded:
        version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Sat May 24")
    if tool is not None:
        file = tmp_path / "nvidia-smi"
        file.write_text(f"#!/bin/sh\n{tool}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment, "_DRIVER_FILE", version)
    monkeypatch.setattr(environment, "_DEVICE_FILE", tmp_path / "nvidiactl")
    assert environment.gpu_driver() == driver
