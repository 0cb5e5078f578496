"""What each peer is asked, in an environment of its own: build an artifact, time it, give logits.

    python benchmarks/peer_drivers.py PEER build|time|logits WORK

`WORK` holds `hf` (the checkpoint as a Hugging Face folder), `gguf` (as float32 GGUF), `tokens.json`
(held-out text) and, for an importance matrix, `calibration.txt`. `build` writes WORK/PEER; `time`
prints [decode, decode after a long prompt, prefill] tokens per second; `logits` writes
WORK/PEER/logits.npy. Nothing of llama-edge is imported here.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

#: One call: tokens in, float32 logits (V,) after the last of them out.
Call = Callable[[Sequence[int]], np.ndarray]

PROMPT_TOKENS = 128
#: prompts of that length one after the other
LONG_PROMPTS = 8
DECODE_TOKENS = 64
CONTEXT = 2048
THREADS = os.cpu_count() or 1
#: tokens of one sequence of our calibration text
CALIBRATION_LENGTH = 256
#: llama.cpp's library and programs, within WORK
LLAMA_CPP = Path("environments/llama.cpp/build/bin")


def build_genai(work: Path) -> None:
    """Symmetric int4 in blocks of 32 over int8 activations: the builder's closest to our bits."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(work / "hf"), "-o", str(work / "genai"), "-p", "int4", "-e", "cpu"]
    options = ["int4_block_size=32", "int4_accuracy_level=4", "int4_is_symmetric=true"]
    subprocess.run([*command, "--extra_options", *options], check=True)


@contextmanager
def open_genai(folder: Path) -> Iterator[Callable[[], Call]]:
    """A generator for each sequence."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))

    def start() -> Call:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=CONTEXT, do_sample=False)
        generator = og.Generator(model, parameters)

        def call(tokens: Sequence[int]) -> np.ndarray:
            generator.append_tokens(np.array([tokens], np.int32))
            logits: np.ndarray = generator.get_logits()
            last: np.ndarray = logits.reshape(-1, logits.shape[-1])[-1]
            return last

        return call

    yield start


def build_optimum(work: Path) -> None:
    """The project's own recipe for XNNPACK, with what its documentation recommends for Llama."""
    program = str(Path(sys.executable).with_name("optimum-cli"))
    command = [program, "export", "executorch", "--model", str(work / "hf")]
    command += ["--task", "text-generation", "--recipe", "xnnpack", "--use_custom_sdpa"]
    command += ["--use_custom_kv_cache", "--qlinear", "8da4w", "--qlinear_group_size", "32"]
    command += ["--qembedding", "8w", "--max_seq_len", str(CONTEXT)]
    subprocess.run([*command, "--output_dir", str(work / "optimum")], check=True)


@contextmanager
def open_pte(path: Path) -> Iterator[Callable[[], Call]]:
    """A method that takes tokens and their positions, or where they start."""
    import torch
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
    from executorch.kernels import quantized  # noqa: F401
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    assert method is not None, path
    many = method.metadata.input_tensor_meta(1).sizes()[0] > 1

    def start() -> Call:
        used = 0

        def call(tokens: Sequence[int]) -> np.ndarray:
            nonlocal used
            places = range(used, used + len(tokens)) if many else [used]
            result: Any = method.execute((torch.tensor([list(tokens)]), torch.tensor([*places])))[0]
            used += len(tokens)
            logits: np.ndarray = result.numpy().reshape(-1, result.shape[-1])[-1].copy()
            return logits

        return call

    yield start


def build_llama_cpp(work: Path, peer: str, kind: str, *, calibrated: bool = False) -> None:
    """llama.cpp's own programs, as its documentation says; the tables as they choose."""
    programs, source = work / LLAMA_CPP, work / "gguf" / "model.gguf"
    (work / peer).mkdir(exist_ok=True)
    options: list[str | Path] = []
    if calibrated:
        matrix = work / f"{peer}.matrix.gguf"
        command: list[str | Path] = [programs / "llama-imatrix", "-m", source]
        command += ["-f", work / "calibration.txt"]
        command += ["-o", matrix, "-c", str(CALIBRATION_LENGTH), "-t", str(THREADS)]
        # The text has the control tokens of a chat; its perplexity is not needed.
        subprocess.run([*command, "--parse-special", "--no-ppl"], check=True)
        options = ["--imatrix", matrix]
    target = work / peer / "model.gguf"
    subprocess.run([programs / "llama-quantize", *options, source, target, kind], check=True)


@contextmanager
def open_llama_cpp(work: Path, peer: str) -> Iterator[Callable[[], Call]]:
    """The model with an empty cache for each sequence."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(work / LLAMA_CPP)
    from llama_cpp import Llama

    path = str(work / peer / "model.gguf")
    model = Llama(path, n_ctx=CONTEXT, n_batch=512, n_threads=THREADS, verbose=False)

    def start() -> Call:
        model.reset()

        def call(tokens: Sequence[int]) -> np.ndarray:
            model.eval(list(tokens))
            return np.array(model._ctx.get_logits()[: model.n_vocab()], np.float32)

        return call

    yield start


def tokens_per_s(call: Call, tokens: Sequence[int], times: int) -> float:
    """Of `times` calls with the same tokens, one after the other."""
    began = time.perf_counter()
    for _ in range(times):
        call(tokens)
    return times * len(tokens) / (time.perf_counter() - began)


def time_calls(start: Callable[[], Call]) -> tuple[float, float, float]:
    """(decode, decode after a long prompt, prefill) tokens per second, after a warm-up prefill."""
    prompt = list(range(100, 100 + PROMPT_TOKENS))
    start()(prompt)
    call = start()
    prefill = tokens_per_s(call, prompt, 1)
    decode = tokens_per_s(call, [7], DECODE_TOKENS)
    call = start()
    tokens_per_s(call, prompt, LONG_PROMPTS)
    return decode, tokens_per_s(call, [7], DECODE_TOKENS), prefill


BUILDERS: dict[str, Callable[[Path], None]] = {
    "genai": build_genai,
    "optimum": build_optimum,
    "llama.cpp-q4_0": lambda work: build_llama_cpp(work, "llama.cpp-q4_0", "Q4_0"),
    "llama.cpp-q4_k_m": lambda work: build_llama_cpp(work, "llama.cpp-q4_k_m", "Q4_K_M"),
    "llama.cpp-q4_0-imatrix": lambda work: build_llama_cpp(
        work, "llama.cpp-q4_0-imatrix", "Q4_0", calibrated=True
    ),
}


def opened(peer: str, work: Path) -> Any:  # noqa: ANN401
    """The peer's context manager."""
    if peer in ("genai", "onnx"):
        return open_genai(work / peer)
    if peer.startswith("llama.cpp"):
        return open_llama_cpp(work, peer)
    return open_pte(work / peer / "model.pte")


def main() -> None:
    """One peer, one request."""
    peer, request, folder = sys.argv[1:]
    work = Path(folder)
    if request == "build":
        BUILDERS[peer](work)
        return
    with opened(peer, work) as start:
        if request == "time":
            print(json.dumps(time_calls(start)))
            return
        call = start()
        tokens = json.loads((work / "tokens.json").read_text())
        np.save(work / peer / "logits.npy", np.stack([call([token]) for token in tokens]))


if __name__ == "__main__":
    main()
