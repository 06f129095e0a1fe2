"""The codes that a quantizer assigns to, and the read-outs over them. NamedTuples, which ZeRO-3's
hooks enter: a learned codebook is a differentiable output of the tokenizer, never its parameter.

Shapes: N tokens, K codes, C code width, D table width. Source: arXiv 2606.32039, eq. 3.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from gear_kernels import Affinity, lfq_soft_readout, soft_readout


class Codes(Protocol):
    """Codes of one quantizer family. No implementation allocates an (N, K) matrix."""

    def soft_readout(
        self,
        latents_NC: Tensor,
        table_KD: Tensor,
        log_sum_exp_N: Tensor,
        *,
        temperature: float,
        implementation: str,
    ) -> Tensor:
        """softmax(affinity / temperature) @ table, (N, D) in the table's dtype.

        Gradients reach the latents, the codes where they are learned, and the table.

        Args:
            latents_NC: as the quantizer returned them.
            table_KD: one row a code.
            log_sum_exp_N: of affinity / temperature, as the quantizer returned it.
            temperature: tau, the one that `log_sum_exp_N` was taken at.
            implementation: see `gear_kernels.resolve`.
        """
        ...


class LearnedCodes(NamedTuple):
    """A learned codebook and its affinity."""

    codebook_KC: Tensor
    affinity: Affinity

    def soft_readout(
        self,
        latents_NC: Tensor,
        table_KD: Tensor,
        log_sum_exp_N: Tensor,
        *,
        temperature: float,
        implementation: str,
    ) -> Tensor:
        """See `Codes.soft_readout`."""
        return soft_readout(
            latents_NC,
            self.codebook_KC,
            table_KD,
            log_sum_exp_N,
            temperature=temperature,
            affinity=self.affinity,
            implementation=implementation,
        )


class SignCodes(NamedTuple):
    """All of {-1, +1}^C, in closed form; bit i of an index has weight 2^i."""

    num_bits: int

    def soft_readout(
        self,
        latents_NC: Tensor,
        table_KD: Tensor,
        log_sum_exp_N: Tensor,
        *,
        temperature: float,
        implementation: str,
    ) -> Tensor:
        """See `Codes.soft_readout`; the closed form needs no log-sum-exp."""
        assert latents_NC.shape[1] == self.num_bits, latents_NC.shape
        return lfq_soft_readout(
            latents_NC, table_KD, temperature=temperature, implementation=implementation
        )
