"""Limits on input from outside, each with its reason.

A small file can demand all memory: a sparse tar, an endless line, one value that every row of a
Parquet file refers to. Input above a limit becomes a row with a reason, or an error that names the
place. An environment variable `CLIPMILL_` + name overrides a limit:
CLIPMILL_MAX_TAR_HEADER_BYTES=4194304.
"""

import os

# What a parser raises on foreign bytes: invalid text, 100,000 brackets, out of memory.
PARSE_ERRORS = (ValueError, RecursionError, MemoryError)

DEFAULTS = {
    # Of this machine or its container, for all local workers and what they start together. Above it
    # the worker furthest above its stage's declaration is ended: the kernel might kill an innocent
    # one, or the run.
    "MAX_MEMORY_PERCENT": 90,
    # PAX records and long names, which tarfile reads whole. A path has at most 4 kB.
    "MAX_TAR_HEADER_BYTES": 1 << 20,
    # Rows of a foreign Parquet file in memory at a time: if they may be larger, fewer are read at
    # once. A value of 1 MB, in a dictionary of 49 kB, can occur in 20,000 rows.
    "MAX_BATCH_BYTES": 512 << 20,
    # Bytes of all rows read from such a file, to the file's bytes. Captions and links take at most
    # 10 times their file, columns of a few words some hundred times.
    "MAX_PARQUET_RATIO": 1_000,
    # Bytes of a member of a zip, to those it is packed in, above MAX_BATCH_BYTES. Tables of words
    # take some 20 times as many.
    "MAX_ZIP_RATIO": 200,
    # A text file of an evaluation task. ImageNet-21k's class names take half a megabyte.
    "MAX_TASK_TEXT_BYTES": 8 << 20,
    # Each class is a vector in memory. ImageNet-21k has 21,841.
    "MAX_TASK_CLASSES": 100_000,
    # Each template is filled in for each class. ImageNet has 80.
    "MAX_TASK_TEMPLATES": 1_000,
    # A template with the longest class name in it. Models read 77 tokens.
    "MAX_PROMPT_CHARS": 10_000,
    # All members of a task's sample together: read before a picture is decoded.
    "MAX_TASK_SAMPLE_BYTES": 256 << 20,
}


def limit(name: str) -> int:
    """Returns a limit from the environment, else its default; ValueError if it is no number."""
    text = os.environ.get(f"CLIPMILL_{name}")
    if text is None:
        return DEFAULTS[name]
    if not text.isdecimal() or len(text) > 18 or not int(text):
        raise ValueError(f"CLIPMILL_{name}={text[:30]!r}: write a whole number from 1 up")
    return int(text)
