"""`verification.json` of `maskbit export verify`: how far a bundle's runtimes are from torch fp32."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from models.bundle import Bundle, file_digest
from models.errors import BundleError, ConfigError
from models.validation import from_mapping, require, require_one_of, require_positive
from models.whole_file import write_whole

VERIFICATION = "verification.json"
FORMAT_VERSION = 1
PASSED, FAILED, UNAVAILABLE = "passed", "failed", "unavailable"
EQUAL_DB = 100.0  # PSNR of equal pictures


@dataclass(frozen=True)
class Numbers:
    """What was measured of one runtime; shares are in [0, 1], times in milliseconds a picture.

    encode_bits      bits of encoded pictures that are the reference's
    encode_tokens    tokens, whose bits all are
    decode_psnr_db   of the decoded picture that differs most; 100 for equal ones
    step_tokens      groups of a state that are equal after a step from one and the same state, at the step
                     where they are fewest
    step_drawn       of those that were drawn in the step, whether they were kept or masked again
    trace_tokens     groups that are equal over all states of pictures on their own way
    equal_pictures   pictures whose tokens are equal in the end
    logit_error      root of the mean squared difference of the log odds of a draw; `_max`: the largest
    The generator's are None where the bundle has none; the errors also where no draw was open enough.
    """

    encode_bits: float
    encode_tokens: float
    decode_psnr_db: float
    encode_ms: float
    decode_ms: float
    step_tokens: float | None = None
    step_drawn: float | None = None
    trace_tokens: float | None = None
    equal_pictures: int | None = None
    logit_error: float | None = None
    logit_error_max: float | None = None
    step_ms: float | None = None


@dataclass(frozen=True)
class Thresholds:
    """The least that the numbers of the same name must be; None sets none."""

    encode_bits: float
    decode_psnr_db: float
    step_tokens: float
    trace_tokens: float | None = None

    def missed_by(self, numbers: Numbers) -> list[str]:
        """What is wrong with `numbers`, in words; nothing where all hold."""
        missed = []
        for one in fields(self):
            least, got = getattr(self, one.name), getattr(numbers, one.name)
            # NaN is not enough.
            if least is not None and got is not None and not got >= least:
                missed.append(f"{one.name} is {got:.6g}, at least {least:.6g} is needed")
        return missed


@dataclass(frozen=True)
class RuntimeVerdict:
    """One runtime: what was measured and whether it holds, or the `reason` why it could not be loaded."""

    runtime: str
    precision: str
    verdict: str
    device: str | None = None
    reason: str | None = None
    numbers: Numbers | None = None
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        require_one_of(self, "verdict", (PASSED, FAILED, UNAVAILABLE))
        if self.verdict == PASSED:
            measured = self.numbers is not None and self.thresholds is not None
            require(measured and not self.missed(), f"{self.name} passed, but not by its numbers")

    @property
    def name(self) -> str:
        """`onnx fp16`, …"""
        return f"{self.runtime} {self.precision}"

    def missed(self) -> list[str]:
        """The thresholds that the numbers miss, in words."""
        if self.numbers is None or self.thresholds is None:
            return []
        return self.thresholds.missed_by(self.numbers)


@dataclass(frozen=True)
class Verification:
    """A whole report. `reference` holds the times of torch fp32, with which all others are compared.

    `bundle` is `name@revision`, `version` that of MaskBit Serve, `date` in ISO 8601. `exports` are SHA-256
    digests of the files in the bundle that say which exports were measured.
    """

    bundle: str
    version: str
    date: str
    hardware: str
    pictures: int
    steps: int
    reference: Mapping[str, float]
    runtimes: tuple[RuntimeVerdict, ...]
    exports: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        require_positive(self, "pictures", "steps")
        for name in self.exports:
            known = re.fullmatch(r"onnx/export\.json|tensorrt/[^/\\]+\.plan\.json", name)
            require(known is not None, f"exports lists {name!r}; only records of exports are allowed")

    def to_json(self) -> str:
        """Text of `verification.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Verification:
        """Parse `verification.json`; ConfigError for anything that does not belong there."""
        values = json.loads(text)
        require(isinstance(values, dict), "it must hold one JSON object")
        require(
            values.get("format_version") == FORMAT_VERSION,
            f"format_version is {values.get('format_version')!r}; this version reads {FORMAT_VERSION}",
        )
        if isinstance(values.get("runtimes"), list):
            values["runtimes"] = [_verdict(one) for one in values["runtimes"]]
        return from_mapping(cls, values)

    def joined(self, former: Verification | None) -> Verification:
        """This report, and what `former` measured of other runtimes if it was made alike."""
        if former is None or former._made_like != self._made_like:
            return self
        known = {one.name for one in self.runtimes}
        others = [one for one in former.runtimes if one.name not in known and one.verdict != UNAVAILABLE]
        return replace(self, runtimes=(*self.runtimes, *others))

    @property
    def _made_like(self) -> tuple[object, ...]:
        """What verdicts must have in common to stand in one report."""
        return self.bundle, self.version, self.hardware, self.pictures, self.steps, dict(self.exports)

    def write(self, folder: Path) -> Path:
        """The file of this report in the bundle `folder`; ConfigError when it cannot be written."""
        path = folder / VERIFICATION
        write_whole(path, self.to_json().encode())
        return path


def _verdict(values: Any) -> RuntimeVerdict:
    require(isinstance(values, dict), f"runtimes holds {str(values)[:80]!r}; objects are allowed")
    parts: dict[str, type[Any]] = {"numbers": Numbers, "thresholds": Thresholds}
    for key, part in parts.items():
        if isinstance(values.get(key), dict):
            values[key] = from_mapping(part, values[key])
    return from_mapping(RuntimeVerdict, values)


def read_verification(folder: Path) -> Verification | None:
    """The report in the bundle `folder`, of whatever revision; None where there is none.

    Raises BundleError when it cannot be read, or was measured on another export than lies there now.
    """
    path = folder / VERIFICATION
    try:
        report = Verification.from_json(path.read_bytes().decode())
        for name, digest in report.exports.items():
            other = folder / name
            require(
                not other.is_file() or file_digest(other) == digest,
                f"it was measured on another {name}; run 'maskbit export verify' again",
            )
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise BundleError(f"{path} cannot be read: {exc.strerror}") from exc
    except (ConfigError, ValueError, RecursionError) as exc:
        raise BundleError(f"{path}: {exc}") from exc
    return report


def verification_of(bundle: Bundle) -> Verification | None:
    """The report on this very bundle, None where there is none; BundleError for a foreign or broken one."""
    report = read_verification(bundle.path)
    if report is not None and report.bundle != bundle.ref:
        raise BundleError(
            f"{bundle.path / VERIFICATION} is of {report.bundle}, not of {bundle.ref}; "
            f"run 'maskbit export verify' again"
        )
    return report
