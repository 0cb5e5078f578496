"""`run`, `chat`, `guard` and `warm`: text from a bundle."""
