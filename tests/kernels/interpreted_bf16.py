"""bfloat16 in Triton's interpreter as it is on a device.

The interpreter keeps bfloat16 as its bits. It rounds float32 towards zero, whatever rounding is
asked for, where compiled kernels round to nearest, ties to even; and it multiplies the bits of two
tiles as whole numbers, where a device multiplies the values and adds up in float32. Either hides
errors, or makes tests impossible. `install` gives it a device's rounding and values.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_BUILDER: Any = interpreter.InterpreterBuilder
_HANDLE: Any = interpreter.TensorHandle


def to_bits(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of the nearest bfloat16 (uint16), ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # Adds half a unit, less one where the last kept bit is even, and carries into the exponent.
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, nearest).astype(np.uint16)


def to_values(bits: np.ndarray) -> np.ndarray:
    """Bits of bfloat16 (uint16) to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def install() -> None:
    """Change this process's interpreter; once, before kernels run."""
    plain_cast, plain_rounding, plain_dot = (
        _BUILDER.cast_impl,
        _BUILDER.create_fp_to_fp,
        _BUILDER.create_dot,
    )

    def converted(source: Any, kind: Any) -> Any | None:
        pair = source.dtype.scalar, kind.scalar
        if pair == (tl.float32, tl.bfloat16):
            return _HANDLE(to_bits(source.data), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            return _HANDLE(to_values(source.data), tl.float32)
        return None

    def cast(builder: Any, source: Any, kind: Any) -> Any:
        found = converted(source, kind)
        return plain_cast(builder, source, kind) if found is None else found

    def cast_by_rounding(builder: Any, source: Any, kind: Any, rounding: Any) -> Any:
        found = converted(source, kind)
        return plain_rounding(builder, source, kind, rounding) if found is None else found

    def dot(builder: Any, left: Any, right: Any, *rest: Any) -> Any:
        found = [converted(tile, tl.float32) for tile in (left, right)]
        values = [
            tile if value is None else value
            for tile, value in zip((left, right), found, strict=True)
        ]
        return plain_dot(builder, *values, *rest)

    _BUILDER.cast_impl, _BUILDER.create_fp_to_fp, _BUILDER.create_dot = cast, cast_by_rounding, dot
