"""Reads members of tars that others made: no header takes all memory, and none loops for ever.

tarfile reads long names and PAX records whole, at any size they state, and follows a negative size
back to where it was.
"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clipmill.metadata.limits import PARSE_ERRORS, limit

IN_MEMORY = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class Bounded(tarfile.TarInfo):
    """A header; ReadError if what follows it is held in memory and too large."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "Bounded":
        header = super().frombuf(buf, encoding, errors)
        most = limit("MAX_TAR_HEADER_BYTES")
        if header.type in IN_MEMORY and header.size > most:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes, at most {most:,} are read")
        return header


def opened(source: Any, mode: Any, size_bytes: int = tarfile.RECORDSIZE) -> tarfile.TarFile:
    """Opens the tar; TarError if its first header cannot be read."""
    with _as_tar_error():
        return tarfile.open(fileobj=source, mode=mode, bufsize=size_bytes, tarinfo=Bounded)


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields each member, which the tar then forgets; TarError at a broken header."""
    end = -1
    while True:
        with _as_tar_error():
            member = tar.next()
        if member is None:
            return
        if tar.offset <= end:
            raise tarfile.ReadError(f"a member that ends before it begins, at byte {end}")
        end = tar.offset
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        yield member


@contextmanager
def _as_tar_error() -> Iterator[None]:
    """Turns errors of a hostile header, also of a thousand headers in a row, into ReadError."""
    try:
        yield
    except (OverflowError, *PARSE_ERRORS) as error:
        raise tarfile.ReadError(f"a header that cannot be read: {error!r}") from error
