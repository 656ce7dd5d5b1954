"""The error tree of everything that a caller can cause or must hear about.

MaskBitError
├── ConfigError        a configuration value outside what is allowed
├── BundleError        a bundle folder that is missing, damaged or of another version
├── CheckpointError    weights that do not fit the network, or a checkpoint that cannot be read or written
├── TrainingError      a training run that cannot go on, because its loss is not finite for example
├── RuntimeUnavailable a runtime or device that this machine does not have
│   └── RuntimeLost    a runtime that was there and has gone away
└── InputError         tokens, images or sampling parameters out of range
service.errors.ServiceError adds HTTP codes below the same root.
"""


class MaskBitError(Exception):
    """Root of the tree: `str(error)` is a message for the user, without a stack trace."""


class ConfigError(MaskBitError):
    """A configuration is inconsistent; the message names the field, the value and what is allowed."""


class BundleError(MaskBitError):
    """A bundle cannot be found, read or trusted."""


class CheckpointError(MaskBitError):
    """Weights are missing, unexpected, mis-shaped or damaged; the message names the keys."""


class TrainingError(MaskBitError):
    """A training run cannot go on; the message says what is left of it."""


class RuntimeUnavailable(MaskBitError):
    """The wanted runtime, device or precision does not exist on this machine."""


class RuntimeLost(RuntimeUnavailable):
    """A server that computes has gone away: nothing can be done until it is back, whatever is asked."""


class InputError(MaskBitError):
    """A value handed to a model is out of its range."""


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says, or its class where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
