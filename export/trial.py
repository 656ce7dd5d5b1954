"""What every runtime of a bundle is asked when they are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from export.draw_odds import HALVINGS
from models.bundle import Manifest
from models.drawing import Drawing, generator_of
from models.runtime.base import Integers

ROWS = 16  # pictures of one call


@dataclass(frozen=True)
class Trial:
    """`pictures` pictures of `steps` steps each; picture k has the seed k.

    Every fourth is drawn without guidance, so that both ways to step are tried. Raises InputError for more
    steps than there are groups to draw.
    """

    manifest: Manifest
    pictures: int
    steps: int

    def __post_init__(self) -> None:
        if self.draws:
            self._drawing(0)

    @property
    def draws(self) -> bool:
        """Whether the bundle draws pictures, and does not only code them."""
        return self.manifest.generator is not None

    @property
    def calls(self) -> int:
        """Calls of a runtime that is compared."""
        chunks = -(-self.pictures // ROWS)
        return chunks * (2 + 2 * self.steps) + HALVINGS if self.draws else 2 * chunks

    @property
    def reference_calls(self) -> int:
        """Calls of the reference, which steps once."""
        return self.calls - (self.steps * -(-self.pictures // ROWS) if self.draws else 0)

    def drawings(self) -> Iterator[list[Drawing]]:
        """The pictures of every call, before their first step."""
        for start in range(0, self.pictures, ROWS):
            yield [self._drawing(seed) for seed in range(start, min(start + ROWS, self.pictures))]

    def _drawing(self, seed: int) -> Drawing:
        config = generator_of(self.manifest)
        sampling = replace(self.manifest.sampling, steps=self.steps)
        if seed % 4 == 3:
            sampling = replace(sampling, guidance_scale=0.0)
        return Drawing.start(config, sampling, seed % config.nclass, seed)

    def random_grids(self) -> Integers:
        """Tokens i64 (P, h, w) of pictures, for a bundle that cannot draw any."""
        shape = (self.pictures, self.manifest.grid, self.manifest.grid)
        return np.random.default_rng(0).integers(0, self.manifest.tokenizer.num_codes, shape)
