"""A colour for each code, so that a grid of tokens can be seen.

Shapes: K codes, C channels of a code.
"""

import numpy as np
import torch

from gear_dist.models.tokenizers import Tokenizer

_MOST_SHOWN = 2.0
"""Standard deviations from the mean that become the ends of a colour's range."""


@torch.no_grad()
def code_colours(tokenizer: Tokenizer, num_codes: int) -> np.ndarray:
    """RGB of all codes, uint8 (K, 3): alike codes have like colours.

    Codes are projected on the three directions in which they differ most; each direction is a
    colour channel, from -2 to 2 standard deviations.
    """
    device = next(tokenizer.parameters()).device
    indices_11K = torch.arange(num_codes, device=device)[None, None]
    codes_KC = tokenizer.quantize.lookup(indices_11K)[0, :, 0].T.double().cpu().numpy()
    centred_KC = codes_KC - codes_KC.mean(axis=0)
    _, directions_CC = np.linalg.eigh(centred_KC.T @ centred_KC)
    shown_K3 = centred_KC @ directions_CC[:, ::-1][:, :3]
    shown_K3 = np.pad(shown_K3, ((0, 0), (0, 3 - shown_K3.shape[1])))
    spread_3 = np.maximum(shown_K3.std(axis=0), 1e-12) * _MOST_SHOWN
    return np.rint(np.clip(shown_K3 / spread_3, -1, 1) * 127.5 + 127.5).astype(np.uint8)
