"""`run` and `serve`: text from a bundle."""
