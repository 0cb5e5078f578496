"""A package's functions as one program: the one whose sizes fit a call is run.

A package has one function, `main`, that takes any number of tokens, or several with fixed numbers
of tokens, of which one takes a single token. All of them go on from the same states.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.errors import SessionError
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.runtimes.coreml.interpreter import Interpreter, Precision

TOKENS: Final = "inputIds"


def fixed_lengths(package: MLPackage) -> dict[int, str]:
    """Function by the number of tokens that it takes, ascending; none where any number is taken.

    Raises:
        ArtifactError: A function has no description.
        SessionError: The functions do not belong together.
    """
    if len(package.functions) == 1:
        return {}
    lengths: dict[int, str] = {}
    for name in package.functions:
        shapes = {
            entry.name: tuple(entry.type.multiArrayType.shape)
            for entry in package.described(name).input
        }
        shape = shapes.get(TOKENS, ())
        if len(shape) != 2 or shape[1] in lengths:
            raise SessionError(
                f"{package.path}: function {name!r} takes {TOKENS} {shape}; (1, T) with a T of its "
                "own is needed"
            )
        lengths[shape[1]] = name
    if 1 not in lengths:
        raise SessionError(f"{package.path}: no function takes a single token")
    return dict(sorted(lengths.items()))


def pieces(
    count: int, used: int, max_context: int, lengths: Sequence[int]
) -> Iterable[tuple[int, int]]:
    """How to read `count` tokens: for each call, how many of them and how many places it takes.

    A call of more places than tokens is filled up; what stands there is written into the cache
    after all that counts, hidden from every earlier token, and overwritten by the next call. So
    it must fit into the context, and where it does not, single tokens do.

    Args:
        count: Tokens that are left.
        used: Tokens in the cache.
        max_context: Tokens that the cache holds.
        lengths: What the functions take, ascending, the first being 1.
    """
    while count:
        fitting = [length for length in lengths if used + length <= max_context]
        places = next((length for length in fitting if length >= count), fitting[-1])
        taken = min(count, places)
        yield taken, places
        count -= taken
        used += taken


class InterpretedFunctions:
    """A `StatefulProgram` of all functions of a package.

    Raises:
        ArtifactError: The package is damaged.
        SessionError: Its functions do not belong together.
    """

    def __init__(self, package: MLPackage, precision: Precision) -> None:
        first, *others = package.functions
        self.lengths = fixed_lengths(package)
        self._cache_dtype = {
            Precision.EXACT: KVCacheDtype.FLOAT32,
            Precision.HALF: KVCacheDtype.FLOAT16,
        }[precision]
        self.default = Interpreter(package, first, precision=precision)
        beside = {
            name: Interpreter(package, name, precision=precision, beside=self.default)
            for name in others
        }
        self.functions: Mapping[str, Interpreter] = {first: self.default, **beside}

    def run(
        self, feeds: Mapping[str, NDArray[Any]], also: Iterable[str] = ()
    ) -> Mapping[str, NDArray[Any]]:
        """See `StatefulProgram`."""
        name = self.lengths.get(feeds[TOKENS].shape[1])
        function = self.default if name is None else self.functions[name]
        return function.run(feeds, also)

    def reset(self) -> None:
        """See `StatefulProgram`."""
        self.default.reset()

    @property
    def cache_dtype(self) -> KVCacheDtype:
        """See `StatefulProgram`."""
        return self._cache_dtype

    def read_state(self, name: str) -> NDArray[Any]:
        """See `StatefulProgram`."""
        return self.default.state(name)

    def write_state(self, name: str, value: NDArray[Any]) -> None:
        """See `StatefulProgram`."""
        self.default.set_state(name, value)
