"""Texts of a pool: the true captions of a picture, and the ways a caption goes wrong."""

from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.drawing import Words

MAX_LABEL_FOR_NOUN = 40  # "… icon" behind a whole sentence is no caption a person would write

WRAPPINGS = (
    "{} | Free Icons",
    "{} - Download",
    "{} stock illustration",
    "Free {} clipart",
    "{} vector art",
    "{} (Public Gallery)",
)
BOILERPLATE = (
    "IMG_{n}.jpg",
    "DSC_{n}.JPG",
    "logo",
    "click here to enlarge",
    "",
    "image",
    "untitled-{n}.png",
    "photo",
    "thumbnail",
    "Screenshot {n}",
    "picture loading...",
    "image {n} of 9999",
    "View full size",
    "No description",
)
SPAM = (
    "BEST PRICE!!! buy {a} {b} online cheap, free shipping, order now",
    "{a} {b} {c} {a} {b} {c} cheap wallpaper free download hd 4k {n}",
    "Hot singles and {a} near you >>> www.best-{b}-{n}.example",
    "Win {n} coins today! {a} casino bonus {b} no deposit {c}",
    "{a}, {b}, {c}, cheap {a}, {b} sale, {c} coupon code {n}, discount {a}",
    "How I lost {n} pounds with {a} and {b} (doctors are furious)",
)
SPAM_WORDS = (
    *("shoes", "watches", "handbags", "loans", "insurance", "pills", "phone", "laptop", "vape"),
    *("sofa", "flights", "hotel", "crypto", "poker", "sunglasses", "perfume", "jacket"),
)


def caption_forms(words: Words, language: str) -> list[str]:
    """The ways to caption a picture in this language, the plain label first; none is empty."""
    label = words.label
    forms = [label]
    if words.tags:
        forms.append(with_tags(words))
    if words.character:
        forms.append(f"{words.character} {label}")
    forms.append(label[:1].upper() + label[1:])
    if language == "en":
        if words.keywords:
            forms.append(", ".join(words.keywords))
        if words.noun and len(label) <= MAX_LABEL_FOR_NOUN:
            forms += [f"{label} {words.noun}", f"{label} icon"]
    return list(dict.fromkeys(form for form in forms if form))


def with_tags(words: Words) -> str:
    """Label and tags, comma-separated."""
    return ", ".join((words.label, *words.tags))


def indirect_forms(words: Words) -> list[str]:
    """Captions without the label as such: tags, keywords, both; empty where there are none."""
    tags, keywords = ", ".join(words.tags), ", ".join(words.keywords)
    forms = (tags, keywords, ", ".join(dict.fromkeys((*words.keywords, *words.tags))))
    return list(dict.fromkeys(form for form in forms if form))


def wrapped(text: str, chance: Chance) -> str:
    """A true caption inside the furniture of a web page."""
    return chance.pick("wrapping", WRAPPINGS).format(text)


def boilerplate(chance: Chance) -> str:
    """A text that says nothing about any picture; may be empty."""
    return chance.pick("boilerplate", BOILERPLATE).format(n=chance.between("number", 1000, 9999))


def spam(chance: Chance) -> str:
    """A text that sells something else."""
    return chance.pick("spam", SPAM).format(
        a=chance.pick("spam_a", SPAM_WORDS),
        b=chance.pick("spam_b", SPAM_WORDS),
        c=chance.pick("spam_c", SPAM_WORDS),
        n=chance.between("number", 100, 9999),
    )


def garbled(text: str, chance: Chance) -> str:
    """The caption as a broken crawler stores it: wrong charset, markup, or cut; never the same."""
    how = chance.pick("garbled", ("charset", "markup", "cut"))
    if how == "charset" and not text.isascii():
        return text.encode().decode("latin-1")
    if how == "cut" and len(text) >= 6:
        return text[: max(2, len(text) // 3)]
    return chance.pick(
        "markup",
        (
            '<a href="#"><b>{}</b>&nbsp;</a>',
            "&lt;p class=&quot;cap&quot;&gt;{}&lt;/p&gt;",
            'alt="{}" /&gt; [caption id=',
        ),
    ).format(text)
