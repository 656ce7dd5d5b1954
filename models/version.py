"""The version of MaskBit Serve that runs."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """As the installed package says; `0` for a checkout that is not installed."""
    try:
        return version("maskbit-serve")
    except PackageNotFoundError:
        return "0"
