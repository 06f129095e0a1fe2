"""`lfq_soft_readout` in blocks of rows on any device. Shapes: see lfq.py; n rows of a block."""

import torch
from torch import Tensor

from gear_kernels.tiles_torch import product_into, row_blocks


def forward(high_NH: Tensor, low_NL: Tensor, table_KD: Tensor) -> Tensor:
    """sum_hl high[n, h] low[n, l] table[h L + l]: (N, D) in the table's dtype."""
    out_ND = table_KD.new_empty(len(high_NH), table_KD.shape[1])
    for rows, (tile_nK,) in row_blocks(len(high_NH), len(table_KD), high_NH, 1):
        probabilities_nK = _outer(high_NH[rows], low_NL[rows], tile_nK)
        torch.mm(probabilities_nK.to(table_KD.dtype), table_KD, out=out_ND[rows])
    return out_ND


def factor_gradients(
    high_NH: Tensor, low_NL: Tensor, table_KD: Tensor, out_grad_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """With G = g @ table^T as (n, H, L): dhigh = G @ low, dlow = G^T @ high."""
    high_grad_NH, low_grad_NL = torch.empty_like(high_NH), torch.empty_like(low_NL)
    shape = high_NH.shape[1], low_NL.shape[1]
    for rows, (tile_nK,) in row_blocks(len(high_NH), len(table_KD), high_NH, 1):
        pull_nHL = product_into(tile_nK, out_grad_ND[rows], table_KD.T).view(-1, *shape)
        high_grad_NH[rows] = (pull_nHL @ low_NL[rows, :, None]).squeeze(2)
        low_grad_NL[rows] = (high_NH[rows, None, :] @ pull_nHL).squeeze(1)
    return high_grad_NH, low_grad_NL


def table_gradient(
    high_NH: Tensor, low_NL: Tensor, table_KD: Tensor, out_grad_ND: Tensor
) -> Tensor:
    """probabilities^T @ g, accumulated in the factors' dtype: (K, D)."""
    table_grad_KD = torch.zeros_like(table_KD, dtype=high_NH.dtype)
    for rows, (tile_nK,) in row_blocks(len(high_NH), len(table_KD), high_NH, 1):
        probabilities_nK = _outer(high_NH[rows], low_NL[rows], tile_nK)
        table_grad_KD.addmm_(probabilities_nK.T, out_grad_ND[rows].to(high_NH.dtype))
    return table_grad_KD.to(table_KD.dtype)


def _outer(high_nH: Tensor, low_nL: Tensor, out_nK: Tensor) -> Tensor:
    shape = *high_nH.shape, low_nL.shape[1]
    torch.mul(high_nH[:, :, None], low_nL[:, None, :], out=out_nK.view(shape))
    return out_nK
