"""What a package tells the app that loads it, and what its states have room for."""

from pathlib import Path
from typing import Final

from llama_edge.backends.coreml.metadata import (
    CONTRACT_KEY,
    EOS_KEY,
    LOWERING_KEY,
    read_metadata,
)
from llama_edge.core.runner_values import RunnerField, RunnerValue
from llama_edge.formats.mlpackage import MLPackage

#: A state is (layers, 1, key/value heads, tokens, head_dim).
_STATE_DIMENSIONS: Final = 5
_TOKENS: Final = 3


def read_runner_values(path: Path) -> tuple[RunnerValue, ...]:
    """See `Exporter`; `path` is the package.

    Raises:
        ArtifactError: It is damaged, or not one of ours.
    """
    package = MLPackage(path)
    metadata = read_metadata(path, package.metadata)
    file = path.name
    values = [
        RunnerValue(
            field=RunnerField.EOS_TOKEN_IDS,
            where=f"{file}: {EOS_KEY}",
            value=metadata.eos_token_ids,
        ),
        RunnerValue(
            field=RunnerField.MAX_CONTEXT,
            where=f"{file}: {LOWERING_KEY}",
            value=metadata.lowering.max_context,
        ),
        RunnerValue(
            field=RunnerField.MAX_PREFILL,
            where=f"{file}: {LOWERING_KEY}",
            value=metadata.lowering.max_prefill,
        ),
        RunnerValue(
            field=RunnerField.TEXT_CONTRACT_SHA256,
            where=f"{file}: {CONTRACT_KEY}",
            value=metadata.text_contract_sha256,
        ),
    ]
    for state in package.spec.description.state:
        shape = state.type.stateType.arrayType.shape
        if len(shape) == _STATE_DIMENSIONS:
            values.append(
                RunnerValue(
                    field=RunnerField.CACHE_TOKENS,
                    where=f"{file}: state {state.name}",
                    value=int(shape[_TOKENS]),
                )
            )
    return tuple(values)
