"""The stages in order: the only rooms where all of them are known."""
