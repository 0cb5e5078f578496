"""Models by their Hugging Face id, through `huggingface_hub`, its cache and its offline mode.

`owner/name` is a repository; `owner/name:Q4_K_M` one of several GGUF models in it, by its
quantization or its file's name; and `@REVISION` after either is a branch, a tag or a commit.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import huggingface_hub
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llama_edge.checkpoints.huggingface_config import read_config
from llama_edge.checkpoints.recognise import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    GGUF_SUFFIX,
    PARAMS_FILE,
    WEIGHT_SOURCES,
    refuse_by_sign,
)
from llama_edge.core.errors import CheckpointError, UsageError
from llama_edge.core.walk import walk

#: Neither what follows `:` nor what follows `@` has controls, or bytes that are no UTF-8.
_LETTER: Final = r"[^:@\x00-\x1f\x7f\ud800-\udfff]"
#: As in git. The hub's client also takes it for a path in its cache, and would read `/dev/zero`.
_REVISION: Final = rf"(?!/)((?!\.\.){_LETTER})+"
_ID: Final = re.compile(
    rf"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(:(?P<choice>{_LETTER}+))?"
    rf"(@(?P<revision>{_REVISION}))?"
)
#: Texts that a bundle carries on.
_LICENCES: Final = ("LICEN*", "NOTICE*", "USE_POLICY*")
_SAFETENSORS: Final = ("*.safetensors", "*.json", "*.jinja", *_LICENCES)
#: Text files, and the torch files that are weights: not an optimizer's or a scheduler's.
_TORCH: Final = ("pytorch_model*.bin", "*.json", "*.jinja", *_LICENCES)
#: With the tokenizer that it was trained with, if it has one.
_ADAPTER: Final = ("adapter_model.*", "tokenizer.model", "*.json", "*.jinja")
#: A config and the files beside it that say more of how the weights are stored.
_CONFIGS: Final = ("*config.json",)
#: A pattern of nothing.
_NO_FILE: Final = "no-file-has-this-name"
#: Other folders of a Hugging Face repository hold the same model in other forms.
_TOP_ONLY: Final = ("*/*",)
_META_FOLDERS: Final = ("", "original/")
_META_FILES: Final = (PARAMS_FILE, "tokenizer.model", "*.pth", "*.pt", *_LICENCES)
_PART: Final = re.compile(r"-\d+-of-\d+(?=\.gguf$)", re.IGNORECASE)
#: What a file's name says of its quantization, as llama.cpp writes it.
_QUANTIZATION: Final = re.compile(
    r"[-._]((?:UD-)?(?:I?Q\d\w*|T?Q\d_\w+|BF16|F16|F32|FP16|FP32|MXFP4\w*))\.gguf$", re.IGNORECASE
)
_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model in a repository."""

    #: `owner/name`
    name: str
    #: of a GGUF model: its quantization, or its file's name
    choice: str | None = None
    #: None: the repository's main branch
    revision: str | None = None

    def __str__(self) -> str:
        choice = f":{self.choice}" if self.choice else ""
        return f"{self.name}{choice}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which files of a repository make the model."""

    patterns: tuple[str, ...]
    ignored: tuple[str, ...]
    #: what the reader is given, relative to the snapshot
    path: str = "."


def is_hub_id(model: str) -> bool:
    """Whether a string has the form `owner/name`, with or without what may come after it."""
    return _ID.fullmatch(model) is not None


def is_repository(model: str) -> bool:
    """Whether it `is_hub_id`, and nothing here has that name."""
    return is_hub_id(model) and not Path(model).exists()


def parse_hub_id(model: str) -> HubModel:
    """The parts of a string that `is_hub_id`."""
    found = _ID.fullmatch(model)
    assert found is not None, f"{model} is no id"
    return HubModel(found["name"], found["choice"], found["revision"])


def with_revision(model: str, revision: str | None) -> str:
    """A model's name with a revision, as `--revision` gives it.

    Raises:
        UsageError: The model is no Hugging Face id, or names another revision itself.
    """
    if revision is None:
        return model
    if not is_repository(model):
        raise UsageError(f"--revision {revision}: {model} is no Hugging Face id; leave it out")
    found = parse_hub_id(model)
    if found.revision not in (None, revision):
        raise UsageError(f"--revision {revision}: {model} names another revision; leave one out")
    if not is_hub_id(f"{found.name}@{revision}"):
        raise UsageError(f"--revision {revision!r}: a branch, a tag or a commit is needed")
    return str(HubModel(found.name, found.choice, revision))


def download(model: str, *, config_only: bool = False) -> Path:
    """What the reader of the model's form is given; from the cache what is there already.

    Args:
        model: An id, see `is_hub_id`.
        config_only: Of a Hugging Face folder, download no weights.

    Raises:
        CheckpointError: The repository is absent, gated, not to be reached, or holds no model that
            is read, or several.
    """
    found = parse_hub_id(model)
    with _explained(found):
        names = _file_names(found)
        try:
            wanted = _wanted(found, names.listed, config_only=config_only)
        except CheckpointError as error:
            if names.all_of_them:
                raise
            raise CheckpointError(
                f"{error} (in the cache; huggingface.co cannot be reached, or HF_HUB_OFFLINE is "
                "set)"
            ) from error
        if wanted.patterns[0] in (_SAFETENSORS[0], _TORCH[0]):
            # A model that is not read is refused before gigabytes of it are downloaded.
            config = _snapshot(found, _Wanted(_CONFIGS, _TOP_ONLY)) / CONFIG_FILE
            read_config(config)
        folder = _snapshot(found, wanted)
    return folder / wanted.path


def download_adapter(adapter: str) -> Path:
    """The folder of a LoRA adapter; from the cache what is there already.

    Args:
        adapter: An id, see `is_hub_id`.

    Raises:
        CheckpointError: The repository is absent, gated or not to be reached.
    """
    found = parse_hub_id(adapter)
    with _explained(found):
        return _snapshot(found, _Wanted(_ADAPTER, _TOP_ONLY))


@dataclass(frozen=True, slots=True)
class _Names:
    """Files of a repository."""

    listed: Sequence[str]
    #: False: only what is in the cache
    all_of_them: bool


def _file_names(model: HubModel) -> _Names:
    try:
        found = huggingface_hub.snapshot_download(model.name, revision=model.revision, dry_run=True)
    except DryRunError:
        # The same without a dry run says why, and in the offline mode finds the snapshot.
        folder = _snapshot(model, _Wanted((_NO_FILE,), ()))
        entries = walk(folder, CheckpointError)
        return _Names([entry.name for entry in entries if not entry.is_folder], all_of_them=False)
    return _Names([each.filename for each in found], all_of_them=True)


def _snapshot(model: HubModel, wanted: _Wanted) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            model.name,
            revision=model.revision,
            allow_patterns=list(wanted.patterns),
            ignore_patterns=list(wanted.ignored),
        )
    )


def _wanted(model: HubModel, names: Sequence[str], *, config_only: bool) -> _Wanted:
    ggufs = [name for name in names if name.lower().endswith(GGUF_SUFFIX)]
    if model.choice is not None:
        return _gguf(_chosen(model, ggufs))
    if ADAPTER_CONFIG_FILE in names:  # whose reader says what it is an adapter of
        return _Wanted((ADAPTER_CONFIG_FILE,), _TOP_ONLY)
    weights = [name for name in WEIGHT_SOURCES if name in names]
    if config_only and CONFIG_FILE in names and not ggufs:
        return _Wanted(_CONFIGS, _TOP_ONLY)
    if CONFIG_FILE in names and weights:
        is_torch = not weights[0].startswith("model.")
        return _Wanted(_TORCH if is_torch else _SAFETENSORS, _TOP_ONLY)
    if ggufs:
        models = _by_model(ggufs)
        if len(models) == 1:
            return _gguf(models[0])
        raise CheckpointError(
            f"{model}: the repository has {len(models)} GGUF models; choose one: "
            f"{', '.join(_id_of(model, parts) for parts in models[:_SHOWN])}"
            + (f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else "")
        )
    for folder in _META_FOLDERS:
        if folder + PARAMS_FILE in names:
            patterns = tuple(folder + name for name in _META_FILES)
            ignored = () if folder else _TOP_ONLY
            return _Wanted(patterns, ignored, folder.rstrip("/") or ".")
    top = sorted({name.partition("/")[0] for name in names})
    refuse_by_sign(str(model), top)
    raise CheckpointError(
        f"{model}: the repository has no model that is read: no {CONFIG_FILE} with weights, no "
        f"GGUF file, no {PARAMS_FILE}; there is {', '.join(top[:_SHOWN]) or 'nothing'}"
    )


def _gguf(parts: Sequence[str]) -> _Wanted:
    """A file, or all parts of a split one, of which the first is given to the reader."""
    return _Wanted(tuple(_literal(name) for name in parts), (), parts[0])


def _literal(name: str) -> str:
    """A pattern that only this name fits."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _by_model(names: Sequence[str]) -> list[list[str]]:
    """Names of GGUF files, the parts of one model together."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        models.setdefault(_PART.sub("", name), []).append(name)
    return list(models.values())


def _quantization(name: str) -> str | None:
    found = _QUANTIZATION.search(_PART.sub("", name))
    return found[1] if found else None


def _id_of(model: HubModel, parts: Sequence[str]) -> str:
    chosen = _quantization(parts[0]) or Path(parts[0]).name
    return str(HubModel(model.name, chosen, model.revision))


def _chosen(model: HubModel, names: Sequence[str]) -> list[str]:
    """The files of the model that was named after the colon."""
    choice = str(model.choice).lower()
    models = _by_model(names)
    fitting = [
        parts for parts in models if choice in {form for part in parts for form in _forms(part)}
    ] or [parts for parts in models if (_quantization(parts[0]) or "").lower() == choice]
    if len(fitting) == 1:
        return fitting[0]
    if not models:
        raise CheckpointError(
            f"{model}: the repository has no GGUF file to choose from; leave out :{model.choice}"
        )
    if fitting:
        raise CheckpointError(
            f"{model}: is said of {len(fitting)} models; name the file: "
            f"{', '.join(Path(parts[0]).name for parts in fitting[:_SHOWN])}"
        )
    raise CheckpointError(
        f"{model}: the repository has no such GGUF model; there is "
        f"{', '.join(_id_of(model, parts) for parts in models[:_SHOWN])}"
    )


def _forms(name: str) -> tuple[str, ...]:
    """How a file may be named: with its folder or without, as a part or as the whole."""
    whole = _PART.sub("", name)
    forms = (name, Path(name).name, whole, Path(whole).name)
    return tuple(form.lower() for form in forms)


@contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """The hub's errors as messages."""
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{model}: its owner lets in only those who accept the licence; accept it at "
            f"https://huggingface.co/{model.name}, then run: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{model}: the repository has no branch, tag or commit {model.revision}; its branches "
            f"are listed at https://huggingface.co/{model.name}/tree/main"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{model}: neither a local path nor a public repository on huggingface.co; check the "
            "spelling, or run hf auth login if it is private"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{model}: not a local path, not in the cache, and huggingface.co cannot be reached "
            "(or HF_HUB_OFFLINE is set); go online once, or give a local folder"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{model}: cannot be downloaded: {reason}; try again, or give a local folder"
        ) from error
