"""The worker: builds a run's parts, and runs its stages step by step.

The same function runs in one process, under torchrun and under Ray (see gear_cluster.launch).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gear_dist import dist
from gear_dist.checkpoint import CheckpointStore
from gear_dist.config import RunConfig
from gear_dist.data.loader import Batch, ShardLoader, build_loader
from gear_dist.engines import prepare_deepspeed, resolve_precision
from gear_dist.environment import collect_environment
from gear_dist.errors import EXIT_INTERRUPTED, ConfigError, UserError
from gear_dist.grids import GridPainter
from gear_dist.host import Host, Outcome, Progress
from gear_dist.losses.perceptual import load_lpips
from gear_dist.metrics import MetricWindow, Speedometer
from gear_dist.metrics_log import MetricsLog, open_metrics_log
from gear_dist.networks import Networks
from gear_dist.pixel_range import to_model_range
from gear_dist.run_folder import RunFolder
from gear_dist.schedule import Stage, plan_stages, rate_factor
from gear_dist.start import load_start
from gear_dist.steps import MicroBatch, train_micro_batch
from gear_dist.storage import open_storage
from gear_dist.teachers import Teacher, load_teacher
from gear_dist.weights import NetworkStates, save_run_weights
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
        return trainer.run()
    except BaseException as error:
        trainer.record_failure(error)
        raise
    finally:
        trainer.close()


class Trainer:
    """A run in progress. What must survive a restart is in `state_dict`, and only there."""

    def __init__(self, config: RunConfig, host: Host):
        self.config = config
        self.host = host
        self.step = 0
        self.networks: Networks | None = None
        self.teachers: list[Teacher] = []
        self.stages = plan_stages(config.stages)
        self.total_steps = config.stages.total_steps
        self.folder = RunFolder(config.run.folder)
        self.log: MetricsLog | None = None
        self.loader: ShardLoader | None = None
        self._owns_folder = False

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run folder and reports."""
        return self.host.rank == 0

    # -- building ---------------------------------------------------------------------------

    def build(self) -> None:
        """Open the run folder, the data, the teacher; restore the newest checkpoint."""
        config = self.config
        config.check_trainable()
        self.device = resolve_device(config, self.host.local_rank)
        torch.set_num_threads(config.run.threads)
        torch.use_deterministic_algorithms(config.engine.deterministic)
        prepare_deepspeed(self.device)
        dist.on_rank_0(lambda: RunFolder.create(config.run.folder, config))
        self._owns_folder = self.is_main
        self.micro_batch = config.engine.micro_batch(dist.world_size())
        self.loader = build_loader(
            config.data,
            *config.data.train_addresses,
            batch_size=self.micro_batch,
            rank=dist.rank(),
            world_size=dist.world_size(),
            seed=config.run.seed,
            num_classes=config.generator.num_classes,
            accumulation=config.engine.accumulation,
        )
        self.lpips = load_lpips(config.losses)
        if self.lpips is not None:
            self.lpips.to(self.device)
        if config.alignment.enabled:
            self.teachers = [self._load_teacher()]
        storage = open_storage(str(self.folder.checkpoints))
        self.checkpoints = CheckpointStore(storage, config.log.keep_checkpoints)
        self.window = MetricWindow(
            config.tokenizer.codebook_size, config.log.usage_window_tokens, self.device
        )
        self.speed = Speedometer(config.engine.global_batch)
        self._restore()
        if self.is_main:
            self.folder.rewind(self.step)
            self.folder.write_environment(self._environment())
            log = self.log = open_metrics_log(self.folder, config)
            self.painter = GridPainter(config, self.folder, log, self.device)

    def _load_teacher(self) -> Teacher:
        config = self.config
        teacher = load_teacher(
            config.teacher, image_size=config.data.image_size, grid_size=config.grid_size
        )
        return teacher.to(self.device)

    def _environment(self) -> dict[str, Any]:
        assert self.loader is not None
        extra = {
            "device": str(self.device),
            "world_size": dist.world_size(),
            "precision": resolve_precision(self.config, self.device),
            "zero_stage": self.config.engine.zero_stage,
            "kernels": resolve(self.config.engine.kernels, self.device),
            "vocabulary_loss": resolve_cross_entropy(
                self.config.engine.kernels, torch.empty(0, device=self.device)
            ),
            "launcher": self.config.run.launcher,
            "data": self.loader.corpora[0].manifest.facts._asdict(),
            "order": self.loader.facts(),
        }
        return collect_environment(self.config, extra)

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
            teacher_widths=tuple(teacher.width for teacher in self.teachers),
            world_size=dist.world_size(),
            device=self.device,
        )
        torch.manual_seed(self.config.run.seed + 1 + dist.rank())
        return self.networks

    def run(self) -> Outcome:
        """All stages from the restored step on."""
        self.build()
        if self.step >= self.total_steps:
            return self._finish("done")
        assert self.loader is not None
        self._write_status("running")
        batches = iter(self.loader)
        while self.step < self.total_steps:
            stage = self._stage_at(self.step)
            self._train_step(stage, batches)
            stop = self._stop_requested()
            if self.step == stage.end:
                self._leave(stage)
            elif stop:
                self._checkpoint(stage)
            if stop and self.step < self.total_steps:
                return self._finish("interrupted")
        return self._finish("done")

    def _leave(self, stage: Stage) -> None:
        """Close a stage, with the next one's networks in place before the checkpoint."""
        assert self.networks is not None
        states = self.networks.carry()
        self._publish(states)
        following = self._stage_at(self.step)
        if following is not stage:
            self.networks.close()
            self.networks = self._enter(following, states)
        self._save()

    # -- one step ---------------------------------------------------------------------------

    def _train_step(self, stage: Stage, batches: Iterator[Batch]) -> None:
        assert self.networks is not None
        factor = rate_factor(self.config.optimizer, stage, self.step)
        for batch in itertools.islice(batches, self.config.engine.accumulation):
            metrics, indices = train_micro_batch(
                self.networks, self._to_device(batch, stage), self.config, self.step, self.lpips
            )
            self.networks.step(factor)
            self.window.add(metrics, indices)
        self.networks.update_averages()
        self.step += 1
        self.speed.count_step()
        if self._is_due("checkpoint_every_steps") and self.step < stage.end:
            self._checkpoint(stage)
            return
        if self._is_due("every_steps") or self.step == stage.end:
            self._log(stage)
        if self._is_due("grid_every_steps") and self.step < stage.end:
            self._paint(self.networks.carry())

    def _is_due(self, setting: str) -> bool:
        interval = getattr(self.config.log, setting)
        return interval > 0 and self.step % interval == 0

    @torch.no_grad()
    def _to_device(self, batch: Batch, stage: Stage) -> MicroBatch:
        images = to_model_range(batch.images.to(self.device, non_blocking=True))
        if self.device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        labels = batch.labels.to(self.device, non_blocking=True)
        features = [] if stage.name == "tokenizer" else self._features(images)
        return MicroBatch(images, labels, features)

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        bf16 = resolve_precision(self.config, self.device) == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return [teacher(images) for teacher in self.teachers]

    def _stop_requested(self) -> bool:
        if self.step % self.config.log.stop_check_steps:
            return False
        return dist.any_rank(self.host.stop_requested(), self.device)

    # -- records ----------------------------------------------------------------------------

    def _log(self, stage: Stage) -> None:
        """One record of the steps since the last. Collective; the only regular synchronisation.

        Raises:
            NumericError: on all ranks, where a loss or a gradient norm is not finite.
        """
        assert self.networks is not None
        assert self.loader is not None
        norms = {
            f"grad_norm_{name}": engine.grad_norm for name, engine in self.networks.engines.items()
        }
        means = self.window.flush(self.step, norms)
        if bad_samples := self.loader.bad_samples.take_names():
            self.folder.append_bad_samples(bad_samples)
        if not means:
            return
        factor = rate_factor(self.config.optimizer, stage, self.step - 1)
        if not self.is_main:
            return
        assert self.log is not None
        record: dict[str, Any] = {"step": self.step, "stage": stage.name}
        record |= self.speed.read(self.total_steps - self.step) | means
        for name in self.networks.engines:
            record[f"learning_rate_{name}"] = self.networks.learning_rate(name) * factor
        record["epoch"] = self.loader.state_dict()["epoch"]
        self.log.log(record)
        numbers = {key: float(v) for key, v in record.items() if isinstance(v, (int, float))}
        self.host.report(Progress(self.step, self.total_steps, stage.name, numbers))

    def _write_status(self, state: Any, **details: Any) -> None:
        if self.is_main:
            self.folder.write_status(state, self.step, self.total_steps, **details)

    def _finish(self, state: Any) -> Outcome:
        reason = "asked to stop" if state == "interrupted" else ""
        code = EXIT_INTERRUPTED if state == "interrupted" else 0
        self._write_status(state, exit_code=code, reason=reason)
        if self.log is not None:
            self.log.close(code)
        return Outcome(state, self.step, reason)

    def record_failure(self, error: BaseException) -> None:
        """Leave the reason in status.json, unless the folder is another run's."""
        if not self._owns_folder:
            return
        code = error.exit_code if isinstance(error, UserError) else 1
        reason = str(error) if isinstance(error, UserError) else repr(error)
        self._write_status("failed", exit_code=code, reason=reason)
        if self.log is not None:
            self.log.close(code)

    # -- what survives ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of a checkpoint."""
        assert self.networks is not None
        assert self.loader is not None
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "step": self.step,
            "stage": self._stage_at(self.step).name,
            "elapsed_s": self.speed.elapsed_s,
            "networks": self.networks.state_dict(dist.rank()),
            "random": random,
            "loader": self.loader.state_dict(),
        }

    def _restore(self) -> None:
        """Continue from the newest good checkpoint, or start at step 0."""
        parts = self.checkpoints.load_latest()
        if parts is None:
            self._enter(self.stages[0], load_start(self.config))
            return
        assert self.loader is not None
        first, mine = parts
        self.step = mine["step"]
        networks = self._enter(self._saved_stage(mine["stage"]), {})
        networks.load_state_dict(mine["networks"] or first["networks"])
        following = self._stage_at(self.step)
        if following.name != mine["stage"]:  # a finished run that was given another stage
            states = networks.carry()
            networks.close()
            self._enter(following, states)
        self.loader.load_state_dict(mine["loader"])
        self.speed = Speedometer(self.config.engine.global_batch, mine["elapsed_s"])
        torch.set_rng_state(mine["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(mine["random"]["cuda"], self.device)

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

    def _checkpoint(self, stage: Stage) -> None:
        """Weights for users, pictures, and everything that resuming needs. Collective.

        Logs first: a network that is no longer finite is never saved.
        """
        assert self.networks is not None
        self._log(stage)
        self._publish(self.networks.carry())
        self._save()

    def _publish(self, states: NetworkStates) -> None:
        if self.is_main:
            save_run_weights(self.folder.weights, states, self.config, self.step)
        self._paint(states)

    def _save(self) -> None:
        name = self.checkpoints.save(self.step, self.state_dict())
        if self.is_main:
            stage = self._stage_at(self.step).name
            message = f"checkpoint {self.folder.checkpoints / name}"
            self.host.report(Progress(self.step, self.total_steps, stage, {}, message))

    def _paint(self, states: NetworkStates) -> None:
        """Grids at fixed seeds; rank 0 alone, the others wait at their next collective.

        Leaves the random state as it was: a run does not depend on when it is looked at.
        """
        if self.is_main:
            devices = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                self.painter.paint(states, self.step)

    def close(self) -> None:
        """Stop the loader's thread and release the engines."""
        if self.loader is not None:
            self.loader.close()
        if self.networks is not None:
            self.networks.close()
