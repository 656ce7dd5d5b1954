"""The endless stream of training batches that one loader process makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice

from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from models.errors import ConfigError, InputError
from training.data.batch import Batch, to_batch
from training.data.config import DatasetConfig
from training.data.lanes import Lane, Layout, Position
from training.data.pictures import decode
from training.data.sample import log_skipped
from training.data.transforms import crop_source_side, random_crop

MAX_SKIPPED = 1000  # samples in a row, after which the data set is held to be broken


class TrainingBatches(IterableDataset[Batch | ConfigError]):
    """Batches of one process, endless: `share` pictures of each of its `parts`, from `start` on.

    A ConfigError comes as the last item, since torch would turn one that is raised in a loader process into a
    traceback.
    """

    def __init__(
        self,
        config: DatasetConfig,
        layout: Layout,
        parts: range,
        share: int,
        start: int,
        positions: Mapping[str, Position],
    ) -> None:
        self.config = config
        self.side = crop_source_side(config)
        self.layout = layout
        self.parts = parts
        self.share = share
        self.start = start
        self.positions = positions

    def __iter__(self) -> Iterator[Batch | ConfigError]:
        info = get_worker_info()
        worker = (self.start + (0 if info is None else info.id)) % self.layout.workers
        keys = [self.layout.key(part, worker) for part in self.parts]
        lanes = {
            key: self.layout.lane(part, worker, self.positions[key])
            for part, key in zip(self.parts, keys, strict=True)
        }
        try:
            while True:
                yield self._batch(lanes)
        except ConfigError as exc:
            yield exc

    def _batch(self, lanes: Mapping[str, Lane]) -> Batch:
        images: list[Image.Image] = []
        labels: list[int] = []
        skipped = 0
        for lane in lanes.values():
            for _ in range(self.share):
                image, label, left_out = self._picture(lane)
                images.append(image)
                labels.append(label)
                skipped += left_out
        positions = {key: lane.position for key, lane in lanes.items()}
        return replace(to_batch(images, labels), position=positions, skipped=skipped)

    def _picture(self, lane: Lane) -> tuple[Image.Image, int, int]:
        """The lane's next sound picture, cropped, its label, and how many samples were skipped before it."""
        for skipped, (place, sample) in enumerate(islice(lane, MAX_SKIPPED)):
            try:
                image = decode(sample.content(), self.side)
                return random_crop(image, self.config, lane.random(place)), sample.label, skipped
            except InputError as exc:
                log_skipped(sample, exc)
                reason = f"{sample}: {exc}"
        raise ConfigError(f"{MAX_SKIPPED} samples in a row cannot be used; the last is {reason}")
