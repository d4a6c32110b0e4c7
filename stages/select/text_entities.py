"""Keeps rows whose caption names a class of ImageNet-21k: DataComp's text-based filter."""

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import IMAGE_BYTES, KEEP, TEXT, Column
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.extras import missing
from clipmill.pipeline.stage import DatasetStage, NonEmpty
from clipmill.stages.ops.outside import listing_digest, need_file
from clipmill.stages.ops.tables.rows import DROPPED
from clipmill.stages.select._judged import NO_IMAGE, first_of, judged_rows, left_out

CLASSES = "data/_info/imagenet21k_goog_synsets.txt"  # in the package timm
SHA256 = "66362bdedf36d933382edca5493fc562dcc17128ce36403c9e730a75f48cb2f2"  # DataComp's own list
# Parts of speech as files of WordNet are named, in the order of lookup; and Morphy's endings.
ENDINGS = {
    "noun": "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
    "verb": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "adj": "er: est: er:e est:e",
    "adv": "",
}
MOST = 100  # forms of a word that are looked up: `womens`, `women`, `woman`
FILES = [name for part in ENDINGS for name in (f"index.{part}", f"{part}.exc")]
VERSION = "WordNet 3.0"
GET = (
    "apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wn,"
    " then write wordnet: wn/usr/share/wordnet"
)
ENTITY = Column("entity", TEXT.dtype, "word", "Its first word that names an ImageNet-21k class.")


@dataclass(frozen=True, kw_only=True)
class TextEntities(DatasetStage):
    """Keep decision of each row, and `entity`, the first word of its caption that counts; null
    without one.

    A word counts if its first synset in WordNet 3.0 is a class of ImageNet-21k: of nouns, then
    verbs, adjectives and adverbs, after WordNet's own morphology, which takes endings off until a
    word is known: `womens` is `woman`. Words are parted at white space and keep their punctuation:
    `dogs` counts, `dog,` does not.

    Source: DataComp (Gadre et al. 2023), text-based filtering, as its released code has it, which
    also wants fastText's English: a condition of select.where before this. The classes are timm's
    list, the same file as DataComp's.
    Error: none, against nltk 3.8.1, which its environment pins, over 207,000 forms; offsets are
    compared without part of speech, as there.
    Example: {after: [ingest.datacomp], wordnet: wn/usr/share/wordnet}
    """

    wordnet: NonEmpty  # folder of WordNet 3.0's files: index.noun, noun.exc and six others

    version = 2
    determinism = "exact"
    reads = (TEXT,)
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, ENTITY)
    reasons = (DROPPED, NO_IMAGE, "names_no_class")

    def look(self) -> None:
        for name in FILES:
            need_file(f"{self.wordnet.rstrip('/')}/{name}", "wordnet", GET)
        classes()

    def outside(self) -> str:
        """Returns a digest of sizes and times of WordNet's files."""
        return digest([listing_digest(f"{self.wordnet.rstrip('/')}/{name}") for name in FILES])

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.restore(ctx.map_shards(partial(self.judged, self.outside()), inputs.rows))

    def judged(self, files: str, rows: pa.Table) -> pa.Table:
        """Returns keep, entity and reason of every row."""
        words = opened(self.wordnet, files)
        texts = rows[TEXT.name].to_pylist()  # a loop: the rule takes one word after another
        found = [next(filter(words.counts, (text or "").split()), None) for text in texts]
        entity = pa.array(found, ENTITY.dtype)
        reason = first_of({**left_out(rows), self.reasons[-1]: entity.is_null()})
        return judged_rows(rows, reason, {ENTITY.name: entity})


class Words:
    """WordNet's lemmas, each with the first of its synsets, by part of speech."""

    def __init__(self, folder: str) -> None:
        storage = Storage(folder)
        self.first: dict[str, dict[str, int]] = {part: {} for part in ENDINGS}
        self.irregular: dict[str, dict[str, list[str]]] = {part: {} for part in ENDINGS}
        for part, first in self.first.items():
            lines = storage.read(f"index.{part}").decode("latin-1").splitlines()
            if not any(VERSION in line for line in lines[:29] if line.startswith(" ")):
                where = f"stage 'select.text_entities', key `wordnet`: {storage}/index.{part}"
                raise StageError(f"it is not of {VERSION}, whose numbers classes have", where, GET)
            for fields in (line.split() for line in lines if not line.startswith(" ")):
                first[fields[0]] = int(fields[-int(fields[2])])
            for line in storage.read(f"{part}.exc").decode("latin-1").splitlines():
                form, *bases = line.split()
                self.irregular[part][form] = bases
        self.counts = lru_cache(2**20)(partial(is_class, self.first, self.irregular))  # no circle


def is_class(
    first: dict[str, dict[str, int]], irregular: dict[str, dict[str, list[str]]], word: str
) -> bool:
    """Returns whether a word's first synset is of a class, by its lemma's part of speech."""
    form = word.lower()
    for part, synset_of in first.items():
        forms = shorter = [form, *irregular[part].get(form, ())]
        ends = [p.split(":") for p in ENDINGS[part].split() if form not in irregular[part]]
        while shorter and len(forms) < MOST:
            every = (f.removesuffix(e) + new for f in shorter for e, new in ends if f.endswith(e))
            shorter = [*dict.fromkeys(every)]
            forms = forms + shorter
        for base in forms:
            if base in synset_of:
                return synset_of[base] in classes()
    return False


@lru_cache(maxsize=1)  # once for all shards
def opened(folder: str, files: str) -> Words:
    """Reads WordNet. `files`, its digest, is a key of the cache only: they may change."""
    return Words(folder)


@cache
def classes() -> frozenset[int]:
    """Returns the numbers of ImageNet-21k's synsets, as the package timm has them."""
    found = find_spec("timm")  # without its import, which takes seconds
    if found is None or not found.submodule_search_locations:
        raise missing("timm", "select.text_entities")
    file = Path(found.submodule_search_locations[0], CLASSES)
    lines = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(lines).hexdigest() != SHA256:
        do = "pip install 'timm>=1.0'"
        raise StageError(f"no list with DataComp's digest {SHA256[:12]}", f"{file}", do)
    return frozenset(int(line[1:]) for line in lines.split())
