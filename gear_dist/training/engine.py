"""DeepSpeed engines, one per network (their JSON: deepspeed_config.py).

Three engines share a process. What one engine's loss sends through another's network goes through
that network's module with its parameters frozen, never through its engine: an engine's forward
hooks its outputs, and a foreign backward would start its gradient reduction.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from gear_dist.config.training import EngineConfig, OptimizerConfig
from gear_dist.distributed.device import choose_precision
from gear_dist.training.compute_dtypes import ComputeDtypes
from gear_dist.training.deepspeed_config import deepspeed_config
from gear_dist.training.optimizer import build_optimizer


def prepare_deepspeed(device: torch.device) -> None:
    """Settings that DeepSpeed reads at import or first communication.

    Its shared-memory collective for CPU is left out: it compiles for a minute at first use, needs
    a compiler and leaks shared memory a run; gloo serves.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    # DeepSpeed calls collectives by names that newer torch warns about, at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False
    )


class TrainingEngine:
    """Wraps a DeepSpeed engine and hides the differences between ZeRO stages.

    Attributes:
        grad_norm: gradient norm of the last step over all parameters, before clipping.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        engine: EngineConfig,
        optimizer: OptimizerConfig,
        *,
        world_size: int,
        device: torch.device,
        bf16_weights: bool = False,
    ):
        import deepspeed

        self.name = name
        self.device = device
        self.zero_stage = engine.zero_stage
        self.clip_norm = optimizer.clip_norm
        self._offloaded = engine.optimizer_offload != "none"
        bf16 = choose_precision(engine.precision, device) == "bf16"
        bf16_weights = bf16_weights and bf16 and self.zero_stage > 0
        on_cuda = device.type == "cuda"
        module.to(device).train()
        if bf16 and not bf16_weights:
            autocast_forward(module, device)
        self.compute_dtypes = ComputeDtypes(module)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(optimizer, module),
            config=deepspeed_config(
                engine,
                optimizer.clip_norm,
                num_parameters=sum(p.numel() for p in module.parameters()),
                world_size=world_size,
                bf16_weights=bf16_weights,
                on_cuda=on_cuda,
            ),
            dist_init_required=False,
        )
        if on_cuda and self.zero_stage == 0:
            # bf16 convolutions on tensor cores want it. Only at this stage do weights have memory
            # of their own; elsewhere channels-last inputs bring most of it.
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.grad_norm: float | Tensor = 0.0
        self._norm: Tensor | None = None

    @property
    def module(self) -> nn.Module:
        """The network itself, for passes that must not train it (see `frozen`)."""
        return self._engine.module

    @property
    def zero_optimizer(self) -> Any:
        """DeepSpeed's optimizer around ours; at stage 0 ours."""
        return self._engine.optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer that holds the states of this rank's masters."""
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def __call__(self, *args: Any) -> Any:
        """The training forward: exactly once a micro-batch."""
        return self._engine(*args)

    @contextmanager
    def frozen(self, *, training: bool) -> Iterator[Callable[..., Any]]:
        """Yield the module's forward, its parameters taking no gradient until the exit.

        Keep the context open until the backward through it has returned: activation checkpoints
        recompute then, and must find the parameters frozen.

        Args:
            training: whether dropout and batch statistics act as in training.
        """
        module = self.module
        parameters = [p for p in module.parameters() if p.requires_grad]
        was_training = module.training
        for parameter in parameters:
            parameter.requires_grad_(False)
        module.train(training)
        try:
            yield module
        finally:
            module.train(was_training)
            for parameter in parameters:
                parameter.requires_grad_(True)

    @property
    def ends_step(self) -> bool:
        """Whether the current micro-batch is the last of its step."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch's mean loss; reduced over ranks by DeepSpeed."""
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> None:
        """Call once per micro-batch, after every backward; updates at the accumulation boundary."""
        boundary = self.ends_step
        if boundary:
            for group in self._engine.optimizer.param_groups:
                group["lr"] = learning_rate
            if self.zero_stage == 0:
                self._clip()
        self._engine.step()
        if boundary and self.zero_stage > 0:
            self.grad_norm = self._engine.get_global_grad_norm()

    def _clip(self) -> None:
        """Clip as DeepSpeed does at the other stages, by the norm that `gradient_size` computed."""
        parameters = list(self.module.parameters())
        norm = self._norm
        if norm is None:
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.clip_norm > 0:
            clip_grads_with_norm_(parameters, self.clip_norm, norm)
        self.grad_norm, self._norm = norm, None

    def masters(self) -> list[Tensor]:
        """fp32 weights that this rank's optimizer moves: flat partitions, or at stage 0 all.

        With floating-point buffers appended, so that averages and checkpoints cover them.
        """
        flats = [parameter.data for parameter in self.optimizer_parameters()]
        return [*flats, *(b for b in self.module.buffers() if b.is_floating_point())]

    def optimizer_parameters(self) -> list[Tensor]:
        """The tensors that the optimizer keeps states for, before the buffers in `masters`."""
        wrapper = self._engine.optimizer
        if self.zero_stage == 0:
            return list(self.module.parameters())
        names = (
            "fp32_partitioned_groups_flat",  # stage 3
            "single_partition_of_fp32_groups",  # stages 1 and 2
            "fp32_groups_flat_partition",  # stage 1 with bf16 weights
        )
        return list(next(getattr(wrapper, name) for name in names if hasattr(wrapper, name)))

    def gradient_size(self) -> Tensor:
        """A norm of this rank's reduced gradients, finite only where all are; 0-dimensional.

        Between the last backward of a step and its `step`.
        """
        gradients = self._gradients()
        if not gradients:
            return torch.zeros((), device=self.device)
        if self.zero_stage == 0:
            self._norm = get_total_norm(gradients)
            return self._norm
        norms = torch.stack(torch._foreach_norm(gradients, float("inf")))
        return norms.float().max().to(self.device)

    def _gradients(self) -> list[Tensor]:
        wrapper = self._engine.optimizer
        if self.zero_stage == 0:
            found = [p.grad for p in self.module.parameters()]
        elif self._offloaded:
            finish_copies(self.device)
            found = [master.grad for master in self.optimizer_parameters()]
        elif hasattr(wrapper, "averaged_gradients"):
            groups = [group for group in wrapper.averaged_gradients.values() if group is not None]
            found = [g for group in groups for g in (group if isinstance(group, list) else [group])]
        else:
            found = wrapper.fp32_groups_gradient_flat_partition  # stage 1 with bf16 weights
        return [g for g in found if g is not None]

    def skip_next_step(self, skip: bool) -> None:
        """Make the next step a no-op (or undo that)."""
        self.optimizer.skips = skip  # type: ignore[attr-defined]

    def sync_low_precision_params(self) -> None:
        """Copy written masters into the weights that the module computes with. Collective."""
        wrapper = self._engine.optimizer
        if self.zero_stage == 3:
            for i in range(len(wrapper.fp32_partitioned_groups_flat)):
                wrapper._reassign_or_swap_out_partitioned_parameters(i)
        elif self.zero_stage > 0:
            wrapper.update_lp_params()

    def full_state(self) -> dict[str, Tensor]:
        """Parameters as fp32 and all buffers, whole and by name, on the CPU. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in self.module.named_parameters():
            full = parameter if self.zero_stage == 0 else safe_get_full_fp32_param(parameter)
            assert full is not None, f"{self.name}.{name} has no fp32 master"
            state[name] = full.detach().float().cpu().clone().view(_full_shape(parameter))
        for name, buffer in self.module.named_buffers():
            state[name] = buffer.detach().cpu().clone()
        return state

    def shapes(self) -> dict[str, list[int]]:
        """Whole shapes of parameters and buffers, by name."""
        shapes = {name: list(_full_shape(p)) for name, p in self.module.named_parameters()}
        return shapes | {name: list(b.shape) for name, b in self.module.named_buffers()}

    def close(self) -> None:
        """Release hooks and memory; the engine and its module are of no use afterwards.

        DeepSpeed's objects hold one another; at ZeRO 3 they outlive their engine (0.19.8, see
        findings/). So what holds memory is emptied, and who holds the rest does not matter.
        """
        module, optimizer = self.module, self.optimizer
        tensors = [*self.masters(), *module.parameters()]
        tensors += _tensors_in(vars(self._engine.optimizer))
        self.compute_dtypes.close()
        self._engine.destroy()
        # It refers to the module, which would then live until the garbage collector comes.
        module.__dict__.pop("forward", None)
        tensors += _tensors_in(dict(optimizer.state))
        optimizer.state.clear()
        _empty(tensors)
        _forget_module(module)


def finish_copies(device: torch.device) -> None:
    """Wait for what a GPU still copies to the host.

    DeepSpeed (0.19.8, ZeRO 1 and 2) hands offloaded gradients over without waiting, and waits
    itself only in its step: who reads them before may see the step before, or half of this one.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tensors_in(value: Any) -> list[Tensor]:
    """Tensors in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors_in(item)]
    return []


def _empty(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        tensor.grad = None
        partition = getattr(tensor, "ds_tensor", None)  # of a ZeRO-3 parameter
        for held in (tensor, partition):
            if held is not None:
                held.data = torch.empty(0, dtype=held.dtype, device=held.device)


def _forget_module(module: nn.Module) -> None:
    """Take a network from the list of modules that ZeRO 3 keeps for the process's lifetime."""
    from deepspeed.runtime.zero import parameter_offload

    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [other for other in stack if other is not module]


def autocast_forward(module: nn.Module, device: torch.device) -> None:
    """Let a module compute in bf16 over its fp32 weights, whoever calls it.

    Around DeepSpeed's engine autocast would not do: its forward turns off what it finds on, unless
    DeepSpeed's own autocast is configured, which holds for all engines of a process
    (deepspeed/runtime/torch_autocast.py, 0.19.8; it asks about CUDA's, so a CPU shows nothing).
    """
    wrap = torch.autocast(device.type, torch.bfloat16)
    module.forward = wrap(module.forward)


def _full_shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
