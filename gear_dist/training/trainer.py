"""The worker: builds a run's parts, and runs its stages step by step.

The same function runs in one process, under torchrun and under Ray (see gear_cluster.launch).
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from gear_dist.checkpoints.manager import CheckpointManager
from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.resume import fit_workers, open_manager, open_resumed
from gear_dist.checkpoints.saving import Saver
from gear_dist.checkpoints.shards import TensorShard
from gear_dist.config.loading import to_dict
from gear_dist.config.schema import RunConfig
from gear_dist.data.loader import Batch, ShardLoader, build_loader
from gear_dist.distributed import collectives
from gear_dist.distributed.device import choose_algorithms, choose_device, choose_precision
from gear_dist.distributed.hang_watchdog import HangError, HangWatchdog
from gear_dist.distributed.worker_context import TrainResult, WorkerContext
from gear_dist.errors import ConfigError, NumericError
from gear_dist.inference.text_weights import METADATA_KEY as TEXT_ENCODER
from gear_dist.inference.weights import NetworkStates
from gear_dist.runs.run_folder import RunFolder
from gear_dist.training.collapse_monitor import CollapseMonitor
from gear_dist.training.engine import prepare_deepspeed
from gear_dist.training.init_from import check_initial_encoder, load_init_from
from gear_dist.training.lr_schedule import rate_factor
from gear_dist.training.metrics import MetricWindow, Speedometer
from gear_dist.training.nan_guard import NanGuard
from gear_dist.training.networks import Networks, build_modules
from gear_dist.training.recorder import RunRecorder
from gear_dist.training.rng_state import reseed, restore_rng_state, rng_shards
from gear_dist.training.stages import Stage, plan_stages
from gear_dist.training.train_step import TrainStep
from gear_kernels import resolve_cross_entropy, resolve_for


def train_worker(config: RunConfig, context: WorkerContext) -> TrainResult:
    """Train until the last stage's end or a request to stop. Every rank calls it.

    torch.distributed is initialised before. Rank 0 alone writes the run folder.

    Raises:
        UserError: an error the user can fix; rank 0 has recorded it in status.json.
    """
    with open_trainer(config, context) as trainer:
        return trainer.run()


@contextlib.contextmanager
def open_trainer(config: RunConfig, context: WorkerContext) -> Iterator["Trainer"]:
    """A run's trainer at the step it resumes from, closed at the end. Collective.

    Rank 0 records in status.json whatever ends it with an error.
    """
    device = choose_device(config.run.device, context.local_rank)
    recorder = RunRecorder(config, context, device)

    def record_hang() -> None:
        limit = config.run.hang_timeout_s
        text = f"no step within run.hang_timeout_s={limit}; the log has the stacks of all threads"
        recorder.fail(HangError(text))

    # Under Ray the driver knows of a hang and decides whether the run resumes.
    local = config.run.launcher == "local"
    hang = HangWatchdog(config.run.hang_timeout_s, record_hang if local else None)
    with contextlib.ExitStack() as closing:
        try:
            with hang:
                yield _build_trainer(config, context, recorder, hang, closing)
        except BaseException as error:
            recorder.fail(error)
            raise


def _build_trainer(
    requested: RunConfig,
    context: WorkerContext,
    recorder: RunRecorder,
    hang: HangWatchdog,
    closing: contextlib.ExitStack,
) -> "Trainer":
    """Open the run folder, the checkpoints and the data; resume from the newest checkpoint."""
    requested.check_trainable()
    torch.set_num_threads(requested.run.threads)
    choose_algorithms(deterministic=requested.engine.deterministic)
    prepare_deepspeed(recorder.device)
    collectives.on_rank_0(lambda: RunFolder.create(requested.run.folder, requested))
    recorder.take_folder()
    checkpoints = open_manager(requested, hang.beat, lambda line: recorder.say("", line))
    closing.callback(checkpoints.close)
    reader = open_resumed(checkpoints, requested, hang.beat)
    collectives.on_rank_0(lambda: RunFolder(requested.run.folder).write_config(requested))
    engine = fit_workers(requested.run, requested.engine, reader.state if reader else None)
    config = dataclasses.replace(requested, engine=engine)
    loader = open_loader(config, recorder.device)
    closing.callback(loader.close)
    trainer = Trainer(
        requested,
        config,
        context=context,
        recorder=recorder,
        hang=hang,
        checkpoints=checkpoints,
        loader=loader,
        reader=reader,
    )
    closing.callback(lambda: trainer.networks.close())
    trainer.begin(reader)
    return trainer


def open_loader(config: RunConfig, device: torch.device) -> ShardLoader:
    """This worker's part of the training data; for a GPU in page-locked memory."""
    return build_loader(
        config.training_data,
        *config.data.train_addresses,
        batch_size=config.engine.micro_batch(collectives.world_size()),
        rank=collectives.rank(),
        world_size=collectives.world_size(),
        seed=config.run.seed,
        num_classes=config.num_label_classes,
        accumulation=config.engine.accumulation,
        pin_memory=device.type == "cuda",
    )


class Trainer:
    """A run in progress. What must survive a restart is in `state_dict` and `shards`, only there.

    Attributes:
        requested: the configuration as the user gave it.
        config: the same with the accumulation that this number of workers needs.
        networks: of the current stage.
    """

    networks: Networks
    window: MetricWindow
    collapse: CollapseMonitor
    guard: NanGuard
    speed: Speedometer

    def __init__(
        self,
        requested: RunConfig,
        config: RunConfig,
        *,
        context: WorkerContext,
        recorder: RunRecorder,
        hang: HangWatchdog,
        checkpoints: CheckpointManager,
        loader: ShardLoader,
        reader: CheckpointReader | None,
    ):
        """Load the frozen networks, and enter the checkpoint's stage, else the first.

        Args:
            reader: of the checkpoint that the run resumes from; None: it is new. It is closed.
        """
        self.requested = requested
        self.config = config
        self.context = context
        self.recorder = recorder
        self.device = recorder.device
        self.hang = hang
        self.checkpoints = checkpoints
        self.saver = Saver(
            checkpoints,
            self._report,
            config.checkpoint.max_failed_saves,
            recorder.remember_checkpoint,
        )
        self.loader = loader
        self.stages = plan_stages(config.stages)
        self.total_steps = config.stages.total_steps
        self.train_step = TrainStep(config, self.device)
        recorder.conditions = self.train_step.conditions
        self._origin = ""
        self._first = (0, 0)
        self._last_metrics: dict[str, float] = {}
        self._rolled_back = False
        self._start_or_load(reader)

    @property
    def step(self) -> int:
        """Steps done since the run began; stored in the recorder so that failures report it."""
        return self.recorder.step

    @step.setter
    def step(self, step: int) -> None:
        self.recorder.step = step

    def begin(self, reader: CheckpointReader | None) -> None:
        """Open the records at the current step. Collective."""
        self.recorder.open(self._environment())
        self._warn_about_skipped_checkpoints()
        if reader is None:
            return
        self._report(f"resuming from {reader.folder}")
        if self.config.run.resume not in ("auto", self._origin):
            # From now on the same command resumes from here, not from there.
            self._origin = self.config.run.resume
            self.save()

    def _environment(self) -> dict[str, Any]:
        engine = self.config.engine
        return {
            "device": str(self.device),
            "world_size": collectives.world_size(),
            "accumulation": engine.accumulation,
            "precision": choose_precision(engine.precision, self.device),
            "zero_stage": engine.zero_stage,
            "kernels": resolve_for(
                engine.kernels,
                torch.empty(0, device=self.device),
                code_width=self.config.tokenizer.code_width,
            ),
            "vocabulary_loss": resolve_cross_entropy(
                engine.kernels, torch.empty(0, device=self.device)
            ),
            "launcher": self.config.run.launcher,
            "data": self.loader.corpora[0].manifest.info._asdict(),
            "order": self.loader.describe(),
        }

    # -- stages -----------------------------------------------------------------------------

    def _stage_at(self, step: int) -> Stage:
        return next(stage for stage in self.stages if step < stage.end or stage is self.stages[-1])

    def _build_networks(self, stage: Stage, states: NetworkStates) -> Networks:
        """Networks of a stage, seeded alike on all ranks; dropouts differ by rank after."""
        torch.manual_seed(self.config.run.seed)
        teacher_widths = tuple(teacher.width for teacher in self.train_step.teachers)
        networks = Networks(
            stage.name,
            build_modules(self.config, teacher_widths),
            states,
            engine=self.config.engine,
            optimizer=self.config.optimizer,
            world_size=collectives.world_size(),
            device=self.device,
        )
        torch.manual_seed(self.config.run.seed + 1 + collectives.rank())
        return networks

    def run(self) -> TrainResult:
        """All stages from the current step on."""
        if self.step < self.total_steps:
            self.recorder.write_status("running")
        batches = iter(self.loader)
        while self.step < self.total_steps:
            stage = self._stage_at(self.step)
            stop = self._step_and_record(stage, batches)
            self.hang.beat()
            if self._must_roll_back(stage):
                self._roll_back()
                batches = iter(self.loader)
            elif self.step == stage.end:
                self._end_stage(stage)
            elif stop:
                self._stop(stage)
            if stop and self.step < self.total_steps:
                return self._finish("interrupted", "asked to stop")
        return self._finish("done", "")

    def _end_stage(self, stage: Stage) -> None:
        """End a stage: build the next stage's networks first, then save the checkpoint."""
        self.collapse.end_stage()
        states = self.networks.averaged_state_dicts()
        self.recorder.publish(states, stage.name)
        following = self._stage_at(self.step)
        if following is not stage:
            self.networks.close()
            self.networks = self._build_networks(following, states)
        self.save()

    def _stop(self, stage: Stage) -> None:
        """Save the checkpoint first, the grace period may be short; then the weights for users."""
        self._log(stage)
        self.saver.wait()
        if self._may_checkpoint() and self.saver.published_step != self.step:
            self.save()
            self.saver.wait()
        self.recorder.publish(self.networks.averaged_state_dicts(), stage.name)

    # -- one step ---------------------------------------------------------------------------

    def _step_and_record(self, stage: Stage, batches: Iterator[Batch]) -> bool:
        """One step with its records. Returns: whether any rank was asked to stop."""
        stop = self.run_step(stage, batches)
        if dtypes := self.networks.take_compute_dtypes():
            self.recorder.add_compute_dtypes(dtypes)
        self.step += 1
        self.speed.count_step()
        self.saver.report()
        log, inside = self.config.log, self.step < stage.end
        # A checkpoint logs first, so that the records of a run do not depend on where it is cut.
        due = self._is_due(self.config.checkpoint.every_steps) and inside
        if self._is_due(log.every_steps) or due or not inside:
            self._log(stage)
        if due and self._may_checkpoint():
            self.save()
        if self._is_due(log.grid_every_steps) and inside:
            self.recorder.publish(self.networks.averaged_state_dicts(), stage.name)
        return stop

    def run_step(self, stage: Stage, batches: Iterator[Batch]) -> bool:
        """A step, and what it measured. Returns: whether any rank was asked to stop."""
        result = self.train_step.run(
            self.networks,
            stage,
            self.step,
            batches,
            guard=self.guard,
            stop_requested=self.context.stop_requested,
        )
        for metrics, indices in result.micro_batches:
            self.window.add(metrics, indices)
        return result.stop

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    # -- numeric failures -------------------------------------------------------------------

    def _may_checkpoint(self) -> bool:
        """Whether the state may be checkpointed (a checkpoint can evict an older one)."""
        return self.guard.num_consecutive == 0 and not self.collapse.consecutive_signs

    def _must_roll_back(self, stage: Stage) -> bool:
        """Whether too many steps in a row were skipped, or the last ones of a stage."""
        skipped = self.guard.num_consecutive
        return skipped >= self.config.engine.max_skipped_steps or (
            skipped > 0 and self.step == stage.end
        )

    def _roll_back(self) -> None:
        """Resume from the last good checkpoint. Collective.

        Raises:
            NumericError: there is none, or that was done before.
        """
        self.saver.wait()
        steps = f"{self.guard.num_consecutive} consecutive steps up to step {self.step}"
        what = f"{self.guard.last_nonfinite} not finite in {steps}"
        reader = None if self._rolled_back else self.checkpoints.open_newest()
        if reader is None:
            why = "again after one rollback" if self._rolled_back else "before a checkpoint"
            raise NumericError(
                f"{what}, {why}: lower optimizer.*_lr, raise optimizer.warmup_steps, or try "
                "engine.precision=fp32; the saved checkpoints predate the failure"
            )
        self._rolled_back = True
        skipped = self.guard.num_skipped
        self.networks.close()
        self._start_or_load(reader)
        self.guard.num_skipped = skipped
        self.recorder.rewind()
        self._warn_about_skipped_checkpoints()
        self._report(f"WARNING: {what}: back to {reader.folder}")

    # -- records ----------------------------------------------------------------------------

    def _log(self, stage: Stage) -> None:
        """One record of the steps since the last. Collective."""
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
            "skipped_steps": self.guard.num_skipped,
            "epoch": self.loader.state_dict()["epoch"],
            **self.saver.take_record(),
        }
        speed = self.speed.read(self.total_steps - self.step)
        self.recorder.record(stage.name, {**speed, **means, **rates, **counts})
        for warning in self.collapse.check(means):
            self._report(f"WARNING: {warning}")

    def _warn_about_skipped_checkpoints(self) -> None:
        for problem in self.checkpoints.skipped_checkpoints:
            self._report(f"WARNING: skipping a checkpoint: {problem}")

    def _report(self, message: str) -> None:
        self.recorder.say(self._stage_at(self.step).name, message)

    def _finish(self, state: Any, reason: str) -> TrainResult:
        """The end of this part of the run.

        Raises:
            StorageError: the last checkpoint could not be written.
        """
        self.saver.check_last()
        self.recorder.finish(state, reason)
        return TrainResult(state, self.step, reason)

    # -- what survives ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors; plain data, alike on all ranks."""
        return {
            "stage": self._stage_at(self.step).name,
            "workers": collectives.world_size(),
            "first_workers": self._first[0],
            "first_micro_batch": self._first[1],
            "origin": self._origin,
            "elapsed_s": self.speed.elapsed_s,
            "skipped_steps": self.guard.num_skipped,
            "window": self.window.state_dict(),
            "watchdog": self.collapse.state_dict(),
            "loader": self.loader.state_dict(),
            "networks": self.networks.state_dict(),
            "metrics": self._last_metrics,
            "config": to_dict(self.requested),
            TEXT_ENCODER: self.train_step.conditions.fingerprint,
        }

    def shards(self) -> Iterator[TensorShard]:
        """This rank's share of a checkpoint's tensors."""
        yield from self.networks.shards()
        yield from rng_shards(self.device)
        yield from self.window.shards()

    def _start_or_load(self, reader: CheckpointReader | None) -> None:
        """Enter a stage: the checkpoint's, or the first one of a new run."""
        engine = self.config.engine
        num_codes = self.config.tokenizer.codebook_size
        window_tokens = self.config.log.usage_window_tokens
        self.window = MetricWindow(num_codes, window_tokens, self.device)
        self.collapse = CollapseMonitor(
            self.config.collapse, window_tokens=window_tokens, num_codes=num_codes
        )
        if reader is None:
            self._first = (collectives.world_size(), engine.micro_batch(collectives.world_size()))
            self.guard = NanGuard(self.device)
            self.speed = Speedometer(engine.global_batch)
            check_initial_encoder(self.config, self.train_step.conditions)
            self.networks = self._build_networks(self.stages[0], load_init_from(self.config))
            return
        with reader:
            self._load_checkpoint(reader)

    def _load_checkpoint(self, reader: CheckpointReader) -> None:
        state = reader.state
        # An earlier version did not write it.
        self.train_step.conditions.check(state.get(TEXT_ENCODER), reader.folder)
        self.step = reader.manifest.step
        self._origin = state["origin"]
        self._first = (state["first_workers"], state["first_micro_batch"])
        self._last_metrics = state["metrics"]
        self.guard = NanGuard(self.device, state["skipped_steps"])
        self.networks = self._build_networks(self._saved_stage(state["stage"]), {})
        self.networks.load_state_dict(state["networks"], reader)
        self.window.load_state_dict(state["window"])
        self.collapse.load_state_dict(state["watchdog"])
        reader.fill(self.window.shards())
        following = self._stage_at(self.step)
        if following.name != state["stage"]:  # a finished run that was given another stage
            states = self.networks.averaged_state_dicts()
            self.networks.close()
            self.networks = self._build_networks(following, states)
        self.loader.load_state_dict(state["loader"])
        self.speed = Speedometer(self.config.engine.global_batch, state["elapsed_s"])
        if state["workers"] == collectives.world_size():
            restore_rng_state(reader, self.device)
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
        self.saver.save(self.step, self.state_dict(), self.shards())
