"""A million stored answers: how long a look-up takes, what they take on disk and in memory.

    python -m tests.benchmarks.answers [full | ANSWERS]        100,000; full: a million

Answers are captions of 8 to 40 words, as JSON with counts of tokens, stored by one worker shard by
shard, then packed as the next run's driver does. Another worker opens them, and looks up a hundred
at a time, one at a time, and some that are not there.

Aim: a look-up in 50 us, at most 1.3 times the text, memory of a few bytes a key.
Measured (2026-11-26, 2 shared cores at load 12, niced): CPU time 20 us a look-up in hundreds, 24 us
alone, 6 us where there is none (by the clock 60, 69 and 17 us, as the load was); 0.41 of the text;
opened in 2 ms; 4.3 bytes a key. To store one takes 42 us of CPU
time, to pack it 9 us.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.answers import StoredAnswers, pack
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import scratch

SHARD_ROWS = 10_000
LOOKED_UP = 20_000
WORDS = """
a the of in on with and near photo dog red old house two small children blue ball park sun sets
behind mountains clear sky wooden table white plate fresh bread cheese glass woman holding black
umbrella street rain people walking city night lights river boat harbour
"""


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def answers(count: int) -> list[bytes]:
    rng, known = np.random.default_rng(0), WORDS.split()
    made = []
    for words in rng.integers(8, 41, count):
        text = " ".join(known[word] for word in rng.integers(0, len(known), words))
        given = {"text": text, "prompt_tokens": 412, "completion_tokens": int(words)}
        made.append(json.dumps({**given, "reason": None, "cut": False}).encode())
    return made


def memory() -> int:
    """Bytes of this process that no file is behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [anonymous] = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return 1024 * int(anonymous)


def timed(what: str, count: int, work: Callable[[], object]) -> float:
    """Microseconds of CPU time for each; printed beside those of the clock."""
    began, began_cpu = perf_counter(), process_time()
    work()
    wall, cpu = perf_counter() - began, process_time() - began_cpu
    print(f"{what:<28}{1e6 * wall / count:>9.1f} us, of them CPU {1e6 * cpu / count:.1f}")
    return 1e6 * cpu / count


def main(count: int) -> str:
    texts = answers(count)
    with scratch() as place:
        folder = Storage(str(place / "answers"))
        worker = StoredAnswers(folder)

        def store() -> None:
            for number, text in enumerate(texts):
                if number % SHARD_ROWS == 0:
                    worker.flush()
                    worker.begin(number // SHARD_ROWS)
                worker.put(key(number), text)
            worker.flush()

        timed("stored", count, store)
        timed("packed", count, lambda: pack(folder))
        before = memory()
        reader = StoredAnswers(folder)
        began = perf_counter()
        reader.get([key(0)])
        opened_s = perf_counter() - began
        some = np.random.default_rng(1).integers(0, count, LOOKED_UP)
        keys = [key(int(number)) for number in some]
        expected = [texts[number] for number in some]
        assert reader.get(keys) == expected
        nowhere = [key(-int(number) - 1) for number in some]
        assert not any(reader.get(nowhere))
        hundreds = range(0, LOOKED_UP, 100)
        found_us = timed(
            "found, 100 at a time",
            LOOKED_UP,
            lambda: [reader.get(keys[n : n + 100]) for n in hundreds],
        )
        timed("found, one at a time", LOOKED_UP, lambda: [reader.get([one]) for one in keys])
        timed("not there", LOOKED_UP, lambda: reader.get(nowhere))
        size = sum(entry.size for entry in folder.entries("packed"))
        print(f"{'opened':<28}{1e3 * opened_s:>9.1f} ms")
        share = size / sum(map(len, texts))
        print(f"{'on disk':<28}{share:>9.2f} of the text, keys included")
        print(
            f"{'in memory':<28}{(memory() - before) / count:>9.1f} bytes a key, look-ups included"
        )
    return f"{found_us:.0f} us of CPU a look-up; {share:.2f} of the text on disk"


if __name__ == "__main__":
    begin(main, quick=(100_000,), full=(1_000_000,))
