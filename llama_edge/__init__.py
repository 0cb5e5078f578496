"""llama-edge: from a Llama 3.2 checkpoint to a phone bundle that was run before it was shipped."""

__version__ = "0.1.0"
