"""What `gear-dist plan` says is sent, held and saved, beside what real processes do."""

import communication_case as case
import pytest
from worker_processes import run_workers

from gear_dist.planning.communication import count_communication
from gear_dist.planning.fake_models import count_networks
from gear_dist.planning.hardware import make_rates
from gear_dist.planning.memory import NetworkStateBytes
from gear_dist.planning.plan import plan_costs
from gear_dist.planning.trace_step import count_stage

ACCUMULATION = 2
CASES = [(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]
KEEPING = "ZeRO-3 that keeps weights gathered"
SMALL = 8000
"""Bytes of a step that the plan leaves out: norms, ZeRO-3's checks that the ranks agree."""


def config_of(stage, precision, keep_gathered=0):
    return case.counted_config(stage, precision, ACCUMULATION, keep_gathered_elements=keep_gathered)


@pytest.fixture(scope="module")
def counted():
    configs = {one: config_of(*one) for one in CASES}
    configs[KEEPING] = config_of(3, "fp32", keep_gathered=10**9)
    by_rank = run_workers(2, case.count_steps_each, list(configs.values()))
    return {one: [rank[i] for rank in by_rank] for i, one in enumerate(configs)}


def planned_bytes(config, precision):
    states = NetworkStateBytes(config.engine, config.optimizer, case.WORKERS, precision)
    total = {}
    found = count_communication(
        "joint",
        count_networks(config),
        states,
        tokenizer=config.tokenizer,
        alignment=config.alignment,
    )
    for item in found:
        total[item.collective] = total.get(item.collective, 0) + item.payload_bytes
    return total


def sent_bytes(found):
    total = {}
    for part in (*found.micro_batches, found.step):
        for name, size in part.items():
            total[name] = total.get(name, 0) + size
    return total


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_a_step_sends_what_is_planned(counted, stage, precision):
    planned = planned_bytes(config_of(stage, precision), precision)
    sent = sent_bytes(counted[stage, precision][0])
    assert planned.keys() <= sent.keys()
    for name, size in sent.items():
        assert size == pytest.approx(planned.get(name, 0), rel=0.005, abs=SMALL), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_reduced_once_a_step_where_they_can_be(counted, precision):
    """Stages 0 and 1 keep them until the last micro-batch; 2 and 3 hold none whole."""
    gradient_bytes = 400_000
    for stage in (0, 1):
        first, last = counted[stage, precision][0].micro_batches
        assert sum(first.values()) < SMALL
        assert last["all_reduce"] > gradient_bytes
    for stage, collective in ((2, "all_reduce"), (3, "reduce_scatter")):
        first, last = counted[stage, precision][0].micro_batches
        assert first[collective] == last[collective] > gradient_bytes


def test_zero_3_gathers_less_where_it_may_keep_more(counted):
    most = planned_bytes(config_of(3, "fp32"), "fp32")["all_gather"]
    kept = sent_bytes(counted[KEEPING][0])["all_gather"]
    assert most / 2 < kept < 0.8 * most


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_states_hold_what_is_planned(counted, stage, precision):
    config = config_of(stage, precision)
    counts = count_networks(config).counts
    states = NetworkStateBytes(config.engine, config.optimizer, case.WORKERS, precision)
    for rank in counted[stage, precision]:
        for network, held in rank.states.items():
            row = states.row(network, getattr(counts, network))
            for name in ("parameters", "optimizer", "average"):
                # Counters of steps, and what fills up the last partition.
                assert held[name] == pytest.approx(getattr(row, name), rel=0.02), (network, name)


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_a_checkpoint_is_as_large_as_planned(counted, stage, precision):
    plan = plan_costs(
        config_of(stage, precision), world_size=case.WORKERS, rates=make_rates({}), on_cuda=False
    )
    saved = sum(rank.checkpoint_bytes for rank in counted[stage, precision])
    assert saved == pytest.approx(plan.stages[0].checkpoint.bytes, rel=0.005)


BOTH = {"tokenizer": True, "generator": True}
ACTIVATION_CASES = [
    (0, "fp32", {}),
    (0, "bf16", {}),
    (1, "bf16", {}),
    (0, "fp32", BOTH),
    (1, "bf16", BOTH),
    # Last: from its first engine on, ZeRO-3 replaces torch's linear in the whole process.
    (3, "fp32", {}),
    (3, "fp32", BOTH),
]


@pytest.fixture(scope="module")
def kept_activations():
    configs = [
        case.with_checkpointing(case.counted_config(stage, precision, 1), networks)
        for stage, precision, networks in ACTIVATION_CASES
    ]
    # In an older process ZeRO 3 may have changed what torch's linear keeps.
    [found] = run_workers(1, case.kept_activations_each, configs, fresh=True)
    return list(zip(configs, found, strict=True))


@pytest.mark.parametrize("index", range(len(ACTIVATION_CASES)), ids=map(str, ACTIVATION_CASES))
def test_activations_kept_are_as_many_as_planned(kept_activations, index):
    """Torch's saved tensors of a real step on CPU; ZeRO-3's hold gathered weights as well."""
    config, found = kept_activations[index]
    images = config.engine.global_batch
    cost = count_stage("joint", config, images=images, on_cuda=False, rates=make_rates({}))
    states = NetworkStateBytes(config.engine, config.optimizer, 1, "fp32")
    counts = count_networks(config).counts
    gathered = max(states.gathered(name, getattr(counts, name)) for name in found)
    assert found.keys() == cost.activations.keys()
    for network, size in found.items():
        planned = cost.activations[network].kept
        assert 0.995 * planned <= size <= 1.005 * planned + gathered, network


def test_checkpointing_keeps_a_fraction(kept_activations):
    whole, saving = kept_activations[0][1], kept_activations[3][1]
    assert saving["tokenizer"] < whole["tokenizer"] / 3
    assert saving["generator"] < whole["generator"] / 5
