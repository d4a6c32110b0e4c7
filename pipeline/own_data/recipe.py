"""Writes a starter recipe for a user's data, with a comment on each line."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from clipmill.metadata.keys import without_keys
from clipmill.pipeline.own_data.data import Data
from clipmill.pipeline.own_data.servers import Captioner

PLAIN = re.compile(r"(?:[A-Za-z_/]|\.\.?/)[\w./-]*")
# Characters that JSON takes, and YAML does not, or as a line end.
ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufffe\uffff]")
WORDS = ("true", "false", "null", "yes", "no", "on", "off")  # other values in YAML 1.1
SIGNATURE = "# `curate` may write this file anew until you change it: "
COMMENTS = {  # comment on each setting of an ingest stage
    "path": "a file, a folder or a glob; ./ is this file's folder",
    "columns": "names for columns that the file does not name",
    "delimiter": "what stands between two columns",
    "encoding": "how letters are stored: utf-8, cp1252 and others",
    "image_col": "column of the pictures",
    "table": "the table or the sheet that is read",
    "pictures": "the folder where the paths of the pictures start",
    "url_col": "column of the links",
    "caption_col": "column of the captions",
    "search": "pictures are found by the ends of their paths",
    "answers": "of conversations the answers are the captions",
    "all_captions": "of a list of captions all are kept, the first as the caption",
    "strip_bom": "a byte-order mark before a caption is left out",
    "caption_files": "where a picture's caption lies; {name} is its name without the suffix",
    "caption_key": "key of the captions in these files",
    "caption": "of pictures without one; {class} is their folder's name",
    "uid_col": "column of the ids, 32 hex digits each",
    "width_col": "column of the pictures' width",
    "height_col": "column of the pictures' height",
    "sha256_col": "column of the pictures' SHA-256, which is checked",
    "image_embedding_col": "column of the pictures' vectors",
    "text_embedding_col": "column of the captions' vectors",
    "embedding_width": "numbers of a vector",
    "extra": "columns to take along, for rules of your own",
    "quoted": "a quote is a sign like others, and encloses nothing",
    "scores": "the pool's CLIP scores are read, too",
    "score_type": "the type in which the pool stores them",
    "shard_rows": "rows that are worked on, stored and tried again together",
}
CAPTION_RULES = (
    ("(caption_words >= 2 OR language IN ('zh', 'ja', 'th'))", "two words or more"),
    ("caption_letters >= 3", "more than signs and numbers"),
    ("NOT caption_is_filename", "not IMG_0042.jpg"),
    ("caption_mojibake < 2", "not garbled: â€™ for an apostrophe"),
    ("caption_markup = 0", "no HTML"),
    ("caption_boilerplate < 0.5", "not what fits any picture: view image"),
    ("caption_spam < 0.3", "no advertisement; 0.5 spares goods"),
)
IMAGE_RULES = (
    ("min_side >= 64", "the shorter side; DataComp asks 200"),
    ("aspect_ratio <= 3", "longer side to shorter: no banners"),
    ("luma_std > 4", "not one flat colour"),
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The goals of a recipe beyond rules and duplicates: score, share to keep, exports."""

    score: str | None = None  # a column of the data to rank by
    model: str | None = None  # scores how well captions fit
    trusted: Data | None = None  # pairs that a filter network learns from
    keep: float | None = None  # share of the rows, the best by score
    captioner: Captioner | None = None  # the model that writes more captions
    to: Sequence[str] = ("parquet",)  # forms of the export

    @property
    def is_scored(self) -> bool:
        """Returns whether the recipe computes a score itself."""
        return self.model is not None or self.trusted is not None

    @property
    def writes(self) -> str:
        """Returns the stage that writes captions: from pictures, unless the model sees none."""
        is_blind = self.captioner is not None and self.captioner.sees is False
        return "caption.rewrite" if is_blind else "caption.synthesize"

    @property
    def column(self) -> str | None:
        """Returns the score column that rows are ranked by, or None."""
        return "clip_score" if self.is_scored else self.score


def starter(data: Data, wish: Wish, made_by: str, run_as: str) -> str:
    """Returns the recipe's text; `made_by` is the command that wrote it, `run_as` runs it."""
    rules = (*(CAPTION_RULES if data.has_captions else ()), *IMAGE_RULES)
    language = ["language", "language_confidence"] if data.has_captions else []
    text: str = _template().render(
        data=data,
        wish=wish,
        made_by=_comment(made_by),
        run_as=_comment(run_as),
        said=COMMENTS,
        pictures="images" if data.is_linked else "pool",
        rules=rules,
        rule_width=max(len(rule) for rule, _ in rules),
        columns=[*language, *([wish.column] if wish.column else [])],
    )
    return text


@cache
def _template() -> Any:
    """Returns the recipes' template; cached, as compiling takes longer than filling."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("clipmill.pipeline", "own_data"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # YAML: every value passes the filter `yaml`
    )
    environment.filters["yaml"] = in_yaml
    environment.filters["padded"] = lambda text, width=36: text.ljust(width)
    return environment.get_template("starter.yaml.j2")


def in_yaml(value: Any) -> str:
    """Returns a value as YAML on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{in_yaml(key)}: {in_yaml(value[key])}' for key in value)}}}"
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(in_yaml, value))}]"
    return _escaped(json.dumps(value, ensure_ascii=False))


def _comment(text: str) -> str:
    """Returns a text as one line, without the keys of URIs in it."""
    return _escaped(without_keys(" ".join(text.split())))


def _escaped(text: str) -> str:
    return ESCAPED.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


def path_in_yaml(path: str) -> str:
    """Returns the line that identifies a starter recipe's data."""
    return f"    path: {in_yaml(path)} "


def signed(text: str) -> str:
    """Adds a last line with a digest, which `is_untouched` checks."""
    return f"{text}{SIGNATURE}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def is_untouched(text: str) -> bool:
    """Returns whether a recipe is unchanged since `curate` wrote it."""
    before, mark, _ = text.rpartition(SIGNATURE)
    return bool(mark) and signed(before) == text
