"""How much of its codebook a tokenizer uses, from the counts of every code (SPEC section 5)."""

import torch
from torch import Tensor


def usage(counts: Tensor) -> float:
    """Share of codes with a count above 0; `counts` (2^K,)."""
    return float((counts > 0).double().mean())


def entropy_bits(counts: Tensor) -> float:
    """Entropy of the code distribution in bits, at most K; `counts` (2^K,)."""
    shares = counts.double() / counts.sum()
    return float(-(shares * torch.log2(shares + 1e-8)).sum())
