"""How the Triton read-out's backward cuts its work: tiles, chunks of codes, launches, partial sums.

Shapes: N tokens, K codes, C code width, D table width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gear_kernels.dispatch import readout_takes_chunks
from gear_kernels.tiles_triton import Problem, ReadoutTile, num_splits

# Partial gradients of the codebook, one a row block, that are held at a time.
_PARTIAL_BYTES = 2**26
# g.t of the rows and codes of a launch: fits in a Hopper's L2 cache (50 MB) beside the rest.
_PULL_BYTES = 2**25
# Rows of g.t: more would leave the library products of few codes, which read g once for each.
_PULL_ROWS = 8192


def backward_tile(width: int, dtype: torch.dtype) -> ReadoutTile:
    """Tile of the gradient of the scores: as large as registers hold with codes of a width."""
    if dtype == torch.float32:
        return ReadoutTile(64, 64, 32, 8, 2)
    return ReadoutTile(128 if width <= 16 else 64, 64, 64, 8, 3)


def chunk_tile(width: int) -> ReadoutTile:
    """The same where g.t is given: without spills, by the assembler's report for both widths."""
    return ReadoutTile(128, 64, 64, 8, 2) if width <= 16 else ReadoutTile(64, 64, 64, 8, 1)


class TilePlan(NamedTuple):
    """How the work is cut."""

    tile: ReadoutTile
    chunked: bool
    """Whether the library contracts g.t."""
    chunk_codes: int
    """Codes of a launch: all, where the kernel contracts g.t itself."""
    group_codes: int
    """Codes of the chunks whose partial sums are held together and added up at once."""
    blocks: int
    """Row blocks in all."""
    launch_blocks: int
    """Row blocks of one launch."""
    splits: int
    codes_per_split: int


class Partials(NamedTuple):
    """Partial sums that the launches write: S splits of the codes, B row blocks of a launch, k
    codes of a group."""

    latents_SNC: Tensor
    codebook_BkC: Tensor
    column_Bk: Tensor

    @classmethod
    def of(cls, plan: TilePlan, latents_NC: Tensor) -> "Partials":
        """Zeros for the latents, which launches add to; the others' memory as it is."""
        size = plan.launch_blocks, plan.group_codes
        return cls(
            latents_NC.new_zeros(plan.splits, *latents_NC.shape),
            latents_NC.new_empty(*size, latents_NC.shape[1]),
            latents_NC.new_empty(*size),
        )


class Part(NamedTuple):
    """Rows and codes of one launch."""

    first_block: int
    blocks: int
    first_of_group: int
    """First code of the group."""
    first_code: int
    codes: int
    is_last: bool
    """Of its group and rows: afterwards the partial sums are complete."""

    def arguments(self, plan: TilePlan) -> tuple[int, ...]:
        """The tuple that the kernel calls `part`."""
        place = self.first_code - self.first_of_group
        return self.first_block, self.first_code, self.codes, place, plan.group_codes


def parts(plan: TilePlan, num_tokens: int, num_codes: int) -> Iterator[Part]:
    """All launches, those that fill one group's partial sums in a row."""
    assert plan.blocks == triton.cdiv(num_tokens, plan.tile.block_n)
    for group in range(0, num_codes, plan.group_codes):
        last = min(group + plan.group_codes, num_codes)
        for block in range(0, plan.blocks, plan.launch_blocks):
            blocks = min(plan.launch_blocks, plan.blocks - block)
            for first in range(group, last, plan.chunk_codes):
                count = min(plan.chunk_codes, last - first)
                yield Part(block, blocks, group, first, count, first + count == last)


def plan_tiles(problem: Problem, table_KD: Tensor) -> TilePlan:
    """The cut for one problem on its device."""
    num_tokens, width = problem.latents_NC.shape
    num_codes = len(problem.codebook_KC)
    device = problem.latents_NC.device
    chunked = readout_takes_chunks(num_tokens, table_KD, device)
    tile = chunk_tile(width) if chunked else backward_tile(width, table_KD.dtype)
    blocks = triton.cdiv(num_tokens, tile.block_n)
    row_bytes = 4 * (width + 1)
    if chunked:
        launch_blocks = min(blocks, max(1, _PULL_ROWS // tile.block_n))
        fitting = _PULL_BYTES // (4 * min(num_tokens, launch_blocks * tile.block_n))
        chunk_codes = min(num_codes, max(1, fitting // tile.block_k) * tile.block_k)
        chunks = max(1, _PARTIAL_BYTES // (row_bytes * launch_blocks * chunk_codes))
        group_codes = min(num_codes, chunks * chunk_codes)
    else:
        chunk_codes = group_codes = num_codes
        launch_blocks = max(1, min(blocks, _PARTIAL_BYTES // (row_bytes * num_codes)))
    code_blocks = triton.cdiv(chunk_codes, tile.block_k)
    splits = num_splits(launch_blocks, min(code_blocks, 64), device)
    per_split = triton.cdiv(code_blocks, splits)
    # Without those that the rounding left empty.
    splits = triton.cdiv(code_blocks, per_split)
    return TilePlan(
        tile,
        chunked,
        chunk_codes,
        group_codes,
        blocks,
        launch_blocks,
        splits,
        per_split * tile.block_k,
    )
