"""Each kernel operation inside DeepSpeed engines, as tokenizer and generator use it.

The codes live in one engine, the table in another; each parameter is read only inside the forward
of the module that owns it, which hands it on as a differentiable output, so that ZeRO-3 gathers it
there. One step of plain SGD at rate 1 leaves the gradient as the difference of the weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gear_dist.config.schema import RunConfig
from gear_dist.config.training import EngineConfig, OptimizerConfig
from gear_dist.losses.entropy import entropy_loss
from gear_dist.training.engine import TrainingEngine, prepare_deepspeed
from gear_kernels import (
    Affinity,
    Assignment,
    assign,
    lfq_assign,
    lfq_soft_readout,
    soft_readout,
    straight_through_readout,
    vocabulary_cross_entropy,
)

TOKENS, FEATURES, BITS, COLUMNS = 24, 6, 5, 12
CODES = 2**BITS
SOFT_TEMPERATURE = 0.5
ENTROPY_TEMPERATURE = 0.2  # 0.01 would amplify what summing over ranks in another order rounds

CPU = torch.device("cpu")


class Codes(NamedTuple):
    """What the engine of the codes hands on."""

    latents_NC: Tensor
    codebook_KC: Tensor
    found: Assignment


class Table(nn.Module):
    """A (rows, width) weight whose own forward hands it on, cloned."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self) -> Tensor:
        return self.weight.clone()


class CodeNetwork(nn.Module):
    """Features to latents and their assignment, as a tokenizer's forward has it."""

    def __init__(self, operation: str, implementation: str):
        super().__init__()
        self.operation = operation
        self.implementation = implementation
        self.encoder = nn.Linear(FEATURES, BITS)
        self.codebook = Table(CODES, BITS)

    def forward(self, features: Tensor) -> Codes:
        latents, codebook = self.encoder(features), self.codebook()
        temperatures = {
            "entropy_temperature": ENTROPY_TEMPERATURE,
            "soft_temperature": SOFT_TEMPERATURE,
            "implementation": self.implementation,
        }
        if self.operation.startswith("lfq"):
            return Codes(latents, codebook, lfq_assign(latents, **temperatures))
        affinity = Affinity.SQUARED_DISTANCE
        if self.operation in ("assign_inner", "straight_through_readout"):
            affinity = Affinity.INNER_PRODUCT
        found = assign(latents, codebook, affinity=affinity, **temperatures)
        return Codes(latents, codebook, found)


class TableNetwork(nn.Module):
    """The other engine: a token table read by codes, or an output head."""

    def __init__(self, operation: str, implementation: str):
        super().__init__()
        self.operation = operation
        self.implementation = implementation
        self.weight = nn.Parameter(torch.empty(CODES, COLUMNS))

    def forward(self, first: Tensor, codes: Codes | None = None) -> Tensor:
        """Read-out (N, D) of codes; of the output head, the loss of hidden states `first`."""
        if codes is None:
            targets = (97 * first[:, 0]).long() % CODES  # a function of the token alone
            return vocabulary_cross_entropy(first, self.weight, targets, self.implementation)
        if self.operation == "lfq_soft_readout":
            return lfq_soft_readout(
                codes.latents_NC,
                self.weight,
                temperature=SOFT_TEMPERATURE,
                implementation=self.implementation,
            )
        if self.operation == "straight_through_readout":
            return straight_through_readout(
                codes.latents_NC,
                codes.codebook_KC,
                self.weight,
                codes.found.indices_N,
                implementation=self.implementation,
            )
        return soft_readout(
            codes.latents_NC,
            codes.codebook_KC,
            self.weight,
            codes.found.soft_log_sum_exp_N,
            temperature=SOFT_TEMPERATURE,
            implementation=self.implementation,
        )


READOUTS = ("soft_readout", "lfq_soft_readout", "straight_through_readout")
ENTROPIES = ("assign_squared", "assign_inner", "lfq_assign")
OPERATIONS = (*ENTROPIES, *READOUTS, "vocabulary_cross_entropy")

Forward = Callable[..., Tensor]


def _probe(rows: Tensor) -> Tensor:
    """Fixed weights of a read-out in its loss, that differ by column."""
    return torch.linspace(-1, 1, rows.shape[1])


def _losses(operation: str, features: Tensor, codes: Callable, table: Callable) -> Tensor:
    """The loss of one operation; a mean over tokens, so that ranks average to the joined one."""
    if operation == "vocabulary_cross_entropy":
        mixing = torch.arange(FEATURES * COLUMNS).cos().view(FEATURES, COLUMNS)
        return table(features @ mixing)
    out: Codes = codes(features)
    if operation in ENTROPIES:
        # The latents' own term keeps the encoder's gradient from being all rounding.
        entropies = entropy_loss(out.found.token_entropy, out.found.mean_probabilities_K, 1.0)
        return entropies + out.latents_NC.square().mean()
    read = table(features, out)
    return (read.square() * _probe(read)).mean()


def make_networks(operation: str, implementation: str) -> tuple[nn.Module, nn.Module]:
    """Both networks with the same weights everywhere."""
    torch.manual_seed(3)
    networks = CodeNetwork(operation, implementation), TableNetwork(operation, implementation)
    for network in networks:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.7)
    return networks


def make_features() -> Tensor:
    """The joined batch, (N, F)."""
    return torch.randn(TOKENS, FEATURES, generator=torch.Generator().manual_seed(5))


def plain_gradients(operation: str) -> dict[str, Tensor]:
    """Gradients of both networks on the joined batch: plain torch, materialised kernels."""
    codes, table = make_networks(operation, "reference")
    _losses(operation, make_features(), codes, table).backward()
    return {
        f"{name}.{key}": p.grad if p.grad is not None else torch.zeros_like(p)
        for name, network in (("codes", codes), ("table", table))
        for key, p in network.named_parameters()
    }


def engine_gradients(rank: int, world_size: int, zero_stage: int, operations: list[str]):
    """Worker: of each operation the gradients that engines of this stage arrive at."""
    prepare_deepspeed(CPU)
    return [_engine_gradients(rank, world_size, zero_stage, name) for name in operations]


def _engine_gradients(
    rank: int, world_size: int, zero_stage: int, operation: str
) -> dict[str, Tensor]:
    config = RunConfig(
        optimizer=OptimizerConfig(name="sgd", clip_norm=0.0),
        engine=EngineConfig(global_batch=world_size, zero_stage=zero_stage),
    )
    codes, table = (
        TrainingEngine(
            name, network, config.engine, config.optimizer, world_size=world_size, device=CPU
        )
        for name, network in zip(("codes", "table"), make_networks(operation, "torch"), strict=True)
    )
    before = {"codes": codes.full_state(), "table": table.full_state()}
    features = make_features().chunk(world_size)[rank]
    trained = [table]
    if operation == "vocabulary_cross_entropy":
        table.backward(_losses(operation, features, codes, table))
    elif operation in ENTROPIES:
        codes.backward(_losses(operation, features, codes, table))
        trained = [codes]
    else:
        # As in the joint step: once frozen, for the tokenizer alone, and once for the table alone.
        with table.frozen(training=False) as frozen:
            codes.backward(_losses(operation, features, codes, frozen))
        with codes.frozen(training=True) as frozen, torch.no_grad():
            out = frozen(features)
        read = table(features, out)
        table.backward((read.square() * _probe(read)).mean())
        trained = [codes, table]
    for engine in trained:
        engine.step(1.0)
    found = {}
    for name, engine in (("codes", codes), ("table", table)):
        after = engine.full_state()
        for key, value in after.items():
            found[f"{name}.{key}"] = before[name][key] - value
        engine.close()
    return found
