"""What the demo apps check before they load a bundle: the same steps, order and codes, in Python.

The apps stop at the first step that finds something, since the next one would trust what this one
refused: signature, manifest, places, files, purpose, text. `llama-edge push` runs this first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llama_edge.bundle.artifact_contract import check_limits
from llama_edge.bundle.contract import (
    TEMPLATE_PLACE,
    check_defaults,
    check_golden_chats,
    check_ids,
    check_template_source,
    check_tokenizer,
)
from llama_edge.bundle.finding_codes import (
    ContractCheckError,
    ContractFinding,
    ContractViolationError,
)
from llama_edge.bundle.folder import (
    Bundle,
    check_listed,
    check_places,
    check_unlisted,
    parse_manifest,
)
from llama_edge.bundle.manifest import MANIFEST_FILE, Manifest, Verdict
from llama_edge.bundle.signing import Trust
from llama_edge.bundle.text_files import check_begin_flag, check_end_token_files
from llama_edge.core.errors import TokenizerError
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.contract import TextContract, rebuild_text_contract
from llama_edge.text.text_assets import TOKENIZER_FILE, read_text_assets
from llama_edge.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class AppTarget:
    """What one app loads."""

    target: str
    backend: str


def check_for_app(
    folder: Path, accepts: Sequence[AppTarget], public_key: Ed25519PublicKey | None = None
) -> tuple[ContractFinding, ...]:
    """Why an app would refuse this bundle; nothing when it would load it.

    Args:
        folder: A bundle, untrusted.
        accepts: What the app has a runtime for.
        public_key: What the app ships; with it, only signed bundles are loaded.
    """
    try:
        bundle = parse_manifest(folder, Trust(key=public_key))
    except (ContractViolationError, ContractCheckError) as error:
        return (error.finding,)
    for step in (
        check_places(bundle),
        (*check_listed(bundle), *check_unlisted(bundle)),
        _check_purpose(bundle.manifest, accepts),
    ):
        found = tuple(step)
        if found:
            return found
    return tuple(_check_text(bundle))


def _finding(code: str, where: str, expected: object, found: object) -> ContractFinding:
    return ContractFinding(code=code, where=where, expected=str(expected), found=str(found))


def _check_purpose(manifest: Manifest, accepts: Sequence[AppTarget]) -> Iterator[ContractFinding]:
    if manifest.verdict is Verdict.FAILED:
        yield _finding("verdict.failed", f"{MANIFEST_FILE}: verdict", "passed", "failed")
    if AppTarget(target=manifest.target, backend=manifest.backend) not in accepts:
        wanted = " or ".join(f"{accept.target} with {accept.backend}" for accept in accepts)
        found = f"{manifest.target} with {manifest.backend}"
        yield _finding("target.backend", f"{MANIFEST_FILE}: target", wanted, found)
    yield from check_limits(manifest)


def _check_text(bundle: Bundle) -> Iterator[ContractFinding]:
    """`doctor`'s own checks, without what an app has no use for: languages, unused rows."""
    written, root = bundle.manifest.text, bundle.root
    try:
        text = read_text_assets(root)
        plain = replace(text, chat_template=None)
        found = rebuild_text_contract(plain, written)
        yield from check_tokenizer(written, found)
        if found.add_bos is written.add_bos:
            yield from check_begin_flag(root, written.add_bos)
        golden_ids = (token for golden in written.golden_tokens for token in golden.tokens)
        largest = Tokenizer(plain).vocab_size - 1
        yield from check_ids(
            [*written.eos_token_ids, *golden_ids, largest], bundle.manifest.model.config.vocab_size
        )
        yield from check_end_token_files(root, text, written.eos_token_ids)
    except TokenizerError as error:
        yield _finding("tokenizer.unreadable", TOKENIZER_FILE, "files that can be read", error)
        return
    yield from check_defaults(written, found)
    yield from _check_template(written, text)


def _check_template(written: TextContract, text: TextAssets) -> Iterator[ContractFinding]:
    """An app chats: without a template and a sample of what it renders there is nothing to load."""
    if text.chat_template is None or not written.golden_chats:
        found = "none" if text.chat_template is None else "one without a sample dialog"
        yield _finding("template.missing", TEMPLATE_PLACE, "a template", found)
        return
    yield from check_template_source(written.chat_template, text.chat_template)
    try:
        rendered = rebuild_text_contract(text, written)
    except TokenizerError as error:
        yield _finding("template.unrenderable", TEMPLATE_PLACE, "a template that renders", error)
        return
    yield from check_golden_chats(written, rendered)
