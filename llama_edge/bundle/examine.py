"""What is wrong with a bundle, or with a folder that another program wrote: the examination.

`doctor` runs this in a child process.
"""

from pathlib import Path
from typing import Final

from llama_edge.backends import SUFFIXES, artifact_backend
from llama_edge.bundle.doctor_bundle import examine_bundle
from llama_edge.bundle.doctor_foreign import examine_checkpoint, examine_model
from llama_edge.bundle.examination import Diagnosis, Examination
from llama_edge.bundle.folder import PARITY_FILE
from llama_edge.bundle.manifest import MANIFEST_FILE
from llama_edge.bundle.signing import load_public_key
from llama_edge.checkpoints.recognise import CONFIG_FILE as MODEL_CONFIG_FILE
from llama_edge.core.errors import ArtifactError, UsageError
from llama_edge.core.progress import Progress
from llama_edge.core.walk import walk

#: ONNX Runtime GenAI's own file.
_GENAI_FILE: Final = "genai_config.json"


def examine(path: Path, public_key: Path | None, progress: Progress) -> Diagnosis:
    """Check everything that can be checked without running the model.

    Args:
        path: A bundle; or a folder of ONNX Runtime GenAI, of Hugging Face, or of a `.pte` or
            `.mlpackage` with its tokenizer; or such a file.
        public_key: PEM file of the key that must have signed the bundle; None demands none.
        progress: Told of each stage.

    Raises:
        ArtifactError: `path` is none of these.
        UsageError: The key cannot be read, or `path` is no bundle and cannot be signed.
    """
    if not path.exists():
        raise ArtifactError(f"{path}: there is no such file or folder")
    key = None if public_key is None else load_public_key(public_key)
    # Next to its measurements, a lost manifest is a fault and not another kind of folder.
    if (path / MANIFEST_FILE).exists() or (path / PARITY_FILE).exists():
        return examine_bundle(path, key, progress)
    if key is not None:
        raise UsageError(f"{path}: --public-key belongs to a bundle, and this is none")
    return _examine_foreign(path, progress)


def _examine_foreign(path: Path, progress: Progress) -> Diagnosis:
    if (path / _GENAI_FILE).is_file():
        examination = Examination(path, "ONNX Runtime GenAI folder", progress)
        examine_model(examination, path, "onnx")
    elif _has_one_model(path):
        backend = artifact_backend(path)
        examination = Examination(path, f"{backend} model", progress)
        examine_model(examination, _model_path(path), backend)
    elif (path / MODEL_CONFIG_FILE).is_file():
        examination = Examination(path, "Hugging Face folder", progress)
        examine_checkpoint(examination, path)
    else:
        raise ArtifactError(
            f"{path}: not a bundle ({MANIFEST_FILE}), an ONNX Runtime GenAI folder ({_GENAI_FILE}),"
            f" a Hugging Face folder ({MODEL_CONFIG_FILE}) or one with a single model "
            f"({', '.join(SUFFIXES)}); give one of these"
        )
    return examination.diagnosis()


def _has_one_model(path: Path) -> bool:
    try:
        return artifact_backend(path) != "onnx"  # which tells nothing without its config
    except ArtifactError:
        return False


def _model_path(path: Path) -> Path:
    if path.suffix in SUFFIXES:
        return path
    files = (path / entry.name for entry in walk(path, depth=1))
    return next(file for file in files if file.suffix in SUFFIXES)
