"""One operator alone: what its input and weights make of it, next to what an artifact made of it.

Needs NumPy and the `.npy` files next to it, nothing else. `llama-edge bisect` wrote both.
Exit code 1: the artifact's output is not what the operator says.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: A NumPy array; this file runs where its types may not be installed.
Array = Any
Description = Mapping[str, Any]


def per_token_int8(x: Array) -> Array:
    """Asymmetric int8 per row and back, as XNNPACK converts to qdint8."""
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    span = high - low
    scale = np.float32(255) / np.where(span == 0, np.float32(255), span)
    low, high = low * scale, high * scale
    nudged = np.where((-128 + low) + (127 + high) > 0, -128 - low, 127 - high)
    zero = np.round(np.clip(nudged, -128, 127))
    return (np.clip(np.round(x * scale) + zero, -128, 127) - zero) / scale


def per_block_int8(x: Array, block: int = 32) -> Array:
    """Symmetric int8 per 32 inputs and back, as MatMulNBits does at accuracy_level 4."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[-1] % block)))
    blocks = padded.reshape(len(x), -1, block)
    peak = np.abs(blocks).max(-1, keepdims=True)
    inverse = np.float32(127) / np.where(peak == 0, np.float32(np.inf), peak)
    rounded = np.round(blocks * inverse) * (peak / np.float32(127))
    return rounded.reshape(len(x), -1)[:, : x.shape[-1]]


ROUND: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "int8_per_token": per_token_int8,
    "int8_per_block": per_block_int8,
}


def dequantized(files: Mapping[str, Array]) -> Array:
    """Codes times scales, a scale for each group of inputs."""
    codes, scales = files["codes"].astype(np.float32), files["scales"]
    groups = codes.reshape(*scales.shape, -1) * scales[..., None]
    return groups.reshape(codes.shape)


def linear(files: Mapping[str, Array], about: Description) -> Array:
    """Round the input as the runtime does, multiply by the matrix."""
    x = ROUND[about["activation"]](files[about["inputs"][0]])
    matrix = dequantized(files) if "codes" in files else files["weight"]
    return x @ matrix.T + files.get("bias", np.float32(0))


def norm(files: Mapping[str, Array], about: Description) -> Array:
    """RMSNorm."""
    x = files[about["inputs"][0]]
    mean = np.square(x).mean(-1, keepdims=True)
    return x / np.sqrt(mean + np.float32(about["epsilon"])) * files["weight"]


def head_norm(files: Mapping[str, Array], about: Description) -> Array:
    """RMSNorm of each head."""
    name = about["inputs"][0]
    x = files[name].reshape(-1, about["head_dim"])
    return norm({**files, name: x}, about).reshape(files[name].shape)


def heads(x: Array, head_dim: int) -> Array:
    """(tokens, heads * head_dim) to (heads, tokens, head_dim)."""
    return x.reshape(len(x), -1, head_dim).transpose(1, 0, 2)


def rope(files: Mapping[str, Array], about: Description) -> Array:
    """Each head's first half turned against its second; then R3, if there is one."""
    x = heads(files[about["inputs"][0]], about["head_dim"])
    first, second = np.split(x, 2, axis=-1)
    cos, sin = files["cos"], files["sin"]
    turned = np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    if "rotation" in files:
        turned = turned @ files["rotation"]
    return turned.transpose(1, 0, 2).reshape(len(turned[0]), -1)


def attention(files: Mapping[str, Array], about: Description) -> Array:
    """Causal grouped-query attention."""
    q, k, v = (heads(files[name], about["head_dim"]) for name in about["inputs"])
    k, v = (np.repeat(part, len(q) // len(part), axis=0) for part in (k, v))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(about["head_dim"]))
    future = np.triu(np.ones(scores.shape[1:], bool), 1)
    scores = np.where(future, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    attended = (weights / weights.sum(-1, keepdims=True)) @ v
    return attended.transpose(1, 0, 2).reshape(attended.shape[1], -1)


def swiglu(files: Mapping[str, Array], about: Description) -> Array:
    """silu(gate) * up."""
    gate, up = (files[name] for name in about["inputs"])
    return gate / (1 + np.exp(-gate)) * up


def total(files: Mapping[str, Array], about: Description) -> Array:
    """The residual stream and a branch."""
    first, second = (files[name] for name in about["inputs"])
    return first + second


def same(files: Mapping[str, Array], about: Description) -> Array:
    """What a cache keeps is what was put there."""
    return files[about["inputs"][0]]


def hadamards(files: Mapping[str, Array], about: Description) -> Array:
    """R4: a small product of each run of neighbours, or two around a transpose."""
    x, second = files[about["inputs"][0]], files["second"]
    turned = x.reshape(len(x), -1, len(second)) @ second.T
    if "first" in files:
        turned = (files["first"] @ turned).transpose(0, 2, 1)
    return turned.reshape(len(x), -1)


def output_rows(files: Mapping[str, Array], about: Description) -> Array:
    """Some tokens' logits in their places among all."""
    x = files[about["inputs"][0]]
    out = np.full((len(x), files["expected"].shape[-1]), np.float32(-1e4))
    out[:, files["rows"]] = x
    return out


def embedding(files: Mapping[str, Array], about: Description) -> Array:
    """Rows of a table; only the rows asked for are in the file."""
    assert about["kind"] == "embedding"
    return dequantized(files)


KINDS: Mapping[str, Callable[[Mapping[str, Array], Description], Array]] = {
    "attention": attention,
    "embedding": embedding,
    "hadamards": hadamards,
    "head_norm": head_norm,
    "linear": linear,
    "norm": norm,
    "output_rows": output_rows,
    "rope": rope,
    "same": same,
    "swiglu": swiglu,
    "total": total,
}


def relative(found: Array, wanted: Array) -> float:
    """The largest relative error of a row."""
    length = np.linalg.norm(wanted.astype(np.float64), axis=-1)
    error = np.linalg.norm(found.astype(np.float64) - wanted, axis=-1)
    return float((error / np.where(length == 0, 1, length)).max())


def main(folder: Path) -> int:
    """Compute the operator and say how far the artifact's output is from it."""
    about: Description = json.loads((folder / "operator.json").read_text("utf-8"))
    files = {path.stem: np.load(path, allow_pickle=False) for path in folder.glob("*.npy")}
    computed = KINDS[about["kind"]](files, about).astype(np.float32)
    errors = {
        "this script against the reference": relative(computed, files["expected"]),
        "the artifact against this script": relative(files["got"], computed),
    }
    sys.stdout.write(f"layer {about['layer']}, {about['operator']}: {about['message']}\n")
    for name, error in errors.items():
        sys.stdout.write(f"{name}: relative error {error:.3g} in the worst row\n")
    return int(errors["the artifact against this script"] > about["limit"])


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
