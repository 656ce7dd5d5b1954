"""`maskbit export onnx`: the graphs of a bundle, written into its folder `onnx/` as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from export.onnx_files import WeightsFile, run_graph, why_not_run, write_graph
from export.onnx_graphs import OPSET, generator_modules, tokenizer_modules, trace
from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle, file_digest
from models.bundle_writer import DTYPES
from models.checkpoint import load_into, read_weights
from models.config import GeneratorConfig
from models.errors import BundleError, ConfigError, RuntimeUnavailable
from models.exported import (
    FOLDER,
    PRECISIONS,
    RECORD,
    TOKENIZER_DATA,
    Record,
    generator_data,
    generator_files,
    graph_file,
    read_record,
    tokenizer_files,
)
from models.networks import build_generator, build_tokenizer
from models.signature import graph_specs
from models.version import own_version
from models.whole_file import whole_folder

Say = Callable[[str], None]


def say_nothing(line: str) -> None:
    """Listen to no progress."""


def export_onnx(
    bundle: Bundle,
    precisions: Sequence[str] = ("fp32",),
    say: Say = say_nothing,
    *,
    rebuild: bool = False,
) -> Path:
    """Write the graphs of `bundle` into its folder `onnx/`, which is returned.

    `precisions` are those of the generator. What else the same maskbit and PyTorch exported before stays, and
    so does the tokenizer, unless `rebuild`. `say` is told what was done, and what of an older export is lost.
    Until all is written and checked, that one stays as it was.
    Raises ConfigError for an unknown precision, BundleError where the bundle cannot be read or written,
    RuntimeUnavailable when a package is missing or the graphs are not what they should be.
    """
    wanted = _checked(precisions)
    _need("onnx", "onnxscript")
    folder = bundle.path / FOLDER
    try:
        with whole_folder(folder) as new:
            writer = _Writer(bundle, new, say)
            if not rebuild:
                writer.find_former()
            if bundle.manifest.generator is not None:
                for precision in PRECISIONS:
                    if precision in wanted:
                        writer.add_generator(bundle.manifest.generator, precision)
                    else:
                        writer.keep(generator_files(precision))
            if not writer.keep(tokenizer_files()):
                writer.add_tokenizer()
            writer.add_record()
            writer.name_lost()
    except OSError as exc:
        raise BundleError(
            f"{folder} cannot be written: {exc.strerror or exc}; --out FOLDER exports into a copy"
        ) from exc
    return folder


class _Writer:
    """Fills the folder of an export that is not in its place yet."""

    def __init__(self, bundle: Bundle, folder: Path, say: Say) -> None:
        self.bundle, self.folder, self.say = bundle, folder, say
        self.specs = graph_specs(bundle.manifest)
        self.version = own_version()
        self.former: Record | None = None
        self.files: dict[str, str] = {}

    def find_former(self) -> None:
        """Look for an older export of this bundle whose files this maskbit would make just so."""
        try:
            former = read_record(self.bundle)
        except ConfigError as exc:
            self.say(f"not kept: {exc}")
            return
        if former is None:
            return
        made, now = ((one.version, one.torch, one.opset) for one in (former, self._record()))
        if made == now:
            self.former = former
        else:
            told = "maskbit {} with PyTorch {} in opset {}"
            self.say(f"not kept: {told.format(*made)} exported it; this is {told.format(*now)}")

    def keep(self, names: Sequence[str]) -> bool:
        """Take over files of an older export if it has them all and none is damaged."""
        if self.former is None or not set(names) <= set(self.former.files):
            return False
        source = self.bundle.path / FOLDER
        for name in names:
            if not (source / name).is_file() or file_digest(source / name) != self.former.files[name]:
                self.say(f"{', '.join(names)}: not kept, because {name} is damaged")
                return False
        for name in names:
            # No hard link: ONNX refuses weights in a file with several names.
            shutil.copyfile(source / name, self.folder / name)
            self.files[name] = self.former.files[name]
        self.say(f"{', '.join(names)}: kept")
        return True

    def add_tokenizer(self) -> None:
        """Export the tokenizer in fp32: a bit is the sign of a latent."""
        network = build_tokenizer(self.bundle.manifest.tokenizer)
        self._load(network, TOKENIZER_WEIGHTS)
        self._add(tokenizer_modules(network), "fp32", TOKENIZER_DATA)

    def add_generator(self, config: GeneratorConfig, precision: str) -> None:
        """Export the generator in `precision`."""
        network = build_generator(config)
        self._load(network, GENERATOR_WEIGHTS)
        network.to(DTYPES[precision])
        for name, value in network.state_dict().items():
            if not torch.isfinite(value).all():
                raise BundleError(f"{name} holds values that {precision} cannot store; use another precision")
        self._add(generator_modules(network), precision, generator_data(precision))

    def _load(self, network: nn.Module, file: str) -> None:
        path = self.bundle.weights_file(file)
        load_into(network, read_weights(path), path)
        network.eval().requires_grad_(False)

    def _add(self, modules: Mapping[str, nn.Module], precision: str, data: str) -> None:
        weights = WeightsFile(self.folder / data)
        names = {graph: graph_file(graph, precision) for graph in modules}
        for graph, module in modules.items():
            model = trace(module, self.specs[graph])
            weights.take(model)
            model.metadata_props.update(
                {
                    "maskbit.bundle": self.bundle.ref,
                    "maskbit.version": self.version,
                    "maskbit.graph": graph,
                    "maskbit.precision": precision,
                }
            )
            write_graph(model, self.specs[graph], self.folder / names[graph])
        hindrance = why_not_run(precision)
        for graph, name in names.items():
            if hindrance is None:
                run_graph(self.folder / name, self.specs[graph])
            proof = "run by onnxruntime" if hindrance is None else f"not run: {hindrance}"
            self.say(f"{name}: written and checked, {proof}")
        self.files.update({name: file_digest(self.folder / name) for name in (*names.values(), data)})

    def add_record(self) -> None:
        """Write `export.json`, without which graphs are not read."""
        (self.folder / RECORD).write_bytes(self._record().to_json().encode())

    def _record(self) -> Record:
        """Of what is in the folder by now."""
        precisions = tuple(one for one in PRECISIONS if set(generator_files(one)) <= set(self.files))
        return Record(
            bundle=self.bundle.ref,
            version=self.version,
            opset=OPSET,
            precisions=precisions,
            files=dict(sorted(self.files.items())),
            torch=str(torch.__version__),
        )

    def name_lost(self) -> None:
        """Say which precisions an older export had and this one has not."""
        older = self.bundle.path / FOLDER
        for precision in PRECISIONS:
            name = generator_data(precision)
            if (older / name).exists() and name not in self.files:
                self.say(
                    f"the older graphs in {precision} are removed; to have them anew: "
                    f"maskbit export onnx {self.bundle.path} --precision {precision}"
                )


def _checked(precisions: Sequence[str]) -> list[str]:
    """`precisions` without repetitions, in the usual order."""
    for one in precisions:
        if one not in PRECISIONS:
            raise ConfigError(f"precision is {one!r}; allowed are {', '.join(PRECISIONS)}")
    return [one for one in PRECISIONS if one in precisions]


def _need(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise RuntimeUnavailable(
                f"the package {package} is not installed; pip install 'maskbit-serve[export]'"
            )
