"""Captions made fit to be asked about, and the texts in answers."""

import re
import unicodedata

# What a server's tokenizer or template may take for a command: <|im_start|>, </s>, <image>, [INST].
COMMANDS = re.compile(r"<[^<>\s]{1,40}>")
BRACKETS = re.compile(r"\[(/?[A-Z_]{2,20})\]")
CHARACTERS_A_WORD = 12  # of a caption at most, on average: some scripts write no spaces
# Controls, marks of direction, halves of characters, what is no character.
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn")
JOINERS = "\u200c\u200d"  # part of words in Persian and Indic scripts, and of emoji
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "`": "`"}  # noqa: RUF001
LABEL = re.compile(
    r"(?:[-*•]\s+|\d{1,2}[.)]\s+)?"
    r"(?:\**(?:(?:new|rewritten|short|long|detailed|image|visual|final|fused)\s+)?"
    r"(?:caption|rewrite|description|answer|output|target|sentence|alt[- ]text)\**\s*:\**\s*)?",
    re.IGNORECASE,
)
# How an answer begins that speaks to whoever asked: a refusal, or a courtesy before the text.
REPLY = re.compile(
    r"(?:i'?m|i am|we are|we're) (?:very |so |really )?(?:sorry|afraid|unable|not able)\b"
    r"|(?:i|we) (?:can(?:'?t| ?not)|could(?:n't| not)|do(?:n't| not)|am not|won't)\b"
    r"|sorry\b|(?:my )?apolog|unfortunately\b|as an? (?:ai|artificial|language)\b"
    r"|(?:sure|certainly|absolutely|of course|great|okay|ok|happy to) ?[,!.:]|sure thing\b"
    r"|here(?: is|'s| are) (?:the|a|an|your|my|one|some) (?:\w+ ){0,2}"
    r"(?:sentence|caption|description|version|rewrite|answer)\b"
    r"|(?:please|could you|can you) (?:provide|share|upload|give|send)\b",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"[.!?。！？](?=[\s\"'”’)]|$)[\"'”’)]*|[。！？]")  # noqa: RUF001


def cleaned(caption: str, max_words: int) -> str:
    """The caption on one line, without what could break a prompt, cut to so many words.

    No control characters, marks of direction, arrows or words that servers take for commands. What
    a caption asks for in plain words stays: a caption may speak of anything.
    """
    caption = caption[: 4 * max_words * CHARACTERS_A_WORD]  # 100 kB are not looked through
    if not (caption.isascii() and caption.isprintable()):
        caption = "".join(
            c if c.isprintable() or c in JOINERS else _instead_of(c)
            for c in unicodedata.normalize("NFC", caption)
        )
    caption = BRACKETS.sub(r" \1 ", COMMANDS.sub(" ", caption)).replace("=>", "->")
    return " ".join(caption.split()[:max_words])[: max_words * CHARACTERS_A_WORD].strip()


def _instead_of(character: str) -> str:
    if character.isspace():
        return " "
    kind = unicodedata.category(character)
    return "" if kind == "Cf" else " " if kind in UNSEEN else character


def sentence_of(answer: str, caption: str = "") -> str:
    """The text of an answer: its first line that has one, without arrows, labels and quotes."""
    lines = (line.strip() for line in answer.splitlines())
    first = next((line for line in lines if line.strip("=>-*# ")), "")
    parts = [part.strip() for part in first.split("=>")]
    is_echo = not parts[0] or (caption and parts[0].casefold() == caption.casefold())
    return unlabelled(parts[1] if is_echo and len(parts) > 1 else parts[0])


def paragraph_of(answer: str, is_cut: bool) -> str:
    """The text of a longer answer: all its lines as one, without labels and quotes.

    Of one that was cut, the sentences that are whole, where there is any.
    """
    text = unlabelled(" ".join(answer.split()))
    ends = [found.end() for found in SENTENCE_END.finditer(text)] if is_cut else []
    return text[: ends[-1]] if ends else text


def unlabelled(text: str) -> str:
    """Without a label such as `Caption:` before it, and quotes around it."""
    text = LABEL.sub("", text, count=1).strip()  # it matches where the text begins
    close = QUOTES.get(text[:1])
    if close and len(text) > 1 and text.endswith(close) and close not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def is_reply(text: str) -> bool:
    """Whether it speaks to whoever asked, as refusals and courtesies do, and is no caption."""
    return REPLY.match(text.replace("\u2019", "'")) is not None
