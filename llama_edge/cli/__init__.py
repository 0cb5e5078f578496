"""The command line: parse, one pipeline call, print. Errors become exit codes here only."""

from llama_edge.cli.app import main

__all__ = ["main"]
