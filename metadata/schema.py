"""The columns that more than one kind of stage reads or writes.

Names follow DataComp and img2dataset. A column that only one stage writes and no other kind reads
is declared in that stage's file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Named = Literal["keeper", "neighbour", "cluster", "task", "sample"]


@dataclass(frozen=True)
class Column:
    """A named column: its Arrow type, its unit or range, and its meaning.

    `better` says which values are good: high ones of a score, low ones of a similarity to another
    row. `alike` is the value from which rows count as copies if no select has a threshold. Pictures
    above `unsafe_above`, or with another value than `safe`, are shown blurred. `names` says what is
    identified: the uid of the canonical row (keeper) or the nearest (neighbour), a cluster, an
    evaluation task, a sample of it; the first column of the stage with `better` has the similarity
    to it.
    """

    name: str
    dtype: pa.DataType
    unit: str
    doc: str
    better: Literal["high", "low"] | None = None
    alike: float | None = None
    names: Named | None = None
    unsafe_above: float | None = None
    safe: str | None = None

    def __post_init__(self) -> None:
        for word, allowed in ((self.better, ("high", "low")), (self.names, get_args(Named))):
            if word is not None and word not in allowed:
                raise ValueError(f"column '{self.name}': {word!r} is none of {', '.join(allowed)}")

    def accepts(self, dtype: pa.DataType) -> bool:
        """Returns whether a stored column of a type can be read as this column.

        A list without a width accepts lists of any width, as a reader of embeddings does not know
        their model. A list of float32 accepts one of float16, too.
        """
        if pa.types.is_list(self.dtype) and not pa.types.is_nested(self.dtype.value_type):
            kinds = {self.dtype.value_type}
            kinds |= {pa.float16()} if pa.float32() in kinds else set()
            is_list = pa.types.is_list(dtype) or pa.types.is_fixed_size_list(dtype)
            return is_list and dtype.value_type in kinds
        return bool(dtype == self.dtype)

    def unsafe(self, values: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
        """Returns (N,) whether a picture with this value is shown blurred; False where null."""
        limit = np.inf if self.unsafe_above is None else self.unsafe_above
        other = pc.greater(values, limit) if self.safe is None else pc.not_equal(values, self.safe)
        unsafe_N: NDArray[np.bool_] = other.fill_null(False).to_numpy(zero_copy_only=False)
        return unsafe_N


@dataclass(frozen=True, kw_only=True)
class Derived(Column):
    """A column computed from another when a row stage reads it, and never stored.

    `derive` is a module-level function from the values of `source` to those of this column; it
    imports what it needs when it is called. Stages that run together share one computation.
    """

    source: Column
    derive: Callable[[pa.ChunkedArray], pa.Array]


REASON_TYPE = pa.dictionary(pa.int32(), pa.string())
FLOATS, COUNTS, FLAGS = pa.list_(pa.float32()), pa.list_(pa.int32()), pa.list_(pa.bool_())

UID = Column("uid", pa.binary(16), "128 bits", "The sample's id: the pool's own, or a hash.")
UID_HEX = Column("uid_hex", pa.string(), "32 hex digits", "The sample's id as text.")
SHARD = Column("shard", pa.int32(), "0 up", "Number of the shard a row lives in.")
POSITION = Column("position", pa.int32(), "0 up", "Row number inside its shard.")
IDENTITY = [UID.name, SHARD.name, POSITION.name]  # carried by rows that leave their shard
REASON = Column("reason", REASON_TYPE, "code", "Why this stage gave no value; null where it did.")
LISTED = "listed"  # reason of a row on a user's list: readers for display hide what the row holds

SOURCE = Column("source", pa.string(), "stage name", "Which ingest stage a row is of.")
URL = Column("url", pa.string(), "URL", "Where the image was found.")
TEXT = Column("text", pa.string(), "caption", "The caption as found: never overwritten.")
CAPTION = Column("caption", pa.string(), "caption", "The caption: of several the first.")
ORIGINAL_WIDTH = Column("original_width", pa.int32(), "pixels", "Width as the pool states it.")
ORIGINAL_HEIGHT = Column("original_height", pa.int32(), "pixels", "Height as the pool states it.")

# A stage that writes IMAGE writes IMAGE_BYTES, too, so that a missing image costs no read.
IMAGE = Column("image", pa.binary(), "encoded bytes", "The image, encoded as stored.")
IMAGE_BYTES = Column("image_bytes", pa.int64(), "bytes", "Size of `image`; null without one.")
WIDTH = Column("width", pa.int32(), "pixels", "Width of the stored image.")
HEIGHT = Column("height", pa.int32(), "pixels", "Height of the stored image.")
SHA256 = Column("sha256", pa.string(), "hex", "SHA-256 of the raw bytes, before any resizing.")
HTTP_STATUS = Column("http_status", pa.int16(), "code", "Last HTTP status; null without an answer.")

LANGUAGE = Column("language", pa.string(), "ISO 639 code", "Most likely language of the caption.")
CONCEPT_IDS = Column(
    "concept_ids", pa.list_(pa.int32()), "places in a list", "The caption's concepts, ascending."
)
CONCEPT_LIST = Column("concept_list", pa.string(), "digest", "The list that concept_ids number.")
IMAGE_EMBEDDING = Column("image_embedding", FLOATS, "model space", "Embedding of the image.")
TEXT_EMBEDDING = Column("text_embedding", FLOATS, "model space", "Embedding of the caption.")
PHASH = Column("phash", pa.uint64(), "64 bits", "A hash of which near copies differ in few bits.")
PDQ = Column("pdq", pa.string(), "64 hex digits", "Meta's hash: copies differ in few of 256 bits.")
PDQ_QUALITY = Column("pdq_quality", pa.uint8(), "0 to 100", "How much it sees: 50 and more count.")
IMAGE_FEATURES = Column(
    "image_features", FLOATS, "model space", "What a frozen network sees of it."
)
TEXT_FEATURES = Column("text_features", FLOATS, "model space", "What a frozen network reads in it.")
FACE_BBOXES = Column(
    "face_bboxes", pa.list_(pa.list_(pa.float64())), "0 to 1", "Faces: x0, y0, x1, y1 of each."
)
TEXT_BOXES = Column(
    "text_boxes", pa.list_(pa.list_(pa.float32(), 8)), "0 to 1", "Corners of lines of text: x, y."
)
NSFW_SCORE = Column(
    "nsfw_score", pa.float32(), "0 to 1", "By open_nsfw.", better="low", unsafe_above=0.2
)
PUNSAFE = Column(
    "punsafe", pa.float32(), "0 to 1", "Chance of unsafe content.", better="low", unsafe_above=0.5
)
SAFETY_TAG = Column(
    "safety_tag", pa.string(), "UNLIKELY, UNSURE, NSFW", "LAION's zero-shot tag.", safe="UNLIKELY"
)
SAFETY = NSFW_SCORE, PUNSAFE, SAFETY_TAG  # each may say of a picture that it is unsafe
DUPLICATE_OF = Column(
    "duplicate_of", pa.binary(16), "uid", "The equal row that stays; else null.", names="keeper"
)
CLUSTER_ID = Column("cluster_id", pa.int32(), "0 up", "Nearest cluster centre.", names="cluster")
CENTROID_COSINE = Column("centroid_cosine", pa.float32(), "cosine", "Cosine to that centre.")
KEEP = Column("keep", pa.bool_(), "verdict", "Whether a select stage keeps the row.")
BALANCE_RANK = Column(
    "balance_rank", pa.float64(), "rows, 0 up", "Kept where t is above: the least draw of the row."
)
DECIDING_CONCEPT = Column(
    "deciding_concept", pa.string(), "entry", "The concept that drew `balance_rank`."
)

TEXT_LIST = pa.list_(
    pa.struct(
        [
            ("text", pa.string()),
            ("source", pa.string()),  # `original`, or the recipe's name for the stage that made it
            ("model", pa.string()),
            ("prompt_id", pa.string()),
            ("label", pa.string()),  # kind of text: `short`, `long`, `sentence`, …
        ]
    )
)
ORIGINAL = "original"  # source and label of the pool's own caption
TEXT_FIELDS = tuple(field.name for field in TEXT_LIST.value_type)
TURNS = {"from": "value", "role": "content"}  # a turn's field of who speaks, and of what is said
ANSWERERS = ("gpt", "assistant")  # who says what a picture shows
CAPTION_FIELDS = ("text", "caption", "raw", "value")  # of a struct in found data, the first it has
CAPTIONS = Column("captions", TEXT_LIST, "captions", "Texts that a stage made or found for a row.")
CAPTIONS_MISSING = Column(
    "captions_missing", pa.int32(), "texts", "How many that the stage asked for it did not get."
)
TEXTS = Column(
    "texts", TEXT_LIST, "captions", "Every caption of the image, with where it comes from."
)
# Parallel to `texts`: score.caption and dedup.captions write an item for each text.
TEXT_CLIP_SCORE = Column("text_clip_score", FLOATS, "cosine, -1 to 1", "Similarity to the image.")
TEXT_WORDS = Column("text_words", COUNTS, "words", "Pieces between white space.")
TEXT_COPY_RATIO = Column(
    "text_copy_ratio", FLOATS, "0 to 1", "Share of words, in order, of its source."
)
TEXT_LANGUAGE = Column(
    "text_language", pa.list_(pa.string()), "ISO 639 code", "Most likely language."
)
TEXT_LANGUAGE_CONFIDENCE = Column("text_language_confidence", FLOATS, "0 to 1", "Its probability.")
TEXT_FOREIGN = Column(
    "text_foreign", FLOATS, "0 to 1", "That it is in a language nobody asked for."
)
TEXT_REPETITION = Column(
    "text_repetition", FLOATS, "0 to 1", "Share that says again what stands before."
)
TEXT_IS_REFUSAL = Column("text_is_refusal", FLAGS, "verdict", "Whether it declines to answer.")
TEXT_PROMPT_LEAK = Column(
    "text_prompt_leak", FLOATS, "0 to 1", "Share of words that the prompt has."
)
TEXT_HAS_DISCLAIMER = Column(
    "text_has_disclaimer", FLAGS, "verdict", "Whether it speaks of who wrote it."
)
TEXT_MARKUP = Column(
    "text_markup", COUNTS, "pieces", "Markup, JSON, labels and openings of an answer."
)
TEXT_GARBLED = Column("text_garbled", COUNTS, "pieces", "Characters and tokens that are no text.")
TEXT_INVENTED = Column(
    "text_invented", COUNTS, "pieces", "Numbers and names that nothing else has."
)
TEXT_IS_CUT = Column("text_is_cut", FLAGS, "verdict", "Whether it breaks off in the middle.")
TEXT_IMAGES = Column(
    "text_images", pa.list_(pa.int64()), "images, 1 up", "Different images with this very text."
)
SAMPLE_INDEX = Column(
    "sample_index", pa.int64(), "0 up", "The row's number in its export, in the files' order."
)
REPEATS = Column("repeats", pa.int32(), "times", "How often a row counts; null is once.")
LOSS_WEIGHT = Column("loss_weight", pa.float32(), "factor", "Weight of the row in the loss.")
