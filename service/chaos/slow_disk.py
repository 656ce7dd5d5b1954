"""A disk whose fsync takes long: a small library that is loaded in front of libc. Needs a C compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wait_first(void) {
    char text[16] = {0};
    const char *path = getenv("CHAOS_FSYNC_MS");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    if (read(file, text, sizeof text - 1) > 0) usleep(1000 * atoi(text));
    close(file);
}
int fsync(int file) { wait_first(); return syscall(SYS_fsync, file); }
int fdatasync(int file) { wait_first(); return syscall(SYS_fdatasync, file); }
"""


def compiler() -> str | None:
    """A C compiler on PATH, if there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


class SlowDisk:
    """With `environment` a process waits in each fsync; `available` is False without a compiler."""

    def __init__(self, folder: Path) -> None:
        self._delay = folder / "fsync_ms"
        self._library = folder / "slow_fsync.so"
        self.available = self._build(folder / "slow_fsync.c")

    def _build(self, source: Path) -> bool:
        program = compiler()
        if program is None:
            return False
        source.write_text(_SOURCE)
        command = [program, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(source)]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs in its environment."""
        if not self.available:
            return {}
        return {"LD_PRELOAD": str(self._library), "CHAOS_FSYNC_MS": str(self._delay)}

    def slow(self, milliseconds: int) -> None:
        """Each fsync takes so much longer; 0 is the disk as it is."""
        # Replaced in one step: a reader in between would see no delay.
        fresh = self._delay.with_suffix(".new")
        fresh.write_text(str(milliseconds))
        os.replace(fresh, self._delay)
