"""The worker: builds a run's parts, and runs its stages step by step.

The same function runs in one process, under torchrun and under Ray (see gear_cluster.launch).
"""

from collections.abc import Iterator
from typing import Any

import torch

from gear_dist.checkpoints.manager import CheckpointStore
from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.resume import fit_workers, open_resumed, open_store
from gear_dist.checkpoints.saving import Saver
from gear_dist.checkpoints.shards import Piece, whole
from gear_dist.config.loading import to_dict
from gear_dist.config.schema import RunConfig
from gear_dist.data.loader import Batch, ShardLoader, build_loader
from gear_dist.distributed import collectives
from gear_dist.distributed.hang_watchdog import HangError, HangWatch
from gear_dist.distributed.worker_context import Host, Outcome
from gear_dist.errors import ConfigError, NumericError
from gear_dist.inference.weights import NetworkStates
from gear_dist.runs.run_folder import RunFolder
from gear_dist.training.collapse_monitor import Watchdog
from gear_dist.training.engine import prepare_deepspeed, resolve_precision
from gear_dist.training.init_from import load_start
from gear_dist.training.lr_schedule import rate_factor
from gear_dist.training.metrics import MetricWindow, Speedometer
from gear_dist.training.nan_guard import NumericGuard
from gear_dist.training.networks import Networks
from gear_dist.training.recorder import RunRecorder
from gear_dist.training.rng_state import random_pieces, reseed, take_up_random_pieces
from gear_dist.training.stages import Stage, plan_stages
from gear_dist.training.train_step import Stepper
from gear_kernels import resolve, resolve_cross_entropy


def resolve_device(config: RunConfig, local_rank: int) -> torch.device:
    """The device that `run.device` means for a worker."""
    cuda = config.run.device == "cuda" or (
        config.run.device == "auto" and torch.cuda.is_available()
    )
    return torch.device("cuda", local_rank) if cuda else torch.device("cpu")


def train_worker(config: RunConfig, host: Host) -> Outcome:
    """Train until the last stage's end or a request to stop. Every rank calls it.

    torch.distributed is initialised before. Rank 0 alone writes the run folder.

    Raises:
        UserError: what a user can mend; rank 0 has recorded it in status.json.
    """
    trainer = Trainer(config, host)
    try:
        with trainer.hang:
            return trainer.run()
    except BaseException as error:
        trainer.recorder.fail(trainer.step, error)
        raise
    finally:
        trainer.close()


class Trainer:
    """A run in progress. What must survive a restart is in `facts` and `pieces`, and only there.

    Attributes:
        given: the configuration as it was given.
        config: the same with the accumulation that this number of workers needs.
    """

    def __init__(self, config: RunConfig, host: Host):
        self.given = config
        self.config = config
        self.host = host
        self.step = 0
        self.hang = HangWatch(
            config.run.hang_timeout_s,
            # Under Ray the driver knows of it and decides whether the run goes on.
            self._record_hang if config.run.launcher == "local" else None,
        )
        self.networks: Networks | None = None
        self.stages = plan_stages(config.stages)
        self.total_steps = config.stages.total_steps
        self.loader: ShardLoader | None = None
        self.checkpoints: CheckpointStore | None = None
        self.device = resolve_device(config, host.local_rank)
        self.recorder = RunRecorder(config, host, self.device)
        self._origin = ""
        self._first = (0, 0)
        self._last_metrics: dict[str, float] = {}
        self._rolled_back = False

    # -- building ---------------------------------------------------------------------------

    def build(self) -> None:
        """Open the run folder, the data, the teachers; go on from the newest checkpoint."""
        given = self.given
        given.check_trainable()
        torch.set_num_threads(given.run.threads)
        torch.use_deterministic_algorithms(given.engine.deterministic)
        prepare_deepspeed(self.device)
        collectives.on_rank_0(lambda: RunFolder.create(given.run.folder, given))
        self.recorder.take_folder()
        self.checkpoints = open_store(given, self.hang.beat)
        self.saver = Saver(self.checkpoints, self._say, given.checkpoint.max_failed_saves)
        reader = open_resumed(self.checkpoints, given, self.hang.beat)
        self.config = config = fit_workers(given, reader.facts if reader else None)
        self.loader = build_loader(
            config.data,
            *config.data.train_addresses,
            batch_size=config.engine.micro_batch(collectives.world_size()),
            rank=collectives.rank(),
            world_size=collectives.world_size(),
            seed=config.run.seed,
            num_classes=config.num_label_classes,
            accumulation=config.engine.accumulation,
        )
        self.stepper = Stepper(config, self.device)
        self._start(reader)
        self.recorder.open(self.step, self._environment())
        self._tell_passed_over()
        if reader is not None:
            self._say(f"going on from {reader.folder}")
        if reader is not None and config.run.resume not in ("auto", self._origin):
            # From now on the same command goes on from here, not from there.
            self._origin = config.run.resume
            self.save()

    def _environment(self) -> dict[str, Any]:
        assert self.loader is not None
        engine = self.config.engine
        return {
            "device": str(self.device),
            "world_size": collectives.world_size(),
            "accumulation": engine.accumulation,
            "precision": resolve_precision(self.config, self.device),
            "zero_stage": engine.zero_stage,
            "kernels": resolve(engine.kernels, self.device),
            "vocabulary_loss": resolve_cross_entropy(
                engine.kernels, torch.empty(0, device=self.device)
            ),
            "launcher": self.config.run.launcher,
            "data": self.loader.corpora[0].manifest.facts._asdict(),
            "order": self.loader.facts(),
        }

    # -- stages -----------------------------------------------------------------------------

    def _stage_at(self, step: int) -> Stage:
        return next(stage for stage in self.stages if step < stage.end or stage is self.stages[-1])

    def _enter(self, stage: Stage, carried: NetworkStates) -> Networks:
        """Networks of a stage, seeded alike on all ranks; dropouts differ by rank after."""
        torch.manual_seed(self.config.run.seed)
        self.networks = Networks(
            stage.name,
            self.config,
            carried,
            teacher_widths=tuple(teacher.width for teacher in self.stepper.teachers),
            world_size=collectives.world_size(),
            device=self.device,
        )
        torch.manual_seed(self.config.run.seed + 1 + collectives.rank())
        return self.networks

    def run(self) -> Outcome:
        """All stages from the restored step on."""
        self.build()
        assert self.loader is not None
        if self.step < self.total_steps:
            self.recorder.write_status("running", self.step)
        batches = iter(self.loader)
        while self.step < self.total_steps:
            stage = self._stage_at(self.step)
            stop = self._train_step(stage, batches)
            self.hang.beat()
            if self._is_stuck(stage):
                self._roll_back()
                batches = iter(self.loader)
            elif self.step == stage.end:
                self._leave(stage)
            elif stop:
                self._stop(stage)
            if stop and self.step < self.total_steps:
                return self._finish("interrupted", "asked to stop")
        return self._finish("done", "")

    def _leave(self, stage: Stage) -> None:
        """Close a stage, with the next one's networks in place before the checkpoint."""
        assert self.networks is not None
        self.watchdog.end_stage()
        states = self.networks.carry()
        self.recorder.publish(states, self.step, stage.name)
        following = self._stage_at(self.step)
        if following is not stage:
            self.networks.close()
            self.networks = self._enter(following, states)
        self.save()

    def _stop(self, stage: Stage) -> None:
        """Leave a checkpoint first, because who asked may not wait; then weights for users."""
        assert self.networks is not None
        self._log(stage)
        if self._is_sound():
            self.save()
            self.saver.wait()
        self.recorder.publish(self.networks.carry(), self.step, stage.name)

    # -- one step ---------------------------------------------------------------------------

    def _train_step(self, stage: Stage, batches: Iterator[Batch]) -> bool:
        """One step with its records. Returns: whether any rank was asked to stop."""
        assert self.networks is not None
        stop = self.move(stage, batches)
        self.step += 1
        self.speed.count_step()
        self.saver.report()
        log, inside = self.config.log, self.step < stage.end
        # A checkpoint logs first, so that the records of a run do not depend on where it is cut.
        due = self._is_due(self.config.checkpoint.every_steps) and inside
        if self._is_due(log.every_steps) or due or not inside:
            self._log(stage)
        if due and self._is_sound():
            self.save()
        if self._is_due(log.grid_every_steps) and inside:
            self.recorder.publish(self.networks.carry(), self.step, stage.name)
        return stop

    def move(self, stage: Stage, batches: Iterator[Batch]) -> bool:
        """A step, and what it measured. Returns: whether any rank was asked to stop."""
        assert self.networks is not None
        moved = self.stepper.move(
            self.networks,
            stage,
            self.step,
            batches,
            guard=self.guard,
            stop_requested=self.host.stop_requested,
        )
        for metrics, indices in moved.found:
            self.window.add(metrics, indices)
        return moved.stop

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    # -- numeric failures -------------------------------------------------------------------

    def _is_sound(self) -> bool:
        """Whether the state is worth a checkpoint, which may push out an older one."""
        return self.guard.in_a_row == 0 and not self.watchdog.troubles

    def _is_stuck(self, stage: Stage) -> bool:
        """Whether too many steps in a row were skipped, or the last ones of a stage."""
        skipped = self.guard.in_a_row
        return skipped >= self.config.engine.max_skipped_steps or (
            skipped > 0 and self.step == stage.end
        )

    def _roll_back(self) -> None:
        """Go on from the last good checkpoint. Collective.

        Raises:
            NumericError: there is none, or that was done before.
        """
        assert self.networks is not None
        self.saver.wait()
        what = f"{self.guard.last_bad} not finite in {self.guard.in_a_row} steps to {self.step}"
        assert self.checkpoints is not None
        reader = None if self._rolled_back else self.checkpoints.open_newest()
        if reader is None:
            why = "again after going back once" if self._rolled_back else "before a checkpoint"
            raise NumericError(
                f"{what}, {why}: lower optimizer.*_lr, raise optimizer.warmup_steps, or try "
                "engine.precision=fp32; what was saved is from before"
            )
        self._rolled_back = True
        skipped = self.guard.skipped
        self.networks.close()
        self._start(reader)
        self.guard.skipped = skipped
        self.recorder.rewind(self.step)
        self._tell_passed_over()
        self._say(f"WARNING: {what}: back to {reader.folder}")

    # -- records ----------------------------------------------------------------------------

    def _log(self, stage: Stage) -> None:
        """One record of the steps since the last. Collective."""
        assert self.networks is not None
        assert self.loader is not None
        engines = self.networks.engines
        norms = {f"grad_norm_{name}": engine.grad_norm for name, engine in engines.items()}
        means = self.window.flush(norms)
        if bad_samples := self.loader.bad_samples.take_names():
            RunFolder(self.config.run.folder).append_bad_samples(bad_samples)
        if not means:
            return
        self._last_metrics = means
        factor = rate_factor(self.config.optimizer, stage, self.step - 1)
        rates = {
            f"learning_rate_{name}": self.networks.learning_rate(name) * factor for name in engines
        }
        counts = {
            "skipped_steps": self.guard.skipped,
            "epoch": self.loader.state_dict()["epoch"],
            **self.saver.take_record(),
        }
        speed = self.speed.read(self.total_steps - self.step)
        self.recorder.record(self.step, stage.name, {**speed, **means, **rates, **counts})
        for warning in self.watchdog.judge(means):
            self._say(f"WARNING: {warning}")

    def _tell_passed_over(self) -> None:
        assert self.checkpoints is not None
        for problem in self.checkpoints.passed_over:
            self._say(f"WARNING: a checkpoint is passed over: {problem}")

    def _record_hang(self) -> None:
        limit = self.given.run.hang_timeout_s
        text = f"no step within run.hang_timeout_s={limit}; the log has the stacks of all threads"
        self.recorder.fail(self.step, HangError(text))

    def _say(self, message: str) -> None:
        self.recorder.say(self.step, self._stage_at(self.step).name, message)

    def _finish(self, state: Any, reason: str) -> Outcome:
        """The end of this part of the run.

        Raises:
            StorageError: the last checkpoint could not be written.
        """
        self.saver.check_last()
        self.recorder.finish(state, self.step, reason)
        return Outcome(state, self.step, reason)

    # -- what survives ----------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors; plain data, alike on all ranks."""
        assert self.networks is not None
        assert self.loader is not None
        return {
            "stage": self._stage_at(self.step).name,
            "workers": collectives.world_size(),
            "first_workers": self._first[0],
            "first_micro_batch": self._first[1],
            "origin": self._origin,
            "elapsed_s": self.speed.elapsed_s,
            "skipped_steps": self.guard.skipped,
            "window": self.window.facts(),
            "watchdog": self.watchdog.facts(),
            "loader": self.loader.state_dict(),
            "networks": self.networks.facts(),
            "metrics": self._last_metrics,
            "config": to_dict(self.given),
        }

    def pieces(self) -> Iterator[Piece]:
        """This rank's share of a checkpoint's tensors."""
        assert self.networks is not None
        yield from self.networks.pieces()
        yield from random_pieces(self.device)
        yield from (whole(f"window.{i}", counts) for i, counts in self.window.history())

    def _start(self, reader: CheckpointReader | None) -> None:
        """Enter a stage: the checkpoint's, or the first one of a new run."""
        engine = self.config.engine
        self.window = MetricWindow(
            self.config.tokenizer.codebook_size, self.config.log.usage_window_tokens, self.device
        )
        self.watchdog = Watchdog(self.config)
        if reader is None:
            self._first = (collectives.world_size(), engine.micro_batch(collectives.world_size()))
            self.guard = NumericGuard(self.device)
            self.speed = Speedometer(engine.global_batch)
            self._enter(self.stages[0], load_start(self.config))
            return
        with reader:
            self._restore(reader)

    def _restore(self, reader: CheckpointReader) -> None:
        assert self.loader is not None
        facts = reader.facts
        self.step = reader.manifest.step
        self._origin = facts["origin"]
        self._first = (facts["first_workers"], facts["first_micro_batch"])
        self._last_metrics = facts["metrics"]
        self.guard = NumericGuard(self.device, facts["skipped_steps"])
        networks = self._enter(self._saved_stage(facts["stage"]), {})
        networks.restore(reader)
        self.window.restore(facts["window"])
        self.watchdog.restore(facts["watchdog"])
        reader.fill(whole(f"window.{i}", counts) for i, counts in self.window.history())
        following = self._stage_at(self.step)
        if following.name != facts["stage"]:  # a finished run that was given another stage
            states = networks.carry()
            networks.close()
            self._enter(following, states)
        self.loader.load_state_dict(facts["loader"])
        self.speed = Speedometer(self.config.engine.global_batch, facts["elapsed_s"])
        if facts["workers"] == collectives.world_size():
            take_up_random_pieces(reader, self.device)
        else:
            reseed(self.config.run.seed, self.step)

    def _saved_stage(self, name: str) -> Stage:
        """The stage that a checkpoint's networks belong to.

        Raises:
            ConfigError: the stages' steps no longer put the checkpoint's step into it.
        """
        for stage in self.stages:
            if stage.name == name and stage.start <= self.step <= stage.end:
                return stage
        raise ConfigError(
            f"the checkpoint of step {self.step} is in the {name} stage, and stages.*.steps put "
            "that step elsewhere: restore the earlier stages' steps"
        )

    def save(self) -> None:
        """Publish a checkpoint, or begin to. Collective."""
        self.saver.save(self.step, self.facts(), self.pieces())

    def close(self) -> None:
        """Stop the loader's thread, release the engines, and let go of the checkpoints' place."""
        if self.checkpoints is not None:
            self.checkpoints.close()
        if self.loader is not None:
            self.loader.close()
        if self.networks is not None:
            self.networks.close()
