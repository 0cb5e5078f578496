"""The exception tree; each class carries the exit code that the command line ends with.

Exit codes: 0 good, 1 a check failed, 2 bad usage, 3 bad input, 4 a missing component.
A message says what, where, the value found, the limit and the remedy.
"""

from typing import ClassVar


class LlamaEdgeError(Exception):
    """Base of every error that a user can cause or repair."""

    exit_code: ClassVar[int] = 3


class CheckFailedError(LlamaEdgeError):
    """A check ran and the result was out of tolerance: parity, contract, delegation."""

    exit_code = 1


class UsageError(LlamaEdgeError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is in no registry; the message lists the names that are."""


class ConfigError(LlamaEdgeError):
    """A model config or an option is missing, contradictory or not supported."""


class CheckpointError(LlamaEdgeError):
    """A checkpoint is damaged, incomplete, hostile or of an unknown kind."""


class TokenizerError(LlamaEdgeError):
    """A tokenizer or chat template is damaged or does not match the model."""


class TextError(LlamaEdgeError):
    """A text file is missing, not UTF-8 or too short for what is asked of it."""


class QuantizeError(LlamaEdgeError):
    """A weight cannot be quantized as the recipe asks."""


class ExportError(LlamaEdgeError):
    """An artifact cannot be lowered or written."""


class ArtifactError(LlamaEdgeError):
    """A written artifact or bundle cannot be read back or is not what its manifest says."""


class OutputError(LlamaEdgeError):
    """The output place is taken, full or not writable."""


class SessionError(LlamaEdgeError):
    """A runtime refused an artifact or an input."""


class GrammarStuckError(SessionError):
    """A grammar allows no token where one is needed."""


class ToolCallError(LlamaEdgeError):
    """A model began a tool call and did not end it as one."""


class GuardError(LlamaEdgeError):
    """A bundle is no guard, or what it answers is no verdict."""


class RuntimeCrashError(CheckFailedError):
    """A native runtime crashed or hung in its child process; the message has its last output."""


class MissingComponentError(LlamaEdgeError):
    """A package, model or tool that is needed here is not installed."""

    exit_code = 4
