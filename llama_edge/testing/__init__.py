"""For other people's tests: a bundle keeps its contract and computes what its source computes."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_edge.bundle.examination import Diagnosis
    from llama_edge.gate.gate import GateOutcome

__all__ = ["assert_contract", "assert_parity"]


def assert_contract(bundle: Path, *, public_key: Path | None = None) -> "Diagnosis":
    """`llama-edge doctor`: files, text, interface and codes are what the manifest promises.

    Args:
        bundle: Its folder, or one that another program wrote.
        public_key: PEM file of the key that must have signed it.

    Raises:
        AssertionError: With every finding, its code, place and remedy.
        LlamaEdgeError: `bundle` is nothing that can be examined.
    """
    # Imported here: the plugin is loaded in every test run of the environment.
    from llama_edge.bundle.doctor import diagnose
    from llama_edge.core.progress import SilentProgress
    from llama_edge.core.visible import visible

    diagnosis = diagnose(bundle, public_key, SilentProgress())
    if not diagnosis.passed:
        lines = [f"{finding.code}: {finding.message}" for finding in diagnosis.findings]
        lines.insert(0, f"{bundle}: the contract is broken")
        raise AssertionError("\n".join(map(visible, lines)))
    return diagnosis


def assert_parity(
    bundle: Path, *, against: str | None = None, public_key: Path | None = None
) -> "GateOutcome":
    """`llama-edge parity`: the whole gate again, on the written files, on the backend's runtime.

    Args:
        bundle: Its folder.
        against: The full-precision model; by default the built-in one that it came from.
        public_key: PEM file of the key that must have signed the bundle; None demands none.

    Raises:
        AssertionError: With the reason.
        LlamaEdgeError: `bundle` or `against` cannot be read.
    """
    from llama_edge.bundle.signing import Trust, load_public_key
    from llama_edge.core.progress import SilentProgress
    from llama_edge.core.visible import visible
    from llama_edge.gate.check_bundle import check_bundle

    key = None if public_key is None else load_public_key(public_key)
    outcome = check_bundle(bundle, against, SilentProgress(), Trust(key=key))
    if not outcome.passed:
        raise AssertionError(visible(f"{bundle}: {outcome.reason}"))
    return outcome
