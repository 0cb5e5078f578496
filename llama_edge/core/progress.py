"""How a long stage says how far it is; the command line draws it, tests ignore it."""

from typing import Protocol


class Progress(Protocol):
    """Called by stages; never by maths."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins; it will `advance` `total` times."""
        ...

    def advance(self, steps: int = 1) -> None:
        """Some of the running stage's steps are done."""
        ...

    def skip(self, steps: int) -> None:
        """Some of its steps were done by an earlier run: done, and no measure of how fast it is."""
        ...

    def remark(self, text: str) -> None:
        """Something that the user should know, and that stops nothing."""
        ...


class SilentProgress:
    """Says nothing."""

    def start(self, stage: str, total: int) -> None:
        """See `Progress`."""

    def advance(self, steps: int = 1) -> None:
        """See `Progress`."""

    def skip(self, steps: int) -> None:
        """See `Progress`."""

    def remark(self, text: str) -> None:
        """See `Progress`."""
