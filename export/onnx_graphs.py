"""The graphs of `models/signature.py` as modules, and their translation to ONNX.

A step's graph holds a whole sampling step. After the network it computes in fp32, whatever the network's
precision, as `models/sampler.py` does, whose code it is.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from export.onnx_translations import translations
from models.errors import RuntimeUnavailable
from models.generator import Generator
from models.sampler import StepInputs, decide
from models.signature import BATCH, DECODE, ENCODE, STEP, STEP_GUIDED, GraphSpec
from models.tokenizer import Tokenizer

if TYPE_CHECKING:
    import onnx_ir

OPSET = 20
TRACED_ROWS = 3  # with 0, 1 or a size that something else has, the tracer may take the batch for a constant


class Encode(nn.Module):
    """Token indices i64 (B, h, w) of `images` u8 (B, H, W, 3)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        # TensorRT takes bytes at its borders alone, so they are cast before anything else.
        return self.tokenizer.encode(inputs["images"].float().permute(0, 3, 1, 2) / 255).indices


class Decode(nn.Module):
    """Pictures u8 (B, H, W, 3) of token `indices` i64 (B, h, w)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        pixels = self.tokenizer.decode_indices(inputs["indices"]).clamp(0, 1) * 255
        return pixels.round().permute(0, 2, 3, 1).to(torch.uint8)


class Step(nn.Module):
    """Next tokens and drawn groups, both i64 (B, N, m), for the inputs of a StepBatch without guidance."""

    def __init__(self, network: Generator) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        rows = StepInputs(guidance_scale=torch.zeros_like(inputs["temperature"]), **inputs)
        logits = self.network(rows.tokens, rows.labels).float()
        return decide(logits, rows, self.network.config.group_codes)


class StepGuided(nn.Module):
    """The same with guidance: the network sees 2 B rows at once, the last B of them without a class."""

    def __init__(self, network: Generator) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        rows, config = StepInputs(**inputs), self.network.config
        unconditional = torch.full_like(rows.labels, config.nclass)
        tokens, labels = torch.cat([rows.tokens] * 2), torch.cat([rows.labels, unconditional])
        logits, count = self.network(tokens, labels).float(), rows.tokens.shape[0]
        # Slices: chunk() and split() would make the batch size a constant.
        conditional, steer = logits[:count], logits[:count] - logits[count:]
        guided = conditional + rows.guidance_scale[:, None, None, None] * steer
        return decide(guided, rows, config.group_codes)


def tokenizer_modules(tokenizer: Tokenizer) -> dict[str, nn.Module]:
    """The graphs of a tokenizer by name."""
    return {ENCODE: Encode(tokenizer), DECODE: Decode(tokenizer)}


def generator_modules(network: Generator) -> dict[str, nn.Module]:
    """The graphs of a generator by name."""
    return {STEP: Step(network), STEP_GUIDED: StepGuided(network)}


def trace(module: nn.Module, spec: GraphSpec) -> onnx_ir.Model:
    """`module` as an ONNX graph with the names of `spec`, for any batch size of at least 1.

    Raises RuntimeUnavailable when this version of PyTorch makes the batch size a constant.
    """
    inputs = {
        one.name: torch.zeros(TRACED_ROWS, *one.shape, dtype=getattr(torch, one.dtype)) for one in spec.inputs
    }
    batch = torch.export.Dim(BATCH, min=1)
    shapes = {name: {0: batch} for name in inputs}
    # torch.onnx.export would do this too, but takes a batch size that turns out constant without a word.
    with _quiet_exporter():
        try:
            program = torch.export.export(module.eval(), (inputs,), dynamic_shapes=(shapes,), strict=False)
        except torch._dynamo.exc.UserError as exc:
            raise RuntimeUnavailable(
                f"PyTorch {torch.__version__} exports the graph {spec.name} for one batch size alone: "
                f"{' '.join(str(exc).split())[:300]}"
            ) from exc
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[one.name for one in spec.inputs],
            output_names=[one.name for one in spec.outputs],
            custom_translation_table=translations(),
            verbose=False,
        )
    assert exported is not None
    shape = exported.model.graph.inputs[0].shape
    assert shape is not None
    exported.rename_axes({str(shape[0]): BATCH})
    _forget_origins(exported.model)
    return exported.model


def _forget_origins(model: onnx_ir.Model) -> None:
    """Remove PyTorch's notes of where in whose files everything comes from."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(one for node in graph for one in node.outputs)]
    for part in (model, graph, *graph, *values):
        part.metadata_props.clear()
        part.doc_string = None


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without PyTorch's warnings about its own code and about packages that nothing here needs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
