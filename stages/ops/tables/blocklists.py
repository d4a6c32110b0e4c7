"""Lists of what a pool must not hold: links, hosts, digests, perceptual hashes.

A list is text of one entry a line, or CSV with a header. Case, spaces and quotes around do not
count, nor does http or https. In memory an entry takes 8 bytes, the first 64 bits of a hash or
digest: by chance a text is on a list with 2^-64 an entry; one of PDQ 32. Reading one takes some
four times its file.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.globs import open_pool
from clipmill.metadata.keys import redacted
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import NonEmpty, later
from clipmill.stages.ops.outside import need_file

# Shapes: N rows, M entries of a list, W words of 64 bits of a perceptual hash.

WORDS = {"phashes": 1, "pdq": 4}  # of a perceptual hash
ANY_HOST = r"^[a-z][a-z0-9+.-]*://(?:[^/?#]*@)?([^/?#:]+)"  # of a link

LABEL = r'[^\s/:@.,;"\uFFFD]+'  # of a host; in any script, but in UTF-8


class Kind(NamedTuple):
    """The columns that hold a list in CSV, a pattern of all entries, and what an entry is."""

    columns: tuple[str, ...]
    pattern: str
    words: str


KINDS = {
    "links": Kind(("url", "link"), r"^\S+[./]\S*$", "a link"),
    "hosts": Kind(("domain", "host"), rf"^{LABEL}(\.{LABEL})+$", "a host name"),
    "digests": Kind(
        ("sha256", "md5", "digest", "hash"),
        r"^(?:[0-9a-f]{32}|[0-9a-f]{64})$",
        "an MD5 or SHA-256 of 32 or 64 hex digits",
    ),
    "phashes": Kind(("phash", "hash"), r"^[0-9a-f]{16}$", "a hash of 16 hex digits"),
    "pdq": Kind(("pdq", "hash"), r"^[0-9a-f]{64}$", "a PDQ hash of 64 hex digits"),
}


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Files of a user's lists; an entry a line, or CSV with a header."""

    links: NonEmpty | None = None  # links to leave out
    hosts: NonEmpty | None = None  # hosts to leave out, with all below them: bad.example
    digests: NonEmpty | None = None  # MD5 or SHA-256, of links and of files, in hex
    phashes: NonEmpty | None = None  # perceptual hashes as annotate.phash makes them, in hex
    pdq: NonEmpty | None = later(None)  # PDQ hashes, in hex

    @property
    def paths(self) -> dict[str, str]:
        return {name: path for name, path in vars(self).items() if path}

    def look(self) -> None:
        """Checks that each file is there; raises StageError."""
        for name, path in self.paths.items():
            need_file(path, f"lists.{name}", "give a text file of one entry a line, or a CSV")

    def sha256(self) -> dict[str, str]:
        """Returns the digest of each list's file."""
        return {name: hashlib.sha256(_bytes(path)).hexdigest() for name, path in self.paths.items()}


def _bytes(path: str) -> bytes:
    storage, name = open_pool(path)
    with storage.open(name) as file:
        return bytes(file.read())


@dataclass(frozen=True)
class Blocked:
    """The entries of each list, (M,) sorted numbers of 64 bits; of perceptual hashes (M, W)."""

    entries: Mapping[str, NDArray[np.uint64]]

    def links(self, urls: Any) -> dict[str, NDArray[np.bool_]]:
        """Returns by list (N,) whether it names a link, its host, or its digest; nulls are free."""
        import polars as pl

        text = pl.Series(urls, dtype=pl.String)
        found = {}
        if "links" in self.entries:
            found["links"] = self._has("links", _plain(text))
        if "hosts" in self.entries:
            host = text.str.strip_chars().str.to_lowercase().str.extract(ANY_HOST)
            host = _ascii(host.str.strip_chars_end("."))
            found["hosts"] = np.zeros(len(text), bool)
            while host.null_count() < len(host):  # a host, and each that it lies below
                found["hosts"] |= self._has("hosts", host)
                host = host.str.extract(r"^[^.]+\.(.+)$")
        if "digests" in self.entries:
            # hashlib takes a text at a time.
            bodies = [(text or "").encode("utf-8", "replace") for text in urls]
            found["digests"] = np.array([self.has_file(body) for body in bodies], bool)
        return found

    def are_blocked(self, urls: list[str]) -> NDArray[np.bool_]:
        """Returns (N,) whether any list names a link, its host, or its digest."""
        return np.any([np.zeros(len(urls), bool), *self.links(urls).values()], axis=0)

    def digests(self, sha256: Any) -> NDArray[np.bool_]:
        """Returns (N,) whether a list names a SHA-256 in hex; nulls are free."""
        import polars as pl

        text = pl.Series(sha256, dtype=pl.String).str.to_lowercase()
        valid = text.str.contains(KINDS["digests"].pattern).fill_null(False).to_numpy()
        listed_N = np.zeros(len(text), bool)
        listed_N[valid] = _on(self.entries["digests"], _numbers(text.filter(pl.Series(valid))))
        return listed_N

    def has_file(self, body: bytes) -> bool:
        """Returns whether a list names the MD5 or the SHA-256 of these bytes."""
        if "digests" not in self.entries:
            return False
        md5 = hashlib.md5(body, usedforsecurity=False).digest()[:8]
        first = np.frombuffer(md5 + hashlib.sha256(body).digest()[:8], ">u8").astype(np.uint64)
        return bool(_on(self.entries["digests"], first).any())

    def near(self, name: str, code_NW: NDArray[np.uint64], radius: int) -> NDArray[np.bool_]:
        """Returns (N,) whether a perceptual hash of a list differs in at most `radius` bits.

        Compares all pairs, some 10^9 words a second, a million at once.
        """
        listed_N, step = np.zeros(len(code_NW), bool), max(1, (1 << 20) // max(1, len(code_NW)))
        for start in range(0, len(self.entries[name]), step):
            some_WM = self.entries[name][start : start + step].T
            apart_NM = np.zeros((len(code_NW), some_WM.shape[1]), np.uint16)
            for code_N1, some_M in zip(code_NW.T[:, :, None], some_WM, strict=True):
                apart_NM += np.bitwise_count(code_N1 ^ some_M)
            listed_N |= (apart_NM <= radius).any(axis=1)
        return listed_N

    def _has(self, name: str, text: Any) -> NDArray[np.bool_]:
        known_N = text.is_not_null().to_numpy()
        return known_N & _on(self.entries[name], text.hash().to_numpy())


@lru_cache(maxsize=2)
def opened(lists: Lists, sha256: tuple[str, ...]) -> Blocked:
    """Reads the lists, once a process while their bytes stay these; StageError for a bad one."""
    return Blocked({name: _entries(name, path) for name, path in lists.paths.items()})


def _entries(name: str, path: str) -> NDArray[np.uint64]:
    """Returns the entries of a file; StageError if it has none, or a line that is none."""
    kind, where = KINDS[name], f"key `lists.{name}`: {redacted(path)}"
    text, is_header = _lines(_bytes(path), kind, where)
    if name == "hosts":
        text = _ascii(text.str.strip_prefix("*.").str.strip_chars("."))
    wrong = (~text.str.contains(kind.pattern) & (text != "")).arg_true()
    if len(wrong):
        found = f"line {wrong[0] + 1 + is_header} is no entry"
        raise StageError(found, where, f"write {kind.words} on each line")
    text = text.filter(text != "").unique()
    if not len(text):
        raise StageError("the list is empty, so it would block nothing", where, "give its entries")
    if name in WORDS:
        numbers = words_of(text.str.join("")[0], WORDS[name])
    elif name == "digests":
        numbers = _numbers(text)
    else:
        numbers = (_plain(text) if name == "links" else text).hash().to_numpy()
    return np.unique(numbers, axis=0)


def _lines(body: bytes, kind: Kind, where: str) -> tuple[Any, bool]:
    """Returns a list's lines, or its column in CSV, and whether a header goes before them.

    In lower case, without spaces and quotes around.
    """
    import polars as pl

    def column(**form: Any) -> pl.Series:
        source = io.BytesIO(body)
        frame = pl.read_csv(source, infer_schema=False, encoding="utf8-lossy", **form)
        text = frame.to_series().fill_null("").str.to_lowercase()
        return text.str.strip_chars(' \t\r\n"\ufeff')

    if not body.strip():
        return pl.Series([], dtype=pl.String), False
    try:
        text = column(has_header=False, separator="\x01", quote_char=None)
        if text.head(1).str.contains(f"{kind.pattern}|^$").item():
            return text, False
        separator = max(",;\t", key=text[0].count)
        names = [name.strip(' "') for name in text[0].split(separator)]
        place = next((names.index(name) for name in kind.columns if name in names), None)
        if place is not None:
            form = {"columns": [place], "truncate_ragged_lines": True}
            return column(separator=separator, **form), True
    except pl.exceptions.PolarsError as error:
        found = f"no text of lines, and no CSV: {str(error).splitlines()[0]}"
        raise StageError(found, where, f"write {kind.words} on each line") from None
    do = f"write {kind.words} on each line, or a CSV with a column {' or '.join(kind.columns)}"
    raise StageError("its first line is no entry, and no header that is known", where, do)


def _plain(url: Any) -> Any:
    """Returns links in lower case, without scheme, fragment and last slash."""
    plain = url.str.strip_chars().str.to_lowercase().str.replace(r"^https?://", "")
    return plain.str.replace("#.*$", "").str.strip_chars_end("/")


def _ascii(host: Any) -> Any:
    """Returns hosts as DNS has them: a name of other letters in Punycode."""
    import polars as pl

    odd = host.filter(host.str.contains(r"[^\x00-\x7f]")).unique()
    return host.replace(odd, pl.Series([_punycode(name) for name in odd], dtype=pl.String))


def _punycode(host: str) -> str:
    try:
        return host.encode("idna").decode()
    except UnicodeError:  # no name that a look-up could find
        return host


def _numbers(digests: Any) -> NDArray[np.uint64]:
    """Returns the first 64 bits of digests in hex."""
    return words_of(digests.str.slice(0, 16).str.join("")[0] if len(digests) else "", 1)[:, 0]


def words_of(digits: str, words: int) -> NDArray[np.uint64]:
    """Returns (N, W) hashes in hex, one after another, as numbers of 64 bits."""
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64).reshape(-1, words)


def _on(entry_M: NDArray[np.uint64], number_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Returns (N,) whether each number is one of the sorted entries."""
    place = np.minimum(np.searchsorted(entry_M, number_N), len(entry_M) - 1)
    return np.asarray(entry_M[place] == number_N)
