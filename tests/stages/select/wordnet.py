"""A few words of WordNet 3.0, in the form of its files."""

from pathlib import Path

LEMMAS = {  # part of speech: lemma and the numbers of its synsets, the first of them first
    "noun": {
        "dog": [2084071, 10114209],
        "watch": [4555897],
        "mouse": [2330245, 14289387],
        "man": [10287213],  # no class of ImageNet-21k
        "circle": [13873502],
        "square": [13878634],
        "triangle": [13879320],
        "sun": [9450163],
        "photo": [3925226, 2084071],
        "axis": [6008609],
        "ax": [2764044],
        "axe": [2764044],
    },
    "verb": {"dog": [2001876], "fish": [1319364], "tilt": [2084071]},
    "adj": {"good": [1123148], "doggy": [2084071]},
    "adv": {},
}
IRREGULAR = {"noun": ["mice mouse", "men man", "axes axis ax axe"], "verb": ["doing do"]}


def write_wordnet(folder: Path, version: str = "3.0") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for part, lemmas in LEMMAS.items():
        lines = [f"  1 WordNet {version} Copyright by Princeton University."]
        for lemma, numbers in sorted(lemmas.items()):
            places = " ".join(f"{number:08d}" for number in numbers)
            lines.append(f"{lemma} {part[0]} {len(numbers)} 2 @ ~ {len(numbers)} 1 {places}  ")
        (folder / f"index.{part}").write_text("\n".join(lines) + "\n")
        (folder / f"{part}.exc").write_text("".join(f"{it}\n" for it in IRREGULAR.get(part, [])))
    return str(folder)
