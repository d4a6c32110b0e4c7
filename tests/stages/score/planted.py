"""Captions with known faults, to measure the checks of score.caption by: the labelled set.

Good ones are drawn from a small grammar: two renderings of one scene, of which the first is the
source and the second the caption. A fault is then planted in a good one. The wordings lie beside
this file. Each wording belongs to one half by its hash: whoever tunes looks at `held=False` alone,
and figures are those of `held=True`. The set was committed before any check was tuned.

    python -m tests.stages.score.planted     prints some of each class, of the half to tune on
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

WORDINGS = Path(__file__).parent / "wordings"
EACH = 300  # captions of each fault, in both halves together
GOOD = 2000
LETTER = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Labelled:
    """A caption, what it was made from, and the fault that it has; None where it is good."""

    fault: str | None
    source: str
    text: str
    held: bool  # of the half that nobody tunes on
    evidence: tuple[str, ...] = ()  # other texts that are known of the image
    how: str = ""  # the wording, or the way in which it was spoilt


@cache
def lines(name: str) -> tuple[str, ...]:
    return tuple((WORDINGS / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def u(*words: object) -> float:
    """A number in [0, 1) that depends on the words alone."""
    text = "\x1f".join(map(str, words)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64


def pick(choices, *words):
    return choices[int(u(*words) * len(choices))]


def is_held(wording: str) -> bool:
    return u("half", wording) < 0.5


def instructions() -> list[str]:
    """All that the prompt holds, a text each: what a leak comes from."""
    return [*lines("instructions"), *(part for pair in lines("pairs") for part in pair.split("\t"))]


@cache
def words() -> dict[str, list[list[str]]]:
    kinds: dict[str, list[list[str]]] = {}
    for line in lines("words"):
        kind, *rest = line.split("\t")
        kinds.setdefault(kind, []).append(rest)
    return kinds


def good(number: int, full: bool = False) -> Labelled:
    """A source and a caption of one scene; `full` for a caption of at least nine words."""
    if not full:
        if number % 17 == 0:
            line = pick(lines("hard"), "hard", number)
            return Labelled(None, line if number % 2 else drawn(number)[0], line, is_held(line))
        if number % 17 == 1:
            return in_their_language(number)
    source, text, evidence = drawn(number)
    if full and len(text.split()) < 9:
        text = f"{text.rstrip('.')}, next to a wooden chair with a blanket."
    held = u("good", number) < 0.5
    if number % 7 == 2 and not full:  # names and numbers that the source or the evidence has
        name = pick(lines("names"), "name", number)
        known, said = pick((("in {}", "in {}"), ("{} 1987", "of 1987 in {}")), "known", number)
        text = f"{text.rstrip('.')} {said.format(name)}."
        if number % 2:
            source = f"{source}, {known.format(name)}"
        else:
            evidence = (*evidence, f"Taken by someone, {known.format(name)}")
    return Labelled(None, source, text, held, evidence)


def in_their_language(number: int) -> Labelled:
    """Source and caption in one language that is not English."""
    language, source = pick(lines("foreign"), "foreign source", number).split("\t")
    others = [line.split("\t")[1] for line in lines("foreign") if line.startswith(language)]
    text = pick([other for other in others if other != source], "foreign text", number)
    return Labelled(None, source.rstrip("."), text, is_held(text))


def drawn(number: int) -> tuple[str, str, tuple[str, ...]]:
    """Source, caption and evidence of a scene."""
    kinds = words()
    thing, *acts = pick(kinds["thing"], "thing", number)
    slots = {
        "thing": thing,
        "act": pick(acts, "act", number),
        **{kind: pick(kinds[kind], kind, number)[0] for kind in ("look", "place", "tag")},
    }
    slots |= {kind.capitalize(): text[0].upper() + text[1:] for kind, text in slots.items()}
    source, text = (pick(kinds[it], it, number)[0].format(**slots) for it in ("title", "rewrite"))
    return source, text.replace(" a antique", " an antique"), (f"{thing}, {slots['tag']}",)


def refusal(number: int, base: Labelled) -> Labelled:
    line = pick(lines("refusals"), "refusal", number)
    text = line
    if number % 6 == 0:
        text = f'{line} "{base.source}"'
    if number % 6 == 1:
        text = line.rstrip(".").lower()
    return replace(base, text=text, held=is_held(line), how=line)


def of_template(name: str) -> Callable[[int, Labelled], Labelled]:
    def planted(number: int, base: Labelled) -> Labelled:
        line = pick(lines(name), name, number)
        text = line.replace("\\n", "\n").replace("{caption}", base.text)
        return replace(base, text=text, held=is_held(line), how=line)

    return planted


LOOPS: dict[str, Callable[[str, list[str], int], str]] = {
    "whole twice": lambda text, words, n: f"{text} {text}",
    "whole, many times": lambda text, words, n: " ".join([text] * (3 + n % 5)),
    "a sentence again": lambda text, words, n: f"{text} It is quite near. It is quite near.",
    "last words": lambda text, words, n: f"{text} {' '.join(words[-3:])} {' '.join(words[-3:])}",
    "last words, many": lambda text, words, n: " ".join([text] + words[-(1 + n % 4) :] * (4 + n)),
    "one word": lambda text, words, n: " ".join(words[:5] + [words[4]] * (3 + n % 9)),
    "a list": lambda text, words, n: ", ".join([words[-1].strip(".")] * (5 + n % 7)),
    "and": lambda text, words, n: " and ".join([" ".join(words[:3])] * (4 + n % 4)),
    "cut in a loop": lambda text, words, n: " ".join([text] * 9)[: 200 + n % 100],
    "lines": lambda text, words, n: "\n".join([text] * (2 + n % 4)),
    "letters": lambda text, words, n: text + LETTER[n % 26] * (12 + n),
    "marks": lambda text, words, n: text + "!?.-"[n % 4] * (15 + n),
    "pair of words": lambda text, words, n: " ".join(words[:2] * (4 + n % 6)),
    "two turns": lambda text, words, n: " ".join([*words[:6], *words[2:6], *words[2:6]]),
}


def loop(number: int, base: Labelled) -> Labelled:
    how = pick(list(LOOPS), "loop", number)
    return replace(base, text=LOOPS[how](base.text, base.text.split(), number % 40), how=how)


def leak(number: int, base: Labelled) -> Labelled:
    """Whole lines of the prompt, runs of at least six of its words, or whole pairs."""
    asked = pick(lines("instructions"), "asked", number)
    pair = pick(lines("pairs"), "pair", number).split("\t")
    run = asked.split()
    start = int(u("run", number) * (len(run) - 6))
    some = " ".join(run[start : start + 6 + number % 4])
    texts = {
        "instruction": asked,
        "instruction, then caption": f"{asked} {base.text}",
        "caption, then instruction": f"{base.text} {asked}",
        "small letters": f"{base.text} {asked.lower().rstrip('.')}",
        "some words": f"{some} {base.text}",
        "some words after": f"{base.text} {some}",
        "source of a pair": pair[0],
        "caption of a pair": pair[1],
        "pair": f"{pair[0]} => {pair[1]}",
        "caption, then pair": f"{base.text}\n\n{pair[0]} => {pair[1]}",
        "pair, cut": f"{base.text} {' '.join(pair[1].split()[:7])}",
        "another's words": " ".join([*base.text.split()[:3], *pair[1].split()[2:]]),
    }
    how = pick(list(texts), "leak", number)
    held = is_held(asked if "instr" in how or "words" in how or "small" in how else pair[1])
    return replace(base, text=texts[how], held=held, how=how)


def copy(number: int, base: Labelled) -> Labelled:
    """The source again, or all but a word of it; the source has at least six words."""
    source = base.text.rstrip(".")  # a whole sentence
    words = source.split()
    at = 1 + int(u("at", number) * (len(words) - 2))
    texts = {
        "exact": source,
        "full stop": f"{source}.",
        "small letters": source.lower(),
        "capitals": source.upper(),
        "title": source.title(),
        "quoted": f'"{source}"',
        "spaces": "  ".join(words),
        "a word less": " ".join(words[:at] + words[at + 1 :]),
        "a word more": " ".join([*words[:at], "very", *words[at:]]),
        "another word": " ".join([*words[:at], "quite", *words[at + 1 :]]),
        "a word behind": f"{source} here",
        "a word before": f"Picture: {source}",
        "no commas": source.replace(",", ""),
        "hyphens": source.replace(", ", " - "),
    }
    how = pick(list(texts), "copy", number)
    return replace(base, source=source, text=texts[how], how=how)


def invented(number: int, base: Labelled) -> Labelled:
    """A name or a number that nothing knows of, inside or behind the caption."""
    line = pick(lines("invented"), "invented", number)
    name = pick(lines("names"), "invented name", number)
    digits = pick((17, 1987, 240, "3.5", 64, "1,200", "12", 9, 305, 2021), "digits", number)
    word = pick(("three", "seven", "twelve", "forty", "two hundred", "six"), "word", number)
    said = line.format(name=name, number=digits, numberword=word)
    words = base.text.rstrip(".").split()
    at = len(words) if number % 2 else 3 + int(u("at", number) * (len(words) - 3))
    return replace(
        base,
        text=" ".join([*words[:at], said, *words[at:]]) + ".",
        held=is_held(line if "number" in line else name),
        how=line,
    )


def language(number: int, base: Labelled) -> Labelled:
    _, line = pick(lines("foreign"), "language", number).split("\t")
    words, text = line.split(), line
    if number % 4 == 1:
        text = line.lower().rstrip(".。")
    if number % 4 == 2 and len(words) > 6:
        text = " ".join(words[: len(words) // 2 + 2])
    return replace(base, text=text, held=is_held(line), how=line)


GARBLES: dict[str, Callable[[str, int, int], str]] = {
    "control characters": lambda text, at, n: text[:at] + chr(1 + n % 8) * 2 + text[at:],
    "NUL": lambda text, at, n: f"{text[:at]}\0{text[at:]}",
    "escape": lambda text, at, n: f"{text[:at]}\x1b[3{n % 8}m{text[at:]}",
    "replaced": lambda text, at, n: f"{text[:at]}\ufffd{text[at + 1 :]}",
    "all replaced": lambda text, at, n: text[:at] + "\ufffd" * len(text[at:]),
    "mojibake": lambda text, at, n: (
        text[:at] + "café \u2013 été".encode().decode("cp1252") + text[at:]
    ),
    "mojibake, Latin-1": lambda text, at, n: f"{text[:at]} {'naïve'.encode().decode('latin-1')}",
    "right to left": lambda text, at, n: f"\u202e{text[:at]}\u202c{text[at:]}",
    "no width": lambda text, at, n: text[:at] + "\u200b\u2060\ufeff" + text[at:],
    "private use": lambda text, at, n: text[:at] + chr(0xE000 + n) + text[at:],
    "byte pieces": lambda text, at, n: text.replace(" ", " Ġ"),
    "word pieces": lambda text, at, n: "▁" + text.replace(" ", "▁"),
    "hash pieces": lambda text, at, n: f"{text[:at]} ##{text[at:].strip()}",
    "byte tokens": lambda text, at, n: f"{text[:at]}<0x{0xC0 + n % 60:02X}><0x{0x80 + n:02X}>",
    "escapes": lambda text, at, n: f"{text[:at]}\\u00{0xE0 + n % 30:02x}{text[at:]}",
    "unknown": lambda text, at, n: f"{text[:at]} <unk> {text[at:]}",
    "C1": lambda text, at, n: text[:at] + chr(0x80 + n % 30) + text[at:],
    "no character": lambda text, at, n: text[:at] + "\uffff" + text[at:],
}


def garbled(number: int, base: Labelled) -> Labelled:
    how = pick(list(GARBLES), "garble", number)
    at = 3 + int(u("at", number) * (len(base.text) - 6))
    return replace(base, text=GARBLES[how](base.text, at, number % 40), how=how)


def cut(number: int, base: Labelled) -> Labelled:
    """Ends inside a word of at least four letters, somewhere in the last two thirds."""
    words = base.text.rstrip(".").split()
    long = [at for at in range(len(words) // 3 + 1, len(words)) if words[at].isalpha()]
    long = [at for at in long if len(words[at]) >= 4] or [len(words) - 1]
    at = pick(long, "cut", number)
    letters = 1 + int(u("letters", number) * (len(words[at]) - 1))
    return replace(base, text=" ".join([*words[:at], words[at][:letters]]), how=words[at])


FAULTS: dict[str, Callable[[int, Labelled], Labelled]] = {
    "refusal": refusal,
    "loop": loop,
    "leak": leak,
    "copy": copy,
    "disclaimer": of_template("disclaimers"),
    "markup": of_template("markup"),
    "invented": invented,
    "language": language,
    "garbled": garbled,
    "cut": cut,
}


@cache
def labelled() -> tuple[Labelled, ...]:
    """GOOD good captions, then EACH of every fault."""
    captions = [good(number) for number in range(GOOD)]
    for fault, plant in FAULTS.items():
        for number in range(EACH):
            base = good(int(u(fault, number) * 1_000_000), full=True)
            captions.append(replace(plant(number, base), fault=fault))
    return tuple(captions)


def main() -> None:
    for fault in FAULTS:
        some = [it for it in labelled() if it.fault == fault and not it.held]
        print(f"\n{fault}: {len(some)} to tune on, {EACH - len(some)} held out")
        for it in some[:12]:
            print(f"  {it.text[:150]!r}")


if __name__ == "__main__":
    main()
