"""What an artifact's operators made agrees with what its blocks and its logits show."""

from collections.abc import Mapping

import numpy as np
import pytest

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import Bundle
from llama_edge.core.artifact import Artifact
from llama_edge.core.errors import ArtifactError
from llama_edge.runtimes import get_runtime
from llama_edge.runtimes.executorch_operators import write_operator_copy

CALLS = [[3, 40, 41, 42, 43], [44], [45]]
#: next to what every runtime shows
SHOWN = {"android": {"q_rope", "k_rope"}, "onnx": set[str]()}
EVERY = {"hidden", "input_layernorm", "q_proj", "k_proj", "v_proj", "key_cache", "value_cache"}
EVERY |= {"attention", "o_proj", "attention_residual", "post_attention_layernorm", "gate_proj"}
EVERY |= {"up_proj", "swiglu", "down_proj", "mlp_residual"}


def artifact_of(bundle: Bundle) -> Artifact:
    return get_exporter(bundle.manifest.backend).open(bundle.root).artifact


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_values_are_those_of_the_blocks(target: str, debug_bundles: Mapping[str, Bundle]) -> None:
    artifact = artifact_of(debug_bundles[target])
    runtime = get_runtime(artifact.backend)
    blocks = runtime.trace(artifact, CALLS)
    found = runtime.trace_operators(artifact, CALLS, [0, 1])
    assert found.calls == blocks.calls == (5, 1, 1)
    assert set(found.blocks[1]) == EVERY | SHOWN[target]
    for layer in (0, 1):
        values = found.blocks[layer]
        np.testing.assert_array_equal(values["hidden"], blocks.hidden[layer])
        np.testing.assert_array_equal(values["mlp_residual"], blocks.hidden[layer + 1])
        np.testing.assert_array_equal(values["attention"], blocks.attention[layer])
        np.testing.assert_array_equal(values["value_cache"], values["v_proj"])
        total = values["attention_residual"] + values["down_proj"]
        np.testing.assert_allclose(values["mlp_residual"], total, rtol=1e-6)
    np.testing.assert_array_equal(found.head["lm_head"], blocks.logits)
    np.testing.assert_array_equal(found.head["hidden"], blocks.hidden[2][[4, 5, 6]])
    alone = runtime.trace_operators(artifact, CALLS, [1])
    assert set(alone.blocks) == {1}
    for name, value in alone.blocks[1].items():
        np.testing.assert_array_equal(value, found.blocks[1][name])


def test_a_damaged_delegate_is_told(debug_bundles: Mapping[str, Bundle]) -> None:
    """Its payload's header is read before anything runs."""
    bundle = debug_bundles["android"]
    artifact = artifact_of(bundle)
    data = bytearray(artifact.path.read_bytes())
    place = data.find(b"XH00")
    assert place > 0
    data[place] ^= 0xFF
    damaged = artifact.path.with_name("damaged.pte")
    damaged.write_bytes(data)
    other = Artifact(
        backend=artifact.backend,
        root=artifact.root,
        files=(damaged.name,),
        config=artifact.config,
        activation=artifact.activation,
        max_context=artifact.max_context,
        max_prefill=artifact.max_prefill,
    )
    try:
        with pytest.raises(ArtifactError, match="payload cannot be parsed"):
            write_operator_copy(other, artifact.root / "copy.pte", [0], 8)
    finally:
        damaged.unlink()
