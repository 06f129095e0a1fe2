"""What the Triton soft read-out keeps of its forward. Shapes: N tokens, K codes, D table width."""

import torch
from torch import Tensor


def empty_rest(table_KD: Tensor, num_tokens: int) -> Tensor:
    """Uninitialised output minus its rounding, (N, D) in the table's dtype; none for float32.

    The backward subtracts g.out from g.t. With out as bfloat16 holds it the latents' gradient has
    1.5 to 4 times the error of torch's, with two bfloat16 numbers at most 1.5 times.
    """
    rounds = table_KD.dtype != torch.float32
    return table_KD.new_empty((num_tokens, table_KD.shape[1]) if rounds else (0,))
