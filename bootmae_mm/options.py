"""Parsing of ``--cfg-options``."""

from __future__ import annotations

import ast
from typing import Any

CONSTANTS = dict(none=None, true=True, false=False)


class Unparsed(str):
    """Text of a value on the command line; its meaning depends on the value that it replaces."""


def parse_value(text: str, current: Any = None) -> Any:
    """Parse a value of the command line.

    Blanks are kept. A text that replaces a string stays a string, except ``None``, ``True``, ``False`` and lists in
    brackets. Otherwise commas make a list, unless there is a blank or a slash, as in paths.

    Args:
        text: Text after ``KEY=``.
        current: Value of the key in the config, or None.
    """
    text = text.strip()
    current = None if current == 'auto' else current  # a value to choose, of any type
    if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"' and text[0] not in text[1:-1]:
        return text[1:-1]
    if text.lower() in CONSTANTS and (text != 'none' or not isinstance(current, str)):
        return CONSTANTS[text.lower()]
    if text[:1] in ('[', '(', '{') and text[-1:] in (']', ')', '}'):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            if text[0] == '{' or (text[0] == '(' and isinstance(current, str)):
                return text
            items = [parse_value(part) for part in _split(text[1:-1])]
            return tuple(items) if text[0] == '(' else items
    if isinstance(current, str):
        return text
    number = _number(text)
    if number is not None:
        return number
    replaces_list = isinstance(current, (list, tuple))
    parts = _split(text)
    if ',' not in text:
        return [text] if text and replaces_list else text
    values = [parse_value(part) for part in parts]
    is_path = any(isinstance(value, str) for value in values) and any(sign in text for sign in ' /')
    return values if replaces_list or not is_path else text


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _split(text: str) -> list[str]:
    """Parts between commas outside of brackets and quotes; a trailing comma adds none."""
    parts, depth, quote = [''], 0, ''
    for character in text:
        if quote:
            quote = '' if character == quote else quote
        elif character in '\'"':
            quote = character
        elif character in '[({':
            depth += 1
        elif character in '])}':
            depth -= 1
        elif character == ',' and depth == 0:
            parts.append('')
            continue
        parts[-1] += character
    return parts if parts[-1].strip() else parts[:-1]
