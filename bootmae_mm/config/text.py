"""The text of a config."""

from __future__ import annotations

from typing import ClassVar

from mmengine.config import Config


class FormattedOnce(Config):
    """mmengine's Config, which formats its text once for each content.

    mmengine formats it again for every log, visualizer and checkpoint, for 0.1 to 0.5 s.
    """

    _texts: ClassVar[dict[str, str]] = {}

    @property
    def pretty_text(self) -> str:
        """The config as Python, formatted."""
        content = repr(self._cfg_dict)
        if content not in self._texts:
            if len(self._texts) >= 8:
                self._texts.clear()
            self._texts[content] = super().pretty_text
        return self._texts[content]
