"""Tars that no well-behaved program would write, made from a seed, header by header."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable, Sequence

_BLOCK = 512

#: Names and link targets; ``{}`` is a directory next to the destination.
NAMES = (
    "a", "b", "c", "d", "d/a", "d/e", "d/e/f", "x", "x/victim", "x/y", "folder", "folder/kept", "link", "link/victim",
    "mine", "mine/x",
)  # fmt: skip
HOSTILE_NAMES = (
    "", ".", "./", "..", "/", "//", "a/", "a/.", "./a", "a//b", "a/./b", "../victim", "../../outside/victim",
    "a/../../../outside/victim", "d/..", "{}/victim", "/{}/victim", "{}", "a" * 90, "\\..\\x", "..\\x", "C:\\x", "a\nb",
    "...", ". .", "~", "$HOME", "-rf", ".async_ckpt-loading-00000000",
)  # fmt: skip
TARGETS = (
    "a",
    "d",
    "x",
    ".",
    "..",
    "",
    "/",
    "{}",
    "{}/victim",
    "../../outside",
    "../../outside/victim",
    "mine",
    "link",
)

_SIZES = (-1, -511, -512, -1024, -1536, 1, 511, 10**6, 2**31, 2**33, 2**62, 2**63, 2**64, 2**80, -(2**63), -(2**80))
_PAX = (
    ("path", "../../outside/victim"), ("path", "a\0b"), ("path", ""), ("path", "d/" * 500), ("path", "{}/victim"),
    ("path", "x" * 5000), ("linkpath", "{}/victim"), ("linkpath", ""), ("linkpath", "a\0b"), ("size", "-512"),
    ("size", "-1"), ("size", "99999999999999999999999"), ("size", "nan"), ("size", "5"), ("mtime", "inf"),
    ("mtime", "nan"), ("mtime", "-1e400"), ("uid", "-1"), ("mode", "4777"), ("hdrcharset", "BINARY"),
    ("hdrcharset", "x"), ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "../victim"),
    ("GNU.sparse.realsize", "100000"), ("GNU.sparse.realsize", "-5"), ("GNU.sparse.size", "4096"),
    ("GNU.sparse.map", "0,1,2"), ("GNU.sparse.map", "0,99999999999,5,1"), ("GNU.sparse.map", "x"),
    ("GNU.sparse.numblocks", "99999999"), ("GNU.sparse.offset", "-1"), ("GNU.sparse.numbytes", "9"),
    ("SCHILY.xattr.user.x", "y"), ("é", "\u202e"),
)  # fmt: skip


class Tars:
    """Makes tars; what it makes depends on the random numbers alone. ``outside``: a directory nothing may be in."""

    def __init__(self, random_: random.Random, outside: str) -> None:
        self._random, self._outside = random_, outside

    def tar(self) -> bytes:
        """One tar, or nearly one."""
        data = bytearray(b"".join(self._member() for _ in range(self._random.randrange(1, 7))))
        data += bytes(2 * _BLOCK)
        fate = self._random.random()
        if fate < 0.1:
            del data[self._random.randrange(len(data)) :]
        elif fate < 0.2:
            for _ in range(self._random.randrange(1, 4)):
                data[self._random.randrange(len(data))] = self._random.randrange(256)
        elif fate < 0.22:
            data = bytearray(self._random.randbytes(self._random.randrange(2000)))
        return bytes(data)

    def name(self) -> str:
        """Of a member: often one of few, so that they meet."""
        names = NAMES if self._random.random() < 0.85 else HOSTILE_NAMES
        return self._random.choice(names).format(self._outside)

    def target(self) -> str:
        """Of a link."""
        return self._random.choice(TARGETS).format(self._outside)

    # -- members ---------------------------------------------------------------------------------------------------

    def _member(self) -> bytes:
        kinds: list[tuple[float, Callable[[], bytes]]] = [
            (40, self._file), (15, self._directory), (20, lambda: self._link(tarfile.SYMTYPE)),
            (12, lambda: self._link(tarfile.LNKTYPE)), (4, self._way_out), (3, self._device),
            (3, self._sparse), (3, self._long_name), (6, self._pax),
        ]  # fmt: skip
        return self._random.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0]()

    def _file(self) -> bytes:
        data = self._random.randbytes(self._random.choice((0, 1, 10, 512, 1500)))
        size = len(data) if self._random.random() < 0.95 else self._random.choice(_SIZES)
        kind = self._random.choice((tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE))
        return self._header(self.name(), kind, size=size) + padded(data)

    def _directory(self) -> bytes:
        size = 0 if self._random.random() < 0.95 else self._random.choice(_SIZES)
        return self._header(self.name() + self._random.choice(("", "/")), tarfile.DIRTYPE, size=size)

    def _link(self, kind: bytes) -> bytes:
        target = self.target() if self._random.random() < 0.7 else self.name()
        return self._header(self.name(), kind, link=target)

    def _way_out(self) -> bytes:
        """A link to the outside, and something behind it."""
        name = self._random.choice(("x", "d/x", "a"))
        behind = self._header(f"{name}/victim", self._random.choice((tarfile.REGTYPE, tarfile.SYMTYPE)), link="a")
        return self._header(name, tarfile.SYMTYPE, link=self._outside) + behind

    def _device(self) -> bytes:
        kind = self._random.choice((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V", b"D", b"Z", b"\xff"))
        return self._header(self.name(), kind)

    def _sparse(self) -> bytes:
        """GNU's old format. No real size is large: it would be written out."""
        fields = b"".join(_number(self._random.choice((0, 1, 512, 4096, -1, 2**63)), 12) for _ in range(8))
        real = self._random.choice((0, 10, 100_000, -1, -512))
        tail = fields + self._random.choice((b"\0", b"\1")) + _number(real, 12)
        return self._header(self.name(), tarfile.GNUTYPE_SPARSE, size=512, tail=tail) + bytes(_BLOCK)

    def _long_name(self) -> bytes:
        kind = self._random.choice((tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK))
        name = self._random.choice((self.name(), "n" * 300, "d/" * self._random.choice((50, 1200, 2500)), "\udcff"))
        data = name.encode("utf-8", "surrogateescape") + b"\0"
        size = len(data) if self._random.random() < 0.8 else self._random.choice(_SIZES)
        return self._header("././@LongLink", kind, size=size) + padded(data) + self._file()

    def _pax(self) -> bytes:
        records = b"".join(self._record(*item) for item in self._random.choices(_PAX, k=self._random.randrange(1, 4)))
        kind = self._random.choice((tarfile.XHDTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE))
        size = len(records) if self._random.random() < 0.9 else self._random.choice(_SIZES)
        return self._header("pax", kind, size=size) + padded(records) + self._member()

    def _record(self, key: str, value: str) -> bytes:
        record = pax_record(key, value.format(self._outside))
        if self._random.random() >= 0.1:
            return record
        length = self._random.choice((0, -1, 1, len(record) - 1, len(record) + 1, 10**9, 10**30))
        return str(length).encode() + record[record.index(b" ") :]

    def _header(self, name: str, kind: bytes, *, size: int = 0, link: str = "", tail: bytes = b"") -> bytes:
        choose = self._random.choice
        mode = choose((0o644, 0o755, 0o4755, 0o2777, 0o1777, 0o7777, 0, 0o200, 2**21 - 1))
        magic = choose((tarfile.GNU_MAGIC, tarfile.POSIX_MAGIC))
        mtime = choose((0, 1, -1, 2**70))
        return header(name, kind, size=size, link=link, tail=tail, mode=mode, magic=magic, mtime=mtime)


def header(
    name: str,
    kind: bytes,
    *,
    size: int = 0,
    link: str = "",
    tail: bytes = b"",
    mode: int = 0o644,
    magic: bytes = tarfile.GNU_MAGIC,
    mtime: int = 0,
) -> bytes:
    """A member's first block, with a right checksum. ``tail``: what GNU's sparse format has at its end."""
    block = bytearray(_BLOCK)
    fields: Sequence[tuple[int, bytes]] = (
        (0, name.encode("utf-8", "surrogateescape")[:100]), (100, b"%07o" % mode), (108, _number(0, 8)),
        (116, _number(0, 8)), (124, _number(size, 12)), (136, _number(mtime, 12)), (156, kind),
        (157, link.encode()[:100]), (257, magic), (329, _number(1, 8)), (337, _number(3, 8)), (386, tail),
    )  # fmt: skip
    for at, data in fields:
        block[at : at + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax_record(key: str, value: str) -> bytes:
    """One line of an extended header: its own length, key and value."""
    text = f" {key}={value}\n".encode()
    length = len(text) + 1
    while len(str(length)) + len(text) != length:
        length = len(str(length)) + len(text)
    return str(length).encode() + text


def _number(value: int, length: int) -> bytes:
    """A field's number: octal where it fits, else GNU's base 256."""
    if 0 <= value < 8 ** (length - 1):
        return b"%0*o\0" % (length - 1, value)
    limit = 1 << (8 * (length - 1) - 1)
    value = max(min(value, limit - 1), -limit)
    return (b"\x80" if value >= 0 else b"\xff") + value.to_bytes(length - 1, "big", signed=True)


def padded(data: bytes) -> bytes:
    """Content as it stands behind its header."""
    return data + bytes(-len(data) % _BLOCK)
