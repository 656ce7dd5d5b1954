"""What the URL of a Redis may say, checked before anything connects; no message repeats a part of the URL."""

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit

_SCHEMES = ("redis://", "rediss://", "unix://")
_OPTIONS = ("db", "username", "password", "socket_timeout", "socket_connect_timeout", "health_check_interval")
_TCP_OPTIONS = (*_OPTIONS, "socket_keepalive")
_TLS_OPTIONS = (
    *_TCP_OPTIONS,
    *("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_cert_reqs", "ssl_check_hostname"),
    *("ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_ciphers", "ssl_min_version"),
)
_OPTIONS_OF = {"redis": _TCP_OPTIONS, "rediss": _TLS_OPTIONS, "unix": _OPTIONS}
_ALLOWED = (
    "allowed are redis[s]://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE] and unix://[[USER]:PASSWORD@]/PATH, "
    "each with [?OPTION=VALUE&…]; / # ? @ : % within a password are written as %2F %23 %3F %40 %3A %25"
)


def check_url(url: str) -> None:
    """Raise ValueError, which says what is allowed, for a URL that redis-py cannot use or would misread."""
    if not url.startswith(_SCHEMES):
        raise ValueError(f"it must begin with {', '.join(_SCHEMES)}")
    problem = _problem(url)
    if problem:
        raise ValueError(f"{problem}; {_ALLOWED}")


def _problem(url: str) -> str:
    """What is wrong with it; nothing if it is fine."""
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        return "its host and port cannot be read"
    if port == 0:
        return "its port is 0"
    if parts.fragment:
        return "it has a #"
    return _problem_of_path(parts) or _problem_of_options(url, parts)


def _problem_of_path(parts: SplitResult) -> str:
    if parts.scheme == "unix":
        return "its path does not begin with /" if parts.hostname or not parts.path else ""
    return "" if re.fullmatch(r"/?[0-9]*/?", parts.path) else "its database is no number"


def _problem_of_options(url: str, parts: SplitResult) -> str:
    from redis.connection import Connection, parse_url
    from redis.exceptions import RedisError

    allowed = _OPTIONS_OF[parts.scheme]
    if any(name not in allowed for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        return f"it has an option that is none of {', '.join(allowed)}"
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call]
        # It is not connected by that.
        options.pop("connection_class", Connection)(**options)
    except (ValueError, RedisError):
        return "one of its options has a value that cannot be read"
    return "its database is no number" if options.get("db", 0) < 0 else ""
