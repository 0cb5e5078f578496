"""`doctor` in a child process, and its result on the way back."""

from pathlib import Path
from typing import Any

from llama_edge.bundle.examination import Diagnosis
from llama_edge.bundle.finding_codes import ContractFinding
from llama_edge.confined.child import tell
from llama_edge.core import errors
from llama_edge.core.errors import ArtifactError, LlamaEdgeError
from llama_edge.core.progress import SilentProgress, Steps, step_count


class _Progress(SilentProgress):
    """Tells the parent."""

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        tell(["start", stage, step_count(steps)])

    def advance(self, steps: int = 1) -> None:
        tell(["advance", steps])


def answer(request: dict[str, Any]) -> Any:  # noqa: ANN401
    """A diagnosis, or the error that keeps it from being made.

    Args:
        request: `path`, and `public_key` or null.
    """
    from llama_edge.bundle.examine import examine

    key = request["public_key"]
    try:
        found = examine(Path(request["path"]), None if key is None else Path(key), _Progress())
    except LlamaEdgeError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {
        "kind": found.kind,
        "findings": [
            [finding.code, finding.where, finding.expected, finding.found]
            for finding in found.findings
        ],
        "checked": list(found.checked),
        "notes": list(found.notes),
    }


def diagnosis(path: Path, reply: Any) -> Diagnosis:  # noqa: ANN401
    """What `answer` said.

    Raises:
        LlamaEdgeError: The error of `examine`, same class and message.
    """
    if "error" in reply:
        kind = getattr(errors, reply["error"], None)
        if isinstance(kind, type) and issubclass(kind, LlamaEdgeError):
            raise kind(reply["message"])
        raise ArtifactError(reply["message"])
    return Diagnosis(
        path=path,
        kind=reply["kind"],
        findings=tuple(
            ContractFinding(code=code, where=where, expected=expected, found=found)
            for code, where, expected, found in reply["findings"]
        ),
        checked=tuple(reply["checked"]),
        notes=tuple(reply["notes"]),
    )
