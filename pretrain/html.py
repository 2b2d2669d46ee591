"""The one page template: self-contained HTML for the reports of training and of data preparation.

A page needs no network and no library: its style and its few lines of script are inside, and a content policy forbids the
browser to load anything else, so that a page that shows texts of a corpus stays harmless. A plain `str` is text and is escaped
wherever it is placed; only a `Fragment` is markup. Light and dark follow the reader's system. Not taken: a template engine (a
dependency, and escaping that one can forget) and a chart library (megabytes a page).
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

VOID_ELEMENTS = frozenset({"br", "hr", "img", "line", "meta", "path", "rect"})


class Fragment(str):
    """Markup that is safe to place in a page."""

    __slots__ = ()


Content = str | Fragment | None
"""What can be placed in an element: text, markup, or nothing."""


@dataclass(frozen=True)
class Section:
    """A titled part of a page."""

    title: str
    body: Fragment
    note: str = ""
    """A sentence beside the title."""


@dataclass(frozen=True)
class Tile:
    """A number that stands out."""

    label: str
    value: str
    note: str = ""
    unit: str = ""


def escaped(content: Content) -> Fragment:
    """Text as markup; markup as it is."""
    if content is None:
        return Fragment("")
    return content if isinstance(content, Fragment) else Fragment(html.escape(content, quote=True))


def element(name: str, /, *children: Content, **attributes: str | float | None) -> Fragment:
    """An element. Of attribute names, a trailing underscore goes (`class_`) and others become hyphens; None is left out."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID_ELEMENTS:
        return Fragment(f"<{name}{told}/>")
    return Fragment(f"<{name}{told}>{join(children)}</{name}>")


def join(parts: Iterable[Content]) -> Fragment:
    """Parts one after another."""
    return Fragment("".join(escaped(part) for part in parts))


def tiles(items: Sequence[Tile]) -> Fragment:
    """Numbers side by side, as many to a row as fit."""
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", tile.label),
                element("dd", tile.value, element("small", f" {tile.unit}") if tile.unit else None, class_="value"),
                element("dd", tile.note, class_="note") if tile.note else None,
                class_="tile",
            )
            for tile in items
        ),
        class_="tiles",
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[Content]], numeric: Iterable[int] = ()) -> Fragment:
    """A table that scrolls sideways on a narrow screen. `numeric` are the columns that are aligned to the right."""
    right = set(numeric)

    def cells(kind: str, contents: Sequence[Content]) -> Fragment:
        return element(
            "tr",
            *(
                element(kind, content, class_="number" if column in right else None)
                for column, content in enumerate(contents)
            ),
        )

    body = element("tbody", *(cells("td", row) for row in rows))
    return element("div", element("table", element("thead", cells("th", headings)), body), class_="scroll", tabindex=0)


def fold(summary: str, body: Content) -> Fragment:
    """A part that opens on a click."""
    return element("details", element("summary", summary), body)


def code(text: str) -> Fragment:
    """Preformatted text; long lines wrap."""
    return element("pre", text)


def bars(items: Sequence[tuple[str, float, str]]) -> Fragment:
    """Horizontal bars: label, value, and the value in words. The longest fills the width."""
    largest = max((value for _, value, _ in items), default=0.0) or 1.0
    rows = [
        element(
            "li",
            element("span", label, class_="bar-label"),
            element("span", element("span", style=f"width:{100 * value / largest:.2f}%"), class_="bar"),
            element("span", told, class_="bar-value"),
        )
        for label, value, told in items
    ]
    return element("ul", *rows, class_="bars")


def page(
    title: str,
    *,
    overline: str,
    lead: Content,
    sections: Sequence[Section],
    footer: Content = None,
    style: str = "",
    script: str = "",
) -> str:
    """A whole document.

    Args:
        title: heading and title of the window.
        overline: what kind of page it is, above the heading.
        lead: the paragraph under the heading.
        sections: in order.
        footer: small print at the end.
        style, script: of what the sections hold beside this file's own elements.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Fragment(_STYLE + style)),
    )
    header = element(
        "header", element("p", overline, class_="overline"), element("h1", title), element("p", lead, class_="lead")
    )
    body = element(
        "body",
        element("main", header, *(_section(section) for section in sections), element("footer", footer)),
        element("script", Fragment(script)) if script else None,
    )
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def _section(section: Section) -> Fragment:
    heading = element(
        "div",
        element("h2", section.title),
        element("p", section.note) if section.note else None,
        class_="section-heading",
    )
    return element("section", heading, section.body)


_STYLE = """
:root{--paper:#faf9f6;--panel:#fff;--ink:#1d1f23;--soft:#5c616a;--faint:#6f757e;--line:#e5e3dc;--grid:#edebe5;
--blue:#2c5fd1;--orange:#b9560d;--green:#1c7f5c;--purple:#7a4bc0;--red:#c0392f;--shade:#f3f1eb;
--mono:ui-monospace,"SF Mono","Cascadia Code",Menlo,Consolas,"DejaVu Sans Mono",monospace;
--sans:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif}
@media (prefers-color-scheme:dark){:root{--paper:#121417;--panel:#191c20;--ink:#e9e8e4;--soft:#a9aeb7;--faint:#7d838d;
--line:#2b2f35;--grid:#24282d;--blue:#82a9ff;--orange:#f2a263;--green:#5fc79d;--purple:#b896f0;--red:#f08a80;--shade:#20242a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 var(--sans)}
main{max-width:1120px;margin:0 auto;padding:clamp(24px,5vw,64px) clamp(16px,4vw,40px) 48px}
h1,h2,h3,p,dl,dd,ul,figure{margin:0;padding:0}
.overline{color:var(--soft);font-size:13px;font-weight:600;letter-spacing:.08em;text-transform:uppercase}
h1{font-size:clamp(28px,5vw,42px);line-height:1.15;letter-spacing:-.02em;font-weight:680;margin:6px 0 12px;overflow-wrap:anywhere}
.lead{color:var(--soft);font-size:clamp(16px,2vw,18px);max-width:46em;overflow-wrap:anywhere}
.lead strong{color:var(--ink);font-weight:600}
section{margin-top:clamp(36px,5vw,56px)}
.section-heading{display:flex;flex-wrap:wrap;align-items:baseline;gap:2px 14px;margin-bottom:14px}
h2{font-size:20px;letter-spacing:-.01em;font-weight:650}
.section-heading p{color:var(--soft);font-size:14.5px}
h3{font-size:15px;font-weight:620}
.panel,.tile,details{background:var(--panel);border:1px solid var(--line);border-radius:12px}
.panel{padding:18px 20px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,172px),1fr));gap:12px}
.tile{padding:14px 16px 13px;min-width:0}
.tile dt{color:var(--soft);font-size:13px}
.tile .value{font-size:26px;line-height:1.25;font-weight:640;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.tile small{font-size:15px;font-weight:500;letter-spacing:0;color:var(--soft)}
.tile .note{color:var(--soft);font-size:13px;line-height:1.4}
.scroll{overflow-x:auto;background:var(--panel);border:1px solid var(--line);border-radius:12px}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--blue);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:14.5px}
th,td{padding:9px 16px;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
th{color:var(--soft);font-weight:560;font-size:13px;white-space:nowrap}
td{white-space:nowrap}
td:last-child{white-space:normal;min-width:150px;overflow-wrap:anywhere}
tr:last-child td{border-bottom:0}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
details+details{margin-top:8px}
summary{cursor:pointer;padding:11px 16px;font-size:14.5px;font-weight:560}
details>*:not(summary){margin:0 16px 14px}
@media(max-width:400px){.tiles{grid-template-columns:1fr 1fr}.tile .value{font-size:23px}}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:13.5px/1.55 var(--mono);tab-size:4}
.bars{list-style:none;display:grid;gap:6px}
.bars li{display:grid;grid-template-columns:minmax(80px,180px) 1fr auto;gap:12px;align-items:center;font-size:14.5px}
.bar{height:10px;border-radius:5px;background:var(--shade)}
.bar span{display:block;height:100%;min-width:2px;border-radius:5px;background:var(--blue)}
.bar-label{overflow-wrap:anywhere}
.bar-value{color:var(--soft);font-variant-numeric:tabular-nums}
footer{margin-top:56px;color:var(--faint);font-size:13px;overflow-wrap:anywhere}
@media print{body{background:#fff}.panel,.tile,details{break-inside:avoid}}
"""
