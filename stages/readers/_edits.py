"""Edits a caption's words: a caption of the same meaning, for a training to see."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipmill.metadata.uid import mixed, uniform
from clipmill.pipeline.errors import StageError

# Probability that a caption has words replaced by synonyms, exchanged, and deleted.
# Source: CLIP-rocket's defaults.
REPLACE, SWAP, DELETE = 0.4, 0.4, 0.2
SHARE = 0.1  # of its words, at least one. Source: EDA's alpha
FIRST = 1 << 32  # of the draws: others from the same hash have lower numbers


@dataclass(frozen=True)
class Edits:
    """Replaces, exchanges and deletes words by a hash; pickles, for workers.

    Source: EDA (Wei & Zou 2019), without its random insertion, as CLIP-rocket (Fini et al. 2023).
    """

    synonyms: dict[str, tuple[str, ...]]

    def __call__(self, text: str, coin: int) -> str:
        """Returns the edited caption; one word at least stays."""
        words = text.split()
        number = np.arange(FIRST, FIRST + 3 + 4 * len(words), dtype=np.uint64)
        draw = uniform(mixed(np.uint64(coin) ^ mixed(number)))
        (replaces, swaps, deletes), draw_4W = draw[:3], draw[3:].reshape(4, -1)
        count = max(1, int(SHARE * len(words)))
        if replaces < REPLACE:
            known = [i for i in np.argsort(draw_4W[0]) if words[i].casefold() in self.synonyms]
            for i in known[:count]:
                others = self.synonyms[words[i].casefold()]
                words[i] = others[int(draw_4W[1, i] * len(others))]
        if swaps < SWAP and len(words) > 1:
            for i, j in (draw_4W[:2, -count:].T * len(words)).astype(int):
                words[i], words[j] = words[j], words[i]
        if deletes < DELETE and words:
            stays = (draw_4W[3] >= SHARE) | (draw_4W[3] == draw_4W[3].max())
            words = [word for word, is_left in zip(words, stays, strict=True) if is_left]
        return " ".join(words)


def read_edits(path: str | None) -> Edits | None:
    """Reads a list: a line has a word and what may replace it, with commas; StageError."""
    if path is None:
        return None
    where = f"key `synonyms`: {path}"
    try:
        lines = Path(path).expanduser().read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise StageError(f"no list of words: {error}", where, "give a text in UTF-8") from None
    synonyms: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        word, *others = [part.strip() for part in line.split(",")]
        if not (word and others and all(others)):
            do = "write `word, another, a third`: what may replace the first"
            raise StageError(f"line {number} is {line[:80]!r}", where, do)
        synonyms[word.casefold()] = (*synonyms.get(word.casefold(), ()), *others)
    return Edits(synonyms)
