"""The other half of the contract: the model file against what is promised of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from llama_edge.bundle.contract import check_end_tokens
from llama_edge.bundle.finding_codes import ContractFinding
from llama_edge.bundle.manifest import MANIFEST_FILE, ArtifactInterface, Manifest, TensorEntry
from llama_edge.core.artifact import Artifact, Interface, Placement, TensorSpec
from llama_edge.core.runner_values import RunnerField, RunnerValue, RunnerWord
from llama_edge.formats.quantized_checkpoint import Layout, quantized_names

#: What is wrong when a value of the runner is not the promised one.
_CODES: Final[Mapping[RunnerField, str]] = {
    RunnerField.BOS_TOKEN_ID: "tokenizer.bos",
    RunnerField.MAX_CONTEXT: "context.cache",
    RunnerField.MAX_PREFILL: "context.prefill",
}
_METADATA: Final = "artifact.metadata"


def check_runner_values(
    values: Iterable[RunnerValue], expected: Mapping[RunnerField, RunnerWord]
) -> Iterator[ContractFinding]:
    """What the files tell their runner, one by one; of what is not expected nothing is asked.

    Args:
        values: From the files.
        expected: What each must be; `CACHE_TOKENS` is the least that must fit.
    """
    for value in values:
        wanted = expected.get(value.field)
        if wanted is None:
            continue
        if value.field is RunnerField.EOS_TOKEN_IDS:
            assert isinstance(wanted, tuple)
            assert isinstance(value.value, tuple)
            yield from check_end_tokens(wanted, value.value, value.where)
        elif value.field is RunnerField.CACHE_TOKENS:
            assert isinstance(wanted, int)
            assert isinstance(value.value, int)
            if value.value < wanted:
                yield _finding(
                    "context.cache", value.where, f"room for {wanted} tokens", value.value
                )
        elif value.value != wanted:
            code = _CODES.get(value.field, _METADATA)
            yield _finding(code, value.where, f"{value.field.value} {wanted}", value.value)


def check_limits(manifest: Manifest) -> Iterator[ContractFinding]:
    """The context fits the model, and a prompt the context."""
    artifact, positions = manifest.artifact, manifest.model.config.max_position_embeddings
    where = f"{MANIFEST_FILE}: artifact"
    if artifact.max_context > positions:
        yield _finding(
            "context.exceeds_model",
            f"{where}.max_context",
            f"at most {positions} tokens",
            artifact.max_context,
        )
    if artifact.max_prefill > artifact.max_context:
        yield _finding(
            "context.prefill",
            f"{where}.max_prefill",
            f"at most {artifact.max_context} tokens",
            artifact.max_prefill,
        )


def check_description(
    artifact: Artifact, found: ArtifactInterface, manifest: Manifest
) -> Iterator[ContractFinding]:
    """What the file says of itself, and how it is called, against the manifest."""
    promised, file = manifest.artifact, artifact.files[0]
    wanted, said = manifest.model.config.to_json(), artifact.config.to_json()
    for name, value in wanted.items():
        if said[name] != value:
            yield _finding("artifact.config", f"{file}: {name}", repr(value), repr(said[name]))
    for code, name in (
        ("artifact.activation", "activation_quantization"),
        ("artifact.kv_cache", "kv_cache"),
        ("context.cache", "max_context"),
        ("context.prefill", "max_prefill"),
    ):
        value, got = getattr(promised, name), getattr(found, name)
        if value != got:
            yield _finding(code, f"{file}: {name}", value, got)
    yield from _check_interface(promised.interface, found.interface, file)


def _check_interface(promised: Interface, found: Interface, file: str) -> Iterator[ContractFinding]:
    for side in ("inputs", "outputs"):
        wanted: tuple[TensorSpec, ...] = getattr(promised, side)
        got: tuple[TensorSpec, ...] = getattr(found, side)
        if len(wanted) != len(got):
            yield _finding("artifact.interface", f"{file}: {side}", len(wanted), len(got))
        for want, have in zip(wanted, got, strict=False):
            if want != have:
                yield _finding(
                    "artifact.interface", f"{file}: {side} {want.name}", _spec(want), _spec(have)
                )
    if promised.cache != found.cache:
        yield _finding("artifact.interface", f"{file}: cache", promised.cache, found.cache)


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})"


def check_placement(found: Placement, manifest: Manifest) -> Iterator[ContractFinding]:
    """Every linear on the fast path, whatever the manifest says; operators as it says."""
    file = manifest.files[0].path
    too_many = unquantized_linears(found, manifest)
    if too_many:
        yield _finding(
            "artifact.delegation",
            f"{file}: linears",
            f"{found.linears_delegated + too_many} of {found.linears} in quantized kernels",
            found.linears_delegated,
        )
    wanted, got = _flat(manifest.placement), _flat(found)
    for name in sorted({*wanted, *got} - {"linears", "linears_delegated"}):
        if wanted.get(name, 0) != got.get(name, 0):
            yield _finding(
                "artifact.delegation", f"{file}: {name}", wanted.get(name, 0), got.get(name, 0)
            )


def unquantized_linears(found: Placement, manifest: Manifest) -> int:
    """How many linears are in floating point that must not be.

    A rotation that is done while the model runs may be one; only the manifest knows how many.
    """
    config, promised = manifest.model.config, manifest.placement
    rotates = config.head_rotation or config.down_proj_rotation is not None
    allowed = promised.linears - promised.linears_delegated if rotates else 0
    return max(0, found.linears - found.linears_delegated - allowed)


def _flat(placement: Placement) -> dict[str, int]:
    """One number per name: operators outside of the fast path, and how much is on it."""
    values: dict[str, Any] = asdict(placement)
    return {**values.pop("portable"), **values}


def check_tensor_list(manifest: Manifest) -> Iterator[ContractFinding]:
    """The manifest lists every matrix of the model, in the codes that its recipe asks for."""
    config = manifest.model.config
    layout = Layout(config, manifest.recipe, manifest.mixed_precision)
    listed = {entry.name: entry for entry in manifest.tensors}
    for name in quantized_names(config):
        entry, where = listed.get(name), f"{MANIFEST_FILE}: tensors {name}"
        if entry is None:
            yield _finding("codes.missing", where, "its hashes", "nothing")
        elif entry.bits != layout.bits(name):
            yield _finding(
                "codes.unquantized", where, f"{layout.bits(name)}-bit codes", f"{entry.bits}-bit"
            )


def check_tensor(expected: TensorEntry, found: TensorEntry, file: str) -> Iterator[ContractFinding]:
    """One matrix as it was read back from the artifact, against the manifest's hashes."""
    where = f"{file}: {expected.name}"
    form, got = (
        f"{entry.bits}-bit codes {entry.shape} in groups of {entry.group_size}"
        for entry in (expected, found)
    )
    if form != got:
        yield _finding("codes.unquantized", where, form, got)
        return
    for code, field in (("codes.sha256", "codes_sha256"), ("codes.scales", "scales_sha256")):
        wanted, have = getattr(expected, field), getattr(found, field)
        if wanted != have:
            yield _finding(code, where, f"SHA-256 {wanted}", have)


def _finding(code: str, where: str, expected: object, found: object) -> ContractFinding:
    return ContractFinding(code=code, where=where, expected=str(expected), found=str(found))
