"""What Triton's Python backend runs: one exported graph, in a session of onnxruntime.

`maskbit export triton --backend python` puts a copy beside each graph, where nothing else of maskbit is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of a graph; Triton creates it and calls its methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph of the version that `args` names."""
        _check_numpy()
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        providers: list[Any] = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            device = args["model_instance_device_id"]
            # TF32's mantissa flips bits of tokens; the exhaustive search picks by time, not alike everywhere.
            exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device, **exact}))
        self.session = onnxruntime.InferenceSession(str(graph), providers=providers)
        config = json.loads(args["model_config"])
        self.inputs = [one["name"] for one in config["input"]]
        self.outputs = [one["name"] for one in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """The rows of all `requests` in one call, and to each the answer to its own."""
        parts = [{name: _array(request, name) for name in self.inputs} for request in requests]
        inputs = {name: np.concatenate([part[name] for part in parts]) for name in self.inputs}
        ends = np.cumsum([len(part[self.inputs[0]]) for part in parts])[:-1]
        results = [np.split(rows, ends) for rows in self.session.run(self.outputs, inputs)]
        return [pb_utils.InferenceResponse(self._tensors(rows)) for rows in zip(*results, strict=True)]

    def _tensors(self, rows: tuple[Any, ...]) -> list[Any]:
        return [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, rows, strict=True)]


def _array(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def _check_numpy() -> None:
    """Refuse NumPy 2 if the Python backend was built for NumPy 1: it would compute with wrong numbers."""
    if np.__version__ < "2":
        return
    sample = np.arange(1000, 1006)
    # Made of memory that is not NumPy's, as inputs are.
    if not np.array_equal(pb_utils.Tensor.from_dlpack("sample", sample).as_numpy(), sample):
        raise pb_utils.TritonModelException(
            f"this Python backend does not understand NumPy {np.__version__}; give it a Python with numpy<2"
        )
