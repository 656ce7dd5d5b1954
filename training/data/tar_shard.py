"""A WebDataset shard: a .tar whose neighbouring files of one name, as `01.jpg` and `01.cls`, are a sample."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from models.errors import ConfigError
from training.data.remote import open_bytes, unreadable
from training.data.sample import Sample
from training.data.tar_file import Member, tar_members

PICTURES = ("webp", "jpg", "jpeg", "png")
LABEL = "cls"
MAX_DIGITS = 9
MAX_PICTURE_BYTES = 1 << 30  # 8 for each of the pixels that a picture may have


@dataclass
class _Group:
    """The files of one sample, by suffix; those that nobody wants are not read."""

    key: str
    index: int
    wanted: bool
    files: dict[str, bytes] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    fault: str = ""

    def add(self, suffix: str, member: Member) -> None:
        self.suffixes.add(suffix)
        if self.wanted and (suffix in PICTURES or suffix == LABEL):
            if member.size > MAX_PICTURE_BYTES:
                self.fault = f"{member.name} has {member.size} bytes; allowed are {MAX_PICTURE_BYTES}"
                return
            try:
                self.files[suffix] = member.read()
            except EOFError as exc:
                self.fault = f"the shard ends in the middle of {member.name}: {exc}"

    def sample(self, shard: str) -> Sample:
        picture = next((self.files[suffix] for suffix in PICTURES if suffix in self.files), None)
        label = self.files.get(LABEL, b"").strip()
        fault = self.fault
        if not fault and picture is None:
            fault = f"no picture ({', '.join(PICTURES)})"
        elif not fault and not (label.isdigit() and len(label) <= MAX_DIGITS):
            fault = f"no class number (.{LABEL} is {label[:20]!r})"
        return Sample(shard, self.index, self.key, picture or b"", 0 if fault else int(label), fault)


@dataclass(frozen=True)
class TarShard:
    """`name` is a path or URL."""

    name: str

    def read(self, start: int = 0, step: int = 1) -> Iterator[Sample]:
        """See Shard; a sample that is cut off at the end of the archive has a fault."""
        try:
            for group in self._groups(start, step):
                if group.wanted:
                    yield group.sample(self.name)
        except tarfile.TarError as exc:
            raise ConfigError(f"{self.name}: not a sound tar file ({exc})") from exc
        except OSError as exc:
            raise unreadable(self.name, exc) from exc

    def _groups(self, start: int, step: int) -> Iterator[_Group]:
        group: _Group | None = None
        with open_bytes(self.name) as stream:
            for member in tar_members(stream):
                key, suffix = split_name(member.name)
                if not suffix:
                    continue
                if group is None or key != group.key or suffix in group.suffixes:
                    if group is not None:
                        yield group
                    index = 0 if group is None else group.index + 1
                    group = _Group(key, index, index >= start and (index - start) % step == 0)
                group.add(suffix, member)
            if group is not None:
                yield group


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-case suffix: all before and after the first dot of the file name; "" for no suffix."""
    folder, file = posixpath.split(name)
    stem, _, suffix = file.partition(".")
    return posixpath.join(folder, stem), suffix.lower() if stem else ""
