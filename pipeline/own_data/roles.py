"""Guesses the role of each column from its name and its values in the first rows."""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import ANSWERERS, CAPTION_FIELDS, TURNS
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.own_data.data import UnsureError
from clipmill.pipeline.own_data.layouts import PICTURES
from clipmill.pipeline.terminal import one_line

NAMES = {  # in lower case, letters and digits only
    "url": (
        *("url", "urls", "imageurl", "imgurl", "imagelink", "imglink", "link", "links"),
        *("imagesrc", "imgsrc", "src", "href", "pictureurl", "photourl", "photoimageurl"),
    ),
    "caption": (
        *("text", "texts", "caption", "captions", "alt", "alttext", "alttexts", "title"),
        *("description", "prompt", "sentence", "sentences", "imagecaption", "imagedescription"),
        *("conversations", "conversation", "messages"),
    ),
    "image": (
        *("image", "images", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes"),
        *("filepath", "filename", "path", "file", "imagepath", "imagefile", "imgpath", "name"),
        *("imagename", "imagefilename", "imgfile", "imgname", "photopath", "picturepath", "fname"),
    ),
    "uid": ("uid", "uidhex", "uuid", "id", "key", "hash"),
    "sha256": ("sha256", "imagesha256"),
    "width": ("originalwidth", "width", "imagewidth", "imgwidth"),
    "height": ("originalheight", "height", "imageheight", "imgheight"),
}
SCORE = re.compile(r"score|similarity|aesthetic|cosine|quality|rating|clip", re.IGNORECASE)
ID = re.compile(r"(?i:(^|[\W_]|sample|image)(id|idx|key)|^index)$|[a-z](Id|ID)$")  # SAMPLE_ID
RESERVED = (  # names with a fixed meaning in a run
    *("uid", "reason", "shard", "position", "keep", "image", "url", "text", "sha256"),
    *("repeats", "loss_weight"),
)
MAGIC = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
BASE64 = (  # as the bytes of a JPEG, PNG, GIF, WebP, BMP or TIFF begin
    r"^\s*(data:[^,]*;base64,)?(/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkq|TU0AK)[\w+/\s]{60}"
)
KINDS = "|".join(suffix[1:] for suffix in PICTURES)
PATH = rf"(?i)^\s*(file://|[a-z]:)?[^:]*\.({KINDS})(#\d+)?\s*$"  # Flickr8k's cat.jpg#0
ALLOW = (
    "uncomment allow_private_addresses in the recipe,\n"
    "or run with --set images.allow_private_addresses=true"
)
EXAMPLE = 32  # characters of an example value
LEAST_WIDTH = 16  # shortest list that counts as an embedding


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The column of each role, or None."""

    image: str | None
    url: str | None
    caption: str | None
    uid: str | None
    sha256: str | None
    width: str | None
    height: str | None
    image_embedding: str | None
    text_embedding: str | None
    scores: tuple[str, ...]

    def named(self) -> dict[str, str]:
        """Returns role to column, without scores."""
        return {role: name for role, name in asdict(self).items() if name and role != "scores"}

    def shown(self) -> dict[str, str]:
        """Returns role to column, as shown to the user."""
        shown = {role.replace("_", " "): name for role, name in self.named().items()}
        return shown | ({"scores": ", ".join(self.scores)} if self.scores else {})


def roles_of(
    table: pa.Table, answers: Mapping[str, str], where: str, is_beside: bool = False
) -> Roles:
    """Finds the column of each role; `answers` come first. UnsureError if two fit alike.

    Of a table whose pictures lie beside, paths count, and links do not.
    """
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise RecipeError(f"two columns named '{twice[0]}'", where, "rename one of them")
    check_answers(table, answers, where)
    by_role: dict[str, str | None] = {}
    for role, fits in FITS:
        if is_beside and fits in (is_image, is_base64, is_url):
            by_role[role] = answers.get(role)
            continue
        if by_role.get(role) or (fits is is_path and by_role["url"]):
            continue
        taken = {*by_role.values(), *answers.values()} - {None}
        free = [name for name in table.column_names if name not in taken]
        by_role[role] = answers.get(role) or _column_of(role, fits, table.select(free), where)
    numbers = [
        name
        for name in table.column_names
        if name not in by_role.values() and _is_score(table, name)
    ]
    vectors = [name for name in table.column_names if _is_embedding(table[name])]
    of_text = [name for name in vectors if re.search("te?xt|caption", name, re.IGNORECASE)]
    of_image = [name for name in vectors if name not in of_text]
    return Roles(
        **by_role,
        scores=tuple(numbers),
        image_embedding=next(iter(of_image), None),
        text_embedding=next(iter(of_text), None),
    )


def check_answers(table: pa.Table, answers: Mapping[str, str], where: str) -> None:
    """Raises RecipeError if an answer names no column, or one that holds something else."""
    for role, name in answers.items():
        place = f"--{role}, {where}"
        if name not in table.column_names:
            paths = [path for path in table.column_names if path.startswith(f"{name}.")]
            do = did_you_mean(name, table.column_names, "columns here")
            do = f"say which: --{role} {shlex.quote(paths[0])}" if paths else do
            found = f"'{name}' holds {', '.join(paths)}" if paths else f"no column '{name}'"
            raise RecipeError(found, place, do)
        if role == "url" and len(table) and not is_url(table[name]):
            do = "name a column of links: https://…"
            raise RecipeError(f"'{name}' holds no links: {example(table[name])}", place, do)


def _column_of(
    role: str, fits: Callable[[pa.ChunkedArray], bool], table: pa.Table, where: str
) -> str | None:
    """Returns a role's column: one that fits by values and name, else the only candidate."""
    fitting = [name for name in table.column_names if fits(table[name])]
    worded = [name for name in fitting if role != "caption" or has_words(table[name])]
    by_level = [[name for name in fitting if _level(role, name) == level] for level in (0, 1)]
    if role in ("url", "caption", "image"):
        by_level.append([name for name in worded if _level(role, name) == 2])
        by_level += [[name for name in worded if "." not in name], worded]
    named = next(filter(None, by_level), [])
    # Prefer a plain caption to structs of texts, which exports have, too.
    named = [name for name in named if not _is_list_of_structs(table[name].type)] or named
    if len(named) > 1 and role in ("url", "caption", "image"):
        raise UnsureError(
            ask=role,
            candidates={name: example(table[name]) for name in named},
            where=where,
            do=f"say which: --{role} {shlex.quote(named[0])}",
        )
    return min(named, key=lambda name: _place(role, name)) if named else None


def _level(role: str, name: str) -> int | None:
    """Returns 0 for a name of the role, 1 for a path of such names, 2 for a path with one."""
    parts = name.split(".")
    is_part = [_plain(part) in NAMES[role] for part in parts]
    if _plain(name) in NAMES[role] or all(is_part):
        return 0 if len(parts) == 1 else 1
    return 2 if any(is_part) else None


def _place(role: str, name: str) -> int:
    plain = _plain(name)
    return NAMES[role].index(plain) if plain in NAMES[role] else len(NAMES[role])


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def example(values: pa.ChunkedArray) -> str:
    """Returns the first non-null value, cut; empty for pictures and all-null columns."""
    if is_image(values):
        return ""
    first = next((value.as_py() for value in values if value.is_valid), "")
    text = one_line(first)
    return text if len(text) <= EXAMPLE else f"{text[:EXAMPLE]}…"


def is_url(values: pa.ChunkedArray) -> bool:
    """Returns whether most values are links."""
    return _most_match(values, r"^\s*https?://\S")


def has_mark(values: pa.ChunkedArray) -> bool:
    """Returns whether a text begins with a byte-order mark."""
    if not _is_text(values.type):
        return False
    starts = pc.starts_with(values.cast(pa.large_string()), "\ufeff")
    return bool(pc.any(starts).as_py())


def private_links(urls: pa.ChunkedArray) -> tuple[str, ...]:
    """Returns a note if most links lead to the user's network, which needs permission."""
    matches = pc.extract_regex(urls.drop_null(), r"^\s*https?://(?:[^/@]*@)?(?P<host>[^/:?#\[]+)")
    hosts = pc.struct_field(matches, "host").drop_null().to_pylist()
    private = [host for host in hosts if host == "localhost" or _is_private(host)]
    if 2 * len(private) <= len(hosts):
        return ()
    return (f"the links lead into your own network, to {private[0]}:\n{ALLOW}",)


def _is_private(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:  # a name
        return False


def is_image(values: pa.ChunkedArray) -> bool:
    """Returns whether values are encoded images, or structs of `bytes` and `path`."""
    if pa.types.is_struct(values.type):
        bodies = values.type.get_field_index("bytes") >= 0 and pc.struct_field(values, "bytes")
        return bool(bodies) and bodies.null_count < len(bodies)
    if not _is_bytes(values.type):
        return False
    first = next((value.as_py() for value in values if value.is_valid), b"")
    return bool(first.startswith(MAGIC) or first[4:8] == b"ftyp")


def is_base64(values: pa.ChunkedArray) -> bool:
    """Returns whether most values are pictures as text, or data: links of them."""
    return _most_match(values, BASE64)


def is_path(values: pa.ChunkedArray) -> bool:
    """Returns whether most values are paths of picture files, or file:// links."""
    return _most_match(as_paths(values), PATH)


def as_paths(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the paths in a column of structs that have one; another column as it is."""
    if pa.types.is_struct(values.type) and values.type.get_field_index("path") >= 0:
        return pc.struct_field(values, "path")
    if is_list(values.type) and _is_text(values.type.value_type):
        lengths = pc.list_value_length(values)
        if pc.all(pc.equal(lengths, 1)).as_py():  # a list of one path each
            return pc.list_flatten(values)
    return values


def is_caption(values: pa.ChunkedArray) -> bool:
    """Returns whether most values are texts with letters, not links or hexadecimal ids."""
    values = _texts(values)
    return (
        _most_match(values, r"\pL")
        and not is_url(values)
        and not _most_match(values, r"^[0-9a-fA-F-]{16,}$")
    )


def _is_uid(values: pa.ChunkedArray) -> bool:
    return bool(values.type == pa.binary(16)) or _most_match(values, r"^[0-9a-fA-F]{32}$")


def _is_whole(values: pa.ChunkedArray) -> bool:
    if pa.types.is_floating(values.type):  # pandas writes integers with missing values as floats
        present = values.drop_null()
        present = present.cast(pa.float64())
        return bool(pc.all(pc.equal(pc.floor(present), present)).as_py())
    return bool(pa.types.is_integer(values.type))


FITS: tuple[tuple[str, Callable[[pa.ChunkedArray], bool]], ...] = (
    ("image", is_image),
    ("image", is_base64),
    ("url", is_url),
    ("image", is_path),  # where there is neither
    ("uid", _is_uid),
    ("sha256", lambda values: _most_match(values, r"^[0-9a-fA-F]{64}$")),
    ("width", _is_whole),
    ("height", _is_whole),
    ("caption", is_caption),
)


NAMED = tuple(dict.fromkeys(role for role, _ in FITS))  # roles that a user may name a column for


def has_words(values: pa.ChunkedArray) -> bool:
    """Returns whether most values are several words."""
    values = _texts(values)
    return _most_match(values, r"\S\s+\S|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]{2}")


def _texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Flattens a column of texts, lists of texts, or lists of structs with a text, to texts."""
    if is_list(values.type):
        values = pc.list_flatten(values)
        if pa.types.is_struct(values.type):
            fields = {field.name for field in values.type}
            names = [name for name in CAPTION_FIELDS if name in fields]
            for who, said in TURNS.items():
                if {who, said} <= fields:  # its first text is a question
                    names = [said]
                    speakers = pc.struct_field(values, who)
                    values = values.filter(pc.is_in(speakers, pa.array(ANSWERERS)))
            values = pc.struct_field(values, names[0]) if names else values
    return values


def is_talk(dtype: pa.DataType) -> bool:
    """Returns whether values are conversations: lists of turns."""
    turn = dtype.value_type if is_list(dtype) else dtype
    return _is_list_of_structs(dtype) and any(turn.get_field_index(name) >= 0 for name in TURNS)


def _is_list_of_structs(dtype: pa.DataType) -> bool:
    return is_list(dtype) and bool(pa.types.is_struct(dtype.value_type))


def _is_score(table: pa.Table, name: str) -> bool:
    dtype = table[name].type
    if name.startswith(("Unnamed:", "__index")):  # row numbers written by pandas
        return False
    if "." in name or name.lower() in RESERVED or ID.search(name):
        return False
    return pa.types.is_floating(dtype) or (pa.types.is_integer(dtype) and bool(SCORE.search(name)))


def _is_embedding(values: pa.ChunkedArray) -> bool:
    if not is_list(values.type) or not pa.types.is_floating(values.type.value_type):
        return False
    first = next((value for value in values if value.is_valid), None)
    return first is not None and len(first) >= LEAST_WIDTH


def _most_match(values: pa.ChunkedArray, pattern: str) -> bool:
    """Returns whether more than half of the text values match a pattern."""
    if not _is_text(values.type):
        return False
    present = values.drop_null()
    hits = pc.sum(pc.match_substring_regex(present, pattern)).as_py() or 0
    return 2 * int(hits) > len(present)


def _is_text(dtype: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(dtype) for is_kind in kinds)


def _is_bytes(dtype: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(dtype) for is_kind in kinds)


def is_list(dtype: pa.DataType) -> bool:
    """Returns whether values are lists."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(dtype) for is_kind in kinds)
