"""What is not read is called by its name, with what to do; before anything else is read."""

import json
import os
from pathlib import Path

import pytest

from llama_edge.checkpoints import checkpoint_form, load_checkpoint
from llama_edge.core.errors import CheckpointError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(path))
    assert caught.value.exit_code == 3
    return str(caught.value).replace(str(path), "MODEL")


def test_a_lora_adapter(hf_folder: Path) -> None:
    said = (
        "MODEL: is a LoRA adapter of some/base; give its base model as MODEL, and this folder "
        "with --adapter"
    )
    config = {"base_model_name_or_path": "some/base", "peft_type": "LORA", "r": 8}
    (hf_folder / "adapter_config.json").write_text(json.dumps(config))
    besides = said.replace(
        "base;",
        "base, besides a model; if the adapter is merged into it already, delete "
        "adapter_config.json;",
    )
    assert refusal(hf_folder) == besides
    (hf_folder / "model.safetensors").rename(hf_folder / "adapter_model.safetensors")
    assert refusal(hf_folder) == said
    (hf_folder / "config.json").unlink()
    assert refusal(hf_folder) == said
    (hf_folder / "adapter_config.json").unlink()
    assert refusal(hf_folder) == said.replace(" of some/base", "")
    (hf_folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    assert "is an adapter of PEFT's type 'IA3'; merge" in refusal(hf_folder)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "awq"}, "AWQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors (llm-compressor)"),
        ({"quant_method": "fp8"}, "FP8"),
        ({"quant_method": "fbgemm_fp8"}, "FP8 (FBGEMM)"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "hqq"}, "HQQ"),
        ({"quant_method": "auto-round"}, "AutoRound"),
        ({"quant_method": "auto_round"}, "AutoRound"),
        ({"quant_method": "something"}, "'something'"),
        ({"bits": 3}, "a method that quantization_config does not name"),
        ({}, "a method that quantization_config does not name"),
        ("int4", "a method that quantization_config does not name"),
    ],
)
def test_a_quantized_model(hf_folder: Path, config: object, method: str) -> None:
    change_config(hf_folder, quantization_config=config)
    assert refusal(hf_folder) == (
        f"MODEL/config.json: the model was quantized with {method}, and such weights are not "
        "read; take its unquantized release"
    )


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_method_of_transformers_has_a_name() -> None:
    from transformers.utils.quantization_config import QuantizationMethod

    from llama_edge.checkpoints.quantized_elsewhere import _METHODS

    # Its own spelling is as good as another, or nobody publishes such checkpoints.
    unnamed = {"gguf", "metal", "fouroversix", "gemma"}
    assert {method.value for method in QuantizationMethod} - set(_METHODS) <= unnamed


def test_quantized_by_mlx_and_by_old_files(hf_folder: Path) -> None:
    change_config(hf_folder, quantization={"bits": 4}, quantization_config={"bits": 4})
    assert "quantized with MLX, and" in refusal(hf_folder)
    change_config(hf_folder, quantization=None, quantization_config=None)
    (hf_folder / "quantize_config.json").write_text('{"bits": 4}')
    assert "quantized with GPTQ (quantize_config.json)" in refusal(hf_folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tf_model.h5", "is only there with TensorFlow weights (tf_model.h5); load it with"),
        ("flax_model.msgpack", "is only there with Flax weights (flax_model.msgpack); load it"),
        ("model.onnx", "is an ONNX export (model.onnx); take the model's Hugging Face folder"),
        ("consolidated.safetensors", "is in Mistral's own form"),
        ("zero_to_fp32.py", "is a DeepSpeed checkpoint (zero_to_fp32.py); run"),
        ("__0_0.distcp", "is a sharded FSDP checkpoint"),
        ("weights.pt", "has no weights: none of model.safetensors, model.safetensors.index.json, "),
    ],
)
def test_other_weights_beside_config_json(hf_folder: Path, name: str, said: str) -> None:
    (hf_folder / "model.safetensors").rename(hf_folder / name)
    assert f"MODEL: {said}" in refusal(hf_folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model_index.json", "is a diffusers pipeline, no language model"),
        ("llama.nemo", "is a NeMo model (llama.nemo); convert it"),
        ("mlc-chat-config.json", "is a model of MLC"),
        ("model.safetensors", "is without config.json (model.safetensors); download config.json"),
        ("pytorch_model.bin", "is without config.json (pytorch_model.bin)"),
        ("consolidated.00.pth", "is without params.json"),
        ("readme.txt", "not a checkpoint; looked for a folder with config.json (Hugging Face), "),
    ],
)
def test_folders_without_a_config(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_text("x")
    assert f"MODEL: {said}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("snapshots", "is a folder of the Hugging Face cache (snapshots); give the folder of a"),
        ("checkpoint-500", "is a training run's folder (checkpoint-500); give one"),
        ("llama", "is a folder of models; give one: llama"),
    ],
)
def test_folders_of_folders(hf_folder: Path, name: str, said: str) -> None:
    outer = hf_folder.parent / "outer"
    outer.mkdir()
    hf_folder.rename(outer / name)
    assert f"MODEL: {said}" in refusal(outer)


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith("MODEL: is an empty folder; looked for a folder")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"x", "is only a model's weights; give a folder that has its config"),
        ("model.pth", b"x", "is only a model's weights; give a folder"),
        ("model.nemo", b"x", "is a NeMo archive; convert"),
        ("model.zip", b"x", "is a zip archive; unpack it, and give the folder in it"),
        ("model.tar.gz", b"x", "is a compressed file; unpack"),
        ("model", b"PK\x03\x04", "is a zip archive; unpack"),
        ("model.pte", b"x", "is an ExecuTorch program, exported already; take the model's"),
        ("model.onnx", b"x", "is an ONNX graph, exported already"),
        ("model", b"x", "not a checkpoint; looked for"),
        ("model", POINTER.encode(), "is a Git LFS pointer, which only names the file: run"),
        ("model.gguf", POINTER.encode(), "is a Git LFS pointer"),
    ],
)
def test_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path).startswith(f"MODEL: {said}")


def test_one_file_of_a_folder(hf_folder: Path) -> None:
    assert refusal(hf_folder / "model.safetensors") == (
        f"MODEL: is only a model's weights; give its folder, {hf_folder}"
    )
    assert refusal(hf_folder / "config.json") == (
        f"MODEL: is one file of a model; give its folder, {hf_folder}"
    )


def test_a_pipe_is_not_waited_for(tmp_path: Path, hf_folder: Path) -> None:
    os.mkfifo(tmp_path / "model")
    assert "is a named pipe; a regular file is needed" in refusal(tmp_path / "model")
    for name in ("model.safetensors", "config.json"):
        (hf_folder / name).unlink()
        os.mkfifo(hf_folder / name)
        assert "is a named pipe; a regular file is needed" in refusal(hf_folder)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json"],
)
def test_git_lfs_pointers(hf_folder: Path, name: str) -> None:
    from llama_edge.core.errors import LlamaEdgeError

    (hf_folder / name).write_text(POINTER)
    with pytest.raises(LlamaEdgeError, match=f"{name}: is a Git LFS pointer"):
        load_checkpoint(str(hf_folder))


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (("config.json", "model.safetensors", "params.json"), "huggingface"),
        (("config.json", "pytorch_model.bin.index.json", "params.json"), "huggingface"),
        (("config.json", "params.json", "consolidated.00.pth"), "meta"),
        (("config.json", "model.gguf"), "gguf"),
        (("config.json", "model.safetensors", "model.gguf"), "huggingface"),
        (("MODEL.GGUF",), "gguf"),
        (("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"), "gguf"),
    ],
)
def test_which_form_a_folder_has(tmp_path: Path, names: tuple[str, ...], form: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    assert checkpoint_form(tmp_path) == form


def test_two_gguf_models(tmp_path: Path) -> None:
    for name in ("a-Q4_0.gguf", "a-Q8_0.gguf"):
        (tmp_path / name).touch()
    said = "MODEL: has 2 GGUF models, a-Q4_0.gguf, a-Q8_0.gguf; give one of the files"
    assert refusal(tmp_path) == said


@pytest.mark.parametrize("name", ["sha256-0123", "model.GGUF"])
def test_a_gguf_file_goes_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF\x03\0\0\0")
    assert checkpoint_form(tmp_path / name) == "gguf"
