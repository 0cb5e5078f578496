"""Core ML packages on Core ML itself, which macOS has and no other desktop.

The project has no Mac. That the calls below are made in the right order is tested against a
stand-in of coremltools' `MLModel`; that Core ML takes them is not. Source of the calls:
coremltools' guide, "Stateful Models".
"""

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import coremltools as ct
import numpy as np
from numpy.typing import NDArray

from llama_edge.core.artifact import Artifact, KVCacheDtype
from llama_edge.core.errors import ArtifactError, MissingComponentError, SessionError
from llama_edge.core.session import BlockTrace, OperatorTrace
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.runtimes.coreml.functions import TOKENS, fixed_lengths
from llama_edge.runtimes.coreml.session import LOGITS, CoreMLSession, package_folder


class AppleProgram:
    """A `StatefulProgram` on coremltools' `MLModel`, on whatever compute units Core ML chooses.

    Raises:
        SessionError: Core ML refuses the package.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._place = package_folder(artifact)
        self._cache_dtype = artifact.kv_cache
        try:
            self.lengths = fixed_lengths(MLPackage(self._place))
            self._models = {
                name: ct.models.MLModel(str(self._place), function_name=name)
                for name in self.lengths.values() or (None,)
            }
            # One state for all functions, as coremltools' guide to several functions has it.
            self._maker = next(iter(self._models.values()))
            self._state = self._maker.make_state()
        except ArtifactError as error:
            raise SessionError(str(error)) from error
        except (RuntimeError, ValueError, OSError) as error:
            raise SessionError(f"{self._place}: Core ML refuses the package: {error}") from error

    def run(
        self, feeds: Mapping[str, NDArray[Any]], also: Iterable[str] = ()
    ) -> Mapping[str, NDArray[Any]]:
        """See `StatefulProgram`; Core ML returns outputs only.

        Raises:
            SessionError: The run failed.
        """
        assert not list(also), "AppleRuntime.trace refuses to ask for more"
        model = self._models[self.lengths.get(feeds[TOKENS].shape[1])]
        try:
            found = model.predict(dict(feeds), state=self._state)
        except (RuntimeError, ValueError) as error:
            raise SessionError(f"{self._place}: Core ML failed: {error}") from error
        return {LOGITS: np.asarray(found[LOGITS], np.float32)}

    def reset(self) -> None:
        """See `StatefulProgram`."""
        self._state = self._maker.make_state()

    @property
    def cache_dtype(self) -> KVCacheDtype:
        """See `StatefulProgram`."""
        return self._cache_dtype

    def read_state(self, name: str) -> NDArray[Any]:
        """See `StatefulProgram`.

        Raises:
            SessionError: Core ML does not give it out.
        """
        try:
            return np.array(self._state.read_state(name))
        except (RuntimeError, ValueError) as error:
            raise SessionError(
                f"{self._place}: Core ML does not give out the state {name}: {error}"
            ) from error

    def write_state(self, name: str, value: NDArray[Any]) -> None:
        """See `StatefulProgram`.

        Raises:
            SessionError: Core ML does not take it.
        """
        try:
            self._state.write_state(name, value)
        except (RuntimeError, ValueError) as error:
            raise SessionError(
                f"{self._place}: Core ML does not take the state {name}: {error}"
            ) from error


class AppleRuntime:
    """The `Runtime` of Core ML packages on a Mac.

    Raises:
        MissingComponentError: This is none.
    """

    name = "coreml-apple"

    def __init__(self) -> None:
        if platform.system() != "Darwin":
            raise MissingComponentError(
                f"runtime {self.name}: Core ML is a part of macOS and this is "
                f"{platform.system()}; use the runtime coreml, which interprets the package"
            )

    def version(self) -> str:
        """See `Runtime`."""
        return f"Core ML of macOS {platform.mac_ver()[0]}, coremltools {ct.__version__}"

    def open(self, artifact: Artifact) -> CoreMLSession:
        """See `Runtime`."""
        return CoreMLSession(artifact, AppleProgram(artifact))

    def trace(self, artifact: Artifact, calls: Sequence[Sequence[int]]) -> BlockTrace:
        """See `Runtime`.

        Raises:
            SessionError: Always: Core ML shows no inner values.
        """
        raise SessionError(
            f"{package_folder(artifact)}: Core ML shows no inner values to check {len(calls)} "
            "calls block by block; the runtime coreml does"
        )

    def trace_operators(
        self, artifact: Artifact, calls: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> OperatorTrace:
        """See `Runtime`.

        Raises:
            SessionError: Always: Core ML shows no inner values.
        """
        raise SessionError(
            f"{package_folder(artifact)}: Core ML shows no inner values to look at the operators "
            f"of {len(layers)} blocks in {len(calls)} calls; the runtime coreml does"
        )
