"""Inserts spaces into captions and concepts by a rule; gives bytes in one flat array.

A concept matches between two spaces. The rules:

- `metaclip`: the published one. A space goes before and after a caption, and around each of
  , . ; : ? ! and the back-tick; tab, line feed and carriage return become spaces. Concepts stay as
  they are: one with a full stop never matches, and neither does `dog` in `dog-friendly`.
- `metaclip2`: as `metaclip`, but a concept needs no space on a side where it begins or ends with
  punctuation, or with a character of a script that has no spaces.
- `words`: ours. Captions and concepts are both folded (NFKC and case). White space counts as one
  space and each punctuation mark as one more, a symbol is a word, and zero-width characters are
  removed. A concept needs no space on a side of a script without spaces, kana included.
"""

import string
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.stages.ops.compiled import compiled

# Shapes: N texts, B bytes and C characters of all texts, E patterns.

Bytes = NDArray[np.uint8]

SPACE = 32
END = 0xFF  # closes every text: no byte of UTF-8, so nothing matches across it
KIND = np.zeros(256, np.uint8)  # of a byte: 1 gets spaces around it, 2 becomes a space
KIND[[*b",.;:?!`"]], KIND[[*b"\t\n\r"]] = 1, 2
NO_SPACES = (  # scripts without spaces, as MetaCLIP 2 lists them
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2EBEF)),
    *((0xF900, 0xFAFF), (0x2E80, 0x2FDF), (0x2FF0, 0x2FFF)),
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x0F00, 0x0FFF)),
)
KANA = ((0x3040, 0x30FF), (0x31F0, 0x31FF))
PUNCTUATION = string.punctuation + "，。、；：？！“”‘’（）【】《》〈〉「」『』～—"  # noqa: RUF001
WORD, BLANK, MARK, SYMBOL, NO_WIDTH = range(5)


@dataclass(frozen=True)
class Texts:
    """Concatenated texts, each between two spaces and closed by END."""

    utf8: Bytes  # (B,)
    ends: NDArray[np.int64]  # (N,) index of each text's END


def spaced(texts: pa.Array, rule: str) -> Texts:
    """Inserts spaces into texts by a rule; a null becomes an empty text."""
    if rule == "words":
        utf8 = _folded(texts)
        return Texts(utf8, np.flatnonzero(utf8 == END))
    return Texts(*_wrapped(*utf8_of(pc.fill_null(texts, "")), KIND))


def padded(concepts: pa.Array, rule: str) -> pa.StringArray:
    """Returns each concept's pattern in spaced texts; empty if no character is left."""
    is_open = np.zeros(0x110000, bool)
    if rule == "words":
        folded = _folded(concepts).tobytes().split(bytes([END]))[:-1]
        cores = [core.decode().strip(" ") for core in folded]
        _mark(is_open, (*NO_SPACES, *KANA))
    else:
        cores = concepts.to_pylist()
    if rule == "metaclip2":
        _mark(is_open, NO_SPACES)
        is_open[[ord(mark) for mark in PUNCTUATION]] = True
    bare = set(map(chr, np.flatnonzero(is_open).tolist()))

    def pad(character: str) -> str:
        return "" if character in bare else " "

    patterns = [core and pad(core[0]) + core + pad(core[-1]) for core in cores]
    return pa.array(patterns, pa.string())


def utf8_of(texts: pa.StringArray) -> tuple[Bytes, NDArray[np.int32]]:
    """Returns the bytes of all texts, and each text's offset; there must be no null."""
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.empty(0, np.uint8), np.zeros(1, np.int32)
    offset = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data or b"", np.uint8), offset


@compiled()
def _wrapped(utf8, offset, kind):
    """Returns (B,) bytes of all texts with their spaces and END, and (N,) the index of each END."""
    texts = len(offset) - 1
    size = 3 * texts
    for place in range(offset[0], offset[-1]):
        size += 3 if kind[utf8[place]] == 1 else 1
    out = np.empty(size, np.uint8)
    ends = np.empty(texts, np.int64)
    end = 0
    for text in range(texts):
        out[end] = SPACE
        end += 1
        for place in range(offset[text], offset[text + 1]):
            byte = utf8[place]
            if kind[byte] == 0:
                out[end] = byte
                end += 1
            elif kind[byte] == 1:
                out[end], out[end + 1], out[end + 2] = SPACE, byte, SPACE
                end += 3
            else:
                out[end] = SPACE
                end += 1
        out[end], out[end + 1] = SPACE, END
        ends[text] = end + 1
        end += 2
    return out, ends


def _folded(texts: pa.Array) -> Bytes:
    """Folds texts by the rule `words`, each between two spaces and closed by END."""
    # A NUL before each text: no character composes with it, so one call folds all texts.
    plain = pc.replace_substring(pc.fill_null(texts, ""), "\0", " ").to_pylist()
    whole = unicodedata.normalize("NFKC", "\0".join(["", *plain]))
    folded = unicodedata.normalize("NFKC", whole.casefold())
    codes_C = np.frombuffer(folded.encode("utf-32-le"), "<u4").astype(np.uint32)  # code points
    codes_C = codes_C[_classes()[codes_C] != NO_WIDTH]
    class_C = np.where(codes_C == 0, WORD, _classes()[codes_C])
    again_C = (class_C == BLANK) & _before(class_C == BLANK)
    codes_C, class_C = codes_C[~again_C], class_C[~again_C]
    codes_C[(class_C == BLANK) | (class_C == MARK)] = SPACE
    symbol_C, space_C, start_C = class_C == SYMBOL, codes_C == SPACE, codes_C == 0
    edge_C = space_C | start_C
    apart_C = (symbol_C | _before(symbol_C)) & ~edge_C & ~_before(edge_C)
    # Each character gets a place, after a space if it is `apart`, and a NUL three: the space after
    # one text, its END, the space before the next. END is a NUL until all is UTF-8, and the first
    # two places, which stand before the first text, are cut off.
    last_C = np.cumsum(1 + apart_C + 2 * start_C.astype(np.int64)) - 1
    out = np.full(len(codes_C) and last_C[-1] + 3, SPACE, np.uint32)
    out[last_C[~start_C]] = codes_C[~start_C]
    out[last_C[start_C] - 1] = 0
    out[-1:] = 0
    text = out[2:].astype("<u4").tobytes().decode("utf-32-le")
    utf8 = np.frombuffer(text.encode(), np.uint8).copy()
    utf8[utf8 == 0] = END
    return utf8


def _before(is_C: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns `is_C` of each character's predecessor."""
    return np.append(False, is_C)[: len(is_C)]


def _mark(is_marked: NDArray[np.bool_], ranges: tuple[tuple[int, int], ...]) -> None:
    for low, high in ranges:
        is_marked[low : high + 1] = True


@cache
def _classes() -> NDArray[np.uint8]:
    """Returns the class of every character by the rule `words`."""
    by_category = {**dict.fromkeys("LMN", WORD), **dict.fromkeys("ZC", BLANK), "P": MARK}
    class_C = np.full(0x110000, SYMBOL, np.uint8)
    for code in range(len(class_C)):
        category = unicodedata.category(chr(code))
        class_C[code] = NO_WIDTH if category == "Cf" else by_category.get(category[0], SYMBOL)
    class_C[0xFE00:0xFE10] = NO_WIDTH  # variation selectors: text or picture of one character
    return class_C
