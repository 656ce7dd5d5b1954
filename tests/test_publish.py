from pathlib import Path

import pytest

from tests.training_runs import recipe_of, write_data
from training.publish import shard_names, tokenizer_manifest


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("/data/imagenet/train-{0000..0252}.tar", "train-{0000..0252}.tar"),
        ("/a/train-*.tar::s3://bucket/b/more-{0..3}.tar", "train-*.tar::more-{0..3}.tar"),
        ("/data/{first/a,second/b}-*.tar", "{first/a,second/b}-*.tar"),
        ("{/x,/y}/train.tar", "train.tar"),
        ("my_pictures/train/", "train"),
        ("https://host/shards/a.tar?token=secret", "a.tar"),
        ("train.parquet", "train.parquet"),
    ],
)
def test_shards_are_named_without_their_folders(pattern: str, names: str) -> None:
    assert shard_names(pattern) == names


def test_the_batch_is_that_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path)
    recipe = recipe_of("tokenizer", data, tmp_path, training__gradient_accumulation_steps=3)
    for count, batch in ((None, 12), ("8", 96)):
        if count is not None:
            monkeypatch.setenv("WORLD_SIZE", count)
        provenance = tokenizer_manifest(recipe, "name", "CC0-1.0").provenance["tokenizer"]
        assert provenance == {
            "recipe": "run",
            "shards": "train-*.tar",
            "steps": 4,
            "batch": batch,
            "seed": 7,
        }
