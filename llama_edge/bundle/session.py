"""Running a bundle: the files that the runtime has loaded are those that were checked."""

from llama_edge.bundle.folder import Bundle
from llama_edge.core.artifact import Artifact
from llama_edge.core.session import Session
from llama_edge.runtimes.child import ChildRuntime


def open_session(bundle: Bundle, artifact: Artifact, runtime: str) -> Session:
    """Load an artifact in a child process.

    Args:
        bundle: What `open_bundle` gave.
        artifact: Of the bundle.
        runtime: The runtime's name.

    Raises:
        ContractCheckError: A file was changed between its check and now.
        SessionError: The runtime refuses the artifact.
        RuntimeCrashError: It died or hung.
    """
    session = ChildRuntime(runtime).open(artifact)
    try:
        bundle.require_unchanged()
    except BaseException:
        session.close()
        raise
    return session
