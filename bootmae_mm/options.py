"""Values of ``--cfg-options``, from text."""

from __future__ import annotations

import ast
from typing import Any

CONSTANTS = dict(none=None, true=True, false=False)


class Unparsed(str):
    """The text of a value on the command line; what it means depends on the value that it replaces."""


def parse_value(text: str, current: Any = None) -> Any:
    """The value that a text on the command line stands for.

    Blanks are kept. A string stays one if it replaces a string, whatever it looks like, except ``None``, ``True``,
    ``False`` and lists in brackets. Elsewhere commas make a list, unless there is a blank or a slash, as in paths.

    Args:
        text: What stands behind ``KEY=``.
        current: The value of the key in the config; None where there is none.
    """
    text = text.strip()
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
    """Parts between commas that are not inside brackets or quotes; a comma at the end adds none."""
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
