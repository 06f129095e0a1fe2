"""Numbers as a reader wants them, and the ticks of an axis."""

import itertools
import math

_STEPS = (1, 2, 2.5, 5, 10)


def format_value(value: float) -> str:
    """Four significant digits: 0.04231, 18.72, 1,234, 3.2e-05."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e7 or size < 1e-4:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return _minus(f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}")
    if size >= 1000:
        return _minus(f"{value:,.0f}")
    digits = max(0, 3 - math.floor(math.log10(size)))
    text = f"{value:.{digits}f}"
    return _minus(text.rstrip("0").rstrip(".") if digits else text)


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def format_count(value: float) -> str:
    """Whole steps on an axis: 500, 2k, 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if suffix == "k" else size
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in _STEPS if factor * size >= 0.75 * raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def format_ticks(ticks: list[float]) -> list[str]:
    """Labels of one axis, all with the decimals that their distance needs."""
    step = min((abs(b - a) for a, b in itertools.pairwise(ticks)), default=0.0)
    if step == 0 or max(map(abs, ticks)) >= 1e4 or step < 1e-4:
        return [format_value(tick) if abs(tick) < 1e4 else format_count(tick) for tick in ticks]
    decimals = next(d for d in range(8) if abs(step * 10**d - round(step * 10**d)) < 1e-6)
    return [_minus(f"{tick:.{decimals}f}") for tick in ticks]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with 2 and 5 between where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = math.log10(high / low)
    factors = (1, 2, 5) if wide < 2.2 else (1,)
    stride = max(1, math.ceil(wide / 6))
    ticks = [factor * 10.0**d for d in decades for factor in factors if d % stride == 0]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
