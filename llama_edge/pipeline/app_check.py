"""What the demo apps check before they load a bundle: the same steps, order and codes, in Python.

The apps stop at the first step that finds something, since the next one would trust what this one
refused: manifest, signature, places, files, purpose, text. `llama-edge push` runs this first.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llama_edge.core.errors import ConfigError, TokenizerError
from llama_edge.core.files import read_json_object
from llama_edge.core.finding_codes import BreachError, ContractFinding
from llama_edge.core.manifest import MANIFEST_FILE, Manifest, TextContract, Verdict
from llama_edge.core.signing import check_signature
from llama_edge.core.text_assets import (
    GENERATION_CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    end_token_ids,
    main_end_token,
    parse_tokenizer,
    read_text_assets,
)
from llama_edge.core.tokenizer import Tokenizer
from llama_edge.core.types import TextAssets
from llama_edge.export.bundle import (
    Bundle,
    check_listed,
    check_places,
    check_unlisted,
    parse_manifest,
)

_END_TOKENS_PLACE: Final = f"{GENERATION_CONFIG_FILE}: eos_token_id"
_TEMPLATE_PLACE: Final = f"{TOKENIZER_CONFIG_FILE}: chat_template"


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
        bundle = parse_manifest(folder)
    except BreachError as error:
        return (error.finding,)
    except ConfigError as error:
        return (_finding("manifest.schema", MANIFEST_FILE, "a model config", str(error)),)
    signature = check_signature(folder, public_key)
    if signature is not None:
        return (signature,)
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
    artifact, positions = manifest.artifact, manifest.model.config.max_position_embeddings
    place = f"{MANIFEST_FILE}: artifact"
    if artifact.max_context > positions:
        wanted = f"at most {positions} tokens"
        yield _finding(
            "context.exceeds_model", f"{place}.max_context", wanted, artifact.max_context
        )
    if artifact.max_prefill > artifact.max_context:
        wanted = f"at most the context of {artifact.max_context} tokens"
        yield _finding("context.prefill", f"{place}.max_prefill", wanted, artifact.max_prefill)


def _check_text(bundle: Bundle) -> Iterator[ContractFinding]:
    written, root = bundle.manifest.text, bundle.root
    try:
        text = read_text_assets(root)
        configs = [_json(root / name) for name in (GENERATION_CONFIG_FILE, TOKENIZER_CONFIG_FILE)]
    except TokenizerError as error:
        yield _finding("tokenizer.unreadable", TOKENIZER_FILE, "files that can be read", error)
        return
    yield from _check_tokenizer(written, text, bundle.manifest.model.config.vocab_size)
    yield from _check_end_tokens(written, text, *configs)
    if text.generation_defaults != written.generation_defaults:
        yield _finding(
            "text.generation_defaults",
            GENERATION_CONFIG_FILE,
            dict(written.generation_defaults),
            dict(text.generation_defaults),
        )
    yield from _check_template(written, text)


def _json(path: Path) -> Mapping[str, Any]:
    return read_json_object(path, TokenizerError) if path.is_file() else {}


def _check_tokenizer(
    written: TextContract, text: TextAssets, vocab_size: int
) -> Iterator[ContractFinding]:
    sha256 = hashlib.sha256(text.tokenizer_json.encode()).hexdigest()
    if sha256 != written.tokenizer_sha256:
        yield _finding("tokenizer.sha256", TOKENIZER_FILE, written.tokenizer_sha256, sha256)
    for name, key in (("bos_token_id", "bos_token"), ("add_bos", "add_bos_token")):
        wanted, found = getattr(written, name), getattr(text, name)
        if wanted != found:
            yield _finding("tokenizer.bos", f"{TOKENIZER_CONFIG_FILE}: {key}", wanted, found)
    tokenizer = Tokenizer(TextAssets(**{**_fields(text), "chat_template": None}))
    for index, golden in enumerate(written.golden_tokens):
        tokens = tuple(tokenizer.encode(golden.text, add_bos=False))
        if tokens != golden.tokens:
            place = f"{TOKENIZER_FILE}: golden_tokens[{index}] ({golden.language})"
            yield _finding(
                "tokenizer.golden_tokens", place, *_first_difference(golden.tokens, tokens)
            )
    golden_ids = (token for golden in written.golden_tokens for token in golden.tokens)
    largest = max([*written.eos_token_ids, *golden_ids])
    if max(largest, tokenizer.vocab_size - 1) >= vocab_size:
        wanted = f"token ids below the model's {vocab_size} rows"
        found = f"id {max(largest, tokenizer.vocab_size - 1)}"
        yield _finding("tokenizer.vocabulary", TOKENIZER_FILE, wanted, found)


def _fields(text: TextAssets) -> dict[str, Any]:
    return {name: getattr(text, name) for name in TextAssets.__dataclass_fields__}


def _check_end_tokens(
    written: TextContract,
    text: TextAssets,
    generation: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
) -> Iterator[ContractFinding]:
    """The manifest's list, which the app waits for, against what each file and the template say."""
    tokenizer = parse_tokenizer(TOKENIZER_FILE, text.tokenizer_json)
    expected, place = set(written.eos_token_ids), f"{MANIFEST_FILE}: text.eos_token_ids"
    implied = set(end_token_ids(tokenizer, text.chat_template, written.eos_token_ids))
    if implied - expected:
        yield _finding("eos.missing", place, sorted(implied), sorted(expected))
    value = generation.get("eos_token_id")
    listed = set(value if isinstance(value, list) else [] if value is None else [value])
    token = tokenizer_config.get("eos_token")
    content = token.get("content") if isinstance(token, Mapping) else token
    main = tokenizer.token_to_id(content) if isinstance(content, str) else None
    missing = expected - listed
    if missing == {main}:
        yield _finding("eos.precedence", _END_TOKENS_PLACE, sorted(expected), sorted(listed))
    elif missing:
        yield _finding("eos.missing", _END_TOKENS_PLACE, sorted(expected), sorted(listed))
    if listed - implied:
        yield _finding("eos.foreign", _END_TOKENS_PLACE, sorted(expected), sorted(listed))
    wanted = main_end_token(tokenizer, text)
    if main is not None and main not in implied:
        place = f"{TOKENIZER_CONFIG_FILE}: eos_token"
        yield _finding("eos.foreign", place, f"one of the ids {sorted(expected)}", main)
    elif content != wanted:
        yield _finding("eos.precedence", f"{TOKENIZER_CONFIG_FILE}: eos_token", wanted, content)


def _check_template(written: TextContract, text: TextAssets) -> Iterator[ContractFinding]:
    if text.chat_template is None or not written.golden_chats:
        found = "none" if text.chat_template is None else "one without a sample dialog"
        yield _finding("template.missing", _TEMPLATE_PLACE, "a template", found)
        return
    if text.chat_template != written.chat_template:
        differing = _first_difference(written.chat_template or "", text.chat_template)
        yield _finding("template.source", _TEMPLATE_PLACE, *differing)
    try:
        tokenizer = Tokenizer(text)
        rendered = [tokenizer.render_chat(chat.messages) for chat in written.golden_chats]
    except TokenizerError as error:
        yield _finding("template.unrenderable", _TEMPLATE_PLACE, "a template that renders", error)
        return
    for index, (chat, found) in enumerate(zip(written.golden_chats, rendered, strict=True)):
        place = f"{_TEMPLATE_PLACE}, golden_chats[{index}]"
        tokens = tokenizer.encode_chat(chat.messages)
        if found != chat.text:
            yield _finding("template.text", place, *_first_difference(chat.text, found))
        elif tuple(tokens) != chat.tokens:
            yield _finding("template.tokens", place, *_first_difference(chat.tokens, tokens))


def _first_difference(
    expected: str | Sequence[int], found: str | Sequence[int]
) -> tuple[object, object]:
    """What stands at the first place at which two texts, or two lists of tokens, part."""
    shared = zip(expected, found, strict=False)
    places = (place for place, (want, have) in enumerate(shared) if want != have)
    place = next(places, min(len(expected), len(found)))
    if isinstance(expected, str):
        span = slice(max(0, place - 12), place + 12)
        return f"{expected[span]!r} at character {place}", repr(found[span])
    wanted = expected[place] if place < len(expected) else "the end"
    got = found[place] if place < len(found) else "the end"
    return f"{wanted} as token {place}", got
