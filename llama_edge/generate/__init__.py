"""`run`, `chat`, `warm` and `serve`: text from a bundle."""
