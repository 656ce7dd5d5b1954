"""The golden files of the reference: every case is reproduced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import bits
from models.checkpoint import load_into
from models.config import GeneratorConfig, TokenizerConfig
from models.generator import Generator
from models.networks import build_generator, build_tokenizer
from models.quantizer import QuantizerLosses
from models.sampler import LogitsFn, StepInputs, step
from models.sampling_config import MASK_SCHEDULES, SamplingConfig
from models.schedule import mask_ratio, plan_steps
from models.tokenizer import ConvTokenizer
from tests.golden_weights import make_weights
from training.ema import ema_decay
from training.evaluation import codebook
from training.evaluation.frechet import frechet_distance, moments_of
from training.evaluation.inception_score import inception_score, score_terms
from training.evaluation.reconstruction_metrics import mae, mse, psnr, ssim
from training.losses.adversary import Adversary
from training.losses.config import DiscriminatorConfig, TokenizerLossConfig
from training.losses.token_loss import group_weights, token_loss
from training.losses.tokenizer_loss import TokenizerLoss, tokenizer_loss
from training.lr_schedule import cosine_with_minimum

GOLDEN = Path(os.environ.get("MASKBIT_GOLDEN_DIR") or Path(__file__).parent / "golden")
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())["cases"]
SEED: int = json.loads((GOLDEN / "cases.json").read_text())["seed"]
TOLERANCE = 1e-4  # of floats, relative to the largest magnitude of the golden array

Array = NDArray[Any]


class Case(NamedTuple):
    """One entry of cases.json with its arrays."""

    name: str
    config: dict[str, Any]
    arrays: dict[str, Array]
    used: set[str]

    def __call__(self, name: str) -> Array:
        self.used.add(name)
        return self.arrays[name]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self(name))


def read_case(name: str) -> Case:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return Case(name, CASES[name]["config"], dict(file), set())


def assert_close(got: object, wanted: Array, what: str) -> None:
    got = np.asarray(got)
    assert got.shape == wanted.shape, what
    scale = float(np.abs(wanted).max())
    assert float(np.abs(got - wanted).max()) <= TOLERANCE * scale, what


def fill(network: torch.nn.Module, case: str) -> torch.nn.Module:
    """The case's weights, whose keys and shapes come from the golden file and not from our network."""
    weights = {
        key: torch.from_numpy(value) for key, value in make_weights(CASES[case]["parameters"], SEED).items()
    }
    load_into(network, weights, case)
    return network.eval()


def build_config(cls: type[Any], values: dict[str, Any]) -> Any:
    """The dataclass of a published config."""
    names = {field.name for field in fields(cls)}
    assert set(values) <= names
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def check_taming(case: Case) -> None:
    """The crop and the half precision of the pictures are explained in the specification."""
    network = build_tokenizer(build_config(TokenizerConfig, case.config))
    fill(network, case.name)
    assert str(case("images_dtype")).startswith("store as float16")
    with torch.no_grad():
        indices = network.encode(case.tensor("images").float()).indices
        reconstruction = network.decode_indices(case.tensor("indices"))
    assert np.array_equal(indices, case("indices"))
    assert_close(reconstruction[..., 96:160, 96:160], case("reconstruction_crop"), "reconstruction_crop")


def check_tokenizer(case: Case) -> None:
    network = build_tokenizer(build_config(TokenizerConfig, case.config))
    assert isinstance(network, ConvTokenizer)
    fill(network, case.name)
    images = case.tensor("images")
    with torch.no_grad():
        latents = network.encoder(images)
        reconstruction, quantized = network(images)
        decoded = network.decode_indices(case.tensor("indices"))
    assert_close(latents, case("latents"), "latents")
    assert np.array_equal(quantized.indices, case("indices"))
    assert np.array_equal(network.encode(images).indices, case("indices"))
    assert_close(reconstruction, case("reconstruction"), "reconstruction")
    assert_close(decoded, case("decoded_from_indices"), "decoded_from_indices")
    assert quantized.losses is None
    network.quantize.train()
    losses = network.quantize(torch.from_numpy(case("latents"))).losses
    check_quantizer_losses(case, losses)


def check_quantizer_losses(case: Case, losses: QuantizerLosses) -> None:
    names = {
        "total": "quantizer_loss",
        "commitment": "commitment_loss",
        "entropy": "entropy_loss",
        "per_sample_entropy": "per_sample_entropy",
        "average_entropy": "avg_entropy",
    }
    if case.config["quantizer_type"] == "lookup":
        names["codebook"] = "codebook_loss"
    for ours, theirs in names.items():
        assert_close(getattr(losses, ours).detach(), case(f"train_{theirs}"), theirs)


@cache
def generator_of(name: str) -> Generator:
    network = build_generator(build_config(GeneratorConfig, CASES[name]["config"]))
    fill(network, name)
    return network


def check_generator(case: Case) -> None:
    network = generator_of(case.name)
    labels = torch.where(case.tensor("drop_label"), network.config.nclass, case.tensor("labels"))
    with torch.no_grad():
        logits = network(case.tensor("tokens"), labels)
    assert_close(logits, case("logits"), "logits")


def sampling_config(values: dict[str, Any]) -> SamplingConfig:
    return SamplingConfig(
        steps=values["num_steps"],
        guidance_scale=values["guidance_scale"],
        guidance_annealing=values["guidance_annealing"],
        guidance_pow=values["scale_pow"],
        temperature=values["softmax_temperature"],
        noise_temperature=values["randomize_temperature"],
        mask_schedule=values["mask_schedule_strategy"],
        anneal_temperature=values["use_sampling_annealing"],
    )


def golden_step(case: Case, number: int, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One step from `tokens` with the recorded noise: (next tokens, drawn groups)."""
    network = generator_of(case.config["generator"])
    config = network.config
    plan = plan_steps(sampling_config(case.config), tokens[0].numel())[number]
    rows = len(tokens)
    inputs = StepInputs(
        tokens=tokens,
        labels=case.tensor("labels"),
        guidance_scale=torch.full((rows,), plan.guidance_scale),
        temperature=torch.full((rows,), plan.temperature),
        noise_temperature=torch.full((rows,), plan.noise_temperature),
        mask_count=torch.full((rows,), plan.mask_count),
        category_uniforms=case.tensor("uniform_tokens")[number].float(),
        confidence_uniforms=case.tensor("uniform_confidence")[number].float(),
    )
    guided = rows if plan.guidance_scale else 0
    logits_fn: LogitsFn = network
    with torch.no_grad():
        return step(logits_fn, inputs, guided, config.group_codes, config.nclass)


def check_sampler(case: Case) -> None:
    config = generator_of(case.config["generator"]).config
    recorded = case.tensor("masked_tokens_before_step")
    own = torch.full_like(recorded[0], config.group_codes)
    drawn = own
    for number in range(case.config["num_steps"]):
        # Alone, from the recorded state, a step is judged even where an earlier one went wrong.
        _, alone = golden_step(case, number, recorded[number])
        assert np.array_equal(alone, case("predicted_tokens")[number]), (
            f"step {number} from the recorded state"
        )
        assert np.array_equal(own, recorded[number]), f"our own state before step {number}"
        own, drawn = golden_step(case, number, own)
        assert np.array_equal(drawn, case("predicted_tokens")[number]), f"step {number} from our own state"
    assert np.array_equal(bits.join_groups(drawn.numpy(), config.bits), case("final_indices"))


def check_schedules(case: Case) -> None:
    for schedule in MASK_SCHEDULES:
        got = [mask_ratio(np.float32(progress), schedule) for progress in case("progress")]
        assert_close(got, case(f"mask_ratio_{schedule}"), schedule)


def check_factorization(case: Case) -> None:
    width = int(case.config["codebook_size"]).bit_length() - 1
    for splits in (1, 2, 3, 4):
        groups = case(f"split{splits}")
        assert np.array_equal(bits.split_groups(case("indices"), width, splits), groups)
        assert np.array_equal(bits.join_groups(groups, width), case("indices"))


def check_schedulers(case: Case) -> None:
    config = case.config
    rates = [
        cosine_with_minimum(number, config["base_lr"], config["warmup"], config["total"])
        for number in range(len(case("lr")))
    ]
    assert config["lr"] == "cosine_with_minimum"
    assert np.allclose(rates, case("lr"), rtol=1e-9, atol=0)
    decays = [ema_decay(int(update), config["ema_decay"]) for update in case("ema_step")]
    assert np.allclose(decays, case("ema_decay"), rtol=1e-9, atol=0)


def check_mlm_loss(case: Case) -> None:
    masks = case.tensor("masks")
    loss = token_loss(
        case.tensor("logits"),
        case.tensor("targets"),
        masks,
        group_weights(masks, "all", 0.0, 1),
        case.config["label_smoothing"],
        case.config["sum_splits"],
    )
    assert_close(loss.total, case("loss"), "loss")
    assert_close(loss.masked, case("masked_token_loss"), "masked_token_loss")
    assert_close(loss.accuracy, case("correct_tokens"), "correct_tokens")
    assert_close(loss.masked_accuracy, case("masked_correct_tokens"), "masked_correct_tokens")


def golden_adversary(case: Case) -> Adversary:
    """The case's discriminator in eval mode, its keys and shapes compared with the golden file."""
    adversary = Adversary(
        build_config(DiscriminatorConfig, case.config["discriminator"]),
        build_config(TokenizerLossConfig, case.config["loss"]),
    )
    network, listed = adversary.discriminator, CASES[case.name]
    shapes = {key: list(value.shape) for key, value in network.named_parameters()}
    assert shapes == listed["parameters"]
    assert {key: list(value.shape) for key, value in network.named_buffers()} == listed["buffers"]
    weights = make_weights(listed["parameters"], SEED)
    load_into(
        network,
        {**network.state_dict(), **{key: torch.from_numpy(value) for key, value in weights.items()}},
        case.name,
    )
    return adversary.eval()


def check_discriminator(case: Case) -> None:
    adversary = golden_adversary(case)
    real, fake = case.tensor("real"), case.tensor("fake").requires_grad_()
    values = {
        key.removesuffix("_loss"): torch.tensor(value) for key, value in case.config["quantizer"].items()
    }
    nothing = torch.zeros(())
    quantizer = QuantizerLosses(
        values["quantizer"], values["commitment"], nothing, values["entropy"], nothing, nothing
    )
    config = adversary.losses
    assert case.config["perceptual"] == "0.5*mse per sample"

    def total_at(step: int) -> TokenizerLoss:
        annealing = config.entropy_annealing_factor * (1 - step / config.entropy_annealing_steps)
        return tokenizer_loss(
            real,
            fake,
            quantizer,
            config,
            annealing=annealing,
            perceptual=lambda images, others: 0.5 * (images - others).square().mean((1, 2, 3)),
            adversary=adversary if adversary.active(step) else None,
            last_layer=fake,
        )

    with torch.no_grad():
        assert_close(adversary.discriminator(real), case("logits_real"), "logits_real")
        assert_close(adversary.discriminator(fake), case("logits_fake"), "logits_fake")
        assert_close(total_at(5).total, case("generator_total_step5"), "generator_total_step5")
    loss = total_at(500)
    assert_close(loss.total.detach(), case("generator_total_step500"), "generator_total_step500")
    weighted = (loss.adversarial_weight * loss.adversarial).detach()
    assert_close(weighted, case("generator_weighted_gan"), "generator_weighted_gan")
    (gradient,) = torch.autograd.grad(loss.total, fake)
    assert_close(gradient, case("grad_wrt_fake"), "grad_wrt_fake")
    for number in (500, 501):
        own = adversary(real, fake)
        wanted = f"discriminator_loss_step{number}"
        assert_close(own.total.detach(), case(wanted), wanted)
        assert_close(own.lecam.detach(), case(f"lecam_step{number}"), f"lecam_step{number}")


def check_metrics_reconstruction(case: Case) -> None:
    real, fake = case.tensor("real"), case.tensor("fake")
    for name, measure in (("MAE", mae), ("MSE", mse), ("PSNR", psnr), ("SSIM", ssim)):
        assert_close(measure(real, fake).mean(), case(name), name)
    counts = torch.bincount(case.tensor("indices").flatten(), minlength=case.config["num_codebook_entries"])
    assert_close(codebook.usage(counts), case("CodebookUsage"), "CodebookUsage")
    assert_close(codebook.entropy_bits(counts), case("CodebookEntropy"), "CodebookEntropy")


def check_metrics_features(case: Case) -> None:
    real, fake = moments_of(case.tensor("features_real")), moments_of(case.tensor("features_fake"))
    assert_close(frechet_distance(real, fake), case("rFID"), "rFID")
    negentropy, probabilities = score_terms(case.tensor("logits_fake"))
    score = inception_score(len(probabilities), float(negentropy.sum()), probabilities.sum(0))
    assert_close(score, case("InceptionScore"), "InceptionScore")


CHECKS: dict[str, Callable[[Case], None]] = {
    "discriminator_": check_discriminator,
    "tokenizer_taming": check_taming,
    "tokenizer_": check_tokenizer,
    "generator_": check_generator,
    "sampler_": check_sampler,
    "schedules": check_schedules,
    "factorization": check_factorization,
    "schedulers": check_schedulers,
    "mlm_loss_": check_mlm_loss,
    "metrics_reconstruction": check_metrics_reconstruction,
    "metrics_features": check_metrics_features,
}


@pytest.mark.parametrize("name", CASES)
def test_the_golden_case_is_reproduced(name: str) -> None:
    check = next((check for prefix, check in CHECKS.items() if name.startswith(prefix)), None)
    assert check is not None, f"no function checks the case {name}"
    case = read_case(name)
    check(case)
    assert case.used == set(CASES[name]["arrays"]), "arrays that no check looked at"
