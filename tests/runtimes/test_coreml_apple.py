"""The order of calls to Core ML, against a stand-in: no machine of the project's has Core ML."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.models import MLModel
from numpy.typing import NDArray

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.core.artifact import Artifact, KVCacheDtype, PrefillLengths
from llama_edge.core.errors import MissingComponentError, SessionError, UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.runtimes import OTHER_RUNTIMES, RUNTIMES, choose_runtime, get_runtime
from llama_edge.runtimes.coreml.functions import InterpretedFunctions
from llama_edge.runtimes.coreml.interpreter import Precision

TOKENS = [(7 * position * position + 3 * position) % 256 for position in range(20)]


class StandIn:
    """What `MLModel` offers, on the interpreter: each state object is a sequence of its own."""

    def __init__(self, path: str, function_name: str | None = None) -> None:
        self._package = MLPackage(Path(path))
        self._name = function_name or self._package.functions[0]

    def make_state(self) -> InterpretedFunctions:
        return InterpretedFunctions(self._package, Precision.EXACT)

    def predict(
        self, feeds: Mapping[str, NDArray[Any]], state: InterpretedFunctions
    ) -> dict[str, NDArray[Any]]:
        found = state.functions[self._name].run(feeds)
        if feeds["position"] == 19:
            raise RuntimeError("no more")
        return {name: values.astype(np.float16) for name, values in found.items()}


@pytest.fixture(scope="module", params=[*PrefillLengths])
def package(
    debug_quantized: QuantizedCheckpoint,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Artifact:
    folder = tmp_path_factory.mktemp("coreml")
    options = LowerOptions(max_context=64, prefill=request.param)
    return CoreMLExporter().lower(debug_quantized, folder, options, SilentProgress())


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr("coremltools.models.MLModel", StandIn)


@pytest.mark.usefixtures("mac")
def test_tokens_positions_and_states_reach_core_ml(package: Artifact) -> None:
    with get_runtime("coreml").open(package) as session:
        prompt, step = session.prefill_logits(TOKENS[:9]), session.decode(TOKENS[9])
    with get_runtime("coreml-apple").open(package) as session:
        for _ in range(2):
            found = session.prefill_logits(TOKENS[:9])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, prompt, atol=5e-3)
            np.testing.assert_allclose(session.decode(TOKENS[9]), step, atol=5e-3)
            session.reset()


@pytest.mark.usefixtures("mac")
def test_what_core_ml_raises_is_an_error_of_ours(package: Artifact) -> None:
    with get_runtime("coreml-apple").open(package) as session:
        session.prefill(TOKENS[:19])
        with pytest.raises(SessionError, match=r"model\.mlpackage: Core ML failed: no more"):
            session.decode(TOKENS[19])


@pytest.mark.usefixtures("mac")
def test_states_go_through_core_ml_s_own_calls(
    package: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`read_state` and `write_state`, as `coremltools.models.MLState` has them."""
    runtime = get_runtime("coreml-apple")
    with runtime.open(package) as session:
        session.prefill(TOKENS[:9])
        state = session.save()
        step = session.decode(TOKENS[9])
    assert state.kv_cache is KVCacheDtype.FLOAT16
    assert {array.dtype.name for array in state.arrays.values()} == {"float16"}
    with runtime.open(package) as session:
        session.restore(state)
        assert session.save().equals(state)
        np.testing.assert_allclose(session.decode(TOKENS[9]), step, atol=5e-3)

    def refuse(*_: object) -> None:
        raise RuntimeError("no such state")

    monkeypatch.setattr(InterpretedFunctions, "read_state", refuse)
    with runtime.open(package) as session:
        session.prefill(TOKENS[:9])
        with pytest.raises(SessionError, match="does not give out the state keyCache: no such"):
            session.save()


def test_a_package_that_core_ml_refuses(
    package: Artifact, mac: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, function_name: str | None) -> None:
        raise RuntimeError("Error compiling model")

    monkeypatch.setattr("coremltools.models.MLModel", refuse)
    with pytest.raises(SessionError, match="Core ML refuses the package: Error compiling"):
        get_runtime("coreml-apple").open(package)


@pytest.mark.usefixtures("mac")
def test_inner_values_are_the_interpreters_to_show(package: Artifact) -> None:
    with pytest.raises(SessionError, match="Core ML shows no inner values"):
        get_runtime("coreml-apple").trace(package, [[1]])


def test_without_core_ml_it_is_a_missing_component(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(MissingComponentError, match="a part of macOS and this is Linux") as caught:
        get_runtime("coreml-apple")
    assert caught.value.exit_code == 4


def test_a_runtime_is_chosen_by_the_backends_name() -> None:
    assert not set(RUNTIMES) & set(OTHER_RUNTIMES)
    assert choose_runtime("coreml", None) == "coreml"
    assert choose_runtime("coreml", "coreml-fp16") == "coreml-fp16"
    with pytest.raises(UsageError, match="runs on: coreml, coreml-apple, coreml-fp16"):
        choose_runtime("coreml", "onnx")


def test_the_stand_in_has_what_is_called() -> None:
    for name in ("make_state", "predict"):
        assert callable(getattr(MLModel, name))
