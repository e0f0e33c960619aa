"""Tables for terminals of any width: no number is cut; columns go where there is no room, or rows stack."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a record of what ran does without rich, and imports this with the tables
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

NOTHING = "–"
"""A cell without a value. A column of nothing else is not shown."""
_GAP = "  "  # between two columns


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    """Stands above it; it wraps between words."""
    cells: tuple[str, ...]
    leaves: int = 0
    """When it goes where there is no room: 1 is the first to go; 0 stays."""
    text: bool = False
    """Its cells are words: they stand at the left, and may wrap between words. Others do neither."""

    @property
    def is_empty(self) -> bool:
        """Whether no cell has a value."""
        return all(cell in (NOTHING, "") for cell in self.cells)

    @property
    def heading(self) -> str:
        """Write the name so that no unit stands on a line of its own."""
        return self.name.replace(" %", "\u00a0%")

    @property
    def least(self) -> int:
        """Compute the width that it needs: names wrap, and so do words."""
        pieces = (piece for cell in self.cells for piece in (cell.split() if self.text else [cell]))
        return max(map(_cells, (*self.heading.split(" "), *pieces)))

    @property
    def most(self) -> int:
        """Compute the width beyond which it has no use of more."""
        return max(self.least, *map(_cells, self.cells), 0)


@dataclass(frozen=True)
class Sheet:
    """A table that fits a terminal: a rich renderable.

    Columns leave in their order until the others fit, and a line below says which have left. Where those that stay do
    not fit, each row becomes lines of its own, which say everything.
    """

    title: str
    columns: Sequence[Column]
    """The first names the rows, and stays."""
    caption: str = ""
    """Stands below."""
    headings: Sequence[str] = ()
    """What stands above a row, for each row: once for rows that follow each other and share it. Empty for none."""
    styles: Sequence[str] = ()
    """Of rich, for each row. Empty for none."""

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """Lay the table out in the width that there is."""
        room = options.max_width
        first, *others = self.columns
        shown = [first, *(column for column in others if not column.is_empty)]
        fitting = _fit(shown, room)
        yield _text(self.title, "bold")
        if fitting is None:
            yield from self._stack(shown)
        else:
            yield from self._lay_out(fitting, _widths(fitting, room))
        gone = [] if fitting is None else [column.name for column in shown if column not in fitting]
        notes = self.caption, f"no room here for: {', '.join(gone)}" if gone else ""
        yield from (_text(note, "dim") for note in notes if note)
        yield _text("")

    def _lay_out(self, columns: Sequence[Column], widths: Sequence[int]) -> "Iterator[Text]":
        """Yield the names, a rule, and the rows."""
        names = [_wrap(column.heading, width) for column, width in zip(columns, widths, strict=True)]
        height = max(map(len, names))
        yield from _lines([[""] * (height - len(name)) + name for name in names], columns, widths, "bold")
        yield _text("─" * (sum(widths) + len(_GAP) * (len(widths) - 1)))
        for row, heading, style in self._rows():
            if heading:
                yield _text(heading, "bold")
            cells = [
                _wrap(column.cells[row], width) if column.text else [column.cells[row]]
                for column, width in zip(columns, widths, strict=True)
            ]
            yield from _lines(cells, columns, widths, style)

    def _stack(self, columns: Sequence[Column]) -> "Iterator[Text]":
        """Yield each row as lines: its name, then what each column says of it."""
        first, *others = columns
        wide = max((_cells(column.name) for column in others), default=0)
        for row, heading, style in self._rows():
            if heading:
                yield _text(heading, "bold")
            yield _text(first.cells[row], style)
            for column in others:
                if column.cells[row] not in (NOTHING, ""):
                    yield _text(f"  {column.name:<{wide}}  {column.cells[row]}")

    def _rows(self) -> Iterator[tuple[int, str, str]]:
        """Yield each row with the heading above it, empty where there is none, and its style."""
        for row in range(len(self.columns[0].cells)):
            heading = self.headings[row] if self.headings else ""
            repeats = row > 0 and bool(heading) and heading == self.headings[row - 1]
            yield row, "" if repeats else heading, self.styles[row] if self.styles else ""


def _text(words: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(words, style)


def _cells(text: str) -> int:
    """Count the columns of a terminal that a text takes."""
    from rich.cells import cell_len

    return cell_len(text)


def _fit(columns: Sequence[Column], room: int) -> list[Column] | None:
    """Let columns leave until the others fit; None where those that stay do not."""
    kept = list(columns)
    while sum(column.least for column in kept) + len(_GAP) * (len(kept) - 1) > room:
        leaving = [column for column in kept[1:] if column.leaves]
        if not leaving:
            return None
        kept.remove(min(leaving, key=lambda column: column.leaves))
    return kept


def _widths(columns: Sequence[Column], room: int) -> list[int]:
    """Choose the width of each column: what it needs, and of the room that is left, words that lack most have most."""
    widths = [column.least for column in columns]
    wrapping = [index for index, column in enumerate(columns) if column.text or index == 0]
    for _ in range(room - sum(widths) - len(_GAP) * (len(widths) - 1)):
        lacking = max(wrapping, key=lambda index: columns[index].most - widths[index])
        if widths[lacking] >= columns[lacking].most:
            break
        widths[lacking] += 1
    return widths


def _wrap(text: str, width: int) -> list[str]:
    """Wrap between words alone."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _lines(
    cells: Sequence[Sequence[str]], columns: Sequence[Column], widths: Sequence[int], style: str
) -> "Iterator[Text]":
    """Yield the lines of a row, given the lines of its cells."""
    for parts in zip_longest(*cells, fillvalue=""):
        padded = []
        for index, (part, column, width) in enumerate(zip(parts, columns, widths, strict=True)):
            blank = " " * (width - _cells(part))
            padded.append(part + blank if column.text or index == 0 else blank + part)
        yield _text(_GAP.join(padded).rstrip(), style)
