"""A closed engine gives its memory back, whatever of DeepSpeed still refers to it."""

import engine_memory_case as case
from worker_processes import run_workers


def test_five_engines_one_after_the_other_take_the_memory_of_one() -> None:
    settings = [
        {"zero_stage": stage, "precision": precision, "optimizer_offload": offload}
        for stage in range(4)
        for precision in ("fp32", "bf16")
        for offload in (("none", "cpu") if stage else ("none",))
    ]
    for by_rank in run_workers(1, case.held_after_each, 1, settings, 5):
        for words, (alive, left) in zip(settings, by_rank, strict=True):
            assert alive > 4 * case.WIDTH**2, words
            assert max(left) < 0.05 * alive, (words, alive, left)
