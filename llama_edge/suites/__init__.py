"""Suites of prompts whose answers a program can check, scored against full precision."""
