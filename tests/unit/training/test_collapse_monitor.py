"""The collapse monitor on made-up records; that real training triggers it: tests/distributed."""

import dataclasses

import pytest

from gear_dist.config.run import CollapseConfig
from gear_dist.errors import ConfigError, NumericError
from gear_dist.training.collapse_monitor import CollapseMonitor
from refusals import refused

WINDOW = 1000


def monitor(**settings) -> CollapseMonitor:
    return CollapseMonitor(CollapseConfig(**settings), window_tokens=WINDOW, num_codes=200)


def record(usage: float = 0.9, window: int = WINDOW, **changes) -> dict[str, float]:
    norms = {"grad_norm_tokenizer": 1.0, "grad_norm_generator": 1.0}
    return {"codebook_usage": usage, "usage_window_tokens": window, **norms, **changes}


@pytest.mark.parametrize("network", ["tokenizer", "generator"])
def test_a_gradient_stuck_at_zero_warns_then_ends_the_run(network) -> None:
    first = monitor()
    dead = record(**{f"grad_norm_{network}": 0.0})
    [warning] = first.check(dead)
    assert f"the {network}'s gradient is zero" in warning
    assert f"optimizer.{network}_lr" in warning
    assert first.check(dead) == []
    with refused(NumericError, f"optimizer.{network}_lr", "3 records", "collapse.patience=0"):
        first.check(dead)


def test_a_single_zero_is_forgotten() -> None:
    first = monitor()
    for _ in range(5):
        assert first.check(record(grad_norm_tokenizer=0.0))
        assert first.consecutive_signs
        assert first.check(record()) == []
        assert not first.consecutive_signs


def test_a_discriminator_that_is_always_right_is_no_trouble() -> None:
    first = monitor(patience=1)
    assert first.check(record(grad_norm_discriminator=0.0)) == []


def test_a_codebook_that_falls_from_where_it_was_has_collapsed() -> None:
    first = monitor(usage_floor=0.1)
    assert first.check(record(0.8)) == []
    assert first.check(record(0.081)) == []
    [warning] = first.check(record(0.04))
    assert "8 of 200 codes used by the last 1000 tokens, 160 at best" in warning
    first.check(record(0.04))
    with refused(NumericError, "codebook", "8 of 200", "tokenizer.entropy_weight"):
        first.check(record(0.04))


def test_usage_is_not_judged_before_its_window_is_full() -> None:
    first = monitor(patience=1)
    first.check(record(0.9))
    assert first.check(record(0.01, window=WINDOW - 1)) == []
    assert first.check({"cross_entropy": 1.0}) == []


def test_few_codes_from_the_start_are_no_collapse() -> None:
    first = monitor(patience=1)
    assert first.check(record(0.02)) == []


def test_patience_0_is_off() -> None:
    first = monitor(patience=0)
    first.check(record(0.9))
    for _ in range(9):
        assert first.check(record(0.0, grad_norm_tokenizer=0.0)) == []
    first.end_stage()


def test_a_stage_does_not_end_in_trouble() -> None:
    first = monitor()
    first.check(record(grad_norm_generator=0.0))
    with refused(NumericError, "generator gradient", "collapse.patience=0"):
        first.end_stage()


def test_it_goes_on_where_it_was() -> None:
    first, again = monitor(), monitor()
    first.check(record(0.8))
    first.check(record(0.01))
    again.load_state_dict(first.state_dict())
    assert again.check(record(0.01)) == []
    with pytest.raises(NumericError):
        again.check(record(0.01))


def test_impossible_settings_are_refused() -> None:
    with refused(ConfigError, "collapse.usage_floor=1.5"):
        dataclasses.replace(CollapseConfig(), usage_floor=1.5)
