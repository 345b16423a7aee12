"""What an app has written to its console, by type."""

from __future__ import annotations

from collections import deque

from hypha.errors import InvalidArgument

#: Characters of one line; the rest is cut off.
LINE_LENGTH = 4000
#: Types of lines that are kept. A browser knows twenty; those of a page cannot be made up.
TYPES = 40


class Log:
    """The newest *lines* of each type. Written in one thread and read in another."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._by_type: dict[str, deque[str]] = {"error": deque(maxlen=lines), "log": deque(maxlen=lines)}

    def add(self, kind: str, text: str) -> None:
        """Add a line."""
        found = self._by_type.get(kind)
        if found is None:
            if len(self._by_type) >= TYPES:
                return
            found = self._by_type[kind] = deque(maxlen=self._lines)
        found.append(text[:LINE_LENGTH])

    def last_error(self) -> str | None:
        """The newest error."""
        errors = self._by_type["error"].copy()
        return errors[-1] if errors else None

    def show(self, kind: object, offset: object, limit: object) -> dict[str, list[str]] | list[str]:
        """All lines by type, or those of one type from *offset* on. Raises :class:`InvalidArgument`."""
        if not _is_count(offset) or not (limit is None or _is_count(limit)):
            raise InvalidArgument("offset and limit are whole numbers from 0 on")
        assert isinstance(offset, int)
        end = None if limit is None else offset + int(str(limit))
        if kind is None:
            return {name: list(lines.copy())[offset:end] for name, lines in list(self._by_type.items())}
        if not isinstance(kind, str):
            raise InvalidArgument("the type of a log is text, for example log or error")
        return list(self._by_type.get(kind, deque[str]()).copy())[offset:end]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
