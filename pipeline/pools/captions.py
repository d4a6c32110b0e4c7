"""Makes the texts of a pool: true captions of pictures, and faulty ones."""

from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.drawing import Words

MAX_LABEL_FOR_NOUN = 40  # nobody writes "… icon" after a whole sentence

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
    """Returns the ways to caption a picture in a language, the plain label first; none empty."""
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
    """Returns label and tags, comma-separated."""
    return ", ".join((words.label, *words.tags))


def indirect_forms(words: Words) -> list[str]:
    """Returns captions without the label: tags, keywords, both; empty if there are none."""
    tags, keywords = ", ".join(words.tags), ", ".join(words.keywords)
    forms = (tags, keywords, ", ".join(dict.fromkeys((*words.keywords, *words.tags))))
    return list(dict.fromkeys(form for form in forms if form))


def wrapped(text: str, chance: Chance) -> str:
    """Wraps a true caption in the usual words of a web page."""
    return chance.pick("wrapping", WRAPPINGS).format(text)


def boilerplate(chance: Chance) -> str:
    """Returns a text that describes no picture; may be empty."""
    return chance.pick("boilerplate", BOILERPLATE).format(n=chance.between("number", 1000, 9999))


def spam(chance: Chance) -> str:
    """Returns an advertisement for something else."""
    return chance.pick("spam", SPAM).format(
        a=chance.pick("spam_a", SPAM_WORDS),
        b=chance.pick("spam_b", SPAM_WORDS),
        c=chance.pick("spam_c", SPAM_WORDS),
        n=chance.between("number", 100, 9999),
    )


def garbled(text: str, chance: Chance) -> str:
    """Garbles a caption as a broken crawler does: wrong charset, cut, or else markup."""
    how = chance.pick("garbled", ("charset", "markup", "cut"))
    if how == "charset" and not text.isascii():
        return text.encode().decode("latin-1")
    if how == "cut" and len(text) >= 6:
        return text[: len(text) // 3]
    return chance.pick(
        "markup",
        (
            '<a href="#"><b>{}</b>&nbsp;</a>',
            "&lt;p class=&quot;cap&quot;&gt;{}&lt;/p&gt;",
            'alt="{}" /&gt; [caption id=',
        ),
    ).format(text)
