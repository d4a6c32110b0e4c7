"""Each source on a package made up here, in the layout of the published one."""

import io
import json
import zipfile

import pytest
from PIL import Image

from clipmill.pipeline.pools.sources import (
    emoji_svg,
    emojibase,
    games,
    iconify,
    icons,
    manuals,
    noto,
    openclipart,
    things,
    tuxpaint,
)
from clipmill.pipeline.pools.sources.emojibase import normal_hex, squashed
from clipmill.pipeline.pools.sources.packages import DEMO, FULL
from clipmill.pipeline.pools.sources.texts import image_tags, language_of, name_words, one_line

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
FOX = {"label": "fox", "hexcode": "1F98A", "emoji": "F", "tags": ["animal"], "group": 3}
WAVE = {"label": "waving hand", "hexcode": "1F44B", "emoji": "W", "group": 1, "subgroup": 16}
FRANCE = {"label": "flag: France", "hexcode": "1F1EB-1F1F7", "emoji": "R", "subgroup": 98}
ISLAND = {"label": "flag: Some Island", "hexcode": "1F1E8-1F1F5", "emoji": "I", "subgroup": 98}
SKIN = {"label": "waving hand: dark", "hexcode": "1F44B-1F3FF", "emoji": "D"}
ENGLISH = [
    {**FOX, "subgroup": 34},
    {**WAVE, "skins": [SKIN]},
    {**FRANCE, "group": 9},
    {**ISLAND, "group": 9},
]
GROUPS = {
    "groups": {"1": "people-body", "3": "animals-nature", "9": "flags"},
    "subgroups": {"16": "hand-fingers-open", "34": "animal-mammal", "98": "country-flag"},
}


def png(color: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (64, 64), color).save(out, "PNG")
    return out.getvalue()


def square(color: str) -> dict[str, str]:
    return {"body": f'<path fill="{color}" d="M0 0h16v16H0z"/>'}


PACKAGES = {
    "emojibase-data": {
        "en/data.json": ENGLISH,
        "en-gb/data.json": ENGLISH,
        "de/data.json": [{**FOX, "label": "Fuchs", "tags": ["Tier"]}],
        "en/shortcodes/cldr.json": {"1F98A": ["fox_face", "foxy"]},
        "meta/groups.json": GROUPS,
        "meta/unicode-names.json": {"1F98A": "FOX FACE"},
    },
    "emojilib": {"dist/emoji-en-US.json": {"F": ["fox_face", "wild"]}},
    "openmoji": {
        "color/svg/1F98A.svg": SVG,
        "color/svg/E000.svg": SVG,
        "data/openmoji.json": [
            {
                "hexcode": "E000",
                "annotation": "goldfish",
                "tags": "",
                "openmoji_tags": "fish, water",
                "subgroups": "animals-nature",
            }
        ],
    },
    "@twemoji/svg": {"1f98a.svg": SVG, "1f44b-1f3ff.svg": SVG, "license.svg": SVG},
    "@iconify-json/fxemoji": {
        "icons.json": {
            "icons": {"foxface": {"body": "<g/>"}, "whitedown": {"body": "<g/>"}},
            "width": 64,
            "height": 32,
        }
    },
    "@iconify-json/noto-v1": {
        "icons.json": {
            "icons": {
                "fox-face": square("red"),
                "waving-hand": square("#f0f"),
                "unknown": square("red"),
            }
        }
    },
    "@iconify-json/game-icons": {"icons.json": {"icons": {"3d-fast-arrow": {"body": "<g/>"}}}},
    "emoji-datasource-google": {
        "emoji.json": [
            {"unified": "1F98A", "image": "a.png", "has_img_google": True, "added_in": "3.0"},
            {"unified": "1F44B", "image": "w.png", "has_img_google": True, "added_in": "3.0"},
            {"unified": "1F1EB-1F1F7", "image": "f.png", "has_img_google": True, "added_in": "2.0"},
            {"unified": "1F1E8-1F1F5", "image": "i.png", "has_img_google": True, "added_in": "2.0"},
        ],
        "img/google/64/a.png": png("white"),
        "img/google/64/w.png": png("#f0f"),
        "img/google/64/f.png": b"tricolour",
        "img/google/64/i.png": b"tricolour",
    },
    "emoji-datasource-twitter": {
        "emoji.json": [
            {
                "unified": "1F44B",
                "image": "w.png",
                "has_img_twitter": True,
                "skin_variations": {
                    "1F3FF": {
                        "unified": "1F44B-1F3FF",
                        "image": "d.png",
                        "has_img_twitter": True,
                    }
                },
            }
        ],
        "img/twitter/64/w.png": b"wave",
        "img/twitter/64/d.png": b"dark",
    },
}


def as_bytes(content) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """Every source reads these packages; tests add Debian ones as they need them."""
    debian: dict[str, dict[str, bytes]] = {}

    def npm_files(name, version, wanted):
        files = PACKAGES[name].items()
        return {path: as_bytes(data) for path, data in files if wanted(path)}

    def debian_files(name, wanted):
        return {path: data for path, data in debian.get(name, {}).items() if wanted(path)}

    for module in (emojibase, emoji_svg, iconify, noto, icons):
        monkeypatch.setattr(module, "npm_files", npm_files)
    for module in (openclipart, tuxpaint, manuals, icons, games, things):
        monkeypatch.setattr(module, "debian_files", debian_files)
    for module in (openclipart, tuxpaint, games):
        monkeypatch.setattr(module, "keep", lambda package, key: 0.99)
    emojibase.emojibase.cache_clear()
    manuals._english_alts.cache_clear()
    yield debian
    emojibase.emojibase.cache_clear()
    manuals._english_alts.cache_clear()


def test_spellings_of_a_code_sequence_become_one():
    assert normal_hex("0023-fe0f-20e3") == normal_hex("23-20E3") == "23-20E3"
    assert squashed("Waving Hand: dark") == squashed("waving-hand-dark")


def test_an_emoji_has_words_in_every_language_and_keeps_its_base_as_concept():
    known = emojibase.emojibase()
    fox, dark = known.by_hex["1F98A"], known.by_hex["1F44B-1F3FF"]
    assert set(fox.words) == {"de", "en"}  # en-gb is the same again
    assert fox.words["en"].keywords == ("fox face", "wild")
    assert (dark.concept, dark.subgroup) == ("waving hand", "hand-fingers-open")
    assert known.hex_by_name["foxface"] == known.hex_by_name["foxy"] == "1F98A"


def test_openmoji_brings_its_own_emojis_too():
    fox, goldfish = emoji_svg.openmoji()
    assert fox.words["de"].label == "Fuchs"
    assert goldfish.words["en"].tags == ("fish", "water")


def test_both_packages_of_twemoji_art_are_copies():
    vectors = {drawing.art for drawing in emoji_svg.twemoji()}
    bitmaps = {drawing.art for drawing in icons.twitter()}
    assert vectors & bitmaps == {"twemoji 1F44B-1F3FF"}


def test_icons_are_matched_by_squashed_name_or_dropped():
    (fox,) = iconify.emoji_icons(iconify.FXEMOJI, drop_unmatched=True)
    assert (fox.concept, fox.is_svg) == ("fox", True)
    assert b'viewBox="0 0 64 32"' in fox.image
    (arrow,) = iconify.game_icons()
    assert (arrow.concept, arrow.words["en"].label) == ("arrow", "3d fast arrow")


def test_identical_flags_are_one_class_named_by_the_shorter_label():
    drawings, made = noto.evaluation()
    sets = {one.name: one for one in made}
    assert list(sets["emoji_flags"].classnames) == ["flag: France"]
    assert list(sets["emoji_nature"].classnames) == ["fox"]
    names = ["animals and nature", "flags", "people and body"]
    assert list(sets["emoji_groups"].classnames) == names
    assert sets["emoji_retrieval"].captions["1F98A"] == ["fox", "fox, animal"]
    assert len(drawings) == 4


def test_an_older_drawing_is_a_second_picture_of_its_class_and_in_no_pool():
    drawings, made = noto.evaluation()
    sets = {one.name: one for one in made}
    older = sets["emoji_retrieval_v1"]
    assert dict(older.captions) == {"1F98A": ["fox", "fox, animal"]}  # the hand has not changed
    for name in ("emoji_nature", "emoji_groups"):
        assert sets[name].classes["1F98A_v1"] == sets[name].classes["1F98A"]
        assert sets[name].images["1F98A_v1"] == older.images["1F98A"] != sets[name].images["1F98A"]
    assert "1F44B_v1" not in sets["emoji_groups"].images
    assert "1F98A_v1" not in sets["emoji_retrieval"].images
    assert not [name for name in DEMO | FULL if "noto" in name]
    assert {drawing.source for drawing in drawings} == {noto.PACKAGE[0]}


def test_openclipart_takes_titles_but_not_those_of_collections(packages):
    def svg(title):
        return (
            f"<x><dc:title>{title}</dc:title><rdf:li>sea</rdf:li><rdf:li>hash</rdf:li></x>".encode()
        )

    titles = {
        "f/red_Heart_01": svg("Part of the Flat Icon Collection"),
        "f/whale": svg("A &amp;\n whale"),
    }
    packages["openclipart-svg"] = {f"{openclipart.SVG}{k}.svg": v for k, v in titles.items()}
    packages["openclipart-png"] = {f"{openclipart.PNG}{k}.png": k.encode() for k in titles}
    words = [drawing.words["en"] for drawing in openclipart.openclipart()]
    assert [word.label for word in words] == ["red heart", "A & whale"]
    assert {word.tags for word in words} == {("sea",)}


def test_stamps_speak_many_languages_and_are_reposted(packages):
    text = "A moon wrasse.\nde.utf8=Ein Fisch.\nen_GB.utf8=Same.\npt_BR.utf8=Um peixe.\nfr.utf8=\n"
    stem = f"{tuxpaint.STAMPS}animals/fish/wrasse"
    packages[tuxpaint.SOURCE] = {f"{stem}.txt": text.encode(), f"{stem}.png": b"png"}
    (wrasse,) = tuxpaint.tuxpaint()
    assert {language: words.label for language, words in wrasse.words.items()} == {
        "en": "A moon wrasse.",
        "de": "Ein Fisch.",
        "pt-br": "Um peixe.",
    }
    assert (wrasse.concept, wrasse.group, wrasse.least_reposts) == (
        "moon wrasse",
        "animals/fish",
        3,
    )


def gimp_page(language, alt):
    root = f"usr/share/gimp/3.0/help/{language}/"
    page = f'<img src="images/a.png" alt="{alt}"><img alt="Next" src="images/next.png" />' * 60
    files = {"page.html": page.encode(), "images/a.png": b"a", "images/next.png": b"n"}
    return {root + path: data for path, data in files.items()}


def test_a_manual_caps_its_arrows_and_calls_them_boilerplate(packages):
    packages["gimp-help-en"] = gimp_page("en", "The dialog")
    drawings = list(manuals.gimp_help("en"))
    assert len(drawings) == 2 * manuals.MAX_USES
    assert len({drawing.key for drawing in drawings}) == len(drawings)
    arrow = next(drawing for drawing in drawings if drawing.image == b"n")
    assert (arrow.junk, dict(arrow.words)) == ("Next", {})


@pytest.mark.parametrize(("alt", "language"), [("The dialog", "en"), ("Der Dialog", "de")])
def test_english_left_in_a_translated_manual_is_english(packages, alt, language):
    packages["gimp-help-en"] = gimp_page("en", "The dialog")
    packages["gimp-help-de"] = gimp_page("de", alt)
    first = next(manuals.gimp_help("de"))
    assert list(first.words) == [language]
    assert first.key.startswith("de/")


def test_an_alt_that_is_a_file_name_is_boilerplate(packages):
    root = "usr/share/doc/python-sklearn-doc/html/"
    page = b'<img alt="../_images/a.png" src="../_images/a.png"><img src="../_images/b.png">'
    packages[manuals.SKLEARN] = {
        f"{root}modules/page.html": page,
        f"{root}_images/a.png": b"a",
        f"{root}_images/b.png": b"b",
    }
    assert [drawing.junk for drawing in manuals.sklearn_doc()] == ["../_images/a.png"]


def test_sizes_of_an_icon_are_copies_and_the_smallest_stay_out(packages):
    names = ("16x16", "22x22", "48x48")
    packages[icons.OXYGEN] = {
        f"{icons.OXYGEN_ROOT}{size}/actions/mail-reply.png": size.encode() for size in names
    }
    small, large = icons.oxygen()
    assert small.art == large.art
    assert small.words["en"].label == "mail reply"


def test_cards_are_named_by_rank_and_suit_and_tiles_by_their_deck(packages):
    french, tiles = (f"{games.PYSOL_ROOT}cardset-{name}/" for name in ("old", "tiles"))
    packages[games.PYSOL] = {
        f"{french}config.txt": b"PySolFC solitaire cardset;5;.gif;1;52;8\n1-old;Old Deck\n",
        f"{french}07s.gif": b"7",
        f"{french}back01.gif": b"b",
        f"{french}shade.gif": b"s",
        f"{tiles}config.txt": b"PySol solitaire cardset;5;.gif;4;42\n2-tiles;Gramastar\n",
        f"{tiles}11z.gif": b"z",
    }
    assert [(card.concept, card.words["en"].label) for card in games.pysol()] == [
        ("seven of spades", "seven of spades"),
        ("old deck", "back of a playing card"),
        ("gramastar", "Gramastar"),
    ]


def test_tiles_are_cut_out_of_one_file_by_their_lengths(packages):
    data = b"IMAGE 3 ./arch/monster/giant/DreadKnight/Bk.x11\nabcIMAGE 2 ./arch/bug.111\nde"
    packages[games.CROSSFIRE] = {games.CROSSFIRE_FILE: data}
    knight, bug = games.crossfire()
    assert (knight.image, knight.words["en"].label) == (b"abc", "dread knight bk")
    assert (bug.image, bug.words["en"].label) == (b"de", "bug")


def test_furniture_is_named_by_escaped_properties(packages):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr(
            "PluginFurnitureCatalog.properties",
            "name#1=Bed\ncategory#1=Bedroom\nicon#1=/a/bed.png\nname#2=Ghost\nicon#2=/a/none.png\n",
        )
        files.writestr("PluginFurnitureCatalog_fr.properties", "name#1=Lit \\u00e0 deux\n")
        files.writestr("a/bed.png", b"bed")
    packages[things.FURNITURE] = {"usr/share/x/Kator.sh3f": archive.getvalue()}
    (bed,) = things.furniture()
    assert {language: words.label for language, words in bed.words.items()} == {
        "en": "Bed",
        "fr": "Lit à deux",
    }
    assert (bed.key, bed.image, bed.least_reposts) == ("Kator/1", b"bed", 2)


def test_a_part_shows_its_breadboard_view(packages):
    part = (
        "<module><title>TMP01</title><description>&lt;p&gt;A &lt;b&gt;chip&lt;/b&gt;</description>"
        '<property name="family">Temp</property><views><breadboardView><layers image="breadboard/a'
        '.svg"/></breadboardView><pcbView><layers image="pcb/a.svg"/></pcbView></views></module>'
    )
    packages[things.FRITZING] = {
        f"{things.PARTS}core/chip.fzp": part.encode(),
        f"{things.PARTS}svg/core/breadboard/a.svg": SVG,
    }
    (chip,) = things.fritzing()
    assert (chip.words["en"].label, chip.words["en"].keywords) == ("TMP01", ("A chip",))
    assert (chip.group, chip.image) == ("electronics temp", SVG)


def test_old_texts_become_words():
    assert name_words("DreadKnight-old_02") == "dread knight old"
    assert language_of("ca@valencia") == "ca"
    assert one_line("&lt;style&gt;p {}&lt;/style&gt; a <b>b</b>\n c") == "a b c"
    tags = '<IMG alt="a &amp; b" src="c.png"><img src="d.png" data-src="e.png">'
    assert list(image_tags(tags)) == [
        ("c.png", "a & b"),
        ("d.png", ""),
    ]
