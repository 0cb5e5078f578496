"""What a folder tells ONNX Runtime GenAI, and what its graph has room for.

Source: `src/config.cpp` in ONNX Runtime GenAI for the names in `genai_config.json`. The folder may
be its own model builder's.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import onnx

from llama_edge.backends.onnx.external_data import MODEL_FILE, load_graph
from llama_edge.backends.onnx.genai_config import CONFIG_FILE
from llama_edge.core.errors import ArtifactError
from llama_edge.core.json_files import read_json_object
from llama_edge.core.runner_values import RunnerField, RunnerValue

_MODEL_NUMBERS: Final = {
    "bos_token_id": RunnerField.BOS_TOKEN_ID,
    "context_length": RunnerField.MAX_CONTEXT,
    "vocab_size": RunnerField.VOCAB_SIZE,
}
_DECODER_NUMBERS: Final = {
    "head_size": RunnerField.HEAD_DIM,
    "hidden_size": RunnerField.HIDDEN_SIZE,
    "num_attention_heads": RunnerField.NUM_ATTENTION_HEADS,
    "num_hidden_layers": RunnerField.NUM_HIDDEN_LAYERS,
    "num_key_value_heads": RunnerField.NUM_KEY_VALUE_HEADS,
}
#: Attention with RoPE inside; its inputs 7 and 8 are tables with one row per position.
_ATTENTION: Final = "GroupQueryAttention"
_TABLES: Final = (7, 8)
_DEFAULT_PAST_KEY: Final = "past_key_values.%d.key"
_DEFAULT_LOGITS: Final = "logits"


def read_runner_values(folder: Path) -> tuple[RunnerValue, ...]:
    """See `Exporter`.

    Raises:
        ArtifactError: `genai_config.json` or the graph is missing or damaged.
    """
    config = read_json_object(folder / CONFIG_FILE)
    model = _part(config, "model", CONFIG_FILE)
    decoder = _part(model, "decoder", CONFIG_FILE)
    search = _optional(config, "search", CONFIG_FILE)
    return (
        *_numbers(model, _MODEL_NUMBERS, "model"),
        *_numbers(decoder, _DECODER_NUMBERS, "model.decoder"),
        *_end_tokens(model),
        *_numbers(search, {"max_length": RunnerField.MAX_CONTEXT}, "search"),
        *_graph_values(model_path(folder, decoder), decoder),
    )


def model_path(folder: Path, decoder: Mapping[str, Any]) -> Path:
    """The graph that `genai_config.json` names.

    Raises:
        ArtifactError: It lies outside of the folder.
    """
    name = decoder.get("filename", MODEL_FILE)
    path = PurePosixPath(name if isinstance(name, str) else "..")
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactError(f"{folder / CONFIG_FILE}: filename {name!r} lies outside of the folder")
    return folder / path


def _part(value: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    part = value.get(key)
    if not isinstance(part, dict):
        raise ArtifactError(f"{where}: {key} is {part!r}; an object is needed")
    return part


def _optional(value: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    return {} if value.get(key) is None else _part(value, key, where)


def _numbers(
    part: Mapping[str, Any], fields: Mapping[str, RunnerField], place: str
) -> Iterator[RunnerValue]:
    for key, field in fields.items():
        number = part.get(key)
        if number is None:
            continue
        where = f"{CONFIG_FILE}: {place}.{key}"
        if type(number) is not int:
            raise ArtifactError(f"{where} is {number!r}; an integer is needed")
        yield RunnerValue(field=field, where=where, value=number)


def _end_tokens(model: Mapping[str, Any]) -> Iterator[RunnerValue]:
    ids = model.get("eos_token_id")
    numbers: list[Any] = ids if isinstance(ids, list) else [ids]
    where = f"{CONFIG_FILE}: model.eos_token_id"
    if not all(type(number) is int for number in numbers):
        raise ArtifactError(f"{where} is {ids!r}; an id or a list of them is needed")
    yield RunnerValue(field=RunnerField.EOS_TOKEN_IDS, where=where, value=tuple(numbers))


def _graph_values(path: Path, decoder: Mapping[str, Any]) -> Iterator[RunnerValue]:
    graph = load_graph(path).graph
    names = _optional(decoder, "inputs", CONFIG_FILE)
    pattern = names.get("past_key_names", _DEFAULT_PAST_KEY)
    keys = [value for value in graph.input if _is_past_key(value.name, pattern)]
    if keys:
        yield RunnerValue(
            field=RunnerField.NUM_HIDDEN_LAYERS,
            where=f"{path.name}: inputs {pattern}",
            value=len(keys),
        )
        yield from _sizes(
            keys[0],
            {1: RunnerField.NUM_KEY_VALUE_HEADS, 3: RunnerField.HEAD_DIM},
            f"{path.name}: input {keys[0].name}",
        )
    outputs = _optional(decoder, "outputs", CONFIG_FILE)
    logits = outputs.get("logits", _DEFAULT_LOGITS)
    for value in graph.output:
        if value.name == logits:
            yield from _sizes(
                value, {2: RunnerField.VOCAB_SIZE}, f"{path.name}: output {value.name}"
            )
    yield from _tables(graph, path.name)


def _is_past_key(name: str, pattern: object) -> bool:
    start, marker, end = str(pattern).partition("%d")
    layer = name.removeprefix(start).removesuffix(end)
    return bool(marker) and name == f"{start}{layer}{end}" and layer.isascii() and layer.isdigit()


def _sizes(
    value: onnx.ValueInfoProto, fields: Mapping[int, RunnerField], where: str
) -> Iterator[RunnerValue]:
    """Dimensions that the graph fixes."""
    dimensions = value.type.tensor_type.shape.dim
    for place, field in fields.items():
        if place < len(dimensions) and dimensions[place].dim_value > 0:
            yield RunnerValue(field=field, where=where, value=int(dimensions[place].dim_value))


def _tables(graph: onnx.GraphProto, file: str) -> Iterator[RunnerValue]:
    """Past the end of its position tables a graph cannot go, however large the cache is."""
    rows = {proto.name: proto.dims[0] for proto in graph.initializer if proto.dims}
    found = {
        node.input[place]: rows[node.input[place]]
        for node in graph.node
        if node.op_type == _ATTENTION
        for place in _TABLES
        if place < len(node.input) and node.input[place] in rows
    }
    if found:
        name = min(found, key=lambda name: found[name])
        yield RunnerValue(
            field=RunnerField.CACHE_TOKENS, where=f"{file}: {name}", value=int(found[name])
        )
