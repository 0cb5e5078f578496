"""Everything that a manifest says, gathered from what was written."""

from importlib.metadata import version
from typing import Final

from llama_edge import __version__
from llama_edge.backends import LIBRARIES
from llama_edge.backends.base import Exporter
from llama_edge.bundle.manifest import ArtifactInterface
from llama_edge.core.types import Artifact

_COMMON: Final = ("tokenizers", "torch", "torchao")


def library_versions(backend: str) -> dict[str, str]:
    """Name and version of the libraries that wrote and ran a bundle."""
    names = (*_COMMON, *LIBRARIES[backend])
    return {"llama-edge": __version__, **{name: version(name) for name in names}}


def describe_artifact(exporter: Exporter, artifact: Artifact) -> ArtifactInterface:
    """How the written graph is called, as the file itself says."""
    return ArtifactInterface(
        interface=exporter.interface(artifact),
        activation_quantization=artifact.activation.value,
        kv_cache=artifact.kv_cache.value,
        max_context=artifact.max_context,
        max_prefill=artifact.max_prefill,
    )
