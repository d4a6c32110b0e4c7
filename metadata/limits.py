"""The most that is read of what others made, each with its reason.

A small file can ask for all memory there is: a tar of holes, a line without an end, a value that a
Parquet file names in every row. What is above a limit becomes a row with a reason, or an error that
names the place. A limit whose name stands in the environment with `CLIPMILL_` before it has that
value: CLIPMILL_MAX_TAR_HEADER_BYTES=4194304.
"""

import os

# What a parser raises at bytes that others made: no such text, 100,000 brackets, all memory.
UNPARSED = (ValueError, RecursionError, MemoryError)

DEFAULTS = {
    # The memory of this machine, or of its container, that local workers take together. Above it
    # the one that is furthest above what its stage declares is ended: the kernel would choose one
    # that did no wrong, or the run itself.
    "MAX_MEMORY_PERCENT": 90,
    # PAX records and long names, which tarfile reads whole. A path has 4 kB at most.
    "MAX_TAR_HEADER_BYTES": 1 << 20,
    # Rows of somebody's Parquet file in memory at a time: fewer are read at once where they may be
    # larger. A value of 1 MB in a dictionary of 49 kB can stand in 20,000 rows.
    "MAX_BATCH_BYTES": 512 << 20,
    # The same rows, all that are read one after another, to the bytes of their file. Captions and
    # links take 10 times their file at most, columns of a few words some hundred times.
    "MAX_PARQUET_RATIO": 1_000,
    # One text file of an evaluation task. ImageNet-21k's class names have half a megabyte.
    "MAX_TASK_TEXT_BYTES": 8 << 20,
    # Each is a vector in memory. ImageNet-21k has 21,841.
    "MAX_TASK_CLASSES": 100_000,
    # Each is filled in for each class. ImageNet has 80.
    "MAX_TASK_TEMPLATES": 1_000,
    # A template with the longest class name in it. Models read 77 tokens.
    "MAX_PROMPT_CHARS": 10_000,
    # The members of a task's sample together, which are read before a picture is decoded.
    "MAX_TASK_SAMPLE_BYTES": 256 << 20,
}


def limit(name: str) -> int:
    """A limit as the environment has it, else its default; ValueError where it is no number."""
    text = os.environ.get(f"CLIPMILL_{name}")
    if text is None:
        return DEFAULTS[name]
    if not text.isdecimal() or len(text) > 18 or not int(text):
        raise ValueError(f"CLIPMILL_{name}={text[:30]!r}: write a whole number from 1 up")
    return int(text)
