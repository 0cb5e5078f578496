"""`run`, `chat` and `guard`: text from a bundle."""
