"""A plan as text and as JSON."""

from collections.abc import Sequence
from typing import Any

from gear_dist.config.loading import to_dict
from gear_dist.config.schema import RunConfig
from gear_dist.formatting import format_bytes
from gear_dist.planning.fake_models import fake_tensors, measure_encoder
from gear_dist.planning.memory import format_estimate
from gear_dist.planning.plan import CostPlan, StagePlan
from gear_dist.planning.trace_step import CAPTION_TOKENS

_GIGA = 1e9
_DAY_S = 86400


def format_plan(plan: CostPlan) -> str:
    """The plan for people."""
    config = plan.config
    engine = config.engine
    head = [
        f"{plan.world_size} GPUs on {plan.num_nodes} nodes, ZeRO {engine.zero_stage}, "
        f"{engine.precision}: global batch {engine.global_batch} = {plan.world_size} x "
        f"{engine.accumulation} micro-batches x {plan.micro_batch} images of "
        f"{config.data.image_size} px",
        "Nothing here is measured. Assumed rates:",
        *(f"  {note}" for note in plan.rates.notes),
        *_captions(config),
    ]
    return "\n".join([*head, *(line for stage in plan.stages for line in _stage(plan, stage))])


def _captions(config: RunConfig) -> list[str]:
    if not config.reads_captions:
        return []
    with fake_tensors():
        note = measure_encoder(config).note
    lines = [f"Captions of {CAPTION_TOKENS} tokens; {note}."]
    if config.generator.text_rotary == "zeros":
        lines.append(
            "generator.text_rotary=zeros: queries and keys of text positions are dead, as in the "
            "published weights; identity trains them."
        )
    return lines


def _stage(plan: CostPlan, stage: StagePlan) -> list[str]:
    time = stage.time
    days = [stage.steps * s / _DAY_S for s in (time.overlapped_s, time.apart_s)]
    data, checkpoint = stage.data, stage.checkpoint
    return [
        "",
        f"Stage {stage.stage}, {stage.steps:,} steps",
        "",
        format_estimate(stage.memory),
        "",
        *_passes(plan, stage),
        "",
        *_communication(plan, stage),
        "",
        f"Step: {1e3 * time.apart_s:.1f} ms = computing {1e3 * time.compute_s:.1f} + optimizer "
        f"{1e3 * time.optimizer_s:.1f} + communication {1e3 * time.communication_s:.1f}; "
        f"{1e3 * time.overlapped_s:.1f} ms where communication hides behind computing. "
        f"{stage.images_per_s:,.0f} images/s, the stage in {days[0]:.2f} to {days[1]:.2f} days.",
        f"Checkpoint: {format_bytes(checkpoint.bytes)} in {checkpoint.seconds:.1f} s, beside "
        f"{format_bytes(checkpoint.published_bytes)} of weights files.",
        f"Data: {data.images_per_s_node:,.0f} images/s and "
        f"{data.bytes_per_s_node / 1e6:,.0f} MB/s a node.",
    ]


def _passes(plan: CostPlan, stage: StagePlan) -> list[str]:
    rows: list[tuple[str, ...]] = [("per image", "GFLOP", "memory GB", "ms")]
    costs = [*stage.cost.passes.items(), ("all", stage.cost.total)]
    for name, cost in costs:
        numbers = (cost.flops / _GIGA, cost.traffic_bytes / _GIGA, 1e3 * cost.seconds)
        rows.append((name, *(f"{n / plan.micro_batch:,.2f}" for n in numbers)))
    return table(rows)


def _communication(plan: CostPlan, stage: StagePlan) -> list[str]:
    if not stage.communication:
        return ["No communication: one worker."]
    rows = [("communication per step", "what", "collective", "times", "payload", "sent by each")]
    for item in stage.communication:
        sent = format_bytes(item.sent_bytes(plan.world_size))
        payload = format_bytes(item.payload_bytes)
        rows.append((item.network, item.what, item.collective, str(item.times), payload, sent))
    total = sum(item.sent_bytes(plan.world_size) for item in stage.communication)
    rows.append(("all", "", "", "", "", format_bytes(total)))
    lines = table(rows)
    engine = plan.config.engine
    if engine.zero_stage == 3 and engine.keep_gathered_elements:
        lines.append(
            "ZeRO-3's all-gathers of weights are the most there can be: DeepSpeed keeps some "
            "gathered (engine.keep_gathered_elements)."
        )
    return lines


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns as wide as their longest cell: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = [
        all(row[i][:1].isdigit() or not row[i] for row in rows[1:]) for i in range(len(widths))
    ]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in rows
    ]


def plan_to_dict(plan: CostPlan) -> dict[str, Any]:
    """The plan for programs: sizes in bytes, times in seconds, costs of one micro-batch."""
    result = _plain(plan._replace(config=None, stages=[]))  # type: ignore[arg-type]
    result["config"] = to_dict(plan.config)
    result["stages"] = []
    for stage in plan.stages:
        entry = _plain(stage)
        entry["time"] |= {"apart_s": stage.time.apart_s, "overlapped_s": stage.time.overlapped_s}
        for item, collective in zip(entry["communication"], stage.communication, strict=True):
            item["sent_bytes"] = collective.sent_bytes(plan.world_size)
        result["stages"].append(entry)
    return result


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
