"""`maskbit export verify`: every runtime that this machine has against torch fp32, and the report of it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from export.parity import Reference, ask_reference, compare
from export.trial import Trial
from export.verdict_table import HEADER, line_of, reference_line
from models.bench import hardware
from models.bundle import Bundle, file_digest
from models.errors import ConfigError, InputError, MaskBitError, first_line
from models.exported import FOLDER, PRECISIONS, RECORD, read_record
from models.runtime.base import Runtime
from models.runtime.devices import CPU, place_of
from models.runtime.loading import free_memory, load_runtime
from models.tensorrt_plan import FOLDER as PLANS
from models.verification import FAILED, PASSED, UNAVAILABLE, RuntimeVerdict, Thresholds, Verification
from models.version import own_version

RUNTIMES = ("onnx", "tensorrt", "triton", "torch")
# The tokenizer is fp32 in every runtime. A group that is drawn otherwise changes all later steps of its
# picture, so that only fp32 can be asked to keep to the reference's way.
TOKENIZER = {"encode_bits": 0.9999, "decode_psnr_db": 50.0}
FP32 = Thresholds(**TOKENIZER, step_tokens=0.9999, trace_tokens=0.9999)
LOWER = Thresholds(**TOKENIZER, step_tokens=0.99)
_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tritonclient")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A runtime to compare; `precision` is that of the generator, `auto` the runtime's own choice."""

    runtime: str
    precision: str = "auto"

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """`onnx:fp16` or `triton`. Raises InputError."""
        runtime, colon, precision = text.strip().partition(":")
        precision = precision if colon else "auto"
        if runtime not in RUNTIMES or precision not in ("auto", *PRECISIONS):
            raise InputError(
                f"--runtimes holds {text!r}; allowed are {', '.join(RUNTIMES)}, each with a precision or "
                f"without, such as onnx:fp16 ({', '.join(PRECISIONS)})"
            )
        return cls(runtime, precision)


def parse_candidates(text: str) -> list[Candidate]:
    """What a list with commas names, each once. Raises InputError."""
    return list(dict.fromkeys(Candidate.parse(one) for one in text.split(",")))


REFERENCE = Candidate("torch", "fp32")


def usual_candidates(bundle: Bundle, device: str) -> list[Candidate]:
    """What a service on `device` would take: the exported graphs, TensorRT, Triton, and torch on a GPU.

    bf16, which rounds too much for some models, and torch's fp16 on a CPU, which is emulated, are left to
    those who ask for them.
    """
    try:
        record = read_record(bundle)
    except ConfigError:
        record = None
    exported = record.precisions if record is not None else ("fp32",)
    return [
        *(Candidate("onnx", precision) for precision in ("fp32", "fp16") if precision in exported),
        *([] if place_of(device) == CPU else [Candidate("torch")]),
        Candidate("tensorrt"),
        Candidate("triton"),
    ]


@dataclass(frozen=True)
class Verifier:
    """Compares runtimes of `bundle` with torch fp32 on `device`; `say` is told each line of the table."""

    bundle: Bundle
    trial: Trial
    device: str
    say: Say

    def verify(self, candidates: Sequence[Candidate]) -> Verification:
        """The report on `candidates`. Raises MaskBitError when torch fp32 itself cannot be had."""
        # Of the files as they are now: what is exported in the meantime is not measured.
        machine, exports = _hardware(), self._exports()
        self.say(f"{self.bundle.ref}, {self.trial.pictures} pictures of {self.trial.steps} steps; {machine}")
        runtime = self._load(REFERENCE)
        with _bar("torch fp32", self.trial.reference_calls) as tick:
            reference = ask_reference(runtime, self.trial, tick)
        for line in (*HEADER, reference_line(runtime.device_name, reference.times)):
            self.say(line)
        del runtime
        verdicts = []
        for candidate in candidates:
            free_memory()
            verdicts.append(self._judge(candidate, reference))
            self.say(line_of(verdicts[-1]))
        return Verification(
            bundle=self.bundle.ref,
            version=own_version(),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            hardware=machine,
            pictures=self.trial.pictures,
            steps=self.trial.steps,
            reference=reference.times,
            runtimes=tuple(verdicts),
            exports=exports,
        )

    def _load(self, candidate: Candidate) -> Runtime:
        return load_runtime(
            self.bundle,
            candidate.runtime,
            device=self.device,
            precision=candidate.precision,
        )

    def _judge(self, candidate: Candidate, reference: Reference) -> RuntimeVerdict:
        try:
            runtime = self._load(candidate)
        except MaskBitError as exc:
            return RuntimeVerdict(candidate.runtime, candidate.precision, UNAVAILABLE, reason=str(exc))
        judge = partial(RuntimeVerdict, runtime.name, runtime.precision, device=runtime.device_name)
        try:
            with _bar(f"{runtime.name} {runtime.precision}", self.trial.calls) as tick:
                numbers = compare(runtime, reference, tick)
        except Exception as exc:
            # Of libraries: out of memory, an operator that a provider lacks, a server that went away.
            return judge(FAILED, reason=first_line(exc))
        thresholds = FP32 if runtime.precision == "fp32" else LOWER
        missed = thresholds.missed_by(numbers)
        return judge(
            FAILED if missed else PASSED,
            reason="; ".join(missed) or None,
            numbers=numbers,
            thresholds=thresholds,
        )

    def _exports(self) -> dict[str, str]:
        """Digests of the files that say which exports were measured."""
        records = [self.bundle.path / FOLDER / RECORD, *self.bundle.path.glob(f"{PLANS}/*.plan.json")]
        return {
            f"{record.parent.name}/{record.name}": file_digest(record)
            for record in records
            if record.is_file()
        }


def _hardware() -> str:
    """`models.bench.hardware` and the libraries of compiled runtimes."""
    found = []
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found.append(f", {name} {version(name)}")
    return hardware() + "".join(found)


@contextmanager
def _bar(name: str, calls: int) -> Iterator[Callable[[], None]]:
    """A progress bar on the terminal's standard error, moved on by each call of what is given."""
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=calls)
        yield lambda: bar.advance(task)
