"""How a fault gets into a bundle: by accident, or by a liar who makes every hash agree."""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
from executorch.exir import schema

from llama_edge.backends.coreml.package import CODED, mil_name
from llama_edge.backends.onnx.exporter import OnnxExporter
from llama_edge.bundle.folder import list_files
from llama_edge.bundle.signing import load_private_key, sign_manifest
from llama_edge.core.json_files import canonical_json
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.formats.pte import PteFile, encode_program
from llama_edge.text.contract import build_text_contract
from llama_edge.text.text_assets import read_text_assets

Json = dict[str, Any]
MODEL = "com.apple.CoreML/model.mlmodel"


def edit_json(path: Path, change: Callable[[Json], None]) -> None:
    value: Json = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(canonical_json(value), encoding="utf-8")


def edit_manifest(folder: Path, change: Callable[[Json], None]) -> None:
    edit_json(folder / "manifest.json", change)


def put(value: Json, place: str, new: object) -> None:
    """Set the field that `place` names, as in `artifact.max_context`."""
    *path, last = place.split(".")
    for step in path:
        value = value[step]
    value[last] = new


def rehash(folder: Path) -> None:
    """Make the manifest's list agree with the files."""

    def change(manifest: Json) -> None:
        first = [entry["path"] for entry in manifest["files"]]
        manifest["files"] = [dataclasses.asdict(entry) for entry in list_files(folder, first)]

    edit_manifest(folder, change)


def sign(folder: Path, key: Path) -> None:
    """As the holder of the key would, whatever `doctor` says."""
    sign_manifest(folder, (folder / "manifest.json").read_bytes(), load_private_key(key))


def rewrite_text(folder: Path) -> None:
    """Make the manifest's text contract what the text files make of it, and the hashes agree."""
    contract = dataclasses.asdict(build_text_contract(read_text_assets(folder)))
    edit_manifest(folder, lambda manifest: manifest.update(text=contract))
    rehash(folder)


def edit_bytes(path: Path, start: int, change: Callable[[bytes], bytes], size: int) -> None:
    data = bytearray(path.read_bytes())
    data[start : start + size] = change(bytes(data[start : start + size]))
    path.write_bytes(data)


def swap_nibbles(piece: bytes) -> bytes:
    """The first byte whose two codes differ, with the two exchanged."""
    place = next(index for index, byte in enumerate(piece) if byte >> 4 != byte & 15)
    swapped = piece[place] >> 4 | (piece[place] & 15) << 4
    return piece[:place] + bytes([swapped]) + piece[place + 1 :]


def next_bf16(piece: bytes) -> bytes:
    """The first scale, one bfloat16 step up."""
    (bits,) = struct.unpack_from("<H", piece)
    return struct.pack("<H", bits + 1) + piece[2:]


def next_fp16_that_is_bf16(piece: bytes) -> bytes:
    """The first fp16 scale, one bfloat16 step up: eight steps of fp16."""
    (bits,) = struct.unpack_from("<H", piece)
    return struct.pack("<H", bits + 8) + piece[2:]


# ONNX


def edit_graph(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    path = folder / "model.onnx"
    model = onnx.load_model_from_string(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def edit_onnx_data(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    model = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    proto = next(entry for entry in model.graph.initializer if entry.name == name)
    place = {
        entry.key: int(entry.value) for entry in proto.external_data if entry.key != "location"
    }
    edit_bytes(folder / "model.onnx.data", place["offset"], change, place["length"])


def edit_onnx_metadata(folder: Path, key: str, change: Callable[[Json], None]) -> None:
    def change_entry(model: onnx.ModelProto) -> None:
        entry = next(prop for prop in model.metadata_props if prop.key == key)
        value: Json = json.loads(entry.value)
        change(value)
        entry.value = json.dumps(value, sort_keys=True)

    edit_graph(folder, change_entry)


def leave_unquantized(folder: Path, name: str) -> None:
    """The linear in float32 inside of the graph, as an exporter does that skips a layer."""
    weight = (
        OnnxExporter()
        .open(folder / "model.onnx")
        .weights()
        .quantized(name)
        .dequantize()
        .T.contiguous()
    )

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        (node,) = (node for node in graph.node if f"{name}.codes" in node.input)
        data, output = node.input[0], node.output[0]
        node.CopyFrom(onnx.helper.make_node("MatMul", [data, name], [output]))
        (codes,) = (entry for entry in graph.initializer if entry.name == f"{name}.codes")
        graph.initializer.remove(codes)
        graph.initializer.append(onnx.numpy_helper.from_array(weight.numpy(), name))

    edit_graph(folder, change)


# ExecuTorch


def edit_program(folder: Path, change: Callable[[PteFile], None]) -> None:
    path = folder / "model.pte"
    pte = PteFile(path)
    change(pte)
    path.write_bytes(encode_program(pte.program)[0] + bytes(pte.segment_data()))


def edit_pte_data(folder: Path, key: str, change: Callable[[bytes], bytes]) -> None:
    path = folder / "model.pte"
    pte = PteFile(path)
    placed = pte.program.segments[pte.named()[key]]
    start = path.stat().st_size - len(pte.segment_data()) + placed.offset
    edit_bytes(path, start, change, placed.size)


def set_constant(folder: Path, method: str, *numbers: int) -> None:
    def change(pte: PteFile) -> None:
        plan = pte.method(method)
        plan.values = [schema.EValue(schema.Int(number)) for number in numbers]
        plan.outputs = list(range(len(numbers)))

    edit_program(folder, change)


def shrink_caches(folder: Path, tokens: int) -> None:
    def change(pte: PteFile) -> None:
        plan = pte.method("forward")
        for instruction in plan.chains[0].instructions:
            call = instruction.instr_args
            if isinstance(call, schema.KernelCall) and "update_cache" in (
                plan.operators[call.op_index].name
            ):
                plan.values[call.args[1]].val.sizes[1] = tokens

    edit_program(folder, change)


def drop_last_delegate(folder: Path) -> None:
    """The head outside of XNNPACK, in a portable kernel."""

    def change(pte: PteFile) -> None:
        plan = pte.method("forward")
        plan.operators.append(schema.Operator("aten::linear", "out"))
        call = plan.chains[0].instructions[-1]
        arguments = call.instr_args.args
        call.instr_args = schema.KernelCall(len(plan.operators) - 1, list(arguments))
        plan.delegates.pop()

    edit_program(folder, change)


def drop_named_data(folder: Path, key: str) -> None:
    def change(pte: PteFile) -> None:
        named = pte.program.named_data or []
        assert key in {entry.key for entry in named}
        pte.program.named_data = [entry for entry in named if entry.key != key]

    edit_program(folder, change)


# Core ML


def edit_spec(folder: Path, change: Callable[[Any], None]) -> None:
    path = folder / "model.mlpackage" / "Data" / MODEL
    spec = MLPackage(folder / "model.mlpackage").spec
    change(spec)
    path.write_bytes(spec.SerializeToString(deterministic=True))


def edit_package_metadata(folder: Path, key: str, change: Callable[[Any], object]) -> None:
    def change_entry(spec: Any) -> None:  # noqa: ANN401
        entries = spec.description.metadata.userDefined
        value = json.loads(entries[key])
        entries[key] = json.dumps(change(value), sort_keys=True)

    edit_spec(folder, change_entry)


def edit_package_data(folder: Path, name: str, part: str, change: Callable[[bytes], bytes]) -> None:
    """`part` of a coded matrix, "data" or "scale", where `weight.bin` has it."""
    package = MLPackage(folder / "model.mlpackage")
    (operation,) = (
        entry
        for entry in package.block("main").operations
        if entry.type == CODED and entry.outputs[0].name == mil_name(name)
    )
    offset = operation.inputs[part].arguments[0].value.blobFileValue.offset
    path = folder / "model.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    _, _, size, start = struct.unpack_from("<IIQQ", path.read_bytes(), offset)
    edit_bytes(path, start, change, size)


# Text


def merged_ids_swapped(tokenizer: Json) -> None:
    """Two tokens that merges make exchange their ids."""
    vocab = tokenizer["model"]["vocab"]
    vocab["Ġthe"], vocab["re"] = vocab["re"], vocab["Ġthe"]


def begin_twice(tokenizer: Json) -> None:
    """A post-processor that puts BOS first, and once more."""
    special = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [3], "tokens": ["<|begin|>"]}},
    }


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tensors(manifest: Json) -> Mapping[str, Json]:
    return {entry["name"]: entry for entry in manifest["tensors"]}
