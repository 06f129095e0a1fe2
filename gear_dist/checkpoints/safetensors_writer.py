"""Writing safetensors files a tensor at a time.

The library's own writer keeps every tensor as bytes once more, or leaves the file unreadable to
others; the format is a header of JSON before the tensors' bytes.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

_ALIGNMENT = 8
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: Any, /) -> Any:
        """Take the next bytes."""
        ...


def write_tensors(
    stream: Sink,
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
    load: Callable[[str], Tensor] | None = None,
) -> None:
    """Write named tensors of the CPU as a safetensors file.

    Args:
        stream: gets the bytes in order.
        tensors: by name; with `load` their shapes and dtypes alone matter.
        metadata: texts for the header.
        load: gives a tensor when its turn comes, so that no two need be in memory.
    """
    header: dict[str, Any] = {"__metadata__": {**metadata, "format": "pt"}}
    # Wide elements first, so that each tensor is aligned to its own.
    ordered = sorted(tensors, key=lambda item: (-item[1].element_size(), item[0]))
    end = 0
    for key, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype, shape = _DTYPE_NAMES[tensor.dtype], list(tensor.shape)
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    stream.write(len(text).to_bytes(8, "little") + text)
    for key, tensor in ordered:
        tensor = load(key) if load else tensor
        stream.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
