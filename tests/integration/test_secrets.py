"""The values of secrets in the environment reach nothing that a run writes, prints or publishes."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_training_case import CONFIG

from gear_cluster.demo import object_store

GEAR_DIST = (sys.executable, "-m", "gear_dist")
NAMES = (
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "WANDB_API_KEY",
    "GITHUB_TOKEN",
    "DATABASE_PASSWORD",
    "RAY_AUTH_TOKEN",
    "UNRELATED",
)
"""Variables that get a secret value; the last one's name does not tell."""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short temporary folder for Ray, to see what is left in it."""
    with tempfile.TemporaryDirectory(prefix="g-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def find_values(folder: Path, values: dict[str, bytes]) -> list[str]:
    """Which values stand in which files or their names."""
    found = []
    for path in folder.rglob("*"):
        text = os.fsencode(path)
        if path.is_file() and not path.is_symlink():
            text += path.read_bytes()
        found += [f"{name} in {path}" for name, value in values.items() if value in text]
    return found


def test_no_secret_is_written(tmp_path: Path, temporary: Path) -> None:
    store = object_store.ensure_running(tmp_path / "store")
    planted = {name: f"s3cr3t{secrets.token_hex(17)}" for name in NAMES}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "WANDB_"))}
    environment = kept | {
        **store.environment(),
        **planted,
        "AWS_EC2_METADATA_DISABLED": "true",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_memory_monitor_refresh_ms": "0",
        "TMPDIR": str(temporary),
        "WANDB_MODE": "offline",
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "home/cache"),
    }
    work = tmp_path / "work"
    for folder in (work, tmp_path / "home"):
        folder.mkdir()
    (work / "tiny.yaml").write_text(CONFIG)
    said = b""

    def command(*words: str) -> None:
        nonlocal said
        run = subprocess.run(
            [*GEAR_DIST, *words], cwd=work, env=environment, capture_output=True, timeout=400
        )
        said += run.stdout + run.stderr
        assert run.returncode == 0, run.stderr.decode()

    sizes = ("--size", "16", "--train", "64", "--validation", "16", "--workers", "1")
    try:
        command("sample-corpus", "images", *sizes)
        command("shard", "images", "s3://secrets/corpus", "--workers", "1")
        settings = ["data.train=s3://secrets/corpus/train", "checkpoint.address=s3://secrets/runs"]
        settings += [f"data.endpoint={store.endpoint}", "log.wandb=auto", "run.name=first"]
        settings += ["stages.tokenizer.steps=2", "stages.joint.steps=2", "log.every_steps=1"]
        command("train", "tiny.yaml", *settings, "--verbose")
        command("export", "runs/first", "--out", "model")
        command("report", "runs/first")
    finally:
        object_store.stop(tmp_path / "store")
    values = {name: value.encode() for name, value in planted.items()}
    values["AWS_SECRET_ACCESS_KEY"] = store.secret_key.encode()
    assert list((work / "runs/first/wandb").glob("offline-run-*/*.wandb")), "wandb took part"
    assert list((tmp_path / "store/buckets/secrets/runs").rglob("*.safetensors"))
    written = (work, tmp_path / "store/buckets", temporary, tmp_path / "home")
    assert not [line for folder in written for line in find_values(folder, values)]
    assert not [name for name, value in values.items() if value in said]
