"""Everything that a manifest says, gathered from what was written."""

from importlib.metadata import version
from typing import Final

from llama_edge import __version__
from llama_edge.backends import BACKENDS
from llama_edge.backends.base import WrittenArtifact
from llama_edge.bundle.manifest import ArtifactInterface

_COMMON: Final = ("tokenizers", "torch", "torchao")


def library_versions(backend: str) -> dict[str, str]:
    """Name and version of the libraries that wrote and ran a bundle."""
    names = (*_COMMON, *BACKENDS[backend].libraries)
    return {"llama-edge": __version__, **{name: version(name) for name in names}}


def describe_artifact(written: WrittenArtifact) -> ArtifactInterface:
    """How the written graph is called, as the file itself says."""
    artifact = written.artifact
    return ArtifactInterface(
        interface=written.interface(),
        activation_quantization=artifact.activation.value,
        kv_cache=artifact.kv_cache.value,
        max_context=artifact.max_context,
        max_prefill=artifact.max_prefill,
    )
