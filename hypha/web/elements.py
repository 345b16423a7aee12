"""Small pieces of HTML, for the pages of people. Text is escaped where it is put in."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from hypha.web.document import sentence


def hidden(**fields: str) -> str:
    """Fields of a form that nobody sees."""
    return "".join(f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in fields.items())


def problem(text: str | None) -> str:
    """What was wrong, None for nothing."""
    return f'<p class="bad" role="alert">{escape(sentence(text))}</p>' if text else ""


def options(choices: Iterable[tuple[str, str]], chosen: str = "") -> str:
    """The choices of a select, value and text each."""
    return "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in choices
    )


def to_copy(name: str, text: str, label: str, rows: int) -> str:
    """A text that is to be copied, with a button for that."""
    return f"""<textarea id="{name}" rows="{rows}" readonly aria-label="{name}" spellcheck="false">
{escape(text)}</textarea>
<p><button type="button" class="main" data-copies="{name}" hidden>{label}</button></p>"""


def count(number: int, what: str) -> str:
    """So many things of a kind whose name takes an s."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
