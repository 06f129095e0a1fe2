"""Training whose checkpoints lie on a store that fails: the same weights, or the reason why not."""

import signal
import subprocess
from pathlib import Path

import pytest
from ray_training_case import GEAR_DIST, Case, make_case
from training_case import differences, newest_state

from fault_proxy import Rule, fault_proxy
from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.runs.run_folder import RunFolder

SPOILED_SHARE = 0.15
SHORT = ("run.launcher=local", "run.workers=1", "log.every_steps=1", "checkpoint.every_steps=2")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(autouse=True)
def credentials(object_store: StoreEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """For this process, which looks at what lies there."""
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def straight(case: Case, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run with its checkpoints in its folder, undisturbed."""
    root = tmp_path_factory.mktemp("straight")
    words = ["train", str(case.config), *case.settings(root), *SHORT]
    done = subprocess.run(
        [*GEAR_DIST, *words], env=case.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return RunFolder(next(path for path in root.iterdir() if path.is_dir()))


def start(
    case: Case, root: Path, store: StoreEndpoint, endpoint: str, *words: str
) -> subprocess.Popen[str]:
    address = f"s3://gear-tests-faulty-store/{root.name}"
    settings = [f"data.endpoint={endpoint}", f"checkpoint.address={address}", *words]
    command = [*GEAR_DIST, "train", str(case.config), *case.settings(root), *SHORT, *settings]
    environment = case.environment | store.environment()
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run_folder(root: Path) -> RunFolder:
    return RunFolder(next(path for path in root.iterdir() if path.is_dir()))


def assert_same_weights(ours: RunFolder, theirs: RunFolder) -> None:
    found, wanted = newest_state(ours.read_config()), newest_state(theirs.read_config())
    assert found["step"] == wanted["step"]
    assert differences(found["tensors"], wanted["tensors"]) == []


@pytest.mark.slow  # seven starts of a training
def test_spoiled_requests_and_a_kill_change_nothing(
    case: Case, straight: RunFolder, object_store: StoreEndpoint, tmp_path: Path
) -> None:
    with fault_proxy(object_store.endpoint, SPOILED_SHARE, seed=1, writes=True) as (url, proxy):
        process = start(case, tmp_path, object_store, url)
        assert process.stdout is not None
        for line in process.stdout:
            if "checkpoint s3://" in line and "step-00000006" in line:
                process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process = start(case, tmp_path, object_store, url)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert sum(count for name, count in proxy.done.items() if "none" not in name) > 5
        proxy.share = 0
        assert_same_weights(run_folder(tmp_path), straight)


@pytest.mark.slow  # as above
def test_a_store_that_refuses_ends_the_run_and_costs_no_checkpoint(
    case: Case, straight: RunFolder, object_store: StoreEndpoint, tmp_path: Path
) -> None:
    with fault_proxy(object_store.endpoint, 0) as (url, proxy):
        # From the fourth checkpoint on nothing is taken.
        proxy.rules.append(Rule("PUT POST", r"step-0000000[89]|step-000000[12]", "403"))
        process = start(case, tmp_path, object_store, url, "checkpoint.max_failed_saves=2")
        _, errors = process.communicate()
        assert process.returncode == 5, errors
        assert "checkpoint.max_failed_saves" in errors
        folder = run_folder(tmp_path)
        assert newest_state(folder.read_config())["step"] == 6
        status = folder.read_status()
        assert status is not None
        assert (status.state, status.exit_code) == ("failed", 5)
        # Resuming from a store that cannot be read is no new run.
        proxy.rules[:] = [Rule("GET", r"manifest\.json", "403")]
        process = start(case, tmp_path, object_store, url)
        process.communicate()
        assert process.returncode in (3, 5)
        proxy.rules.clear()
        assert newest_state(folder.read_config())["step"] == 6
        process = start(case, tmp_path, object_store, url)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert_same_weights(folder, straight)
