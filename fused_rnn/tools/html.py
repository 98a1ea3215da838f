"""Results as small tables in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_MOST_ROWS = 40


def table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """An HTML table; all text is escaped, since names of layers and messages are a user's."""
    rows = list(rows)
    left_out = len(rows) - _MOST_ROWS
    lines = [f"<caption>{escape(caption)}</caption>"] if caption else []
    lines.append(f"<thead>{_row('th', header)}</thead>")
    lines.append("<tbody>" + "".join(_row("td", row) for row in rows[:_MOST_ROWS]) + "</tbody>")
    if left_out > 0:
        lines.append(f'<tfoot><tr><td colspan="{len(header)}">and {left_out} more</td></tr></tfoot>')
    return f"<table>{''.join(lines)}</table>"


def shortened(parts: Sequence[str], most: int = 4) -> str:
    """The parts in a row, for a ``repr``; of many only the first ones."""
    more = f", and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more


def _row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
