"""Bundles good and bad, by our own writer; a bad one differs from a good one in one thing."""

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llama_edge.bundle.manifest import (
    ArtifactInterface,
    FileEntry,
    Manifest,
    Model,
    TensorEntry,
    Verdict,
)
from llama_edge.core.artifact import Interface, Placement, TensorSpec
from llama_edge.core.text_assets import TextAssets
from llama_edge.quantize import W4A8_RTN
from llama_edge.text.contract import build_text_contract
from llama_edge.text.text_assets import write_text_assets
from tests.app_fixtures.files import Case, Files, compact_json, read_files
from tests.app_fixtures.signatures import PUBLIC_KEY, signed_files
from tests.app_fixtures.texts import (
    chatml_text,
    fields_text,
    llama_text,
    names_text,
    own_text,
    parts_text,
)
from tests.conftest import DEBUG_CONFIG

ANDROID: Final = {"target": "android", "backend": "executorch"}
IOS: Final = {"target": "ios", "backend": "coreml"}

Edit = Callable[[dict[str, Any], Files], None]


def _manifest(text: TextAssets, app: Mapping[str, str], files: Files, first: str) -> Manifest:
    tokens = TensorSpec(name="tokens", dtype="int64", shape=(1, "tokens"))
    position = TensorSpec(name="input_pos", dtype="int64", shape=(1,))
    logits = TensorSpec(name="logits", dtype="float32", shape=(1, DEBUG_CONFIG.vocab_size))
    names = [first, *sorted(set(files) - {first})]
    return Manifest(
        verdict=Verdict.PASSED,
        model=Model(source="debug", source_sha256="0" * 64, config=_config(text)),
        recipe=W4A8_RTN,
        calibration=None,
        mixed_precision=None,
        target=app["target"],
        backend=app["backend"],
        files=tuple(
            FileEntry(path=name, size_bytes=len(files[name]), sha256=_sha256(files[name]))
            for name in names
        ),
        artifact=ArtifactInterface(
            interface=Interface(inputs=(tokens, position), outputs=(logits,), cache="inside"),
            activation_quantization="int8_per_token",
            kv_cache="float32",
            max_context=256,
            max_prefill=64,
        ),
        text=build_text_contract(text),
        tensors=(
            TensorEntry(
                name="model.embed_tokens.weight",
                shape=(DEBUG_CONFIG.vocab_size, DEBUG_CONFIG.hidden_size),
                bits=8,
                group_size=DEBUG_CONFIG.hidden_size,
                codes_sha256="1" * 64,
                scales_sha256="2" * 64,
            ),
        ),
        placement=Placement(
            linears=1,
            linears_delegated=1,
            weight_bytes=1,
            weight_bytes_delegated=1,
            operators=1,
            operators_delegated=1,
            portable={},
        ),
        parity={"passed": True},
        fidelity=None,
        versions={"llama-edge": "fixture"},
    )


def _config(text: TextAssets) -> Any:  # noqa: ANN401
    """The debug model's, its vocabulary made to fit."""
    size = len(json.loads(text.tokenizer_json)["model"]["vocab"]) + 16
    value = DEBUG_CONFIG.to_json() | {"vocab_size": max(size, DEBUG_CONFIG.vocab_size)}
    return type(DEBUG_CONFIG).from_json(value)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _good(text: TextAssets, app: Mapping[str, str], artifact: Mapping[str, bytes]) -> Files:
    """A bundle's files, `manifest.json` included."""
    with tempfile.TemporaryDirectory() as folder:
        write_text_assets(Path(folder), text)
        files = {**artifact, "parity.json": b'{"passed":true}\n', **read_files(Path(folder))}
    manifest = _manifest(text, app, files, next(iter(artifact)))
    return {**files, "manifest.json": compact_json(manifest.to_json())}


def _with(*path: str | int, value: Any) -> Edit:  # noqa: ANN401
    """Set one field of the manifest."""

    def edit(manifest: dict[str, Any], files: Files) -> None:
        del files
        place: Any = manifest
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return edit


def _down_proj(orders: list[int]) -> Edit:
    return _with("model", "config", "down_proj_rotation", value=orders)


def _without(*path: str) -> Edit:
    def edit(manifest: dict[str, Any], files: Files) -> None:
        del files
        place: Any = manifest
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return edit


def _file(name: str, content: bytes) -> Edit:
    """Change a file without telling the manifest."""

    def edit(manifest: dict[str, Any], files: Files) -> None:
        del manifest
        files[name] = content

    return edit


def _relisted(name: str, change: Callable[[dict[str, Any]], None]) -> Edit:
    """Change a JSON file and its entry in the manifest: what a careless packager does."""

    def edit(manifest: dict[str, Any], files: Files) -> None:
        value = json.loads(files[name])
        change(value)
        _relist(manifest, files, name, compact_json(value))

    return edit


def _relist(manifest: dict[str, Any], files: Files, name: str, content: bytes) -> None:
    files[name] = content
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry |= {"size_bytes": len(content), "sha256": _sha256(content)}
    if name == "tokenizer.json":
        manifest["text"]["tokenizer_sha256"] = _sha256(content)


def _swap_merges(value: dict[str, Any]) -> None:
    """The ids of two merged tokens change places."""
    vocabulary = value["model"]["vocab"]
    vocabulary["in"], vocabulary["an"] = vocabulary["an"], vocabulary["in"]


def _template(change: Callable[[str], str], *, in_manifest: bool) -> Edit:
    def edit(manifest: dict[str, Any], files: Files) -> None:
        value = json.loads(files["tokenizer_config.json"])
        value["chat_template"] = change(value["chat_template"])
        _relist(manifest, files, "tokenizer_config.json", compact_json(value))
        if in_manifest:
            manifest["text"]["chat_template"] = value["chat_template"]

    return edit


def _no_template(manifest: dict[str, Any], files: Files) -> None:
    value = json.loads(files["tokenizer_config.json"])
    del value["chat_template"]
    value["eos_token"] = "<|endoftext|>"
    _relist(manifest, files, "tokenizer_config.json", compact_json(value))
    manifest["text"] |= {"chat_template": None, "golden_chats": []}


def _template_file(change: Callable[[str], str], *, alone: bool) -> Edit:
    """`chat_template.jinja`, listed; `alone`: the config's own template is taken away."""

    def edit(manifest: dict[str, Any], files: Files) -> None:
        config = json.loads(files["tokenizer_config.json"])
        content = change(config["chat_template"]).encode()
        manifest["files"].append({"path": "chat_template.jinja"})
        _relist(manifest, files, "chat_template.jinja", content)
        if alone:
            del config["chat_template"]
            _relist(manifest, files, "tokenizer_config.json", compact_json(config))

    return edit


def _prompt_state(manifest: dict[str, Any], files: Files) -> None:
    """What `llama-edge warm` adds: a file more, listed, of which an app has no use."""
    manifest["files"].append({"path": "prompt_state.safetensors"})
    _relist(manifest, files, "prompt_state.safetensors", b"keys and values of a system prompt\n")


def _name_template(config: dict[str, Any]) -> None:
    default = {"name": "default", "template": config["chat_template"]}
    config["chat_template"] = [{"name": "tool_use", "template": "{{ tools }}"}, default]


def _stale_tokenizer(manifest: dict[str, Any], files: Files) -> None:
    """Another tokenizer, listed with its own hash, under the old contract."""
    before = manifest["text"]["tokenizer_sha256"]
    _relisted("tokenizer.json", _swap_merges)(manifest, files)
    manifest["text"]["tokenizer_sha256"] = before


def _entry(name: str, **fields: Any) -> Edit:  # noqa: ANN401
    """Change the manifest's entry of a file."""

    def edit(manifest: dict[str, Any], files: Files) -> None:
        del files
        for entry in manifest["files"]:
            if entry["path"] == name:
                entry |= fields

    return edit


def _gone(name: str) -> Edit:
    def edit(manifest: dict[str, Any], files: Files) -> None:
        del manifest
        del files[name]

    return edit


#: name, what is done to the good Android bundle, codes in the order of the checks; none: still good
_CHANGED: Final[tuple[tuple[str, Edit, tuple[str, ...]], ...]] = (
    ("newer-version", _with("format_version", value=2), ("manifest.version",)),
    ("older-version", _with("format_version", value=0), ("manifest.schema",)),
    ("field-missing", _without("text", "add_bos"), ("manifest.schema",)),
    ("field-unknown", _with("surprise", value=1), ("manifest.schema",)),
    ("field-of-other-type", _with("artifact", "max_context", value="256"), ("manifest.schema",)),
    ("true-is-no-number", _with("artifact", "max_context", value=True), ("manifest.schema",)),
    ("no-end-token", _with("text", "eos_token_ids", value=[]), ("manifest.schema",)),
    ("end-token-twice", _with("text", "eos_token_ids", value=[0, 0]), ("manifest.schema",)),
    ("verdict-unknown", _with("verdict", value="perhaps"), ("manifest.schema",)),
    ("no-files", _with("files", value=[]), ("manifest.schema",)),
    ("rotated-in-blocks", _down_proj([16]), ()),
    ("rotated-as-a-whole", _down_proj([8, 20]), ()),
    ("rotated-by-three-orders", _down_proj([2, 4, 20]), ("manifest.schema",)),
    ("rotated-by-no-order", _down_proj([]), ("manifest.schema",)),
    ("absolute-path", _entry("model.pte", path="/data/model.pte"), ("manifest.schema",)),
    ("backslash-path", _entry("model.pte", path="..\\model.pte"), ("files.name",)),
    ("path-with-a-space", _entry("model.pte", path="the model.pte"), ("files.name",)),
    ("path-for-a-shell", _entry("model.pte", path="$(id).pte"), ("files.name",)),
    ("path-of-two-commands", _entry("model.pte", path="a;id"), ("files.name",)),
    ("path-with-a-quote", _entry("model.pte", path="model'.pte"), ("files.name",)),
    ("path-with-a-line-break", _entry("model.pte", path="model.pte\n"), ("files.name",)),
    ("path-not-ascii", _entry("model.pte", path="mod\u00e8le.pte"), ("files.name",)),
    ("path-in-other-digits", _entry("model.pte", path="model\u0662.pte"), ("files.name",)),
    ("path-from-here", _entry("model.pte", path="./model.pte"), ("files.outside",)),
    ("path-with-an-empty-part", _entry("model.pte", path="a//model.pte"), ("manifest.schema",)),
    ("path-of-a-folder", _entry("model.pte", path="model.pte/"), ("manifest.schema",)),
    ("uppercase-hash", _entry("model.pte", sha256="A" * 64), ("manifest.schema",)),
    ("path-above", _entry("model.pte", path="../model.pte"), ("files.outside",)),
    ("path-through-above", _entry("model.pte", path="a/../../model.pte"), ("files.outside",)),
    ("file-missing", _gone("model.pte"), ("files.missing",)),
    ("two-files-missing", lambda m, f: (_gone("model.pte")(m, f), _gone("parity.json")(m, f))[0],
     ("files.missing",)),
    ("file-cut", _file("model.pte", b"a model"), ("files.size",)),
    ("file-changed", _file("model.pte", b"X tiny file in the place of a model\n"),
     ("files.sha256",)),
    ("file-unlisted", _file("chat_template.jinja", b"{{ messages }}"), ("files.unlisted",)),
    ("cut-and-unlisted", lambda m, f: (_file("model.pte", b"a")(m, f), _file("x", b"")(m, f))[0],
     ("files.size", "files.unlisted")),
    ("prompt-state-listed", _prompt_state, ()),
    ("failed-verdict", _with("verdict", value="failed"), ("verdict.failed",)),
    ("other-target", _with("target", value="onnx"), ("target.backend",)),
    ("other-backend", _with("backend", value="onnx"), ("target.backend",)),
    ("context-too-long", _with("artifact", "max_context", value=1024), ("context.exceeds_model",)),
    ("prefill-too-long", _with("artifact", "max_prefill", value=257), ("context.prefill",)),
    ("tokenizer-unreadable", _relisted("tokenizer.json", lambda value: value.pop("model")),
     ("tokenizer.unreadable",)),
    ("tokenizer-swapped", _stale_tokenizer,
     ("tokenizer.sha256", "tokenizer.golden_tokens", "template.tokens")),
    ("two-ids-swapped", _relisted("tokenizer.json", _swap_merges),
     ("tokenizer.golden_tokens", "template.tokens")),
    ("vocabulary-too-small", _with("model", "config", "vocab_size", value=200),
     ("tokenizer.vocabulary",)),
    ("golden-token-changed", _with("text", "golden_tokens", 2, "tokens", 0, value=5),
     ("tokenizer.golden_tokens",)),
    ("begin-token-added", _with("text", "add_bos", value=True), ("tokenizer.bos",)),
    ("begin-token-other", _with("text", "bos_token_id", value=1), ("tokenizer.bos",)),
    ("end-token-left-out", _with("text", "eos_token_ids", value=[0]), ("eos.missing",)),
    ("end-token-not-in-config",
     _relisted("generation_config.json", lambda value: value.update(eos_token_id=[2])),
     ("eos.missing",)),
    ("end-token-by-precedence",
     _relisted("generation_config.json", lambda value: value.update(eos_token_id=0)),
     ("eos.precedence",)),
    ("end-token-foreign",
     _relisted("generation_config.json", lambda value: value.update(eos_token_id=[0, 2, 9])),
     ("eos.foreign",)),
    ("main-end-token-other",
     _relisted("tokenizer_config.json", lambda value: value.update(eos_token="<|endoftext|>")),
     ("eos.precedence",)),
    ("sampling-changed",
     _relisted("generation_config.json", lambda value: value.update(temperature=1.5)),
     ("text.generation_defaults",)),
    ("template-absent", _no_template, ("template.missing",)),
    ("template-in-its-own-file", _template_file(lambda text: text, alone=True), ()),
    ("template-by-name", _relisted("tokenizer_config.json", _name_template), ()),
    ("template-differs-in-its-own-file",
     _template_file(lambda text: text.replace("'<|im_start|>'", "'<|im_start|> '"), alone=False),
     ("template.source", "template.text")),
    ("template-space-changed",
     _template(lambda text: text.replace("'<|im_start|>'", "'<|im_start|> '"), in_manifest=False),
     ("template.source", "template.text")),
    ("template-and-manifest-changed",
     _template(lambda text: text.replace("'<|im_start|>'", "'<|im_start|> '"), in_manifest=True),
     ("template.text",)),
    ("template-broken", _template(lambda text: text + "{% if %}", in_manifest=True),
     ("template.unrenderable",)),
    ("golden-chat-token-changed", _with("text", "golden_chats", 0, "tokens", 1, value=7),
     ("template.tokens",)),
)  # fmt: skip

_NOT_JSON: Final[tuple[tuple[str, bytes, str], ...]] = (
    ("manifest-cut", b'{"format_version":1,"verdict":"pas', "manifest.not_json"),
    ("manifest-a-list", b"[]", "manifest.not_json"),
    ("manifest-trailing-comma", b'{"format_version":1,}', "manifest.not_json"),
    ("manifest-not-utf8", b'{"verdict":"\xff"}', "manifest.not_json"),
    ("manifest-too-deep", b'{"a":' * 20_000, "manifest.not_json"),
    ("manifest-empty", b"", "manifest.not_json"),
    ("manifest-empty-object", b"{}", "manifest.schema"),
)


def bundle_cases() -> Iterator[tuple[Case, Files]]:
    """Each case with the files that it adds to the fixture folder."""
    model = {"model.pte": b"a tiny file in the place of a model\n"}
    package = {
        "model.mlpackage/Manifest.json": b"{}\n",
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel": b"not a model\n",
    }
    android = _good(chatml_text(), ANDROID, model)
    yield _case("good-android", android, ANDROID)
    yield _case("good-ios", _good(chatml_text(), IOS, package), IOS)
    yield _case("good-llama3-android", _good(llama_text(), ANDROID, model), ANDROID)
    yield _case("good-llama3-ios", _good(llama_text(), IOS, package), IOS)
    base = {name: f"bundles/good-android/{name}" for name in android}
    for name, edit, codes in _CHANGED:
        files = dict(android)
        manifest = copy.deepcopy(json.loads(android["manifest.json"]))
        edit(manifest, files)
        files["manifest.json"] = compact_json(manifest)
        yield _overlay(name, android, files, base, codes)
    yield from _rare_cases(model)
    for name, content, code in _NOT_JSON:
        yield _overlay(name, android, {**android, "manifest.json": content}, base, (code,))
    without = {name: content for name, content in android.items() if name != "manifest.json"}
    yield _overlay("manifest-absent", android, without, base, ("manifest.missing",))
    linked = {name: content for name, content in android.items() if name != "model.pte"}
    for name, added, codes in signed_files(android["manifest.json"]):
        case, files = _overlay(name, android, {**android, **added}, base, codes)
        yield {**case, "public_key": PUBLIC_KEY}, files
    case, files = _overlay("symlink-out", android, linked, base, ("files.symlink",))
    case["symlinks"] = {"model.pte": "../outside.pte"}
    case["beside"] = {"outside.pte": "bundles/good-android/model.pte"}
    yield case, files
    for name, what, code in _PLANTED:
        case, files = _overlay(name, android, android, base, (code,))
        yield {**case, **what}, files


def _unlisted_end(manifest: dict[str, Any], files: Files) -> None:
    """Neither the manifest nor a file names the end that the template writes."""
    manifest["text"]["eos_token_ids"] = [0]
    _relisted("generation_config.json", lambda value: value.update(eos_token_id=[0]))(
        manifest, files
    )
    _relisted("tokenizer_config.json", lambda value: value.update(eos_token="<eos>"))(
        manifest, files
    )


def _rename_pad(config: dict[str, Any]) -> None:
    config["pad_token"] = {"content": "<|endoftext|>", "special": True}


_begin_by_id: Final = _relisted("tokenizer_config.json", lambda value: value.pop("bos_token"))


def _no_begin(config: dict[str, Any]) -> None:
    del config["bos_token_id"]


#: what a change of a bundle is called, the change, codes in the order of the checks
_Changes = tuple[tuple[str, Edit, tuple[str, ...]], ...]
#: good bundles of rarer kinds: name, text, changes
_RARE: Final[tuple[tuple[str, Callable[[], TextAssets], _Changes], ...]] = (
    ("good-tokens-not-special", fields_text, ()),
    ("good-content-parts", parts_text, (
        ("content-parts-not-said", _without("text", "content_parts"), ("template.text",)),
    )),
    ("good-special-tokens-by-name", names_text, (
        ("pad-token-another", _relisted("tokenizer_config.json", _rename_pad), ("template.text",)),
        ("pad-token-undefined",
         _relisted("tokenizer_config.json", lambda value: value.pop("pad_token")),
         ("template.text",)),
        ("pad-token-no-token",
         _relisted("tokenizer_config.json", lambda value: value.update(pad_token=7)),
         ("tokenizer.unreadable",)),
        ("special-token-too-many",
         _relisted("tokenizer_config.json", lambda value: value.update(sep_token="<|im_end|>")),
         ("template.text",)),
        ("begin-token-by-id", _begin_by_id, ()),
        ("begin-token-nowhere",
         lambda m, f: (_begin_by_id(m, f), _relisted("generation_config.json", _no_begin)(m, f))[0],
         ("tokenizer.bos",)),
    )),
    ("good-end-of-the-template-alone", own_text, (
        ("end-of-the-template-left-out", _unlisted_end, ("eos.missing",)),
    )),
)  # fmt: skip


def _rare_cases(model: Files) -> Iterator[tuple[Case, Files]]:
    for name, make, changes in _RARE:
        good = _good(make(), ANDROID, model)
        yield _case(name, good, ANDROID)
        base = {path: f"bundles/{name}/{path}" for path in good}
        for label, edit, codes in changes:
            files = dict(good)
            manifest = copy.deepcopy(json.loads(good["manifest.json"]))
            edit(manifest, files)
            files["manifest.json"] = compact_json(manifest)
            yield _overlay(label, good, files, base, codes)


#: name, what is planted into the good Android bundle beside its files, the code
_PLANTED: Final[tuple[tuple[str, dict[str, Any], str], ...]] = (
    ("symlink-inside", {"symlinks": {"more.json": "parity.json"}}, "files.symlink"),
    ("symlink-to-nothing", {"symlinks": {"chat_template.jinja": "nothing"}}, "files.symlink"),
    ("symlink-to-a-folder", {"symlinks": {"more": ".."}}, "files.symlink"),
    ("pipe", {"pipes": ["chat_template.jinja"]}, "files.kind"),
    ("pipe-for-a-signature", {"pipes": ["manifest.sig"]}, "files.kind"),
    ("pipe-in-a-folder", {"folders": ["more"], "pipes": ["more/pipe"]}, "files.kind"),
    ("empty-folder", {"folders": ["more"]}, "files.unlisted"),
    ("empty-folder-in-another", {"folders": ["more", "more/deep"]}, "files.unlisted"),
)


def _case(name: str, files: Files, app: Mapping[str, str]) -> tuple[Case, Files]:
    places = {path: f"bundles/{name}/{path}" for path in files}
    case = {"kind": "bundle", "name": name, "accepts": [app], "files": places, "codes": []}
    return case, {places[path]: content for path, content in files.items()}


def _overlay(
    name: str, good: Files, files: Files, base: Mapping[str, str], codes: tuple[str, ...]
) -> tuple[Case, Files]:
    """Only what differs from the good bundle is written again."""
    new = {path: content for path, content in files.items() if good.get(path) != content}
    places = {
        path: f"bundles/{name}/{path}" if path in new else base[path] for path in sorted(files)
    }
    case = {
        "kind": "bundle",
        "name": name,
        "accepts": [ANDROID],
        "files": places,
        "codes": list(codes),
    }
    return case, {places[path]: content for path, content in new.items()}
