"""`serve`: a bundle for other programs, over HTTP or as JSON lines."""
