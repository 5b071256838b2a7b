"""Write tables as CSV that spreadsheets read as it was meant."""

import csv
import io
from collections.abc import Iterable
from typing import Any

_FORMULA = ('=', '+', '-', '@', '\t', '\r')  # a spreadsheet computes a cell that begins with these


def to_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Return a table as CSV (RFC 4180) whose texts no spreadsheet takes for formulas."""
    text = io.StringIO()
    csv.writer(text).writerows(map(_cell, row) for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
