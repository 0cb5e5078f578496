"""A copy of a `.pte` whose delegates also return what their operators made.

Each XNNPACK graph is taken out of the file, some of its inner values are made outputs, and it is
put back as a further segment; nodes, weights and the other segments stay as they were written.
Which value is which follows from the weights: a linear is known by the name of its filter, and what
goes into it and out of it by its place in the graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from executorch.exir import schema
from executorch.exir.scalar_type import ScalarType

from llama_edge.core.artifact import Artifact
from llama_edge.core.errors import ArtifactError
from llama_edge.core.files import open_new
from llama_edge.core.model_config import ModelConfig
from llama_edge.formats.pte import PteFile, align, encode_program
from llama_edge.formats.pte_stacks import STACK_JOINT
from llama_edge.formats.xnnpack import build_payload, parse_payload
from llama_edge.models.blocks import Add, Attention, Hadamard, RMSNorm, SwiGLU
from llama_edge.models.network import STACK, Network, Node, network_of, product_name
from llama_edge.runtimes.executorch_trace import trace_plan

#: XNN_VALUE_FLAG_EXTERNAL_OUTPUT in XNNPACK's header.
_EXTERNAL_OUTPUT: Final = 2
_CODES: Final = ".codes"
_ALIGNMENT: Final = 64
_PADDING: Final = 128
_ATTENTION: Final = "llama::custom_sdpa"

Json = dict[str, Any]


class _Graph:
    """One delegate's XNNPACK graph, and what its values are called."""

    def __init__(self, payload: bytes) -> None:
        self.json = parse_payload(payload)
        constants = self.json.get("constant_data", [])
        self._tensors: dict[int, Json] = {}
        self._filters: dict[int, str] = {}
        for value in self.json.get("xvalues", []):
            union = value["xvalue_union"]
            tensor = union.get("tensor_value", union)
            number = tensor.get("id_out", 0)
            self._tensors[number] = tensor
            if tensor.get("constant_buffer_idx", 0):
                key = constants[tensor["constant_buffer_idx"]].get("named_key", "")
                self._filters[number] = key.removesuffix(_CODES)
        self._nodes = [
            (node["xnode_union_type"].removeprefix("XNN"), node["xnode_union"])
            for node in self.json.get("xnodes", [])
        ]
        self._makers = {
            node["output_id"]: (kind, node) for kind, node in self._nodes if "output_id" in node
        }

    def _linears(self) -> Iterator[tuple[str, Json]]:
        """By the name of the weight, in the graph's order."""
        for kind, node in self._nodes:
            name = (
                self._filters.get(node.get("filter_id", -1)) if kind == "FullyConnected" else None
            )
            if name is not None and name.endswith(".weight"):
                yield name, node

    def _before_rounding(self, value: int) -> int:
        kind, node = self._makers.get(value, ("", {}))
        return int(node.get("input_id", 0)) if kind == "Convert" else value

    def _sum_of(self, value: int) -> int | None:
        """The residual sum that `value` goes into."""
        for kind, node in self._nodes:
            if kind == "Add" and value in (node.get("input1_id", 0), node.get("input2_id", 0)):
                return int(node["output_id"])
        return None

    def named(self, network: Network) -> Iterator[tuple[int | None, str, int]]:
        """Layer (None: the head), name and number of each value that can be told by its weights."""
        for weight, node in self._linears():
            names = [name.removesuffix(".weight") for name in weight.split(STACK_JOINT)]
            source, out = self._before_rounding(node.get("input1_id", 0)), node["output_id"]
            if names[0] == network.lm_head.name:
                yield None, "head_input", source
                continue
            linears = [network.by_name[name] for name in names if name in network.by_name]
            if not linears or linears[0].layer is None:
                continue
            layer = linears[0].layer
            yield layer, product_name(linears).rpartition(".")[2], out
            around = self._around(network, linears[0], source, out)
            yield from ((layer, name, value) for name, value in around)

    def _around(
        self, network: Network, linear: Node, source: int, out: int
    ) -> Iterator[tuple[str, int]]:
        """What a linear reads, and the sum that it is added to, where these can be shown."""
        before = network.by_name[linear.inputs[0]]
        match before.block:
            case RMSNorm():
                yield before.part, source
            case SwiGLU():
                yield before.part, self._product(source)
            case Hadamard():
                yield before.part, source
                yield network.by_name[before.inputs[0]].part, self._product(source)
        for user in network.users(linear.name):
            total = self._sum_of(out)
            if isinstance(user.block, Add) and not network.leaves_layer(user) and total is not None:
                yield user.part, total

    def _product(self, source: int) -> int:
        """SwiGLU's product, after R4 where there is one."""
        value = source
        while (found := self._makers.get(value)) is not None and found[0] in (
            "StaticReshape",
            "StaticTranspose",
            "FullyConnected",
        ):
            value = int(found[1].get("input_id", found[1].get("input1_id", 0)))
        return value

    def shape(self, value: int) -> list[int]:
        return [int(size) for size in self._tensors[value].get("dims", [])]

    def show(self, value: int) -> bool:
        """Make an inner float32 value an output, the last one; False if it is one already."""
        tensor = self._tensors[value]
        if tensor.get("flags", 0):
            return False
        tensor["external_id"] = self.json["num_externs"]
        tensor["flags"] = _EXTERNAL_OUTPUT
        self.json["num_externs"] += 1
        self.json.setdefault("output_ids", []).append(value)
        return True

    def payload(self) -> bytes:
        return build_payload(self.json)


class _Copy:
    """Rewrites one plan; delegates that are looked into get a new payload."""

    def __init__(
        self, pte: PteFile, network: Network, layers: Sequence[int], most_tokens: int
    ) -> None:
        self._pte = pte
        self._network = network
        self._plan = pte.method("forward")
        self._layers = set(layers)
        self._tokens = most_tokens
        self._renamed: dict[int, int] = {}
        self.payloads: list[bytes] = []
        #: which output of the copied method is which: by layer (None: the head) and name
        self.shown: dict[tuple[int | None, str], int] = {}

    def _tensor(self, shape: Sequence[int]) -> int:
        """A float32 value with memory of its own, for at most so many tokens."""
        sizes = [min(size, self._tokens) if axis == 1 else size for axis, size in enumerate(shape)]
        size_bytes = 4 * _count(sizes) + _PADDING
        arenas = self._plan.non_const_buffer_sizes
        offset, arenas[1] = arenas[1], arenas[1] + size_bytes + -size_bytes % _ALIGNMENT
        tensor = schema.Tensor(
            scalar_type=ScalarType.FLOAT,
            storage_offset=0,
            sizes=sizes,
            dim_order=list(range(len(sizes))),
            requires_grad=False,
            layout=0,
            data_buffer_idx=0,
            allocation_info=schema.AllocationDetails(1, offset & 0xFFFFFFFF, offset >> 32),
            shape_dynamism=schema.TensorShapeDynamism.DYNAMIC_BOUND,
        )
        self._plan.values.append(schema.EValue(tensor))
        return len(self._plan.values) - 1

    def _output(self, layer: int | None, name: str, value: int) -> None:
        self.shown[layer, name] = len(self._plan.outputs)
        self._plan.outputs = [*self._plan.outputs, value]

    def run(self, config: ModelConfig) -> None:
        """Rewrite every delegate that has something of the wanted layers, and show the caches."""
        layers = config.num_hidden_layers
        watched = trace_plan(self._plan, layers, self._pte.path)
        for layer in range(layers + 1):
            if layer in self._layers:
                self._output(layer, "hidden", watched[layer])
                leaving = [*self._network.in_layer(layer)][-1]
                self._output(layer, leaving, watched[layer + 1])
                self._output(layer, "attention", watched[layers + 1 + layer])
        self._output(None, "hidden", watched[layers])
        asking = 0
        for instruction in self._plan.chains[0].instructions:
            call = instruction.instr_args
            if isinstance(call, schema.DelegateCall):
                self._look_into(call)
            elif isinstance(call, schema.KernelCall):
                call.args = [self._renamed.get(value, value) for value in call.args]
                if self._plan.operators[call.op_index].name == _ATTENTION:
                    self._show_caches(asking, call)
                    asking += 1

    def _look_into(self, call: schema.DelegateCall) -> None:
        delegate = self._plan.delegates[call.delegate_index]
        graph = _Graph(bytes(self._pte.segment(delegate.processed.index)))
        wanted = [
            (layer, name, value)
            for layer, name, value in graph.named(self._network)
            if layer is None or layer in self._layers
        ]
        self._keep_heads(call, wanted)
        changed = False
        for layer, name, value in wanted:
            if graph.show(value):
                place = self._tensor(graph.shape(value))
                call.args = [*call.args, place]
                self._output(layer, name, place)
                changed = True
        if changed:
            segment = len(self._pte.program.segments) + len(self.payloads)
            delegate.processed = replace(delegate.processed, index=segment)
            self.payloads.append(graph.payload())

    def _keep_heads(
        self, call: schema.DelegateCall, wanted: Sequence[tuple[int | None, str, int]]
    ) -> None:
        """Queries and keys after RoPE: the last three outputs of a delegate that has a stack."""
        layer = next((layer for layer, name, _ in wanted if name == STACK), None)
        if layer is None:
            return
        attention = next(
            node
            for node in self._network.in_layer(layer).values()
            if isinstance(node.block, Attention)
        )
        queries, keys, _ = (self._network.by_name[name].part for name in attention.inputs)
        for place, name in ((-3, queries), (-2, keys), (-1, "v_heads")):
            shared = call.args[place]
            tensor = self._plan.values[shared].val
            assert isinstance(tensor, schema.Tensor)
            self._renamed[shared] = call.args[place] = self._tensor(tensor.sizes)
            self._output(layer, name, call.args[place])

    def _show_caches(self, layer: int, call: schema.KernelCall) -> None:
        """What a layer's attention reads."""
        if layer in self._layers:
            self._output(layer, "key_cache", call.args[1])
            self._output(layer, "value_cache", call.args[2])


def _count(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def write_operator_copy(
    artifact: Artifact, target: Path, layers: Sequence[int], most_tokens: int
) -> Mapping[tuple[int | None, str], int]:
    """Write `target`, which also returns the operators' values of `layers`, and of the head.

    Args:
        artifact: The written file.
        target: The copy.
        layers: Whose operators are looked at.
        most_tokens: Tokens of the longest call that the copy will get.

    Returns:
        The place among the outputs by layer (None: the head) and name; queries, keys and values
        are one, `STACK`, where they are stacked.

    Raises:
        ArtifactError: A delegate's payload cannot be parsed.
    """
    source = artifact.path
    pte = PteFile(source)
    copy = _Copy(pte, network_of(artifact.config), layers, most_tokens)
    data, segments = pte.segment_data(), pte.program.segments
    try:
        copy.run(artifact.config)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise ArtifactError(f"{source}: a delegate's payload cannot be parsed: {error}") from error
    end = align(len(data))
    for payload in copy.payloads:
        segments.append(schema.DataSegment(offset=end, size=len(payload)))
        end += align(len(payload))
    front, _ = encode_program(pte.program)
    with open_new(target) as stream:
        stream.write(front)
        stream.write(data)
        stream.write(b"\0" * (align(len(data)) - len(data)))
        for payload in copy.payloads:
            stream.write(payload.ljust(align(len(payload)), b"\0"))
    return copy.shown
