import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import ConfigError
from tests.training_fixtures import picture_bytes, read_tar
from training.data.folder_import import shards_from_folder, split_files
from training.data.shard_writer import Picture, new_data_set, write_shards
from training.data.sources import read_samples

COUNTS = {"ant": 20, "bee": 10, "cat": 5}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three classes of PNG files, one of them in nested folders."""
    folder = tmp_path / "source"
    for number, (name, count) in enumerate(COUNTS.items()):
        for k in range(count):
            place = folder / name / f"part{k % 2}" if name == "bee" else folder / name
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{k:02d}.png").write_bytes(picture_bytes(100 * number + k, (20, 12)))
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def labels(folder: Path, split: str) -> Counter[int]:
    return Counter(sample.label for sample in read_samples(f"{folder}/{split}-*.tar"))


def test_every_picture_lands_byte_by_byte_in_one_split(source: Path, tmp_path: Path) -> None:
    report = shards_from_folder(source, tmp_path / "out", val_share=0.2)
    assert (report.classes, report.train, report.val, report.skipped) == (("ant", "bee", "cat"), 28, 7, ())
    stored = Counter(sample.image for sample in read_samples(f"{tmp_path}/out/*.tar"))
    assert stored == Counter(path.read_bytes() for path in source.rglob("*.png"))


def test_the_split_is_stratified_and_the_order_mixed(source: Path, tmp_path: Path) -> None:
    shards_from_folder(source, tmp_path / "out", val_share=0.2)
    assert labels(tmp_path / "out", "val") == {0: 4, 1: 2, 2: 1}
    assert labels(tmp_path / "out", "train") == {0: 16, 1: 8, 2: 4}
    order = [sample.label for sample in read_samples(f"{tmp_path}/out/train-000000.tar")]
    assert order != sorted(order)


def test_each_sample_keeps_the_class_of_its_folder(source: Path, tmp_path: Path) -> None:
    shards_from_folder(source, tmp_path / "out")
    names = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert names == {"0": "ant", "1": "bee", "2": "cat"}
    home = {path.read_bytes(): path.relative_to(source).parts[0] for path in source.rglob("*.png")}
    for sample in read_samples(f"{tmp_path}/out/*.tar"):
        assert home[sample.image] == names[str(sample.label)]


def test_the_same_folder_gives_the_same_bytes_and_another_seed_others(source: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        shards_from_folder(source, tmp_path / name, image_size=8, seed=seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a")["train-000000.tar"] != digests(tmp_path / "c")["train-000000.tar"]


def test_shards_hold_at_most_the_wanted_number(source: Path, tmp_path: Path) -> None:
    shards_from_folder(source, tmp_path / "out", val_share=0.2, samples_per_shard=10)
    sizes = {path.name: len(read_tar(path)) // 2 for path in sorted((tmp_path / "out").glob("*.tar"))}
    assert sizes == {
        "train-000000.tar": 10,
        "train-000001.tar": 10,
        "train-000002.tar": 8,
        "val-000000.tar": 7,
    }
    keys = [s.key for s in read_samples(f"{tmp_path}/out/train-*.tar")]
    assert keys == [f"{k:08d}" for k in range(28)]


def test_resized_pictures_are_square_and_look_the_same(source: Path, tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 40 * 30 * 3).reshape(30, 40, 3).astype(np.uint8)
    for path in source.rglob("*.png"):
        Image.fromarray(smooth).save(path)
    shards_from_folder(source, tmp_path / "out", image_size=16)
    files = read_tar(tmp_path / "out" / "train-000000.tar")
    picture = Image.open(io.BytesIO(files["00000000.webp"]))
    assert picture.size == (16, 16)
    middle = Image.fromarray(smooth[:, 5:35]).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(picture.convert("RGB"), int) - np.asarray(middle, int)).mean() < 4


def test_broken_files_are_counted_named_and_left_out(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [
        source / "ant" / "broken.jpg",
        source / "cat" / "notes.txt",
        source / "bee" / "part0" / "empty.png",
    ]
    for path, data in zip(bad, (picture_bytes(1)[:100], b"hello", b""), strict=True):
        path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        report = shards_from_folder(source, tmp_path / "out")
    assert report.skipped == tuple(sorted(bad))
    assert report.train + report.val == 35
    assert all(any(str(path) in message for message in caplog.messages) for path in bad)


def test_hidden_files_and_folders_are_passed_over(source: Path, tmp_path: Path) -> None:
    (source / ".git").mkdir()
    (source / ".git" / "x.png").write_bytes(picture_bytes(1))
    (source / "ant" / ".DS_Store").write_bytes(b"x")
    (source / "ant" / ".thumbs").mkdir()
    (source / "ant" / ".thumbs" / "x.png").write_bytes(picture_bytes(1))
    report = shards_from_folder(source, tmp_path / "out")
    assert (report.classes, report.train + report.val, report.skipped) == (("ant", "bee", "cat"), 35, ())


def test_links_are_followed_and_loops_end(source: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.png").write_bytes(picture_bytes(900))
    (source / "dog").symlink_to(elsewhere)
    (source / "ant" / "linked.png").symlink_to(elsewhere / "x.png")
    (source / "ant" / "up").symlink_to(source / "ant")
    (source / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    report = shards_from_folder(source, tmp_path / "out")
    assert report.classes == ("ant", "bee", "cat", "dog")
    assert report.train + report.val == 37
    assert report.skipped == (source / "cat" / "gone.png",)


def save_gif(path: Path) -> None:
    Image.new("P", (4, 4)).save(path, "GIF")


def test_other_formats_transparency_and_orientation_are_made_plain(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "mixed"
    folder.mkdir(parents=True)
    save_gif(folder / "a.gif")
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(folder / "b.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (6, 4)).save(folder / "c.jpg", exif=turned)
    Image.new("RGB", (4, 4), "blue").save(folder / "d.JPEG", "JPEG")
    original = (folder / "d.JPEG").read_bytes()
    shards_from_folder(tmp_path / "source", tmp_path / "out", val_share=0)
    files = read_tar(tmp_path / "out" / "train-000000.tar")
    pictures = {name: data for name, data in files.items() if not name.endswith(".cls")}
    assert sorted(name.partition(".")[2] for name in pictures) == ["jpg", "webp", "webp", "webp"]
    assert next(data for name, data in pictures.items() if name.endswith("jpg")) == original
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures.values()]
    assert sorted(picture.size for picture in opened) == [(4, 4), (4, 4), (4, 4), (4, 6)]
    assert any(picture.getpixel((0, 0)) == (255, 255, 255) for picture in opened)
    assert not (tmp_path / "out" / "val-000000.tar").exists()


def test_a_class_of_one_picture_is_for_training(tmp_path: Path) -> None:
    splits = split_files([[Path("a")], [Path("b"), Path("c")]], 0.5, 0)
    assert (Path("a"), 0) in splits["train"]
    assert sorted(label for _, label in splits["val"]) == [1]
    assert len(splits["train"]) == 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_a_split_loses_and_doubles_nothing(share: float) -> None:
    files = [[Path(f"{label}-{k}") for k in range(label + 1)] for label in range(30)]
    splits = split_files(files, share, 3)
    together = [path for entries in splits.values() for path, _ in entries]
    assert sorted(together) == sorted(path for paths in files for path in paths)
    trained = {label for _, label in splits["train"]}
    assert trained == set(range(30))


def refused(source: Path, out: Path, message: str, **options: float) -> None:
    with pytest.raises(ConfigError, match=message):
        shards_from_folder(source, out, **options)  # type: ignore[arg-type]


def test_what_cannot_be_done_is_refused_with_the_reason(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(
        tmp_path / "none", out, "no folder .*none; give one that holds a sub-folder of pictures per class"
    )
    refused(source / "ant" / "00.png", out, "no folder")
    refused(source / "ant", out, "ant has no sub-folders; one per class is needed")
    refused(source, out, "val_share is 1.0; allowed is 0 <= share < 1", val_share=1.0)
    refused(source, out, "samples_per_shard is 0", samples_per_shard=0)
    refused(source, out, "image_size is 0", image_size=0)
    refused(source, source / "out", "lies in .*source; shards would become a class of their own")
    (source / "dog").mkdir()
    refused(source, out, "class folder .*dog holds no pictures; fill or remove it")
    assert not out.exists()


def test_a_class_without_a_single_readable_picture_is_refused_and_nothing_is_left(
    source: Path, tmp_path: Path
) -> None:
    (source / "dog").mkdir()
    (source / "dog" / "x.png").write_bytes(b"x")
    refused(source, tmp_path / "out", "no readable picture in .*dog")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_target_that_holds_something_is_left_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".gitkeep").touch()
    (out / "old.tar").write_bytes(b"old")
    refused(source, out, r"out is not empty \(it holds old.tar\); give a new or an empty folder")
    assert sorted(path.name for path in out.iterdir()) == [".gitkeep", "old.tar"]
    (out / "old.tar").unlink()
    shards_from_folder(source, out)
    refused(source, out, "is not empty")
    refused(source, out / "train-000000.tar", "is a file; the shards need a folder")


def test_shards_appear_complete_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> Iterator[list[Picture]]:
        yield [Picture(b"data", "png", 0)]
        assert all(path.name.startswith(".") for path in tmp_path.iterdir())
        raise EOFError

    with pytest.raises(EOFError), new_data_set(tmp_path, ["a"]) as folder:
        write_shards(folder, "train", interrupted())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared_away(source: Path, tmp_path: Path) -> None:
    remains = tmp_path / "out" / ".partial-abc"
    remains.mkdir(parents=True)
    (remains / "train-000000.tar").write_bytes(b"x")
    shards_from_folder(source, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["classes.json", "train-000000.tar", "val-000000.tar"]
