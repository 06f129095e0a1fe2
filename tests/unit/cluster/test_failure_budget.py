"""What the driver decides about failures, room and notices, without a cluster."""

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gear_cluster.ray_train import capacity, stop_policies
from gear_cluster.ray_train.attempt import classify_end
from gear_cluster.ray_train.capacity import (
    WorkerCounts,
    choose_worker_counts,
    count_capacity,
    wait_for_capacity,
)
from gear_cluster.ray_train.coordinator import CoordinatorState, RunCoordinator, WorkerFailure
from gear_cluster.ray_train.driver import train_variables
from gear_cluster.ray_train.failure_budget import LONGEST_BACKOFF_S, FailureBudget, newest_step
from gear_cluster.ray_train.failure_report import (
    LogEnds,
    describe_crash,
    find_dead_worker,
    is_preempted,
)
from gear_cluster.ray_train.stop_policies import GrowthPolicy, PreemptionPolicy, StopRequest
from gear_dist.config.loading import load_config
from gear_dist.config.run import CheckpointConfig, RunSection
from gear_dist.distributed.worker_context import TrainResult
from gear_dist.errors import ConfigError, DataError
from gear_dist.runs.run_folder import RunFolder
from refusals import refused

RUNNING = CoordinatorState([], None, None, {0: "a", 1: "b"}, "")


def test_failures_are_counted_from_the_last_progress() -> None:
    budget = FailureBudget(2)
    assert [budget.spend(step) for step in (0, 0)] == [True, True]
    assert budget.spend(10)
    assert budget.failures == 1
    assert [budget.spend(step) for step in (10, 10)] == [True, False]
    assert not FailureBudget(0).spend(100)


def test_backoff_doubles_up_to_a_limit_with_jitter() -> None:
    budget = FailureBudget(100, draw=lambda: 0.0)
    waits = []
    for _ in range(8):
        budget.spend(0)
        waits.append(budget.backoff_s())
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]
    hasty = FailureBudget(9, draw=lambda: 1.0)
    hasty.failures = 9
    assert hasty.backoff_s() == LONGEST_BACKOFF_S / 2


def test_newest_step_is_the_published_one(tmp_path: Path) -> None:
    run, checkpoint = RunSection(root=str(tmp_path)), CheckpointConfig()
    assert newest_step(run, checkpoint, "") == 0
    pointer = RunFolder(run.folder).checkpoints / "latest.json"
    pointer.parent.mkdir(parents=True)
    pointer.write_text('{"folder": "step-7", "step": 7}')
    assert newest_step(run, checkpoint, "") == 7
    pointer.write_text("{torn")
    assert newest_step(run, checkpoint, "") == 0
    elsewhere = CheckpointConfig(address=f"{tmp_path}/other")
    assert newest_step(run, elsewhere, "") == 0


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Free resources by node, and the nodes that drain, of a cluster that is not there."""
    from ray._private import state

    free: dict[str, dict[str, float]] = {}
    draining: dict[str, int] = {}
    monkeypatch.setattr(state, "available_resources_per_node", lambda: free)
    monkeypatch.setattr(state.state, "get_draining_nodes", lambda: draining)
    return free, draining


def test_room_is_whole_workers_on_nodes_that_stay(nodes) -> None:
    free, draining = nodes
    free |= {"a": {"CPU": 2.5, "memory": 9.0}, "b": {"CPU": 4.0}, "c": {"memory": 1.0}}
    assert count_capacity({"CPU": 1.0}) == 6
    draining["b"] = 0
    assert count_capacity({"CPU": 1.0}) == 2
    assert count_capacity({"GPU": 1.0}) == 0


def test_the_most_that_fits_is_started(nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    free, _ = nodes
    monkeypatch.setattr(capacity, "SETTLE_S", 0.0)
    sizes = WorkerCounts((2, 4, 8), use_gpu=False)
    free["a"] = {"CPU": 7.0}
    assert wait_for_capacity(sizes, threading.Event()) == 4
    free["a"] = {"CPU": 64.0}
    assert wait_for_capacity(sizes, threading.Event()) == 8
    stopped = threading.Event()
    stopped.set()
    assert wait_for_capacity(sizes, stopped) == 0


def test_sizes_are_those_that_divide_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0})

    def sizes(*words: str) -> WorkerCounts:
        config = load_config(None, ["engine.global_batch=12", *words])
        return choose_worker_counts(config.run, config.engine)

    assert sizes("run.workers=6", "run.min_workers=2").allowed == (2, 3, 4, 6)
    assert sizes("run.workers=6").allowed == (6,)
    assert sizes().allowed == (2,)
    with refused(ConfigError, "engine.global_batch=12", "engine.accumulation", "5 x 1"):
        sizes("run.workers=5", "run.min_workers=1")
    with refused(ConfigError, "run.min_workers=3", "2 workers", "run.workers=0"):
        sizes("run.min_workers=3")
    with refused(ConfigError, "run.min_workers=3", "run.workers=2"):
        sizes("run.workers=2", "run.min_workers=3")


def test_by_default_there_is_a_worker_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def sizes(**resources: float) -> WorkerCounts:
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        config = load_config(None, ["engine.global_batch=24"])
        return choose_worker_counts(config.run, config.engine)

    assert sizes(CPU=64.0, GPU=3.0) == ((3,), True)
    assert sizes(CPU=64.0) == ((2,), False)


def test_draining_nodes_of_the_run_are_a_reason_to_stop(
    nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_policies, "DRAIN_POLL_S", 0.0)
    _, draining = nodes
    adviser = PreemptionPolicy("head", grace_s=9.0)
    draining["elsewhere"] = 0
    assert adviser.check(RUNNING) is None
    draining["b"] = 0
    ask = adviser.check(RUNNING)
    assert ask is not None
    assert (ask.cause, ask.grace_s) == ("preemption", 9.0)
    assert ask.reason == "the node of worker 1 is draining"
    draining["head"] = 0
    ask = adviser.check(RUNNING)
    assert ask is not None
    assert ask.cause == "signal"
    ask = adviser.check(RUNNING._replace(notice="worker 0 was sent SIGTERM"))
    assert ask is not None
    assert (ask.cause, ask.reason) == ("preemption", "worker 0 was sent SIGTERM")


def test_room_must_be_seen_twice_to_grow(nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_policies, "GROWTH_POLL_S", 0.0)
    free, _ = nodes
    sizes = WorkerCounts((2, 4), use_gpu=False)
    adviser = GrowthPolicy(sizes, 2, grace_s=9.0)
    free["a"] = {"CPU": 1.0}
    assert [adviser.check(RUNNING) for _ in range(3)] == [None] * 3
    free["a"] = {"CPU": 2.0}
    assert adviser.check(RUNNING._replace(nodes={0: "a"})) is None
    assert adviser.check(RUNNING) is None
    ask = adviser.check(RUNNING)
    assert ask is not None
    assert (ask.cause, ask.reason) == ("growth", "capacity for 4 workers is available")
    full = GrowthPolicy(sizes, 4, grace_s=9.0)
    assert [full.check(RUNNING) for _ in range(3)] == [None] * 3


class FailedError(Exception):
    """As Ray Train's WorkerGroupError."""

    def __init__(self, **failures: Exception) -> None:
        super().__init__("first\nlast")
        self.worker_failures = {int(rank[1:]): failure for rank, failure in failures.items()}


def died(cause: str, *, preempted: bool = False) -> Exception:
    """As Ray Train's WorkerHealthCheckFailedError."""
    error, inner = Exception("health"), Exception(cause)
    error.health_check_failure = inner  # type: ignore[attr-defined]
    inner.preempted = preempted  # type: ignore[attr-defined]
    return error


def test_silent_death_is_told_from_an_error() -> None:
    lost = RuntimeError("connection closed")
    memory = died("node was running low on memory")
    assert find_dead_worker(FailedError(r0=lost, r1=memory)) == (
        1,
        "Ray ended it because memory ran out",
    )
    node = died("The actor died because its node has died. Node Id: 7")
    assert find_dead_worker(FailedError(r0=node)) == (0, "its node is lost")
    assert find_dead_worker(FailedError(r0=lost)) is None
    assert is_preempted(FailedError(r0=lost, r1=died("", preempted=True)))
    assert not is_preempted(FailedError(r0=lost, r1=died("")))


def test_a_crash_is_told_by_its_likeliest_cause(tmp_path: Path) -> None:
    old = tmp_path / "worker-0.log"
    old.write_text("Timeout (0:10:00)!\nThread 1\n")
    logs = LogEnds(tmp_path)
    killed = FailedError(r1=died("SIGKILL"))
    gloo = WorkerFailure(0, "RuntimeError: [gloo/transport/tcp] reset", "log", None)
    bug = WorkerFailure(0, "KeyError: 'a'", str(tmp_path / "worker-0.log"), None)

    def told(error: Exception, failure: WorkerFailure | None) -> str:
        return str(describe_crash(error, failure, 2, logs))

    assert told(killed, gloo).startswith("worker 1 of 2 died: its process is gone")
    assert told(FailedError(), gloo).startswith("worker 0 of 2 lost another: its process or its")
    assert told(FailedError(), bug) == (
        f"worker 0 of 2 crashed: KeyError: 'a'; traceback in {tmp_path}/worker-0.log"
    )
    assert told(FailedError(), None) == f"Ray Train failed: last; logs in {tmp_path}"
    (tmp_path / "worker-1.log").write_text("Timeout (0:00:06)!\nThread 1\n")
    assert told(killed, gloo).startswith("worker 1 of 2 made no step within run.hang_timeout_s")


def test_an_attempt_is_judged_by_who_asked_and_who_died(tmp_path: Path) -> None:
    logs = LogEnds(tmp_path)
    stopped = RUNNING._replace(result=TrainResult("interrupted", 5, "asked to stop"))
    done = RUNNING._replace(result=TrainResult("done", 9))
    drained = StopRequest("preemption", "the node is to go", 9.0)
    room = StopRequest("growth", "there is room", 9.0)

    def kind(
        state: CoordinatorState, asked: StopRequest | None, error: Exception | None = None
    ) -> str:
        return classify_end(state, asked, error, 2, logs).kind

    assert [kind(done, asked) for asked in (None, drained, room)] == ["finished"] * 3
    assert kind(stopped, StopRequest("signal", "SIGTERM", 9.0)) == "finished"
    assert [kind(stopped, asked) for asked in (drained, room)] == ["restart"] * 2
    noticed = RUNNING._replace(notice="worker 1 was sent SIGTERM")
    assert kind(noticed._replace(result=stopped.result), None) == "restart"
    killed = FailedError(r1=died("SIGKILL"))
    assert [kind(RUNNING, asked, killed) for asked in (None, drained, room)] == [
        "crashed",
        "restart",
        "crashed",
    ]
    assert kind(noticed, None, killed) == "restart"
    # Ray sends SIGTERM before it ends a worker for its memory, which is no preemption.
    assert kind(noticed, None, FailedError(r1=died("running low on memory"))) == "crashed"
    assert kind(RUNNING, None, FailedError(r1=died("", preempted=True))) == "restart"
    data = WorkerFailure(0, "DataError", "log", DataError("shard 3: gone"))
    with refused(DataError) as caught:
        classify_end(RUNNING._replace(failure=data), drained, FailedError(), 2, logs)
    assert str(caught.value) == "shard 3: gone"
    assert kind(RUNNING._replace(failure=data), None, killed) == "crashed"


def test_hang_watch_ends_a_process_with_its_stacks() -> None:
    program = (
        "import time\n"
        "from gear_dist.distributed.hang_watchdog import HangWatchdog\n"
        "with HangWatchdog(1.0) as watch:\n"
        "    for _ in range(4): time.sleep(0.5); watch.beat()\n"
        "print('alive', flush=True)\n"
        "with HangWatchdog(0.0): time.sleep(0.1)\n"
        "def stuck(): time.sleep(60)\n"
        "with HangWatchdog(0.2): stuck()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    assert done.returncode == 1
    assert done.stdout == b"alive\n"
    assert done.stderr.startswith(b"Timeout (")
    assert b"in stuck" in done.stderr


def test_status_keeps_what_the_launcher_knows(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_status("running", 1, 9)
    folder.write_status("restarting", 1, 9, attempt=2, last_failure="worker 1 of 2 died")
    folder.write_status("running", 4, 9)
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.step, status.attempt) == ("running", 4, 2)
    assert json.loads(folder.status_path.read_text())["last_failure"] == "worker 1 of 2 died"


def test_ray_train_has_our_patience_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    variables = train_variables(600)
    assert variables["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
    assert variables["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] == "600"


def test_a_sigterm_that_follows_a_failure_is_no_preemption() -> None:
    async def notices(*, failed_before: bool) -> str:
        coordinator = RunCoordinator()
        if failed_before:
            await coordinator.fail(WorkerFailure(0, "RuntimeError: lost", "log", None))
        await coordinator.give_notice("worker 0 was sent SIGTERM")
        if not failed_before:
            await coordinator.fail(WorkerFailure(0, "RuntimeError: lost", "log", None))
        return (await coordinator.poll()).notice

    assert asyncio.run(notices(failed_before=False)) == "worker 0 was sent SIGTERM"
    assert asyncio.run(notices(failed_before=True)) == ""
