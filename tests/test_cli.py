"""The command line as a user types it: real processes, right and wrong arguments."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskbit_cli import COMMANDS
from models.bundle import Bundle


def maskbit(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maskbit_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=cwd,
    )


def test_help_lists_every_command_and_loads_no_heavy_library() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "maskbit_cli", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "numpy", "fastapi", "pydantic", "redis", "webdataset", "PIL", "safetensors"}


def test_pictures_are_named_after_class_and_seed_and_repeat(tiny_bundle: Bundle, tmp_path: Path) -> None:
    arguments = ("generate", "--class", "Lemon", "--class", "1", "--n", "2", "--seed", "7")
    for out in ("a", "b"):
        done = maskbit(*arguments, "--bundle", str(tiny_bundle.path), "--out", str(tmp_path / out))
        assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["banana-7.png", "banana-8.png", "lemon-7.png", "lemon-8.png"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tokens_of_a_picture_go_to_a_file_and_back(tiny_bundle: Bundle, tmp_path: Path) -> None:
    picture, tokens, back = tmp_path / "in.png", tmp_path / "deep" / "t.json", tmp_path / "out.webp"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    bundle = ("--bundle", str(tiny_bundle.path))
    assert maskbit("tokenize", str(picture), "--out", str(tokens), *bundle).returncode == 0
    content = json.loads(tokens.read_text())
    assert content["bit_order"] == "lsb-first"
    for row, names in zip(content["indices"], content["tokens"], strict=True):
        assert [int(name[::-1], 2) for name in names] == row
    assert maskbit("detokenize", str(tokens), "--out", str(back), *bundle).returncode == 0
    with Image.open(back) as image:
        assert (image.format, image.size) == ("WEBP", (16, 16))


def test_inspect_tells_what_a_bundle_holds(tiny_bundle: Bundle) -> None:
    done = maskbit("inspect", str(tiny_bundle.path))
    assert done.returncode == 0
    for words in (tiny_bundle.ref, "8 x 8 of 6 bits", "2 layers of width 32", "digests agree"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), "nonsense"),
        (("generate",), "--class"),
        (("generate", "--class", "strawbery"), "did you mean strawberry"),
        (("generate", "--class", "99"), "allowed are 0 to 15"),
        (("generate", "--class", "fig", "--n", "0"), "--n"),
        (("generate", "--class", "fig", "--steps", "9999"), "allows 1 to 512"),
        (("generate", "--class", "fig", "--device", "tpu"), "allowed are auto, cpu"),
        (("generate", "--class", "fig", "--bundle", "nowhere"), "no bundle 'nowhere'"),
        (("generate", "--class", "fig", "--out", "/proc/no"), "cannot write"),
        (("tokenize", "missing.png"), "missing.png cannot be read"),
        (("tokenize", __file__), "is not a picture"),
        (("detokenize", __file__, "--out", "x.png"), "is not JSON"),
        (("inspect", "/proc"), "bundle.json"),
        (("inspect", "hf://not a name"), "cannot be loaded from the Hub"),
        (("train", "tokenizer", "no_such_recipe"), "no_such_recipe"),
        (("bench", "models", "--batch", "0"), "--batch"),
    ],
)
def test_wrong_use_gets_one_clear_line(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = maskbit(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_help_answers_at_once() -> None:
    """Half a second is promised on an idle machine; a generous bound only catches a heavy import."""
    started = time.monotonic()
    assert maskbit("--help").returncode == 0
    assert time.monotonic() - started < 10
