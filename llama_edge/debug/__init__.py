"""What to use when an artifact is wrong: `bisect` and its script, `diff`, `inspect`."""
