"""A report as a list of blocks, written as Markdown with plot files or as one self-contained HTML page.

In: headings, paragraphs, tables, figures and samples. Out: text. Knows nothing about what it reports.
Paragraphs and table cells may hold `code` and **bold**; everything else is escaped, model outputs included.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells are strings; a column whose cells all look like numbers is set flush right.

    Attributes:
        descriptions: of the columns; empty, or one a column. In HTML a title shows its own where it is pointed at.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    descriptions: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A PNG. `name` becomes the file name beside the Markdown."""

    name: str
    png: bytes
    caption: str


@dataclass(frozen=True)
class Samples:
    """Texts side by side under one title: (label, text)."""

    title: str
    entries: Sequence[tuple[str, str]]


Block = Heading | Paragraph | Bullets | Table | Figure | Samples
_NUMBER = re.compile(r"(?:<?[+-]?[\d.,]+%?)?\s?(?:\[.*\])?|–")


def _numeric(table: Table) -> list[bool]:
    return [all(_NUMBER.fullmatch(str(row[i])) for row in table.rows) for i in range(len(table.columns))]


def anchor(text: str) -> str:
    """The id of a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ---------------------------------------------------------------------------------------- Markdown


def _escaped(text: str) -> str:
    return str(text).replace("&", "&amp;").replace("<", "&lt;")


def _cell(text: str) -> str:
    return " ".join(_escaped(text).replace("|", "\\|").split())


def _literal(text: str) -> str:
    """Model output on one line, its Markdown characters escaped."""
    return re.sub(r"([\\`*_#\[\]|])", r"\\\1", " ".join(_escaped(text).split())) or "(empty)"


def write_pictures(drawn: Mapping[str, bytes], folder: Path) -> tuple[Path, ...]:
    """PNGs by name, where `to_markdown` looks for its figures; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{name}.png" for name in drawn)
    for path, picture in zip(paths, drawn.values(), strict=True):
        path.write_bytes(picture)
    return paths


def to_markdown(title: str, blocks: Sequence[Block], plots: str = "plots") -> str:
    """Markdown whose figures lie in the folder `plots` beside it."""
    parts = [f"# {_escaped(title)}"]
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {_escaped(text)}")
            case Paragraph(text):
                parts.append(_escaped(text))
            case Bullets(items):
                parts.append("\n".join(f"- {_escaped(item)}" for item in items))
            case Table(columns, rows, caption, _):
                rule = ["---:" if right else "---" for right in _numeric(block)]
                lines = [columns, rule, *rows]
                body = "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)
                parts.append(f"{body}\n\n*{_escaped(caption)}*" if caption else body)
            case Figure(name, _, caption):
                parts.append(f"![{_cell(caption)}]({plots}/{name}.png)\n\n*{_escaped(caption)}*")
            case Samples(heading, entries):
                quoted = "\n>\n".join(f"> **{_cell(label)}**: {_literal(text)}" for label, text in entries)
                parts.append(f"**{_escaped(heading)}**\n\n{quoted}")
    return "\n\n".join(parts) + "\n"


# -------------------------------------------------------------------------------------------- HTML

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1d2430; background: #fff;
       max-width: 1280px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #d8dde5;
     padding-bottom: .2rem; font-size: 1.25rem; } h3 { margin-top: 1.5rem; font-size: 1.05rem; }
nav { background: #f4f6f9; border-radius: 6px; padding: .6rem 1rem; margin: 1rem 0; font-size: .92rem; }
nav a { margin-right: 1.1rem; white-space: nowrap; } a { color: #1f5fa8; text-decoration: none; }
.scroll { overflow-x: auto; margin: .8rem 0 .2rem; }
table { border-collapse: collapse; font-size: .8rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .45rem; border-bottom: 1px solid #e4e8ee; text-align: left; vertical-align: top; }
th { background: #f4f6f9; border-bottom: 1px solid #c3cad5; vertical-align: bottom; }
th[title] { cursor: help; }
td.n, th.n { text-align: right; } td.n, td:first-child, td code { white-space: nowrap; }
.caption { color: #5b6676; font-size: .86rem; margin: .2rem 0 1.2rem; }
img { max-width: 100%; height: auto; }
code { background: #f0f2f5; padding: 0 .25em; border-radius: 3px; font-size: .92em; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: .6rem; }
.sample { border: 1px solid #e0e5ec; border-radius: 6px; padding: .5rem .7rem; font-size: .86rem;
          white-space: pre-wrap; overflow-wrap: anywhere; }
.sample b { display: block; color: #45505f; font-size: .8rem; margin-bottom: .2rem; }
"""


def _inline(text: str) -> str:
    escaped = html.escape(str(text), quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped)


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One HTML page with styles and plots inside; it loads nothing."""
    sections = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = " ".join(f'<a href="#{anchor(text)}">{_inline(text)}</a>' for text in sections)
    body = [f"<h1>{_inline(title)}</h1>", f"<nav>{links}</nav>" if sections else ""]
    body += [_html_block(block) for block in blocks]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _html_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{anchor(text)}">{_inline(text)}</h{level}>'
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"
        case Table():
            return _html_table(block)
        case Figure(name, png, caption):
            data = base64.b64encode(png).decode("ascii")
            return (
                f'<figure style="margin:0"><img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
                f'<figcaption class="caption">{_inline(caption)}</figcaption></figure>'
            )
        case Samples(heading, entries):
            cards = "".join(
                f'<div class="sample"><b>{html.escape(label)}</b>{html.escape(text.strip()) or "<i>empty</i>"}</div>'
                for label, text in entries
            )
            return f'<p><strong>{_inline(heading)}</strong></p><div class="samples">{cards}</div>'


def _html_table(table: Table) -> str:
    kinds = [' class="n"' if right else "" for right in _numeric(table)]
    hints = [
        f' title="{html.escape(text)}"' if text else "" for text in table.descriptions or [""] * len(kinds)
    ]
    head = "".join(
        f"<th{kind}{hint}>{_inline(title)}</th>"
        for kind, hint, title in zip(kinds, hints, table.columns, strict=True)
    )
    lines = "".join(
        f"<tr>{''.join(f'<td{k}>{_inline(c)}</td>' for k, c in zip(kinds, row, strict=True))}</tr>"
        for row in table.rows
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
    caption = f'<p class="caption">{_inline(table.caption)}</p>' if table.caption else ""
    return f'<div class="scroll"><table>{body}</table></div>{caption}'
