from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from models.bundle import Bundle
from models.drawing import draw
from models.errors import CheckpointError, ConfigError, InputError, MaskBitError
from models.runtime.torch_runtime import TorchRuntime
from models.schedule import forward_passes
from tests.evaluation_fixtures import write_classifier
from tests.training_fixtures import picture_bytes, write_tar
from training.classifier import load_classifier
from training.evaluation.cli import evaluate_app
from training.evaluation.drawing_folder import DrawingFolder
from training.evaluation.drawing_run import DrawingPlan, chunks_of, deal
from training.evaluation.frechet import frechet_distance, moments_of
from training.evaluation.generator_evaluation import evaluate_generator
from training.evaluation.judge import Judge
from training.evaluation.manifold import precision_recall
from training.evaluation.observer import Instruments
from training.evaluation.ranks import Ranks
from training.evaluation.reconstruction_metrics import mae, psnr
from training.evaluation.setup import EvaluationSettings, Setup

ROOT = Path(__file__).resolve().parents[1]
PICTURES, CLASSES = 24, 5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of 16x16 random pixels in two shards, of classes 0 to 4 in turn."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        files = []
        for k in range(shard * 12, shard * 12 + 12):
            files += [(f"{k:04d}.png", picture_bytes(k)), (f"{k:04d}.cls", str(k % CLASSES).encode())]
        write_tar(folder / f"val-{shard}.tar", files)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("runs") / "network", CLASSES)


def originals() -> tuple[torch.Tensor, torch.Tensor]:
    """The shards' pictures u8 (24, 3, 16, 16) and labels."""
    pictures = [np.asarray(Image.open(io.BytesIO(picture_bytes(k)))) for k in range(PICTURES)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), torch.arange(PICTURES) % CLASSES


def run(*arguments: object) -> Result:
    return CliRunner().invoke(evaluate_app, [str(argument) for argument in arguments])


def report(out: Path, *arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--out", out, "--device", "cpu")
    assert result.exception is None, result.output
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def error(*arguments: object) -> MaskBitError:
    """The foreseen error of a call, which maskbit_cli.main turns into one line."""
    result = run(*arguments, "--device", "cpu")
    assert isinstance(result.exception, MaskBitError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


def value(found: dict[str, Any], name: str) -> float:
    return float(found["measures"][name]["value"])


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    costs = {key: cost for key, cost in found["costs"].items() if key != "seconds_per_image"}
    return found | {"costs": costs}


def test_a_tokenizer_is_measured_as_the_definitions_say(
    tiny_bundle: Bundle, shards: Path, network: Path, tmp_path: Path
) -> None:
    pattern = shards / "val-{0..1}.tar"
    found = report(
        tmp_path / "out",
        *("tokenizer", tiny_bundle.path, "--shards", pattern, "--features", network, "--judge", network),
        *("--batch-size", 5, "--blocks", 6, "--bootstrap", 20),
    )
    real, labels = originals()
    runtime = TorchRuntime(tiny_bundle, device="cpu")
    codes = runtime.encode(real.permute(0, 2, 3, 1).numpy())
    rebuilt = torch.from_numpy(runtime.decode(codes)).permute(0, 3, 1, 2)
    judge = load_classifier(network)
    with torch.inference_mode():
        features = [judge.features(images.float() / 255) for images in (real, rebuilt)]
        names = [judge(images.float() / 255).argmax(1) for images in (real, rebuilt)]
    precise, recalled = precision_recall(features[0], features[1])
    expected = {
        "mae": mae(real / 255, rebuilt / 255).mean(),
        "psnr": psnr(real / 255, rebuilt / 255).mean(),
        "codebook_usage": len(np.unique(codes)) / 64,
        "rfid": frechet_distance(*map(moments_of, features)),
        "precision": precise.double().mean(),
        "recall": recalled.double().mean(),
        "accuracy_real": (names[0] == labels).double().mean(),
        "accuracy_reconstructed": (names[1] == labels).double().mean(),
    }
    for name, wanted in expected.items():
        assert value(found, name) == pytest.approx(float(wanted), rel=1e-5, abs=1e-6), name
    assert found["pictures"] == PICTURES
    assert found["costs"]["skipped_samples"] == 0
    one = found["measures"]["psnr"]
    assert one["low"] < one["value"] < one["high"]
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.size == (5 * 16, 2 * 16)


def test_without_networks_the_pairs_are_measured_all_the_same(
    tiny_bundle: Bundle, shards: Path, tmp_path: Path
) -> None:
    arguments = ("tokenizer", tiny_bundle.path, "--shards", shards / "val-*.tar", "--limit", 7)
    found = report(tmp_path / "out", *arguments)
    assert found["pictures"] == 7
    assert set(found["measures"]) == {
        "mae", "mse", "psnr", "ssim", "codebook_usage", "codebook_entropy_bits"
    }  # fmt: skip
    assert found["measures"]["psnr"]["low"] is None  # too few pictures for an interval


def test_the_report_shows_published_scores_and_says_what_is_not_comparable(
    tiny_bundle: Bundle, shards: Path, network: Path, tmp_path: Path
) -> None:
    options = ("--shards", shards / "val-0.tar", "--features", network, "--bootstrap", 0)
    found = report(tmp_path / "out", "tokenizer", tiny_bundle.path, *options)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| maskbit_tokenizer_14bit | 1.37 | 190.3 | 21.5 | 0.56 | 1 |" in text
    assert "are not comparable with published ones" in text
    assert "12 reconstructed pictures are too few for 16 pooled features" in text
    assert found["published"]["maskbit_tokenizer_18bit"]["codebook_usage"] == 0.5
    found = report(tmp_path / "g", "generator", tiny_bundle.path, "--num-images", 6, "--judge", network)
    assert found["published"]["maskbit_generator_14bit"] == {"fid": 1.62}
    assert not any("comparable" in text for text in found["warnings"])  # no features, no distance


def test_a_broken_picture_is_left_out_and_changes_no_other_number(
    tiny_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [picture_bytes(k) for k in range(6)]
    pictures[2] = b"no picture"
    files = [(f"{k}.png", data) for k, data in enumerate(pictures)]
    files += [(f"{k}.cls", b"1") for k in range(6)]
    write_tar(tmp_path / "broken.tar", sorted(files))
    with caplog.at_level(logging.WARNING):
        found = report(
            tmp_path / "out",
            *("tokenizer", tiny_bundle.path, "--shards", tmp_path / "broken.tar", "--batch-size", 2),
        )
    assert found["pictures"] == 5
    assert found["costs"]["skipped_samples"] == 1
    assert "| skipped_samples | 1 | |" in (tmp_path / "out" / "report.md").read_text()
    assert "2" in caplog.text
    write_tar(tmp_path / "none.tar", [("0.png", b"no"), ("0.cls", b"1")])
    assert "no labelled picture that can be decoded" in str(
        error("tokenizer", tiny_bundle.path, "--shards", tmp_path / "none.tar")
    )


def test_the_columns_of_parquet_files_are_chosen_as_in_training(
    tiny_bundle: Bundle, network: Path, tmp_path: Path
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures = [*(picture_bytes(k) for k in range(5)), b"no picture", None]
    table = pa.table({"png": pictures, "y": [0, 1, 2, 3, 4, 0, 1]})
    pq.write_table(table, tmp_path / "a.parquet")
    columns = ("--image-column", "png", "--label-column", "y", "--batch-size", 2)
    tokenizer = ("tokenizer", tiny_bundle.path, "--shards", tmp_path / "a.parquet")
    generator = ("generator", tiny_bundle.path, "--num-images", 5, *tokenizer[2:], "--judge", network)
    for name, arguments in (("tokenizer", tokenizer), ("generator", generator)):
        found = report(tmp_path / name, *arguments, *columns)
        assert found["pictures"] == 5
        assert found["costs"]["skipped_samples"] == 2
        assert "no column 'image'; there are png, y" in str(error(*arguments))


def drawn(bundle: Bundle, count: int, seed: int, **changes: Any) -> torch.Tensor:
    """Pictures u8 (count, 3, H, W) by the documented rule: seed + k, class k modulo the classes."""
    from dataclasses import replace

    runtime, manifest = TorchRuntime(bundle, device="cpu"), bundle.manifest
    labels, seeds = [k % CLASSES for k in range(count)], [seed + k for k in range(count)]
    grids = draw(runtime, manifest, replace(manifest.sampling, **changes), labels, seeds)
    return torch.from_numpy(runtime.decode(grids)).permute(0, 3, 1, 2)


def test_a_generator_is_measured_on_the_pictures_of_its_seeds(
    tiny_bundle: Bundle, shards: Path, network: Path, tmp_path: Path
) -> None:
    found = report(
        tmp_path / "out",
        *("generator", tiny_bundle.path, "--shards", shards / "val-*.tar", "--num-images", 20),
        *("--features", network, "--judge", network, "--seed", 3, "--set", "steps=4"),
        *("--set", "guidance_annealing=none", "--batch-size", 3, "--blocks", 5, "--bootstrap", 20),
    )
    judge = load_classifier(network)
    pictures = drawn(tiny_bundle, 20, 3, steps=4, guidance_annealing="none")
    with torch.inference_mode():
        real, fake = (judge.features(images.float() / 255) for images in (originals()[0], pictures))
        right = judge(pictures.float() / 255).argmax(1) == torch.arange(20) % CLASSES
    assert value(found, "fid") == pytest.approx(
        frechet_distance(moments_of(real), moments_of(fake)), rel=1e-5
    )
    assert value(found, "precision") == pytest.approx(float(precision_recall(real, fake)[0].double().mean()))
    assert value(found, "accuracy_generated") == pytest.approx(float(right.double().mean()))
    assert found["costs"]["forward_passes_per_image"] == 8
    assert found["costs"]["seconds_per_image"] > 0
    assert found["settings"]["sampling.steps"] == 4
    assert found["measures"]["fid"]["low"] < found["measures"]["fid"]["high"]
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width == 8 * 16


def test_forward_passes_are_those_of_the_bundles_own_sampling(
    tiny_bundle: Bundle, network: Path, tmp_path: Path
) -> None:
    arguments = ("generator", tiny_bundle.path, "--num-images", 5, "--judge", network)
    found = report(tmp_path / "out", *arguments)
    passes = forward_passes(tiny_bundle.manifest.sampling)
    assert found["costs"]["forward_passes_per_image"] == passes.total
    assert found["costs"]["forward_passes_saved_per_image"] == passes.saved


def test_saved_statistics_serve_like_the_shards_that_they_are_of(
    tiny_bundle: Bundle, shards: Path, network: Path, tmp_path: Path
) -> None:
    stats = tmp_path / "stats.npz"
    common = ("generator", tiny_bundle.path, "--num-images", 8, "--features", network, "--bootstrap", 0)
    first = report(tmp_path / "a", *common, "--shards", shards / "val-*.tar", "--save-reference", stats)
    second = report(tmp_path / "b", *common, "--reference", stats)
    assert second["measures"] == first["measures"]
    assert "recall" in first["measures"]

    with np.load(stats) as file:
        arrays = dict(file)
    adm = tmp_path / "adm.npz"  # mean and covariance alone, as guided-diffusion's files hold them
    np.savez(adm, **{key: arrays[key] for key in ("mu", "sigma", "mu_s", "sigma_s")})
    third = report(tmp_path / "c", *common, "--reference", adm)
    assert value(third, "fid") == pytest.approx(value(first, "fid"))
    assert value(third, "sfid") == pytest.approx(value(first, "sfid"))
    assert "recall" not in third["measures"]

    np.savez(adm, mu=np.zeros(2048), sigma=np.eye(2048))
    assert "the features have 16 numbers" in str(error(*common, "--reference", adm))
    np.savez(adm, **arrays | {"network": np.array("Inception 2015 (0123)")})
    assert "holds features of Inception 2015 (0123)" in str(error(*common, "--reference", adm))
    adm.write_bytes(stats.read_bytes()[:100])
    assert "not a readable .npz file" in str(error(*common, "--reference", adm))
    assert "not a readable .npz file" in str(error(*common, "--reference", tmp_path / "none.npz"))


def generator_arguments(bundle: Bundle, shards: Path, network: Path) -> tuple[object, ...]:
    return (
        *("generator", bundle.path, "--shards", shards / "val-*.tar", "--features", network),
        *("--judge", network, "--num-images", 40, "--save-every", 4, "--batch-size", 2),
        *("--blocks", 5, "--bootstrap", 10, "--device", "cpu"),
    )


def test_a_killed_run_continues_to_the_report_of_an_undisturbed_one(
    tiny_bundle: Bundle, shards: Path, network: Path, tmp_path: Path
) -> None:
    arguments = generator_arguments(tiny_bundle, shards, network)
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "maskbit_cli", "evaluate", *map(str, arguments), "--out", str(folder)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("block-*.npz")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = sorted(path.name for path in folder.glob("block-*.npz"))
    assert not (folder / "report.json").exists()

    continued = report(folder, *arguments)
    undisturbed = report(tmp_path / "undisturbed", *arguments)
    assert without_time(continued) == without_time(undisturbed)
    assert saved
    stamp = (folder / "block-000.npz").stat().st_mtime_ns
    assert without_time(report(folder, *arguments)) == without_time(undisturbed)
    assert (folder / "block-000.npz").stat().st_mtime_ns == stamp  # nothing was left to draw


TWO_COMMANDS = """
import json, os, sys
import torch
from training.evaluation.cli import evaluate_app

torch.set_num_threads(1)
for arguments, port in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = port
    evaluate_app(arguments, standalone_mode=False)
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def together(*commands: tuple[object, ...]) -> None:
    """Run commands in two processes, with the environment that torchrun and accelerate launch set."""
    todo = json.dumps([[[str(word) for word in arguments], free_port()] for arguments in commands])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_COMMANDS, todo],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(90) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()


def assert_alike(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert set(first["measures"]) == set(second["measures"])
    for name, one in first["measures"].items():
        for key, number in one.items():
            assert number == pytest.approx(second["measures"][name][key], rel=1e-6, abs=1e-7), (name, key)
    for name in ("pictures", "warnings", "settings"):
        assert first[name] == second[name]


def test_two_processes_find_the_numbers_of_one_and_share_what_is_missing(
    tiny_bundle: Bundle, shards: Path, network: Path, tmp_path: Path
) -> None:
    tokenizer = (
        *("tokenizer", tiny_bundle.path, "--shards", shards / "val-*.tar", "--features", network),
        *("--judge", network, "--batch-size", 5, "--blocks", 6, "--bootstrap", 10, "--device", "cpu"),
    )
    generator = generator_arguments(tiny_bundle, shards, network)
    commands = {"tokenizer": tokenizer, "generator": generator, "continued": generator}
    alone = {name: report(tmp_path / f"{name}-alone", *commands[name]) for name in ("tokenizer", "generator")}
    shutil.copytree(tmp_path / "generator-alone", tmp_path / "continued")
    for block in (1, 3):
        (tmp_path / "continued" / f"block-{block:03d}.npz").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "continued").glob("block-*.npz")}
    together(*((*arguments, "--out", tmp_path / name) for name, arguments in commands.items()))
    for name in commands:
        two = json.loads((tmp_path / name / "report.json").read_text())
        assert_alike(two, alone["tokenizer" if name == "tokenizer" else "generator"])
    assert len(stamps) == 3
    assert len(list((tmp_path / "continued").glob("block-*.npz"))) == 5
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


@given(missing=st.lists(st.integers(0, 2500), min_size=1, max_size=40), hands=st.integers(1, 40))
def test_what_is_missing_is_dealt_out_evenly(missing: list[int], hands: int) -> None:
    dealt = deal(missing, hands)
    assert sorted(block for hand in dealt for block in hand) == list(range(len(missing)))
    loads = [sum(missing[block] for block in hand) for hand in dealt]
    assert max(loads) - min(loads) <= max(missing)
    assert dealt == deal(missing, hands)


def test_equal_blocks_are_dealt_out_in_turn_and_the_rest_of_a_run_anew() -> None:
    assert deal([50] * 6, 4) == [[0, 4], [1, 5], [2], [3]]
    assert deal([0, 50, 0, 50, 0, 50, 0, 50], 2) == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_more_processes_than_blocks_are_refused(tiny_bundle: Bundle, network: Path) -> None:
    runtime, cpu = TorchRuntime(tiny_bundle, device="cpu"), torch.device("cpu")
    instruments = Instruments(judge=Judge(network, CLASSES, cpu))
    setup = Setup(tiny_bundle, runtime, instruments, EvaluationSettings(blocks=20), Ranks(3, 24), cpu)
    with pytest.raises(
        ConfigError, match="24 processes cannot share 20 blocks of pictures; give --blocks 24"
    ):
        evaluate_generator(setup, DrawingPlan(tiny_bundle.manifest.sampling, 100))


def test_a_folder_where_a_run_was_killed_at_its_start_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".config.json.partial").touch()
    DrawingFolder(tmp_path, {"seed": 0}).claim()
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 0}


def test_a_full_disk_is_one_line_and_leaves_no_partial_file(
    tiny_bundle: Bundle, shards: Path, network: Path, tmp_path: Path
) -> None:
    generator = ("generator", tiny_bundle.path, "--num-images", 5, "--judge", network)
    tokenizer = ("tokenizer", tiny_bundle.path, "--shards", shards / "val-0.tar")
    for number, (arguments, file) in enumerate(
        (
            (generator, "config.json"),
            (generator, "block-000.npz"),
            (generator, "grid.png"),
            (tokenizer, "grid.png"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        partial = folder / f".{file}.partial"
        partial.symlink_to("/dev/full")
        found = error(*arguments, "--out", folder)
        assert isinstance(found, ConfigError)
        assert f"{file} cannot be written: No space left on device" in str(found)
        assert not partial.is_symlink()
        assert not (folder / file).exists()
    report(tmp_path / "1", *generator)


def test_a_folder_takes_no_run_of_another_configuration(
    tiny_bundle: Bundle, network: Path, tmp_path: Path
) -> None:
    common = ("generator", tiny_bundle.path, "--judge", network)
    report(tmp_path / "run", *common, "--num-images", 5)
    found = error(*common, "--num-images", 6, "--out", tmp_path / "run")
    assert isinstance(found, ConfigError)
    assert "belongs to a run with another pictures (5, now 6); give another folder" in str(found)
    found = error(*common, "--num-images", 5, "--set", "steps=3", "--out", tmp_path / "run")
    assert "another sampling.steps (8, now 3)" in str(found)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "holiday.jpg").touch()
    assert "holds holiday.jpg and no config.json" in str(
        error(*common, "--num-images", 5, "--out", tmp_path / "other")
    )
    (tmp_path / "run" / "block-000.npz").write_bytes(b"PK")
    damaged = error(*common, "--num-images", 5, "--out", tmp_path / "run")
    assert isinstance(damaged, CheckpointError)
    assert "block-000.npz is damaged" in str(damaged)


def test_what_is_wrong_with_a_call_is_said_in_one_line(
    tiny_bundle: Bundle, shards: Path, network: Path, tmp_path: Path
) -> None:
    generator = ("generator", tiny_bundle.path, "--num-images", 5)
    tokenizer = ("tokenizer", tiny_bundle.path, "--shards", shards / "val-0.tar")
    other = write_classifier(tmp_path / "other", CLASSES + 1)
    for arguments, text in (
        (generator, "nothing to measure drawn pictures with"),
        ((*generator, "--features", "inception"), "need --inception-weights"),
        ((*generator, "--features", "inception", "--inception-weights", "none.pth"), "no such file"),
        ((*generator, "--features", "inception", "--inception-weights", "hf://x"), "hf://owner/name/file"),
        ((*generator, "--features", tmp_path / "nowhere"), "holds no checkpoint"),
        ((*generator, "--judge", other), "knows 6 classes, the bundle has 5"),
        ((*generator, "--judge", network, "--set", "speed=3"), "unknown speed"),
        ((*generator, "--judge", network, "--set", "steps"), "the form is key=value"),
        ((*generator, "--judge", network, "--set", "steps=0"), "steps is 0"),
        ((*generator, "--shards", "a", "--reference", "b"), "give one"),
        ((*generator, "--judge", network, "--save-reference", "x"), "needs --shards and --features"),
        ((*generator, "--judge", network, "--reference", "x.npz"), "say which with --features"),
        (("tokenizer", tiny_bundle.path, "--shards", tmp_path / "no.tar"), "nothing found at"),
        ((*tokenizer, "--lpips-linear", "x"), "needs both --lpips-backbone and --lpips-linear"),
        (("tokenizer", "nonsense", "--shards", "x"), "no bundle 'nonsense'"),
    ):
        assert text in str(error(*arguments)), arguments
    steps = error(*generator, "--judge", network, "--set", "steps=1000", "--out", tmp_path / "steps")
    assert isinstance(steps, InputError)
    assert not (tmp_path / "steps").exists()


def test_a_picture_of_an_unknown_class_is_an_error(
    tiny_bundle: Bundle, network: Path, tmp_path: Path
) -> None:
    write_tar(tmp_path / "x.tar", [("0.png", picture_bytes(0)), ("0.cls", b"7")])
    arguments = ("tokenizer", tiny_bundle.path, "--shards", tmp_path / "x.tar", "--judge", network)
    assert "has the class 7; the judge knows 5, from 0" in str(error(*arguments))


def test_help_answers_without_heavy_libraries() -> None:
    code = "import sys, training.evaluation.cli; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"
    for command in ("tokenizer", "generator"):
        assert "--features" in run(command, "--help").output
    assert run("generator").exit_code == 2


@pytest.mark.parametrize(("pictures", "save_every"), [(50_000, 1000), (320, 1000), (3, 1000), (41, 4)])
def test_chunks_cover_every_picture_once_and_fill_the_blocks_evenly(pictures: int, save_every: int) -> None:
    from models.sampling_config import SamplingConfig

    plan = DrawingPlan(SamplingConfig(), pictures, save_every=save_every)
    chunks = chunks_of(plan, 20)
    assert [k for chunk in chunks for k in range(chunk.start, chunk.stop)] == list(range(pictures))
    assert max(chunk.stop - chunk.start for chunk in chunks) <= save_every
    filled = np.zeros(20)
    for chunk in chunks:
        filled[chunk.block] += chunk.stop - chunk.start
    assert filled.max() - filled[filled > 0].min() <= max(chunk.stop - chunk.start for chunk in chunks)
