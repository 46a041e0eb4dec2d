"""Where progress is said."""

from typing import Protocol


class Teller(Protocol):
    """A screen, or a log."""

    def said(self, text: str) -> None:
        """Something that is done, and stays on the screen."""

    def doing(self, text: str) -> None:
        """What is being waited for; the next one takes its place."""
