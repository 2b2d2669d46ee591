"""The page template: text is escaped wherever it is placed, and a page asks nobody for anything."""

from html.parser import HTMLParser

from pretrain.html import Fragment, Section, Tile, bars, code, element, fold, join, page, table, tiles

HOSTILE = "<script>alert('x')</script>\"&"


class Balance(HTMLParser):
    """Checks that every element is closed, and collects what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"


def parsed(text: str) -> Balance:
    reader = Balance()
    reader.feed(text)
    assert reader.open == []
    return reader


def hostile_page() -> str:
    body = join(
        [
            tiles([Tile(HOSTILE, HOSTILE, HOSTILE, HOSTILE)]),
            table([HOSTILE], [[HOSTILE]], numeric=[0]),
            fold(HOSTILE, code(HOSTILE)),
            bars([(HOSTILE, 1.0, HOSTILE)]),
            element("p", HOSTILE, title=HOSTILE),
        ]
    )
    return page(
        HOSTILE,
        overline=HOSTILE,
        lead=HOSTILE,
        sections=[Section(HOSTILE, body, HOSTILE)],
        footer=HOSTILE,
    )


def test_text_is_escaped_wherever_it_is_placed() -> None:
    text = hostile_page()
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") >= 15
    assert "script" not in parsed(text).seen


def test_a_fragment_is_placed_as_it_is_and_text_that_looks_like_one_is_not() -> None:
    assert element("p", Fragment("<b>x</b>")) == "<p><b>x</b></p>"
    assert element("p", "<b>x</b>") == "<p>&lt;b&gt;x&lt;/b&gt;</p>"


def test_attributes_are_named_as_html_names_them() -> None:
    assert (
        element("p", class_="a b", aria_label='say "x"', id=None)
        == '<p class="a b" aria-label="say &quot;x&quot;"></p>'
    )
    assert element("path", d="M0 0") == '<path d="M0 0"/>'


def test_a_page_is_well_formed_and_loads_nothing() -> None:
    text = hostile_page()
    parsed(text)
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    for word in ("http:", "https:", "src=", "href=", "@import", "url("):
        assert word not in text


def test_a_page_follows_light_and_dark() -> None:
    text = hostile_page()
    assert "prefers-color-scheme:dark" in text
    assert 'content="light dark"' in text


def test_the_longest_bar_fills_the_width() -> None:
    text = bars([("a", 2.0, "2"), ("b", 1.0, "1"), ("c", 0.0, "0")])
    assert [share for share in ("width:100.00%", "width:50.00%", "width:0.00%") if share in text] == [
        "width:100.00%",
        "width:50.00%",
        "width:0.00%",
    ]
