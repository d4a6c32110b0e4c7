"""An HTML page, parsed: what the tests of pages look at."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Every tag with its attributes, the text, and whether tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def asks_for_nothing(self) -> bool:
        """Whether no tag or attribute runs a script or reaches outside the file."""
        runs = {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}
        leads = {"href", "srcset", "action", "xlink:href", "formaction", "background"}
        return not any(
            tag in runs
            or any(
                not (attributes[name] or "").startswith("#") for name in attributes.keys() & leads
            )
            or any(name.startswith("on") for name in attributes)
            or not (attributes.get("src") or "data:image/").startswith("data:image/")
            for tag, attributes in self.tags
        )
