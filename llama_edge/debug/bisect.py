"""The first layer, and in it the first operator, at which an artifact leaves its reference.

Three questions, from the file outwards. Are the codes those that the manifest promises, or another
bundle's? Does each operator compute what its own input and weights make of it? How far is the
residual stream from the other network's, layer by layer?
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import read_manifest
from llama_edge.bundle.manifest import Manifest
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.artifact import Artifact, GraphOperator, KVCacheDtype
from llama_edge.core.errors import ArtifactError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.core.session import FloatArray, OperatorTrace
from llama_edge.debug.bisect_weights import (
    ReadableSource,
    WeightFinding,
    check_weights,
    open_against,
)
from llama_edge.debug.drift import residual_streams, stream_snr_db
from llama_edge.debug.operators import (
    Comparison,
    OperatorResult,
    compare_block,
    compare_head,
    judge,
)
from llama_edge.gate.prompts import gate_prompts
from llama_edge.gate.teacher import with_source
from llama_edge.models.blocks import HeadNorm, RMSNorm
from llama_edge.models.network import network_of
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from llama_edge.models.value_names import OPERATORS
from llama_edge.models.weight_names import EMBEDDING
from llama_edge.runtimes.child import ChildRuntime
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer

#: Tokens decoded one by one after the prompt: enough for a cache that is one place off.
DECODED: Final = 16
#: Of operators' values in memory at a time: all of SmolLM2's layers, four of Llama 3.2 3B's.
_TRACE_BYTES: Final = 256 << 20

#: The config's fields that shapes follow from.
_SIZES: Final = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
    "down_proj_rotation",
    "head_rotation",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An operator: of layer -1 (the embedding), a block, or as many as there are (the head)."""

    layer: int
    operator: str

    @property
    def order(self) -> tuple[int, int]:
        """Network order."""
        return self.layer, OPERATORS.index(self.operator)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFinding:
    """An operator that computes something else than its input and weights say."""

    place: Place
    result: OperatorResult
    compared: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantFinding:
    """A number in the graph that is not the config's, however little it shows on a real input."""

    place: Place
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer's signal to noise, dB."""

    layer: int
    #: the operator with the lowest, and how much it is
    operator: str
    operator_db: float
    #: of activation codes that fell the other way on a rounding boundary, taken back above
    flips: int
    #: the residual stream after this layer against the other network's; None without one
    stream_db: float | None


Finding = WeightFinding | ConstantFinding | GraphFinding


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """What was found, in network order."""

    artifact: Artifact
    rows: tuple[LayerRow, ...]
    weights: tuple[WeightFinding, ...]
    graph: tuple[GraphFinding, ...]
    constants: tuple[ConstantFinding, ...]
    #: what the streams are compared with; None: nothing was available
    against: str | None
    #: whether a rotation was taken out first
    aligned: bool
    #: the operator of the first wrong weight or constant, for a repro
    weight_input: Comparison | None

    @property
    def first(self) -> Finding | None:
        """Where to look; of one operator, what its file says before what it computes."""
        found: list[Finding] = [*self.weights, *self.constants, *self.graph]
        return min(found, key=lambda finding: _place(finding, self).order, default=None)

    @property
    def passed(self) -> bool:
        """Nothing is wrong."""
        return self.first is None


def place_of(name: str, layers: int) -> Place:
    """The operator that a weight belongs to."""
    if name == EMBEDDING:
        return Place(layer=-1, operator="embedding")
    part = name.removesuffix(".weight").split(".")
    if name.startswith("model.layers."):
        return Place(layer=int(part[2]), operator=part[-1])
    operator = {"lm_head": "lm_head", "model": "norm"}.get(part[0], "head_rotation")
    return Place(layer=layers, operator=operator)


def _place(finding: Finding, found: Bisection) -> Place:
    if not isinstance(finding, WeightFinding):
        return finding.place
    return place_of(finding.name, found.artifact.config.num_hidden_layers)


def first_place(found: Bisection) -> Place | None:
    """Layer and operator of the first finding."""
    first = found.first
    return None if first is None else _place(first, found)


@torch.no_grad()
def bisect(
    folder: Path, against: str | None, progress: Progress, trust: Trust = NO_KEY
) -> Bisection:
    """Look into a bundle's artifact, whether or not its files are still those of the manifest.

    Args:
        folder: The bundle.
        against: A full-precision MODEL, or another bundle or quantized checkpoint whose codes are
            the right ones; None: the built-in model that the bundle came from, if it is one.
        progress: One stage per question.
        trust: Whose signature the bundle must have, and the one of `against`.

    Raises:
        ArtifactError: The bundle has no readable manifest or artifact.
        SessionError: The runtime refuses the artifact.
    """
    manifest = read_manifest(folder, trust).manifest
    exporter = get_exporter(manifest.backend)
    written = exporter.open(folder)
    artifact = written.artifact
    _require_shape(artifact, manifest)
    other = open_against(against, manifest, trust)
    own = written.weights()
    weights = check_weights(own, manifest, other, progress)
    reference = _reference(artifact, manifest, other.codes or own)
    calls = _calls(folder, artifact)
    tokens = [token for call in calls for token in call]
    constants = check_epsilons(written.operators(), manifest.model.config)
    places = [place_of(one.name, manifest.model.config.num_hidden_layers) for one in weights]
    places += [one.place for one in constants]
    wanted = min(places, key=lambda place: place.order, default=None)
    search = _Search(reference, artifact, calls, wanted)
    streams = None if other.network is None else residual_streams(other.network, tokens)
    aligned = other.aligned
    rows = search.run(streams, progress, aligned=aligned)
    return Bisection(
        artifact=artifact,
        rows=tuple(rows),
        weights=weights,
        graph=tuple(search.findings),
        constants=constants,
        against=None if other.network is None else other.name,
        aligned=aligned,
        weight_input=search.weight_input,
    )


def check_epsilons(
    operators: Sequence[GraphOperator], config: ModelConfig
) -> tuple[ConstantFinding, ...]:
    """Each norm's epsilon as the file has it: after the first layers no input shows it.

    Norms that keep theirs in a shared constant (`.pte`) have no such attribute; the first one that
    a short row meets shows it.
    """
    epsilons = [found.attributes["epsilon"] for found in operators if "epsilon" in found.attributes]
    norms = [
        place_of(node.weight, config.num_hidden_layers)
        for node in network_of(config).nodes
        if isinstance(node.block, (RMSNorm, HeadNorm))
    ]
    if len(epsilons) != len(norms):
        return ()
    wanted = config.rms_norm_eps
    return tuple(
        ConstantFinding(
            place=place, message=f"its epsilon is {found}; the model's rms_norm_eps is {wanted:g}"
        )
        for place, found in zip(norms, epsilons, strict=True)
        if not math.isclose(float(found), wanted, rel_tol=1e-5)
    )


def _require_shape(artifact: Artifact, manifest: Manifest) -> None:
    """What differs in size is another model's: no operator can be compared with the other's."""
    found, wanted = artifact.config, manifest.model.config
    for name in _SIZES:
        if getattr(found, name) != getattr(wanted, name):
            raise ArtifactError(
                f"{artifact.path}: {name} is {getattr(found, name)} and the manifest says "
                f"{getattr(wanted, name)}: the file belongs to another bundle"
            )


def _reference(artifact: Artifact, manifest: Manifest, weights: QuantizedWeights) -> Reference:
    """The manifest's network, whatever the artifact says of itself."""
    source = ReadableSource(DequantizedSource(weights), manifest.model.config)
    kv_cache = KVCacheDtype(manifest.artifact.kv_cache)
    return Reference(manifest.model.config, source, artifact.activation, kv_cache)


def _calls(folder: Path, artifact: Artifact) -> list[list[int]]:
    prompt = gate_prompts(Tokenizer(read_text_assets(folder)), artifact.max_context)[0]
    return [[*prompt.tokens], *([token] for token in prompt.continuation[:DECODED])]


class _Search:
    """Walks through the layers in chunks that fit in memory."""

    def __init__(
        self,
        reference: Reference,
        artifact: Artifact,
        calls: list[list[int]],
        wanted: Place | None,
    ) -> None:
        self._reference = reference
        self._artifact = artifact
        self._calls = calls
        self._layers = reference.config.num_hidden_layers
        self._wanted = wanted
        self.findings: list[GraphFinding] = []
        self.weight_input: Comparison | None = None

    def run(
        self, streams: Iterator[Tensor] | None, progress: Progress, *, aligned: bool
    ) -> Iterator[LayerRow]:
        progress.start("look into every operator", self._layers)
        with ChildRuntime(self._artifact.backend) as runtime:
            for chunk in self._chunks():
                trace = runtime.trace_operators(self._artifact, self._calls, chunk)
                for layer in chunk:
                    if layer == 0:
                        yield self._embedding(trace, streams)
                    yield self._block(layer, trace, streams, aligned=aligned)
                    progress.advance()
        yield self._head(trace)

    def _chunks(self) -> Iterator[range]:
        config = self._reference.config
        tokens = sum(map(len, self._calls))
        layer_bytes = 4 * tokens * (10 * config.hidden_size + 4 * config.intermediate_size)
        size = max(1, _TRACE_BYTES // layer_bytes)
        for start in range(0, self._layers, size):
            yield range(start, min(start + size, self._layers))

    def _embedding(self, trace: OperatorTrace, streams: Iterator[Tensor] | None) -> LayerRow:
        found = torch.tensor(_shown(trace, 0, "hidden"))
        expected = self._reference.embed(torch.tensor(trace.tokens))
        compared = Comparison(
            name="embedding",
            kind="embedding",
            found=found,
            expected=expected,
            inputs={"tokens": torch.tensor(trace.tokens)},
            weight=EMBEDDING,
        )
        if streams is not None:
            next(streams)
        return self._row(-1, [compared], None)

    def _block(
        self, layer: int, trace: OperatorTrace, streams: Iterator[Tensor] | None, *, aligned: bool
    ) -> LayerRow:
        model = with_source(self._reference, CachedSource(self._reference.source))
        compared = compare_block(model, layer, trace.blocks[layer])
        leaving = _shown(trace, layer, [*model.network.in_layer(layer)][-1])
        stream = (
            None
            if streams is None
            else stream_snr_db(torch.tensor(leaving), next(streams), aligned=aligned)
        )
        return self._row(layer, compared, stream)

    def _head(self, trace: OperatorTrace) -> LayerRow:
        model = with_source(self._reference, CachedSource(self._reference.source))
        return self._row(self._layers, compare_head(model, trace.head), None)

    def _row(
        self, layer: int, comparisons: Iterator[Comparison] | list[Comparison], stream: float | None
    ) -> LayerRow:
        results = []
        first_rows = 1 if layer == self._layers else len(self._calls[0])
        for compared in comparisons:
            result = judge(self._reference, compared, first_rows)
            place = Place(layer=layer, operator=compared.name)
            if place == self._wanted:
                self.weight_input = compared
            if not result.passed:
                self.findings.append(GraphFinding(place=place, result=result, compared=compared))
            results.append(result)
        lowest = min(results, key=lambda result: result.snr_db)
        return LayerRow(
            layer=layer,
            operator=lowest.name,
            operator_db=lowest.snr_db,
            flips=sum(result.flips for result in results),
            stream_db=stream,
        )


def _shown(trace: OperatorTrace, layer: int, name: str) -> FloatArray:
    found = trace.blocks[layer].get(name)
    if found is None:
        raise ArtifactError(
            f"layer {layer}: the graph shows no {name}, so it was not written by llama-edge; "
            "`llama-edge diff` compares the files alone"
        )
    return found
