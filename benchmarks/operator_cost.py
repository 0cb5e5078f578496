"""Where a `.pte`'s token and prompt go, operator by operator, against what the machine can do.

    python benchmarks/operator_cost.py [--like llama-3.2-1b] [--layers 2] [--recipe NAME]
        [--pte FILE] [--threads 1 2] [--position 128] [--work FOLDER]

Quantizes random weights of that shape with few random calibration tokens, since speed is that of
the shape and the recipe, and runs the file that would be exported; or runs FILE, of ours. The times
of XNNPACK's operators are XNNPACK's own, to a microsecond; the extension's build leaves its profile
out, so a small library in C (`operator_profile.c`, compiled with `cc`) asks for it. A linear's time
has the rounding of its input in it. What runs between two delegates, attention above all, is timed
as one. Every figure is the fastest of its calls; with one thread, of that thread's processor time,
which other processes do not add to.

The limit of decode is the measured bandwidth of reads from memory, for the bytes of weights, scales
and cache; that of prefill is the measured rate of int8 multiply-adds. Linux only.
"""

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from executorch.exir import schema

from benchmarks.arguments import writable_folder
from benchmarks.stock_executorch import STEADY_MEMORY
from llama_edge.backends.base import LowerOptions
from llama_edge.backends.executorch import lower
from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.synthetic import write_synthetic
from llama_edge.core.model_shapes import get_shape
from llama_edge.core.progress import SilentProgress
from llama_edge.core.recipe import Rounding
from llama_edge.formats.pte import PteFile
from llama_edge.formats.xnnpack import PayloadPart, read_payload
from llama_edge.quantize import DEFAULT_RECIPE, get_recipe
from llama_edge.quantize.calibration import LENGTH, CalibrationSet
from llama_edge.quantize.resume import WorkPlace
from llama_edge.quantize.stage import quantize_checkpoint

CONTEXT: Final = 2048
PROMPT_TOKENS: Final = 128
DECODE_CALLS: Final = 40
PREFILL_CALLS: Final = 8
#: Enough for GPTQ to run.
CALIBRATION_SEQUENCES: Final = 4
SOURCE: Final = Path(__file__).with_name("operator_profile.c")
LINEAR: Final = "Fully Connected"
ATTENTION, BEFORE, ELSE = "attention and cache", "embedding, positions", "norms, RoPE, SwiGLU, adds"
HEAD: Final = "head"
_MARK: Final = (1 << 64) - 1
_BYTES: Final = {schema.ScalarType.FLOAT: 4, schema.ScalarType.CHAR: 1, schema.ScalarType.HALF: 2}


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """The fastest of what a delegate's operators took, and of what ran before it."""

    gap_us: float
    names: list[str]
    operator_us: list[float]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found with one number of threads."""

    read_gb_per_s: float
    int8_gmac_per_s: float
    decode: list[Timed]
    decode_call_us: float
    prefill: list[Timed]
    prefill_call_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A product with a constant matrix."""

    name: str
    #: read for each token; 0 for a small matrix of floats, which stays in the cache
    size_bytes: int
    #: int8 products for one row; 0 likewise
    multiply_adds: int
    #: False where only a prompt's last token reaches it
    whole_prompt: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegate:
    """One call of XNNPACK: its linears in order, and the operators called before it."""

    linears: Sequence[Linear]
    called_before: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """What a `.pte` does for a token."""

    delegates: Sequence[Delegate]
    layers: int
    cache_bytes_per_position: int


@dataclass(frozen=True, slots=True)
class Part:
    """All calls of one kind in the file."""

    us: float = 0.0
    size_bytes: float = 0.0
    multiply_adds: float = 0.0

    def __add__(self, other: "Part") -> "Part":
        return Part(
            self.us + other.us,
            self.size_bytes + other.size_bytes,
            self.multiply_adds + other.multiply_adds,
        )

    def __mul__(self, times: float) -> "Part":
        return Part(self.us * times, self.size_bytes * times, self.multiply_adds * times)


def read_file(path: Path) -> File:
    """The delegates of `forward` in the order of their calls."""
    file = PteFile(path)
    plan = file.method("forward")
    delegates: list[Delegate] = []
    called: list[str] = []
    cache_bytes = 0
    for instruction in file.instructions(plan):
        call = instruction.instr_args
        if isinstance(call, schema.KernelCall):
            name = file.operator(plan, call).partition("::")[2]
            called.append(name)
            if name == "update_cache":
                cache_bytes += _tensor_bytes(file.argument(plan, call, 1))
        elif isinstance(call, schema.DelegateCall):
            delegate = file.item(plan.delegates, call.delegate_index, "delegate")
            graph = read_payload(file.delegate_payload(plan, delegate), str(path))
            delegates.append(Delegate(linears=list(_linears(graph)), called_before=tuple(called)))
            called = []
    per_position = cache_bytes // file.number("get_max_context_len")
    layers = file.number("get_n_layers")
    return File(delegates=delegates, layers=layers, cache_bytes_per_position=per_position)


def _tensor_bytes(tensor: object) -> int:
    assert isinstance(tensor, schema.Tensor)
    return int(np.prod(tensor.sizes)) * _BYTES[tensor.scalar_type]


def _linears(graph: PayloadPart) -> Iterator[Linear]:
    tensors = {}
    for value in graph.parts("xvalues"):
        union = value.part("xvalue_union")
        tensor = union.part("tensor_value") if "tensor_value" in union.values else union
        tensors[tensor.number("id_out")] = tensor
    constants = graph.parts("constant_data")
    for node in graph.parts("xnodes"):
        if node.text("xnode_union_type") != "XNNFullyConnected":
            continue
        arguments = node.part("xnode_union")
        matrix = tensors[arguments.number("filter_id")]
        key = constants[matrix.number("constant_buffer_idx")].text("named_key")
        made = tensors[arguments.number("output_id")].values["dims"]
        whole_prompt = made[-2] > 1
        if not key.endswith(".codes"):
            name = "R4" if key.startswith("hadamard") else ELSE
            yield Linear(name=name, size_bytes=0, multiply_adds=0, whole_prompt=whole_prompt)
            continue
        stored = key.removesuffix("codes")
        yield Linear(
            name=_matrix_name(key),
            size_bytes=sum(
                each.number("size")
                for each in constants
                if each.text("named_key").startswith(stored)
            ),
            multiply_adds=int(np.prod(matrix.values["dims"])),
            whole_prompt=whole_prompt,
        )


def _matrix_name(key: str) -> str:
    """As `gate_proj`, without its layer."""
    if ".layers." not in key:
        return HEAD
    return ", ".join(re.findall(r"(\w+)\.weight", key))


class Profile:
    """The preloaded library; `path` is that of the program that it looks into."""

    def __init__(self, extension: str, threads: int) -> None:
        self._library = ctypes.CDLL(None)
        if self._library.profile_attach(extension.encode()):
            raise SystemExit(f"{extension}: has no XNNPACK with names that can be found")
        if threads == 1:
            self._library.profile_by_thread_time()
        for name in ("machine_read_gb_per_s", "machine_int8_gmac_per_s"):
            getattr(self._library, name).restype = ctypes.c_double
        for name in ("profile_words", "profile_operators"):
            getattr(self._library, name).restype = ctypes.c_uint64
        self._library.profile_records.restype = ctypes.POINTER(ctypes.c_uint64)
        self._library.profile_name.restype = ctypes.c_char_p
        self.read_gb_per_s: float = self._library.machine_read_gb_per_s(threads)
        self.int8_gmac_per_s: float = self._library.machine_int8_gmac_per_s(threads)

    def of(self, method: Any, tokens: torch.Tensor, starts: Sequence[int]) -> list[list[int]]:  # noqa: ANN401
        """One call for each start, after one that is not counted; records in order."""
        method((tokens, torch.tensor([starts[0]])))
        self._library.profile_clear()
        for start in starts:
            arguments = (tokens, torch.tensor([start]))
            self._library.profile_mark()
            method(arguments)
            self._library.profile_mark()
        words = iter(self._library.profile_records()[: self._library.profile_words()])
        records = []
        for delegate in words:
            count = 0 if delegate == _MARK else self._library.profile_operators(delegate)
            records.append([delegate, *(next(words) for _ in range(3 + count))])
        return records

    def names(self, delegate: int) -> list[str]:
        """XNNPACK's names of a delegate's operators."""
        count = self._library.profile_operators(ctypes.c_uint64(delegate))
        found = (
            self._library.profile_name(ctypes.c_uint64(delegate), ctypes.c_uint64(place))
            for place in range(count)
        )
        return [name.decode() for name in found]


def timed(profile: Profile, records: Sequence[Sequence[int]]) -> tuple[list[Timed], float]:
    """The fastest of each operator and of each gap; of whole calls, microseconds."""
    marks = [place for place, record in enumerate(records) if record[0] == _MARK]
    calls = [records[begin : end + 1] for begin, end in zip(marks[::2], marks[1::2], strict=True)]
    found = []
    for place in range(1, len(calls[0]) - 1):
        gap_ns = min(call[place][1] - call[place - 1][3] for call in calls)
        columns = zip(*(call[place][4:] for call in calls), strict=True)
        names = profile.names(calls[0][place][0])
        found.append(Timed(gap_us=gap_ns / 1e3, names=names, operator_us=[*map(min, columns)]))
    return found, min(call[-1][1] - call[0][1] for call in calls) / 1e3


def measure(path: Path, threads: int, position: int, prompt_tokens: int) -> Measured:
    """In a process that preloads the library: the machine, then the file."""
    torch.set_num_threads(threads)  # of MKL, which attention's products go to
    from executorch.extension.pybindings import _portable_lib

    from llama_edge.runtimes.executorch_native import load_program, reset_thread_pool

    profile = Profile(_portable_lib.__file__, threads)
    reset_thread_pool(threads)
    method = load_program(path).load_method("forward")
    prompt = torch.tensor([list(range(100, 100 + prompt_tokens))])
    for start in range(0, position, prompt_tokens):
        method((prompt, torch.tensor([start])))
    one = torch.tensor([[7]])
    decode = timed(profile, profile.of(method, one, [position] * DECODE_CALLS))
    prefill = timed(profile, profile.of(method, prompt, [0] * PREFILL_CALLS))
    return Measured(
        read_gb_per_s=profile.read_gb_per_s,
        int8_gmac_per_s=profile.int8_gmac_per_s,
        decode=decode[0],
        decode_call_us=decode[1],
        prefill=prefill[0],
        prefill_call_us=prefill[1],
    )


def parts(file: File, found: Sequence[Timed], rows: int, position: int) -> Mapping[str, Part]:
    """The times by what was computed, in the order of a layer; of `rows` tokens at a time."""
    collected: dict[str, Part] = {}

    def add(name: str, part: Part) -> None:
        collected[name] = collected.get(name, Part()) + part

    for place, (delegate, times) in enumerate(zip(file.delegates, found, strict=True)):
        cached = any("sdpa" in name for name in delegate.called_before)
        per_layer = file.cache_bytes_per_position // file.layers
        before = BEFORE if place == 0 else ATTENTION if cached else HEAD
        add(before, Part(times.gap_us, cached * per_layer * (position + 1)))
        rest = HEAD if any(linear.name == HEAD for linear in delegate.linears) else ELSE
        linears = _matched(delegate, times)
        for linear, us in zip(linears, times.operator_us, strict=True):
            if linear is None or linear.name == ELSE:
                add(rest, Part(us))
                continue
            tokens = rows if linear.whole_prompt else 1
            add(linear.name, Part(us, linear.size_bytes, tokens * linear.multiply_adds))
    return collected


def _matched(delegate: Delegate, times: Timed) -> list[Linear | None]:
    """The file's linear of each operator that XNNPACK timed, in the same order; None for others."""
    are_linear = [name.startswith(LINEAR) for name in times.names]
    if sum(are_linear) != len(delegate.linears):
        raise SystemExit(
            f"XNNPACK timed {sum(are_linear)} linears of a delegate that has "
            f"{len(delegate.linears)} in the file: its graph is not run as it is written"
        )
    linears = iter(delegate.linears)
    return [next(linears) if is_linear else None for is_linear in are_linear]


def table(
    file: File, measured: Measured, threads: int, layers: int, position: int
) -> Iterator[str]:
    """Decode and prefill; the model has `layers`, the file may have fewer."""
    limit = f"{measured.read_gb_per_s:.0f} GB/s"
    yield (f"Decode at position {position}, threads: {threads}; reads from memory at most {limit}.")
    yield ""
    yield "| | us | MiB | GB/s | of the limit |"
    yield "|---|--:|--:|--:|--:|"
    found = parts(file, measured.decode, 1, position)
    for name, part in lines(file, found, layers):
        rate = part.size_bytes / part.us / 1e3
        known = f"{rate:.1f} | {rate / measured.read_gb_per_s:.0%}" if rate else "|"
        size = f"{part.size_bytes / 2**20:.2f}" if rate else ""
        yield f"| {name} | {part.us:.0f} | {size} | {known} |"
    yield ""
    limit = f"{measured.int8_gmac_per_s:.0f} G/s"
    yield (
        f"Prefill of {PROMPT_TOKENS} tokens, threads: {threads}; int8 multiply-adds at most "
        f"{limit}."
    )
    yield ""
    yield "| | us | G multiply-adds | G/s | of the limit |"
    yield "|---|--:|--:|--:|--:|"
    found = parts(file, measured.prefill, PROMPT_TOKENS, 0)
    for name, part in lines(file, found, layers):
        rate = part.multiply_adds / part.us / 1e3
        share = f"{rate / measured.int8_gmac_per_s:.0%}" if measured.int8_gmac_per_s else ""
        known = f"{part.multiply_adds / 1e9:.2f} | {rate:.0f} | {share}" if rate else "| |"
        yield f"| {name} | {part.us:.0f} | {known} |"


def lines(file: File, found: Mapping[str, Part], layers: int) -> Iterator[tuple[str, Part]]:
    """A layer's parts, the layer, what comes once, and the whole model."""
    once = {name: part for name, part in found.items() if name in (BEFORE, HEAD)}
    layer = Part()
    for name, part in found.items():
        if name not in once:
            share = part * (1 / file.layers)
            layer += share
            yield name, share
    yield "**a layer**", layer
    yield from once.items()
    whole = sum(once.values(), layer * layers)
    yield f"**{layers} layers**", whole


def write_pte(like: str, layers: int, recipe_name: str, path: Path) -> None:
    """The file of a random model of that shape."""
    recipe = get_recipe(recipe_name)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        work = Path(folder)
        config = replace(get_shape(like).config, num_hidden_layers=layers)
        for name in ("model", "quantized", "kept"):
            (work / name).mkdir()
        write_synthetic(work / "model", like, config, 0, SilentProgress())
        checkpoint = load_checkpoint(str(work / "model"))
        calibration = None
        if recipe.rounding is Rounding.GPTQ:
            generator = torch.Generator().manual_seed(0)
            shape = (CALIBRATION_SEQUENCES, LENGTH)
            rows = torch.randint(0, config.vocab_size, shape, generator=generator)
            calibration = CalibrationSet(tokens=rows, origin="random")
        quantized = quantize_checkpoint(
            checkpoint,
            recipe,
            work / "quantized",
            SilentProgress(),
            calibration,
            WorkPlace(folder=work / "kept"),
        )
        written = work / "model.pte"
        lower.lower_to_pte(quantized, written, LowerOptions(max_context=CONTEXT), SilentProgress())
        written.rename(path)


def compile_profile(folder: Path) -> Path:
    """The library to preload."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("cc is not installed; a C compiler is needed (on Debian: gcc)")
    library = folder / "operator_profile.so"
    options = ("-O3", "-funroll-loops", "-march=native", "-shared", "-fPIC")
    subprocess.run([compiler, *options, "-o", library, SOURCE, "-lpthread", "-ldl"], check=True)
    return library


def measure_in_child(
    path: Path, threads: int, position: int, library: Path, prompt: int = PROMPT_TOKENS
) -> Measured:
    """`measure` where the library is preloaded and memory is in large pages."""
    numbers = map(str, (threads, position, prompt))
    command = [sys.executable, __file__, "--child", str(path), *numbers]
    environment = os.environ | STEADY_MEMORY | {"LD_PRELOAD": str(library)}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment, text=True)
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measured)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--like", default="llama-3.2-1b", help="a published shape")
    parser.add_argument("--layers", type=int, default=2, help="of the file that is timed")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE)
    parser.add_argument("--pte", type=Path, help="a file of ours, in place of a random model")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--position", type=int, default=PROMPT_TOKENS, help="of decode")
    parser.add_argument("--work", type=writable_folder, help="keep the file in this folder")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        path, *numbers = arguments.child
        measured = measure(Path(path), *map(int, numbers))
        print(msgspec.json.encode(measured).decode())
        return
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        path = arguments.pte
        if path is None:
            path = work / f"{arguments.like}.{arguments.layers}.{arguments.recipe}.pte"
            if not path.exists():
                write_pte(arguments.like, arguments.layers, arguments.recipe, path)
        library, file = compile_profile(Path(folder)), read_file(path)
        layers = (
            file.layers if arguments.pte else get_shape(arguments.like).config.num_hidden_layers
        )
        for threads in arguments.threads:
            measured = measure_in_child(path.absolute(), threads, arguments.position, library)
            print("\n".join(table(file, measured, threads, layers, arguments.position)), "\n")


if __name__ == "__main__":
    main()
