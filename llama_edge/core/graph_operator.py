"""One operator of a written graph, as its file declares it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOperator:
    """A node, an instruction, or a stored constant that is no weight (kind "constant")."""

    #: the format's own name of it
    kind: str
    #: what tells it apart within its file: a name, or its place
    name: str
    #: what it computes with, as text; for a constant its shape and SHA-256
    attributes: Mapping[str, str]
