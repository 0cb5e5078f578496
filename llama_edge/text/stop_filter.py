"""Stop sequences in a stream of text, which may come in any pieces."""

from collections.abc import Sequence

from llama_edge.core.errors import UsageError


class StopFilter:
    """Passes text on until one of the stop sequences has been written, and nothing of that one.

    What could still become a stop sequence is held back until the next piece decides it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise UsageError("a stop sequence is empty; it would stop before the first word")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What of the text so far is now known to stay; empty after the stop."""
        if self.stopped:
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = self._held_length(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and became no stop sequence."""
        held, self._held = self._held, ""
        return held

    def _held_length(self, text: str) -> int:
        """The longest end of `text` that begins a stop sequence."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self._stops):
                return length
        return 0
