"""`lfq_soft_readout` in Triton: the low half's patterns in a tile, streamed over the high half's.

Shapes: N tokens, H and L patterns of the high and low half, K = H L, D table width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gear_kernels.tiles_triton import load_matrix


@triton.jit
def readout_kernel(
    high_ptr,
    low_ptr,
    table_ptr,
    out_ptr,
    num_rows,
    num_columns,
    NUM_HIGH: tl.constexpr,
    NUM_LOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out += (high[:, h] low) @ table[h] for (rows, columns of D)."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first_column = tl.program_id(1) * BLOCK_D
    columns = first_column + tl.arange(0, BLOCK_D)
    inside = rows < num_rows
    out = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first_low in tl.static_range(0, NUM_LOW, BLOCK_L):
        lows = first_low + tl.arange(0, BLOCK_L)
        low = load_matrix(low_ptr, rows, num_rows, first_low, NUM_LOW, BLOCK_L)
        for high_index in range(NUM_HIGH):
            high = tl.load(high_ptr + rows * NUM_HIGH + high_index, mask=inside, other=0.0)
            codes = (high_index * NUM_LOW + lows)[:, None].to(tl.int64)
            mask = (lows[:, None] < NUM_LOW) & (columns[None, :] < num_columns)
            tile = tl.load(table_ptr + codes * num_columns + columns[None, :], mask=mask, other=0.0)
            weights = (high[:, None] * low).to(tile.dtype)
            out += tl.dot(weights, tile, input_precision="ieee")
    offsets = rows[:, None].to(tl.int64) * num_columns + columns[None, :]
    mask = inside[:, None] & (columns[None, :] < num_columns)
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def factor_gradient_kernel(
    high_ptr,
    low_ptr,
    table_ptr,
    out_grad_ptr,
    high_partial_ptr,
    low_grad_ptr,
    num_rows,
    num_columns,
    NUM_HIGH: tl.constexpr,
    NUM_LOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """With G = g @ table[h]^T: dlow = sum_h high G, and sum_l low G per (block of l, row, h)."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    low_block = tl.program_id(1)
    lows = low_block * BLOCK_L + tl.arange(0, BLOCK_L)
    inside = rows < num_rows
    low = load_matrix(low_ptr, rows, num_rows, low_block * BLOCK_L, NUM_LOW, BLOCK_L)
    low_grad = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
    for high_index in range(NUM_HIGH):
        codes = (high_index * NUM_LOW + lows)[:, None].to(tl.int64)
        pull = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
        for first_column in range(0, num_columns, BLOCK_D):
            columns = first_column + tl.arange(0, BLOCK_D)
            out_grad = load_matrix(out_grad_ptr, rows, num_rows, first_column, num_columns, BLOCK_D)
            mask = (lows[:, None] < NUM_LOW) & (columns[None, :] < num_columns)
            tile = tl.load(table_ptr + codes * num_columns + columns[None, :], mask=mask, other=0.0)
            pull += tl.dot(out_grad, tl.trans(tile), input_precision="ieee")
        high = tl.load(high_ptr + rows * NUM_HIGH + high_index, mask=inside, other=0.0)
        low_grad += high[:, None] * pull
        places = (low_block.to(tl.int64) * num_rows + rows) * NUM_HIGH + high_index
        tl.store(high_partial_ptr + places, tl.sum(low * pull, 1), mask=inside)
    offsets = rows[:, None] * NUM_LOW + lows[None, :]
    mask = inside[:, None] & (lows[None, :] < NUM_LOW)
    tl.store(low_grad_ptr + offsets, low_grad, mask=mask)


def forward(high_NH: Tensor, low_NL: Tensor, table_KD: Tensor) -> Tensor:
    """sum_hl high[n, h] low[n, l] table[h L + l]: (N, D) in the table's dtype."""
    high_NH, low_NL, table_KD = high_NH.contiguous(), low_NL.contiguous(), table_KD.contiguous()
    num_tokens, num_columns = len(high_NH), table_KD.shape[1]
    out_ND = table_KD.new_empty(num_tokens, num_columns)
    plain = table_KD.dtype == torch.float32
    block_n, block_d = (64, 64) if plain else (128, 256)
    grid = triton.cdiv(num_tokens, block_n), triton.cdiv(num_columns, block_d)
    readout_kernel[grid](
        high_NH,
        low_NL,
        table_KD,
        out_ND,
        num_tokens,
        num_columns,
        NUM_HIGH=high_NH.shape[1],
        NUM_LOW=low_NL.shape[1],
        BLOCK_N=block_n,
        BLOCK_L=_low_block(low_NL, 32 if plain else 64),
        BLOCK_D=block_d,
        num_warps=8,
        num_stages=2 if plain else 3,
    )
    return out_ND


def factor_gradients(
    high_NH: Tensor, low_NL: Tensor, table_KD: Tensor, out_grad_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the two factors, see lfq_torch."""
    high_NH, low_NL, table_KD = high_NH.contiguous(), low_NL.contiguous(), table_KD.contiguous()
    num_tokens = len(high_NH)
    plain = table_KD.dtype == torch.float32
    block_n = 64 if plain else 128
    block_l = _low_block(low_NL, 64 if plain else 128)
    low_blocks = triton.cdiv(low_NL.shape[1], block_l)
    high_partial_BNH = high_NH.new_empty(low_blocks, *high_NH.shape)
    low_grad_NL = torch.empty_like(low_NL)
    factor_gradient_kernel[(triton.cdiv(num_tokens, block_n), low_blocks)](
        high_NH,
        low_NL,
        table_KD,
        out_grad_ND,
        high_partial_BNH,
        low_grad_NL,
        num_tokens,
        table_KD.shape[1],
        NUM_HIGH=high_NH.shape[1],
        NUM_LOW=low_NL.shape[1],
        BLOCK_N=block_n,
        BLOCK_L=block_l,
        BLOCK_D=32 if plain else 64,
        num_warps=8,
        num_stages=2 if plain else 3,
    )
    return high_partial_BNH.sum(0), low_grad_NL


def _low_block(low_NL: Tensor, most: int) -> int:
    return max(16, min(most, triton.next_power_of_2(low_NL.shape[1])))
