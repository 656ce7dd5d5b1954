"""What an evaluation found, as JSON and as Markdown with the published scores beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.bundle import Manifest
from models.errors import ConfigError
from models.presets import GENERATORS, TOKENIZERS, find_preset
from training.evaluation.bootstrap import CONFIDENCE, Estimate
from training.evaluation.feature_network import FeatureNetwork

JSON_FILE, MARKDOWN_FILE = "report.json", "report.md"
NOT_COMPARABLE = (
    "Fréchet distances and scores in the features of {network} are not comparable with published ones, which "
    "are measured in those of the Inception of 2015."
)
OTHER_DATA = "Published scores are of 256x256 pictures of ImageNet; this model was not made for those."


@dataclass(frozen=True)
class Report:
    """`settings` say how it was measured, `costs` are plain numbers such as seconds per image.

    `published` are the scores of the published models of this kind, by model.
    """

    kind: str
    bundle: str
    pictures: int
    settings: Mapping[str, Any]
    measures: Mapping[str, Estimate]
    costs: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Text of the JSON file."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Text of the Markdown file."""
        parts = [
            [f"# Evaluation of the {self.kind} {self.bundle}", "", f"{self.pictures} pictures.", ""],
            [f"| measure | value | {CONFIDENCE:.0%} interval |", "| --- | --- | --- |"],
            [f"| {name} | {one.value:.5g} | {_interval(one)} |" for name, one in self.measures.items()],
            [f"| {name} | {value:.5g} | |" for name, value in self.costs.items()],
            ["", *(f"- **Note:** {text}" for text in self.warnings), ""],
            ["Measured with:", "", *(f"- {key}: {value}" for key, value in self.settings.items())],
            _published_table(self.published),
        ]
        return "\n".join(line for part in parts for line in part) + "\n"

    def save(self, folder: Path) -> None:
        """Write both files into `folder`, which is made; ConfigError when that is impossible."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / JSON_FILE).write_text(self.to_json(), encoding="utf-8")
            (folder / MARKDOWN_FILE).write_text(self.to_markdown(), encoding="utf-8")
        except OSError as exc:
            raise ConfigError(f"the report cannot be written to {folder}: {exc.strerror}") from exc


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.5g} to {estimate.high:.5g}"


def _published_table(published: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not published:
        return []
    names = list(next(iter(published.values())))
    head = [
        "",
        "Published scores:",
        "",
        f"| model | {' | '.join(names)} |",
        "| --- " * (len(names) + 1) + "|",
    ]
    rows = [
        f"| {model} | {' | '.join(f'{scores[name]:g}' for name in names)} |"
        for model, scores in published.items()
    ]
    return head + rows


def published_scores(kind: str) -> dict[str, Mapping[str, float]]:
    """Scores of the published models of `kind`, "tokenizer" or "generator", by their names."""
    names = TOKENIZERS if kind == "tokenizer" else GENERATORS
    return {name: find_preset(name).scores for name in names}


def usual_warnings(features: FeatureNetwork | None, manifest: Manifest) -> list[str]:
    """What keeps the numbers from being compared with published ones."""
    warnings = []
    if features is not None and not features.published:
        warnings.append(NOT_COMPARABLE.format(network=features.name))
    if (manifest.image_size, len(manifest.class_names)) != (256, 1000):
        warnings.append(OTHER_DATA)
    return warnings


def size_warnings(counts: Mapping[str, int], features: Mapping[str, int]) -> list[str]:
    """Sides with too few pictures for their covariances; a count of 0 means that it is not known."""
    return [
        f"{count} {side} pictures are too few for {size} {kind} features: their covariance is singular, and "
        "the Fréchet distance is only comparable with ones of as many pictures."
        for kind, size in features.items()
        for side, count in counts.items()
        if 0 < count <= size
    ]
