"""Exported graphs in onnxruntime against the golden files and PyTorch, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor, nn

from export.onnx_export import export_onnx
from export.onnx_files import SMALLEST, WeightsFile, check_borders, run_graph, write_graph
from export.onnx_graphs import OPSET, generator_modules, tokenizer_modules, trace
from models.bundle import (
    GENERATOR_WEIGHTS,
    TOKENIZER_WEIGHTS,
    Bundle,
    Manifest,
)
from models.bundle_writer import write_bundle
from models.checkpoint import load_into
from models.config import GeneratorConfig, TokenizerConfig
from models.drawing import Drawing, settle, step_batch
from models.errors import RuntimeUnavailable
from models.exported import FOLDER, PRECISIONS, generator_data, open_export
from models.networks import build_generator, build_tokenizer
from models.runtime.base import StepBatch, StepResult
from models.runtime.torch_runtime import TorchRuntime
from models.sampling_config import SamplingConfig
from models.schedule import plan_steps
from models.signature import DECODE, ENCODE, STEP, STEP_GUIDED, GraphSpec, TensorSpec, graph_specs
from tests.golden_weights import make_weights
from tests.test_parity import CASES, SEED, build_config, generator_of, read_case, sampling_config

Array = NDArray[Any]
Graph = Callable[..., list[Array]]
ROWS = (1, 2, 3, 5)
TINY_TOKENIZER = TokenizerConfig(
    hidden_channels=8,
    channel_mult=(1, 2),
    num_resolutions=2,
    num_res_blocks=1,
    norm_groups=4,
    token_size=6,
)
LOOKUP = replace(TINY_TOKENIZER, quantizer_type="lookup", codebook_size=64, token_size=5)
TOKENIZERS = {
    "averaged": replace(TINY_TOKENIZER, sample_with_conv=False, token_size=18),
    "maskgit": replace(LOOKUP, model_class="maskgit"),
    "taming": replace(LOOKUP, model_class="taming", use_l2_normalisation=True),
}


def session(path: Path) -> Graph:
    """The graph in `path`, from inputs by name to outputs in order."""
    loaded = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda **inputs: loaded.run(None, inputs)


def write(module: nn.Module, spec: GraphSpec, folder: Path) -> Path:
    """`module` as a graph in `folder`."""
    model = trace(module.eval().requires_grad_(False), spec)
    WeightsFile(folder / f"{spec.name}.data").take(model)
    write_graph(model, spec, folder / f"{spec.name}.onnx")
    return folder / f"{spec.name}.onnx"


def random_weights(network: nn.Module, seed: int) -> dict[str, Tensor]:
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    return {key: torch.from_numpy(value) for key, value in make_weights(shapes, seed).items()}


def tokenizer_manifest(config: TokenizerConfig) -> Manifest:
    return Manifest("small", 16, config, None, SamplingConfig(), (), "Apache-2.0")


def generator_manifest(config: GeneratorConfig) -> Manifest:
    """A manifest whose tokenizer is of no interest."""
    stages = config.input_stride.bit_length()
    tokenizer = replace(
        TINY_TOKENIZER, token_size=config.bits, num_resolutions=stages, channel_mult=(1,) * stages
    )
    names = tuple(map(str, range(config.nclass)))
    return Manifest("golden", config.img_size, tokenizer, config, SamplingConfig(), names, "Apache-2.0")


def random_batch(manifest: Manifest, rows: int, rng: np.random.Generator) -> StepBatch:
    """Rows at different steps; in every second one the order is fixed and confidences have ties."""
    config = manifest.generator
    assert config is not None
    shape = (rows, config.num_tokens, config.codebook_splits)
    tokens = rng.integers(0, config.group_codes, shape)
    tokens[rng.random(shape) < rng.uniform(0.1, 1.0, (rows, 1, 1))] = config.group_codes
    masked = (tokens == config.group_codes).sum((1, 2))
    uniforms = rng.uniform(1e-6, 1 - 1e-6, (2, *shape)).astype(np.float32)
    noise = rng.uniform(0.0, 9.0, rows).astype(np.float32)
    uniforms[1, ::2] = np.round(uniforms[1, ::2] * 6 + 1) / 8
    noise[::2] = 2.0**64
    return StepBatch(
        tokens=tokens,
        labels=rng.integers(0, config.nclass, rows),
        guidance_scale=rng.uniform(0.5, 8.0, rows).astype(np.float32),
        temperature=rng.uniform(0.6, 1.4, rows).astype(np.float32),
        noise_temperature=noise,
        mask_count=(masked * rng.uniform(0.0, 1.0, rows)).astype(np.int64),
        category_uniforms=uniforms[0],
        confidence_uniforms=uniforms[1],
    )


def inputs_of(batch: StepBatch, graph: str) -> dict[str, Array]:
    names = {field.name for field in fields(batch)} - ({"guidance_scale"} if graph == STEP else set())
    return {name: getattr(batch, name) for name in names}


def without_guidance(batch: StepBatch) -> StepBatch:
    return replace(batch, guidance_scale=np.zeros_like(batch.guidance_scale))


# Against the golden files and PyTorch


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("sampler_")])
def test_a_golden_trace_is_replayed(name: str, golden_graphs: Callable[[str, str], Graph]) -> None:
    case = read_case(name)
    config = generator_of(case.config["generator"]).config
    recorded, drawn_groups = case("masked_tokens_before_step"), case("predicted_tokens")
    plans = plan_steps(sampling_config(case.config), recorded[0, 0].size)
    graph = STEP_GUIDED if case.config["guidance_scale"] else STEP
    run, tokens, drawn = golden_graphs(case.config["generator"], graph), recorded[0], recorded[0]
    rows = len(tokens)
    for number, plan in enumerate(plans):
        assert np.array_equal(tokens, recorded[number]), f"state before step {number}"
        batch = StepBatch(
            tokens=tokens,
            labels=case("labels"),
            guidance_scale=np.full(rows, plan.guidance_scale, dtype=np.float32),
            temperature=np.full(rows, plan.temperature, dtype=np.float32),
            noise_temperature=np.full(rows, plan.noise_temperature, dtype=np.float32),
            mask_count=np.full(rows, plan.mask_count, dtype=np.int64),
            category_uniforms=case("uniform_tokens")[number].astype(np.float32),
            confidence_uniforms=case("uniform_confidence")[number].astype(np.float32),
        )
        tokens, drawn = run(**inputs_of(batch, graph))
        assert np.array_equal(drawn, drawn_groups[number]), f"step {number}"
    assert int(drawn.max()) < config.group_codes


@pytest.fixture(scope="module")
def golden_graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Graph]:
    """The graphs of a golden generator."""
    made: dict[tuple[str, str], Graph] = {}

    def graph_of(name: str, graph: str) -> Graph:
        if (name, graph) not in made:
            network = generator_of(name)
            spec = graph_specs(generator_manifest(network.config))[graph]
            module = generator_modules(network)[graph]
            made[name, graph] = session(write(module, spec, tmp_path_factory.mktemp("golden")))
        return made[name, graph]

    return graph_of


@pytest.mark.parametrize("name", ["tokenizer_lfq10_avgpool"])
def test_golden_tokens_are_decoded_to_their_pictures(name: str, tmp_path: Path) -> None:
    case = read_case(name)
    wanted = case("decoded_from_indices")
    manifest = replace(
        tokenizer_manifest(build_config(TokenizerConfig, case.config)), image_size=wanted.shape[-1]
    )
    network = build_tokenizer(manifest.tokenizer)
    load_into(network, random_weights_of_case(name), name)
    run = session(write(tokenizer_modules(network)[DECODE], graph_specs(manifest)[DECODE], tmp_path))
    (pictures,) = run(indices=case("indices"))
    expected = np.clip(wanted, 0, 1).transpose(0, 2, 3, 1) * 255
    assert pictures.dtype == np.uint8
    assert float(np.abs(pictures - expected).max()) <= 0.51


def random_weights_of_case(name: str) -> dict[str, Tensor]:
    made = make_weights(CASES[name]["parameters"], SEED)
    return {key: torch.from_numpy(value) for key, value in made.items()}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_of_any_kind_agrees_with_torch(kind: str, tmp_path: Path) -> None:
    manifest = tokenizer_manifest(TOKENIZERS[kind])
    weights = {TOKENIZER_WEIGHTS: random_weights(build_tokenizer(manifest.tokenizer), seed=3)}
    bundle = write_bundle(tmp_path / "bundle", manifest, weights)
    export_onnx(bundle)
    exported, rng = open_export(bundle, "bf16"), np.random.default_rng(4)
    exported.check()
    torch_runtime = TorchRuntime(bundle, device="cpu")
    encode, decode = session(exported.file(ENCODE)), session(exported.file(DECODE))
    for rows in ROWS:
        pictures = rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)
        indices = rng.integers(0, manifest.tokenizer.num_codes, (rows, manifest.grid, manifest.grid))
        assert np.array_equal(encode(images=pictures)[0], torch_runtime.encode(pictures))
        (decoded,) = decode(indices=indices)
        assert np.abs(decoded.astype(int) - torch_runtime.decode(indices)).max() <= 1
    assert open_export(bundle, "fp32").record.precisions == ()


def test_steps_agree_with_torch_at_every_batch_size(exported_tiny: Bundle) -> None:
    torch_runtime, exported = TorchRuntime(exported_tiny, device="cpu"), open_export(exported_tiny, "fp32")
    rng = np.random.default_rng(5)
    guided, plain = session(exported.file(STEP_GUIDED)), session(exported.file(STEP))
    for rows in (*ROWS, 2, 5):
        batch = random_batch(exported_tiny.manifest, rows, rng)
        for run, graph, asked in ((guided, STEP_GUIDED, batch), (plain, STEP, without_guidance(batch))):
            tokens, drawn = run(**inputs_of(batch, graph))
            wanted = torch_runtime.step(asked)
            assert np.array_equal(drawn, wanted.drawn)
            assert np.array_equal(tokens, wanted.tokens)


def test_a_row_is_masked_again_as_often_as_asked_and_ties_are_masked_together(exported_tiny: Bundle) -> None:
    manifest = exported_tiny.manifest
    assert manifest.generator is not None
    mask, run = manifest.generator.group_codes, session(open_export(exported_tiny, "fp32").file(STEP))
    batch = random_batch(manifest, 6, np.random.default_rng(6))
    tokens, drawn = run(**inputs_of(batch, STEP))
    before, after = batch.tokens == mask, tokens == mask
    assert np.array_equal(drawn[~before], batch.tokens[~before])
    assert int(drawn.max()) < mask
    assert not (after & ~before).any()
    again = after.sum((1, 2))
    assert np.array_equal(again[1::2], batch.mask_count[1::2])
    for row in range(0, 6, 2):  # ordered by six levels of the uniform alone
        levels = batch.confidence_uniforms[row][before[row]]
        threshold = np.sort(levels)[max(int(batch.mask_count[row]) - 1, 0)]
        wanted = (levels <= threshold).sum() if batch.mask_count[row] else 0
        assert again[row] == wanted


def test_bert_in_three_groups_agrees_with_torch(tmp_path: Path) -> None:
    config = GeneratorConfig(
        model_cls="bert",
        bits=6,
        hidden_dim=32,
        depth=1,
        heads=2,
        mlp_dim=32,
        codebook_splits=3,
        img_size=16,
        input_stride=2,
        nclass=3,
    )
    manifest = generator_manifest(config)
    network = build_generator(config)
    load_into(network, random_weights(network, seed=7), "bert")
    run = session(
        write(generator_modules(network)[STEP_GUIDED], graph_specs(manifest)[STEP_GUIDED], tmp_path)
    )
    weights = {
        TOKENIZER_WEIGHTS: random_weights(build_tokenizer(manifest.tokenizer), seed=8),
        GENERATOR_WEIGHTS: network.state_dict(),
    }
    torch_runtime = TorchRuntime(write_bundle(tmp_path / "bert", manifest, weights), device="cpu")
    rng = np.random.default_rng(9)
    for rows in ROWS:
        batch = random_batch(manifest, rows, rng)
        tokens, drawn = run(**inputs_of(batch, STEP_GUIDED))
        wanted = torch_runtime.step(batch)
        assert np.array_equal(tokens, wanted.tokens)
        assert np.array_equal(drawn, wanted.drawn)


def steps_of(bundle: Bundle, pictures: int) -> Iterator[tuple[StepBatch, StepResult]]:
    """The guided steps of pictures drawn by PyTorch in fp32, and their results."""
    runtime, config = TorchRuntime(bundle, device="cpu", precision="fp32"), bundle.manifest.generator
    assert config is not None
    drawings = [
        Drawing.start(config, bundle.manifest.sampling, seed % config.nclass, seed)
        for seed in range(pictures)
    ]
    while not drawings[0].finished:
        batch = step_batch(drawings)
        result = runtime.step(batch)
        if batch.guidance_scale.all():
            yield batch, result
        settle(drawings, result)


def test_fp16_draws_what_fp32_draws_from_the_same_state(exported_fruit: Bundle) -> None:
    assert exported_fruit.manifest.generator is not None
    run = session(open_export(exported_fruit, "fp16").file(STEP_GUIDED))
    for batch, wanted in steps_of(exported_fruit, pictures=3):
        masked = batch.tokens == exported_fruit.manifest.generator.group_codes
        tokens, drawn = run(**inputs_of(batch, STEP_GUIDED))
        assert (tokens == wanted.tokens).mean() >= 0.99
        # Guidance multiplies what fp16 rounds off: PyTorch's own fp16 draws 2 % of the groups otherwise.
        assert (drawn == wanted.drawn)[masked].mean() >= 0.96


class GatherElements(OpRun):
    """The reference's own one takes a negative axis for another."""

    def _run(self, data: Array, indices: Array, axis: int) -> tuple[Array]:
        return (np.take_along_axis(data, indices, axis),)


def test_bf16_draws_nearly_what_fp32_draws_from_the_same_state(exported_tiny: Bundle) -> None:
    """onnxruntime has no bf16 on a CPU; the reference implementation of ONNX has."""
    graph = str(open_export(exported_tiny, "bf16").file(STEP_GUIDED))
    run = ReferenceEvaluator(graph, new_ops=[GatherElements])
    batch, wanted = next(steps_of(exported_tiny, pictures=2))
    _, drawn = run.run(None, inputs_of(batch, STEP_GUIDED))
    # Random weights make a network less sure than a trained one.
    assert np.mean(drawn == wanted.drawn) >= 0.9


# What graphs are made of


def test_graphs_say_what_they_are_and_use_standard_operators(exported_tiny: Bundle) -> None:
    specs = graph_specs(exported_tiny.manifest)
    for precision in PRECISIONS:
        exported = open_export(exported_tiny, precision)
        for name, spec in specs.items():
            model = onnx.load(exported.file(name), load_external_data=False)
            check_borders(model, spec)
            onnx.checker.check_model(exported.file(name), full_check=True)
            told = {one.key: one.value for one in model.metadata_props}
            assert told["maskbit.bundle"] == exported_tiny.ref
            assert told["maskbit.graph"] == name
            assert told["maskbit.precision"] == ("fp32" if name in (ENCODE, DECODE) else precision)
            assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
            assert not {node.domain for node in model.graph.node} - {""}
            constants = {one.name for one in model.graph.initializer}
            tops = [node for node in model.graph.node if node.op_type == "TopK"]
            assert all(node.input[1] in constants for node in tops)
            assert len(tops) == (name in (STEP, STEP_GUIDED))
            kinds = {node.op_type for node in model.graph.node}
            assert not kinds & {"Loop", "If", "Scan", "NonZero", "BitShift", "BitwiseAnd", "Constant"}


def test_no_graph_tells_where_it_was_made(exported_tiny: Bundle) -> None:
    for path in (exported_tiny.path / FOLDER).glob("*.onnx"):
        assert b"site-packages" not in path.read_bytes()
        assert str(Path(__file__).parents[1]).encode() not in path.read_bytes()


def test_both_step_graphs_share_one_file_of_weights(exported_tiny: Bundle) -> None:
    places: list[dict[str, tuple[int, int]]] = []
    for graph in (STEP, STEP_GUIDED):
        model = onnx.load(open_export(exported_tiny, "fp32").file(graph), load_external_data=False)
        entries = {
            one.name: {pair.key: pair.value for pair in one.external_data}
            for one in model.graph.initializer
            if one.external_data
        }
        assert {entry["location"] for entry in entries.values()} == {generator_data("fp32")}
        places.append({name: (int(one["offset"]), int(one["length"])) for name, one in entries.items()})
        inside = [one for one in model.graph.initializer if not one.external_data]
        assert max(len(one.SerializeToString()) for one in inside) < SMALLEST + 100
    assert set(places[0].values()) == set(places[1].values())
    stored = sum(dict(places[0].values()).values())
    assert exported_tiny.manifest.generator is not None
    network = build_generator(exported_tiny.manifest.generator)
    weights = sum(value.nbytes for value in network.state_dict().values() if value.nbytes >= SMALLEST)
    assert stored <= weights


def test_equal_tensors_stand_once_and_are_read_back(tmp_path: Path) -> None:
    size, shared = 400, np.arange(400, dtype=np.float32)
    borders = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size]) for name in "xy"
    ]
    spec = GraphSpec("sum", (TensorSpec("x", "float32", (size,)),), (TensorSpec("y", "float32", (size,)),))
    file = WeightsFile(tmp_path / "weights.data")
    for name, own in (("half", 0.5), ("two", 2.0)):
        added = np.full(size, own, dtype=np.float32)
        weights = [onnx.numpy_helper.from_array(one, key) for key, one in (("a", added), ("b", shared))]
        nodes = [
            onnx.helper.make_node("Add", ["x", "a"], ["z"]),
            onnx.helper.make_node("Add", ["z", "b"], ["y"]),
        ]
        graph = onnx.helper.make_graph(nodes, name, borders[:1], borders[1:], weights)
        model = onnx_ir.from_proto(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
        )
        file.take(model)
        write_graph(model, spec, tmp_path / f"{name}.onnx")
        (got,) = session(tmp_path / f"{name}.onnx")(x=np.zeros((2, size), dtype=np.float32))
        assert np.array_equal(got, np.broadcast_to(added + shared, (2, size)))
    assert (tmp_path / "weights.data").stat().st_size == 2 * 4096 + added.nbytes


class Frozen(nn.Module):
    """Works for the traced number of rows alone."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        x = inputs["x"]
        return x + torch.zeros(int(x.shape[0]), 4) if x.shape[0] == 3 else x


def test_a_graph_for_one_batch_size_alone_is_an_error(tmp_path: Path) -> None:
    spec = GraphSpec("frozen", (TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),))
    with pytest.raises(RuntimeUnavailable, match="exports the graph frozen for one batch size alone"):
        trace(Frozen(), spec)
    fixed = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["y"])],
            "frozen",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, 4])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    with pytest.raises(RuntimeUnavailable, match=r"has y float32\[3, 4\] instead of y float32\[batch, 4\]"):
        check_borders(fixed, spec)
    onnx.save(fixed, tmp_path / "frozen.onnx")
    with pytest.raises(RuntimeUnavailable, match=r"answers 1 rows with y float32\[1, 4\]"):
        run_graph(tmp_path / "frozen.onnx", replace(spec, outputs=(TensorSpec("y", "float32", (5,)),)))
