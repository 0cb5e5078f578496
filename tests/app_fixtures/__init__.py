"""Fixtures that tests of three languages share; `python -m tests.app_fixtures` writes them."""
