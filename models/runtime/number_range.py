"""Whether a generator's numbers fit into the precision that a runtime computes in: asked of its tokens.

Exported graphs return tokens and never logits, and what is not a number is drawn as the category 0.
"""

from __future__ import annotations

import numpy as np

from models.config import GeneratorConfig
from models.runtime.base import Runtime, StepBatch

SHARES = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1)
"""Of the groups that are masked: a picture at its beginning, halfway, nearly done."""


def keeps_in_range(runtime: Runtime, config: GeneratorConfig) -> bool:
    """Whether no logit of some states of pictures, with guidance and without, is infinite or no number.

    The states are few and their tokens random, so this finds networks that never fit, and no rare overflow.
    """
    batch = trial(config)
    drawn = runtime.step(batch).drawn
    return not (drawn[batch.tokens == config.group_codes] == 0).any()


def trial(config: GeneratorConfig) -> StepBatch:
    """Steps in which every masked group is drawn as one of the last categories, if all logits are finite."""
    rng = np.random.default_rng(0)
    rows = 2 * len(SHARES)
    shape = (rows, config.num_tokens, config.codebook_splits)
    masked = rng.random(shape) < np.resize(np.array(SHARES), rows)[:, None, None]

    def same(value: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.full(rows, value, dtype=np.float32)

    return StepBatch(
        tokens=np.where(masked, config.group_codes, rng.integers(0, config.group_codes, shape)),
        labels=rng.integers(0, config.nclass, rows),
        guidance_scale=np.repeat(np.array([0, 1], dtype=np.float32), len(SHARES)),
        # So hot that all categories are as probable, whatever finite logits they have.
        temperature=same(1e9),
        noise_temperature=same(0),
        mask_count=np.zeros(rows, dtype=np.int64),
        category_uniforms=np.full(shape, 0.99, dtype=np.float32),
        confidence_uniforms=np.full(shape, 0.5, dtype=np.float32),
    )
