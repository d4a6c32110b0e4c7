"""The stored pictures of chosen rows, as they were encoded."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from clipmill.metadata.schema import IMAGE, REASON, TEXT
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.columns import column_at
from clipmill.pipeline.ledger.find import rows_of_uids
from clipmill.pipeline.ledger.stored import Place, binding, rows_at
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import in_words

NO_ROW = "no row has this uid"


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """A row's picture as it is stored and its caption; without one, `missing` says why."""

    uid: str
    image: bytes | None = field(repr=False)
    text: str | None
    missing: str | None


def images(state: RunState, stage: str, uids: Iterable[str]) -> dict[str, StoredImage]:
    """The picture of each uid, as the rows of a stage have it; of equal uids the first row's.

    All are held in memory; only row groups with such rows are read. RecipeError where no stage
    stores pictures of these rows, or a uid has not 32 hex digits.
    """
    source, _ = column_at(state.plan, stage, IMAGE.name)
    asked = list(dict.fromkeys(_digits(uid) for uid in uids))
    places = places_of_uids(state, stage, asked)
    there = sorted({place for place in places.values() if place[0] in state.stages[source].shards})
    text = binding(state, stage, TEXT.name)
    bound = {"image": (source, IMAGE.name), "reason": (source, REASON.name)}
    rows = rows_at(state, bound | ({"text": text} if text else {}), there)
    found = dict(zip(there, rows, strict=True))
    answer = {}
    for uid in asked:
        place = places.get(uid)
        row = found.get(place, {}) if place else {}
        image = row.get("image")
        missing = None
        if place is None:
            missing = NO_ROW
        elif not row:
            missing = f"'{source}' has not come to shard {place[0]}"
        elif image is None:
            missing = in_words(row["reason"]) if row["reason"] else f"'{source}' stored none"
        answer[uid] = StoredImage(uid=uid, image=image, text=row.get("text"), missing=missing)
    return answer


def places_of_uids(state: RunState, stage: str, uids: list[str]) -> dict[str, Place]:
    """Where the first row of each uid stands; those are left out that have none."""
    root = state.plan.stages[stage].root
    places: dict[str, Place] = {}
    for row in rows_of_uids(state, root, map(bytes.fromhex, uids)):
        places.setdefault(row.uid.hex(), row.place)
    return places


def _digits(uid: str) -> str:
    digits = str(uid).strip().lower()
    if len(digits) != 32 or set(digits) - set("0123456789abcdef"):
        raise RecipeError(
            f"{uid!r} is no uid", "uids", "give 32 hex digits, as a table's `uid` has"
        )
    return digits
