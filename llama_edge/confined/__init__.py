"""What comes from outside is parsed here: in a child process with limits.

`Worker` starts a child that imports one module of ours and answers requests with its function
`answer`. A crash, an endless loop or a request for 100 GB ends the child, and the caller gets an
error that names the file.
"""

from llama_edge.confined.worker import ConfinedError, Limits, Worker

__all__ = ["ConfinedError", "Limits", "Worker"]
