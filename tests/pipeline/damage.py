"""Faults planted in the files of a written bundle, one each; the manifest stays as it was."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from llama_edge.backends import get_exporter
from llama_edge.formats.pte import PteFile

Damage = Callable[[Path, int], None]


def _linear(layer: int, part: str) -> str:
    return f"model.layers.{layer}.{part}.weight"


def _onnx_place(folder: Path, name: str) -> int:
    model = onnx.load_model(folder / "model.onnx", load_external_data=False)
    proto = next(item for item in model.graph.initializer if item.name == name)
    return next(int(item.value) for item in proto.external_data if item.key == "offset")


def _pte_place(folder: Path, key: str) -> int:
    pte = PteFile(folder / "model.pte")
    index = pte.named()[key]
    return int(len(pte._view) - len(pte.segment_data()) + pte.program.segments[index].offset)


def _change(path: Path, place: int, change: Callable[[bytes], bytes], length: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        data = stream.read(length)
        changed = change(data)
        assert changed != data
        stream.seek(place)
        stream.write(changed)


def _place(folder: Path, name: str) -> tuple[Path, int]:
    if (folder / "model.onnx").exists():
        return folder / "model.onnx.data", _onnx_place(folder, name)
    return folder / "model.pte", _pte_place(folder, name)


def swap_nibbles(folder: Path, layer: int) -> None:
    """The first byte of down_proj whose two codes differ has them swapped: one pair."""
    path, place = _place(folder, f"{_linear(layer, 'mlp.down_proj')}.codes")
    data = path.read_bytes()[place : place + 4096]
    offset = next(index for index, byte in enumerate(data) if byte >> 4 != byte & 0xF)
    _change(path, place + offset, lambda byte: bytes([byte[0] >> 4 | (byte[0] & 0xF) << 4]), 1)


def step_scale(folder: Path, layer: int) -> None:
    """One scale of o_proj is the next larger bfloat16."""
    path, place = _place(folder, f"{_linear(layer, 'self_attn.o_proj')}.scales")
    _change(path, place, lambda data: struct.pack("<H", struct.unpack("<H", data)[0] + 1), 2)


def _edit(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    path = folder / "model.onnx"
    model = onnx.load_model(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def _node(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def _set(node: onnx.NodeProto, name: str, value: float) -> None:
    attribute = next(item for item in node.attribute if item.name == name)
    attribute.CopyFrom(helper.make_attribute(name, value))


def transpose_rope(folder: Path, layer: int) -> None:
    """Neighbours are turned against each other, where halves of a head should be."""
    output = f"model.layers.{layer}.self_attn.output"
    _edit(folder, lambda model: _set(_node(model, output), "rotary_interleaved", 1))


def smaller_epsilon(folder: Path, layer: int) -> None:
    """1e-6 for 1e-5."""
    name = "input_layernorm" if layer == 0 else "post_attention_layernorm"
    output = f"model.layers.{layer}.{name}.output"
    _edit(folder, lambda model: _set(_node(model, output), "epsilon", 1e-6))


def float_activations(folder: Path, layer: int) -> None:
    """One linear of an int8 artifact leaves its input as it is."""
    output = f"model.layers.{layer}.mlp.gate_proj.output"
    _edit(folder, lambda model: _set(_node(model, output), "accuracy_level", 0))


def leave_unquantized(folder: Path, layer: int) -> None:
    """up_proj is a plain product with the dequantized matrix; its codes are gone."""
    exporter = get_exporter("onnx")
    name = _linear(layer, "mlp.up_proj")
    weight = (
        exporter.open(exporter.open(folder).artifact.path).weights().quantized(name).dequantize()
    )

    def change(model: onnx.ModelProto) -> None:
        node = _node(model, f"model.layers.{layer}.mlp.up_proj.output")
        matrix = numpy_helper.from_array(np.ascontiguousarray(weight.numpy().T), f"{name}.float")
        model.graph.initializer.append(matrix)
        x, output = node.input[0], node.output[0]
        node.CopyFrom(helper.make_node("MatMul", [x, matrix.name], [output], name=output))
        kept = [item for item in model.graph.initializer if item.name != f"{name}.codes"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)

    _edit(folder, change)


def cache_one_off(folder: Path, layer: int) -> None:
    """Every decode step writes one place before where it belongs; all layers alike."""
    assert layer == 0

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        node = _node(model, "attention_mask.last")
        node.output[0] = "attention_mask.right"
        made = [
            helper.make_node("Shape", ["input_ids"], ["fault.shape"]),
            helper.make_node("Gather", ["fault.shape", "fault.one"], ["fault.count"]),
            helper.make_node("Less", ["fault.count", "fault.two"], ["fault.decodes"]),
            helper.make_node("Cast", ["fault.decodes"], ["fault.off"], to=TensorProto.INT64),
            helper.make_node("Sub", ["attention_mask.right", "fault.off"], ["attention_mask.last"]),
        ]
        for name, number in (("fault.one", 1), ("fault.two", 2)):
            graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [], [number]))
        place = [*graph.node].index(node) + 1
        nodes = [*graph.node[:place], *made, *graph.node[place:]]
        copies = [onnx.NodeProto.FromString(item.SerializeToString()) for item in nodes]
        del graph.node[:]
        graph.node.extend(copies)

    _edit(folder, change)


def smaller_epsilon_pte(folder: Path, layer: int) -> None:
    """1e-6 for 1e-5; all norms share the constant, so the first is named."""
    assert layer == 0
    path, place = _place(folder, "rms_norm.eps")
    _change(path, place, lambda _: struct.pack("<f", 1e-6), 4)


def _rope_table(folder: Path, constant: int) -> int:
    pte = PteFile(folder / "model.pte")
    constants = pte.program.constant_segment
    front = len(pte._view) - len(pte.segment_data())
    return int(front + pte.program.segments[0].offset + constants.offsets[constant])


def transpose_rope_pte(folder: Path, layer: int) -> None:
    """Sines with the other sign: the transposed rotation."""
    assert layer == 0
    exporter = get_exporter("executorch")
    artifact = exporter.open(folder).artifact
    count = artifact.max_context * artifact.config.head_dim // 2
    place = _rope_table(folder, 4)

    def negated(data: bytes) -> bytes:
        return (-np.frombuffer(data, np.float32)).tobytes()

    _change(folder / "model.pte", place, negated, 4 * count)


ONNX_FAULTS: dict[str, tuple[Damage, str]] = {
    "nibble pair": (swap_nibbles, "down_proj"),
    "scale step": (step_scale, "o_proj"),
    "transposed rope": (transpose_rope, "rope"),
    "float activations": (float_activations, "gate_proj"),
    "unquantized": (leave_unquantized, "up_proj"),
}
PTE_FAULTS: dict[str, tuple[Damage, str]] = {
    "nibble pair": (swap_nibbles, "down_proj"),
    "scale step": (step_scale, "o_proj"),
}
