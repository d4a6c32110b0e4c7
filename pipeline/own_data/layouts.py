"""Finds the layout of files at a path: pictures, tars or tables, and files beside them."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipmill.metadata import globs
from clipmill.metadata.elsewhere import UriError
from clipmill.metadata.globs import FoundFile, files_of, open_pool
from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.extras import install
from clipmill.pipeline.own_data.data import UnsureError
from clipmill.pipeline.terminal import plural

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PACKED = (".gz", ".bz2", ".zst")
TARS = (".tar", ".tar.gz", ".tgz")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
FORMS = (".parquet", *TABLES, *globs.FORMS)
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
BROWSER = "look at the address in a browser: it may be gone, or ask for a login"
WEB = ("http://", "https://", "hf://")
DOCUMENTS = ("readme", "license", "licence", "dataset_infos.json", "croissant.json")
SIDECARS = (".txt", ".caption", ".captions", ".json")  # files of one caption, likeliest first
LOOKED_AT, ALIKE = 200, 1000  # pictures by which their place is found; files of one name, most
OWN = "dataset.json"  # clipmill's exports write it; `datasets` writes another file of that name
INSTEAD = {  # what to do with data in forms that no stage reads
    ".xls": "save the sheet as CSV UTF-8, and give that file",
    ".ods": "save the sheet as CSV UTF-8, and give that file",
    ".zip": "give the .zip itself",
    ".7z": "unpack it, and give the folder",
    ".pkl": "write it as Parquet:  pandas.read_pickle(IN).to_parquet(OUT)",
}
KNOWN = (
    "CSV, TSV, JSON, Parquet, Arrow, Excel, SQLite, DuckDB, a list of links, a folder of pictures"
    " with captions, WebDataset tars, a zip of these, or the folder that img2dataset, DataComp,"
    " Hugging Face or clipmill wrote"
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Files of one kind, a path that names them, and the other files there."""

    kind: str  # a suffix, or `pictures`
    path: str
    storage: Storage
    files: Sequence[FoundFile]
    beside: Sequence[str] = ()  # files that belong to these, such as captions
    captions: str = ""  # where a picture's caption lies, from its folder on: `{name}.txt`
    aside: Mapping[str, int] = field(default_factory=dict)  # unused files, by suffix
    tables: Sequence[FoundFile] = ()  # that may name the pictures
    question: UnsureError | None = None  # if none of them does


CAPTIONS = "a table of captions is read where one of its columns has the paths of these pictures"


def layout_of(path: str) -> Layout:
    """Finds a path's layout; UnsureError if there are several, RecipeError if none."""
    shown = redacted(path)
    try:
        storage, pattern = open_pool(path)
        files = files_of(path)
    except UriError as error:
        do = "give a path, or a URI of file, s3, gs, abfs or hdfs"
        do = do if "://" in path else "put the whole file in its place"
        do = (install(error.package) or f"pip install {error.package}") if error.package else do
        raise RecipeError(str(error), shown, do) from None
    except OSError as error:
        if not path.startswith(WEB):
            raise
        do = "look at it in a browser"
        raise RecipeError(f"no answer that helps: {error}", shown, do) from None
    if not files:
        is_there = storage.fs.get_file_info(storage.path).type.name != "NotFound"
        what = "no file that fits" if "*" in pattern.replace("**", "") else "an empty folder"
        what = what if is_there else "nothing there"
        do = BROWSER if path.startswith(WEB) else f"give a path that holds data: {KNOWN}"
        if storage.is_local and not is_there:
            names = [entry.name for entry in Path(path).parent.glob("*")]
            near = did_you_mean(Path(path).name, names)
            do = f"{near} Else {do}" if near.endswith("?") else do
        raise RecipeError(what, shown, do)
    names = [file.name for file in files]
    _refuse_uid_list(storage, names, shown)
    by_kind = _by_kind(files)
    # A glob of pictures does not match the captions beside them: list the folder.
    has_more = "pictures" in by_kind and pattern != "**"
    every = _by_kind(files_of(storage.uri)) if has_more else by_kind
    captions = captions_of([file.name for file in by_kind.get("pictures", ())], every)
    beside = _beside(every, captions)
    kinds: dict[str, list[FoundFile]] = {}
    for kind, of_kind in by_kind.items():
        if others := [file for file in of_kind if file.name not in beside]:
            kinds[kind] = others
    data = {kind: kinds[kind] for kind in kinds if kind in ("pictures", *TARS, *FORMS)}
    if not data:
        kind = max(kinds, key=lambda kind: len(kinds[kind])) if kinds else ""
        counts = ", ".join(f"{number:,} {kind}" for kind, number in _counts(kinds).items())
        do = INSTEAD.get(kind, f"give {KNOWN}")
        raise RecipeError(f"no data that can be read: {counts or 'nothing'}", shown, do)
    tables: list[FoundFile] = []
    question = None
    if "pictures" in data and pattern == "**":
        tables = [file for file in files if file.name in beside and is_metadata(file.name)]
        tables += [file for kind, own in data.items() if kind != "pictures" for file in own]
    if len(data) > 1:
        globs_of = {_path(path, kind, data[kind]): plural(len(data[kind]), "file") for kind in data}
        do = f"give one of them: {'  or  '.join(globs_of)}"
        do += f"\n         {CAPTIONS}" if "pictures" in data and len(data) == 2 else ""
        question = UnsureError("data", globs_of, shown, do)
        if not tables or not set(data) <= {"pictures", *FORMS}:
            raise question
    kind = "pictures" if tables else next(iter(data))
    data_files = data[kind]
    # Narrow the path to one suffix: of a folder, a stage for tables would read the other tables,
    # too, and a plain list only if the path names it.
    has_others = any(name.lower().endswith(TABLES) for name in names if name in beside)
    aside = {other: kinds[other] for other in kinds if other != kind}
    if kind == ".txt" or (has_others and kind in FORMS):
        path = _path(path, kind, data_files)
        read = {file.name for file in files_of(path)}
        for file in data_files:  # a glob has one suffix: `.csv`, not `.CSV` or `.csv.gz`
            if file.name not in read:
                aside.setdefault(file.name[len(stem_of(file.name)) :], []).append(file)
        data_files = [file for file in data_files if file.name in read]
    return Layout(
        kind=kind,
        path=path,
        storage=storage,
        files=data_files,
        beside=sorted(beside),
        captions=captions,
        aside=_counts(aside),
        tables=tables,
        question=question,
    )


def is_metadata(name: str) -> bool:
    """Returns whether pictures beside a file of this name have their captions in it."""
    return name.rpartition("/")[2] in METADATA


def below(path: str, name: str) -> str:
    """Returns the path of a file in a folder, before the options of a URI."""
    head, mark, query = path.partition("?") if "://" in path else (path, "", "")
    return f"{head.rstrip('/')}/{name}".rstrip("/") + mark + query


def suffix_of(name: str) -> str:
    """Returns a name's last suffix in lower case; for a table, without that of compression."""
    base = name.rpartition("/")[2].lower()
    base = base[:-6] + ".txt" if base.endswith(".token") else base  # Flickr8k's captions
    for pack in PACKED:
        if base.endswith(pack) and base.removesuffix(pack).endswith(TABLES):
            base = base.removesuffix(pack)
    if base.endswith(".tar.gz"):
        return ".tar.gz"
    stem, dot, suffix = base.rpartition(".")
    return dot + suffix if stem else ""


def stem_of(name: str) -> str:
    """Returns the name without its last suffix."""
    return name.rpartition(".")[0]


def _by_kind(files: Iterable[FoundFile]) -> dict[str, list[FoundFile]]:
    by_kind: dict[str, list[FoundFile]] = {}
    for file in files:
        suffix = suffix_of(file.name)
        by_kind.setdefault("pictures" if suffix in PICTURES else suffix, []).append(file)
    return by_kind


def captions_of(pictures: Sequence[str], files: Mapping[str, Sequence[FoundFile]]) -> str:
    """Returns where most pictures' captions lie, from their folders on; "" if nowhere."""
    by_base, beside = defaultdict(list), defaultdict(list)
    for file in (file for suffix in SIDECARS for file in files.get(suffix, ())):
        folder, _, base = stem_of(file.name).rpartition("/")
        by_base[base].append(file.name)
        beside[folder, base].append(file.name)
    few = pictures[:: len(pictures) // LOOKED_AT + 1]
    places: Counter[str] = Counter()
    for picture in few:
        folder, _, base = picture.rpartition("/")
        split = posixpath.basename(folder)
        for part, stem in (("{name}", stem_of(base)), ("{file}", base)):
            names = beside[folder, stem] or by_base[stem][:ALIKE]
            ways = {
                name: posixpath.relpath(f"/{posixpath.dirname(name)}", f"/{folder}")
                for name in names
            }
            near = min((way.count("..") for way in ways.values()), default=0)
            for name, way in ways.items():
                if way.count("..") == near:
                    above, _, last = way.rpartition("/")
                    way = f"{above}/{{folder}}" if above and last == split else way
                    end = name[len(stem_of(name)) :]
                    places[posixpath.normpath(f"{way}/{part}{end}")] += 1

    def rank(place: str) -> tuple[bool, int, int]:
        suffix = SIDECARS.index(suffix_of(place))
        return 2 * places[place] >= len(few), -suffix, places[place]

    return max(places, key=rank, default="")


def caption_path(picture: str, place: str) -> str:
    """Returns the path of a picture's caption, by the place where captions lie."""
    if place.startswith("{name}."):  # a million of these in half a second
        return stem_of(picture) + place.removeprefix("{name}")
    folder, _, base = picture.rpartition("/")
    path = place.replace("{folder}", posixpath.basename(folder))
    path = path.replace("{name}", stem_of(base)).replace("{file}", base)
    return posixpath.normpath(posixpath.join(folder, path))


def _beside(by_kind: Mapping[str, Sequence[FoundFile]], captions: str) -> set[str]:
    """Returns the files that describe others: captions, counts, documents."""
    every = [file.name for files in by_kind.values() for file in files]
    beside = {
        name
        for name in every
        if name.rpartition("/")[2].lower().startswith(DOCUMENTS)
        or name.endswith(("_stats.json", ".places.npy"))
        or name.rpartition("/")[2] in (OWN, "dataset_dict.json", "dataset_info.json", "state.json")
        or re.search(r"(^|/)cache-[^/]*\.arrow$", name)  # of `datasets`
    }
    stems = {stem_of(file.name) for kind in ("pictures", ".tar") for file in by_kind.get(kind, ())}
    stems |= {name.rpartition("/")[0] for name in every if "/" in name and "pictures" in by_kind}
    beside |= {
        name
        for name in every
        if stem_of(name) in stems and suffix_of(name) in (".txt", ".json", ".parquet", ".npz")
    }
    if "pictures" in by_kind:
        beside |= {name for name in every if is_metadata(name)}
        pictures = by_kind["pictures"] if captions else ()
        beside |= {caption_path(file.name, captions) for file in pictures} & set(every)
    tables = {stem_of(file.name) for file in by_kind.get(".parquet", ())}
    beside |= {name for name in every if name.endswith(".npz") and stem_of(name) in tables}
    return beside


def _counts(kinds: Mapping[str, Sequence[FoundFile]]) -> dict[str, int]:
    counts = Counter({kind or "without a suffix": len(files) for kind, files in kinds.items()})
    return dict(counts.most_common())


def _path(path: str, kind: str, files: Sequence[FoundFile]) -> str:
    """Returns a glob of one kind of files below a folder; the path itself if it is no folder."""
    head = path.partition("?")[0] if "://" in path else path
    if "*" in head or (len(files) == 1 and head.endswith(files[0].name)):
        return path
    # What `save_to_disk` wrote, without the cache that may lie beside.
    is_saved = all(file.name.rpartition("/")[2].startswith("data-") for file in files)
    start = "data-" if kind == ".arrow" and is_saved else ""
    suffixes = Counter(file.name[len(stem_of(file.name)) :] for file in files)
    suffix = suffixes.most_common(1)[0][0]
    deep = "**/" if any("/" in file.name for file in files) else ""
    return below(path, f"{deep}{start}*{suffix}")


def _refuse_uid_list(storage: Storage, names: Sequence[str], shown: str) -> None:
    if OWN in names and storage.has(OWN):
        card = storage.read_json(OWN, dict)
        if card and card.get("format") == "uid_list":
            raise RecipeError(
                found="a list of uids: it says which rows of a pool stay, and has no pictures",
                where=shown,
                do="give the pool itself, and this list to `select.uid_list` in its recipe",
            )


def dataset_card(storage: Storage) -> dict[str, object] | None:
    """Returns the dataset.json of an export of clipmill's, or None."""
    card = storage.read_json(OWN, dict)
    return card if card and "counts" in card else None
