"""Whether the tokenizers library survives a tokenizer, tried in a process that may die of it.

The library is native code that trusts its file: one number in `tokenizer.json` makes it ask for
100 GB and abort, another one panics, and a regular expression can run for hours. So a tokenizer is
first parsed and used by a child with limits on memory and time: it encodes sample text and some of
the vocabulary, and decodes every token. Only what ends well there is parsed in this process.
"""

import hashlib
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Final

from llama_edge.core.errors import TokenizerError

#: A tokenizer of 128,000 tokens takes 1 s and 0.3 GiB.
_CPU_S: Final = 30
_MEMORY_BYTES: Final = 2 << 30
#: On a machine that does other things as well.
_WALL_S: Final = 300
#: The exit code of a trial in which the library refused the file in good order.
_REFUSED: Final = 3
_SHOWN_CHARACTERS: Final = 200
#: Letters, digits, white space, punctuation and a few scripts; long runs show what grows.
_SAMPLES: Final = (
    "The quick brown fox jumps over the lazy dog, 3 times in 2026: it's 1,234.5 km away!",
    "Größe, naïve façade; ¿Qué? Até amanhã. नमस्ते दुनिया। สวัสดีชาวโลก 你好 世界 こんにちは 👩‍👩‍👧",
    "".join(map(chr, range(256))),
    "a" * 4096,
    "ab 1\n" * 1024,
    " " * 4096,
    "",
)
#: Tokens of the vocabulary that are encoded as text.
_ENCODED_TOKENS: Final = 2000
#: What the child needs of the environment, to find Python and the package.
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")


def require_harmless(where: str, tokenizer_json: str) -> None:
    """Refuse a tokenizer that ends the process that uses it, or that never ends.

    Args:
        where: Named in the message.
        tokenizer_json: The untrusted text of a `tokenizer.json`.

    Raises:
        TokenizerError: The library refuses the text, or crashes or exceeds a limit on it.
    """
    try:
        data = tokenizer_json.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(f"{where}: is not valid Unicode: {error}") from error
    fault = _fault(data)
    if fault is not None:
        raise TokenizerError(f"{where}: {fault}")


@lru_cache(maxsize=1024)
def _fault_of(digest: bytes) -> list[str | None]:
    """A place for the verdict on the text with this SHA-256; empty until there is one."""
    del digest
    return []


def _fault(data: bytes) -> str | None:
    known = _fault_of(hashlib.sha256(data).digest())
    if not known:
        known.append(_try(data))
    return known[0]


def _try(data: bytes, cpu_s: int = _CPU_S) -> str | None:
    given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__, str(cpu_s)],
            input=data,
            capture_output=True,
            check=False,
            timeout=_WALL_S,
            start_new_session=True,
            env={**given, "TOKENIZERS_PARALLELISM": "false"},
        )
    except subprocess.TimeoutExpired:
        return f"the tokenizers library did not end within {_WALL_S} s on it; {_REMEDY}"
    if done.returncode == 0:
        return None
    said = _last_line(done.stdout if done.returncode == _REFUSED else done.stderr)
    if done.returncode == _REFUSED:
        return f"not a tokenizer that this version of `tokenizers` reads: {said}"
    if done.returncode == -signal.SIGXCPU:
        return f"the tokenizers library took more than {cpu_s} s on it; {_REMEDY}"
    how = (
        f"was ended by {signal.Signals(-done.returncode).name}"
        if done.returncode < 0
        else f"ended with exit code {done.returncode}"
    )
    return f"the tokenizers library {how} on it ({said}); {_REMEDY}"


_REMEDY: Final = "take the tokenizer.json that came with the model"


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").split("\n")
    # A panic ends with a note for whoever debugs the library.
    telling = [line for line in lines if line.strip() and not line.startswith("note:")]
    line = telling[-1] if telling else "it said nothing"
    return "".join(c if c.isprintable() else "?" for c in line)[:_SHOWN_CHARACTERS]


def _main(cpu_s: int) -> int:
    """The child: use the tokenizer on stdin in every way that llama-edge does."""
    limits = (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_AS, _MEMORY_BYTES, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 5),  # a signal that tells why, then SIGKILL
    )
    for limit, soft, hard in limits:
        with suppress(ValueError, OSError):  # macOS has no limit of address space
            resource.setrlimit(limit, (soft, hard))
    text = sys.stdin.buffer.read().decode()

    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("a")
    except Exception as error:  # the library raises nothing narrower
        sys.stdout.write(str(error))
        return _REFUSED
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    ids = sorted(vocabulary.values())
    some = " ".join(sorted(vocabulary)[:: 1 + len(vocabulary) // _ENCODED_TOKENS])
    for control_tokens in (True, False):
        tokenizer.encode_special_tokens = not control_tokens
        for sample in (*_SAMPLES, some):
            with suppress(Exception):  # a character without a token is no fault of the file
                tokenizer.encode(sample, add_special_tokens=False)
        with suppress(Exception):
            tokenizer.decode(ids, skip_special_tokens=control_tokens)
    return 0


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1])))
