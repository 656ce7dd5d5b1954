"""What the URL of a Redis may say, and what is said of one that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any
from urllib.parse import quote

import pytest
from redis import Redis

from service.jobs.redis_link import connect
from service.jobs.redis_url import check_url

CANNOT_BE_READ = "its host and port cannot be read"
NO_DATABASE = "its database is no number"
UNKNOWN = "it has an option that is none of db, username,"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "it must begin with redis://, rediss://, unix://"),
        ("hunter2", "it must begin with redis://, rediss://, unix://"),
        ("http://:hunter2@host/0", "it must begin with redis://, rediss://, unix://"),
        ("redis://:hunter2#x@127.0.0.1:6379/0", CANNOT_BE_READ),
        ("redis://:hunter2/x@127.0.0.1:6379/0", CANNOT_BE_READ),
        ("redis://:hunter2?x@127.0.0.1:6379/0", CANNOT_BE_READ),
        ("redis://:12#hunter2@127.0.0.1:6379/0", "it has a #"),
        ("redis://:12/hunter2@127.0.0.1:6379/0", NO_DATABASE),
        ("redis://:12?hunter2@127.0.0.1:6379/0", UNKNOWN),
        ("redis://:hunter2@127.0.0.1:abc", CANNOT_BE_READ),
        ("redis://:hunter2@127.0.0.1:99999", CANNOT_BE_READ),
        ("redis://:hunter2@127.0.0.1:0", "its port is 0"),
        ("redis://:hunter2@host:6379:6379", CANNOT_BE_READ),
        ("redis://:hunter2@[::1", CANNOT_BE_READ),
        ("redis://:hunter2@a..b", CANNOT_BE_READ),
        ("redis://:hunter2@host\u2100/0", CANNOT_BE_READ),
        ("redis://:hunter2@host/foo", NO_DATABASE),
        ("redis://:hunter2@host/-1", NO_DATABASE),
        ("redis://:hunter2@host/1/2", NO_DATABASE),
        ("redis://:hunter2@host?db=-1", NO_DATABASE),
        ("redis://:hunter2@host?foo=bar", UNKNOWN),
        ("redis://:hunter2@host?foo=", UNKNOWN),
        ("redis://:hunter2@host?decode_responses=1", UNKNOWN),
        ("redis://:hunter2@host?ssl_ca_certs=ca.crt", UNKNOWN),
        ("redis://:hunter2@host?socket_timeout=long", "one of its options has a value that cannot be read"),
        ("rediss://:hunter2@host?ssl_cert_reqs=no", "one of its options has a value that cannot be read"),
        ("unix://:hunter2@", "its path does not begin with /"),
        ("unix://redis.sock", "its path does not begin with /"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_a_part_of_it(url: str, words: str) -> None:
    with pytest.raises(ValueError, match="it") as caught:
        check_url(url)
    message = str(caught.value)
    assert message.startswith(words)
    assert "hunter2" not in message
    if url.startswith(("redis", "unix")):
        assert "%2F %23 %3F %40 %3A %25" in message


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://host",
        "redis://my_redis:6379/",
        "redis://me:word@host:6379/3",
        "redis://me:a:b@c@[::1]:6379/0",
        "redis://host?db=3&username=me&password=word&socket_keepalive=yes&socket_timeout=5",
        "rediss://maskbit:word@redis.example.com:6380/0?ssl_ca_certs=/a/ca.crt",
        "rediss://host/0?ssl_certfile=/a/tls.crt&ssl_keyfile=/a/tls.key&ssl_check_hostname=false",
        "unix:///run/redis.sock",
        "unix://me:word@/run/redis.sock?db=3",
    ],
)
def test_a_url_that_can_be_used_passes(url: str) -> None:
    check_url(url)


def test_any_password_can_be_written_as_the_message_says(redis_url: str, raw: Redis) -> None:
    password = "".join(map(chr, range(0x21, 0x7F)))
    execute: Any = raw.execute_command
    execute("ACL", "SETUSER", "odd", "on", f">{password}", "~*", "+@all")
    try:
        url = redis_url.replace("unix://", f"unix://odd:{quote(password, safe='')}@")
        check_url(url)
        with connect(url) as redis:
            assert redis.acl_whoami() == "odd"
    finally:
        execute("ACL", "DELUSER", "odd")


@pytest.mark.parametrize("command", ["gateway", "worker", "serve", "health"])
def test_every_command_ends_with_one_line_and_code_2(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "maskbit_cli", command, *(["worker"] if command == "health" else [])],
        env={**os.environ, "MASKBIT_REDIS_URL": "redis://:hunter2#x@127.0.0.1:8110/0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"maskbit: setting redis_url: {CANNOT_BE_READ}; allowed are ")
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr
