"""DeepSpeed's JSON for one engine, built from the configuration. No torch."""

from typing import Any

from gear_dist.config.training import EngineConfig

CPU_BUCKET_ELEMENTS = 2_000_000  # 5e8 costs seconds a step on CPU
CUDA_BUCKET_ELEMENTS = 500_000_000


_ALIGNMENT = 64
"""DeepSpeed wants a multiple of a few elements; so do fast copies."""


def bucket_elements(engine: EngineConfig, num_parameters: int, on_cuda: bool) -> int:
    """Elements of a network's communication buckets: at most what the network can fill.

    DeepSpeed allocates what it is told, up to 2 GB of fp32 for a network of a few MB.
    """
    wanted = engine.bucket_elements or (CUDA_BUCKET_ELEMENTS if on_cuda else CPU_BUCKET_ELEMENTS)
    return min(wanted, -(-num_parameters // _ALIGNMENT) * _ALIGNMENT)


def deepspeed_config(
    engine: EngineConfig,
    clip_norm: float,
    *,
    num_parameters: int,
    world_size: int,
    bf16_weights: bool,
    on_cuda: bool,
) -> dict[str, Any]:
    """DeepSpeed's JSON for one engine.

    At stage 0 we clip ourselves, because DeepSpeed does not expose the norm there.
    """
    buckets = bucket_elements(engine, num_parameters, on_cuda)
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": engine.micro_batch(world_size),
        "gradient_accumulation_steps": engine.accumulation,
        "train_batch_size": engine.global_batch,
        "gradient_clipping": clip_norm if engine.zero_stage > 0 else 0.0,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "reduce_bucket_size": buckets,
            "allgather_bucket_size": buckets,
            "stage3_prefetch_bucket_size": min(buckets, engine.keep_gathered_elements),
            "stage3_max_reuse_distance": engine.keep_gathered_elements,
            "stage3_max_live_parameters": engine.keep_gathered_elements,
            # A persistent (never partitioned) parameter would not be updated when masters are
            # overwritten.
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if engine.optimizer_offload == "cpu":
        result["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": on_cuda}
        # DeepSpeed's own optimizer for the host compiles C++ at first use; torch's is fused as
        # well.
        result["zero_force_ds_cpu_optimizer"] = False
    if bf16_weights:
        result["bf16"] = {"enabled": True}
        result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result
