"""Files of `torch.save`, compared with what `torch.load` makes of them."""

import argparse
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llama_edge.checkpoints import pickle_child
from llama_edge.checkpoints.torch_file import TorchFile
from llama_edge.confined.child import RefusedError
from llama_edge.core.errors import CheckpointError

ZIP_AND_OLD = pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])


def save(path: Path, value: object, new: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=new)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        TorchFile(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def state() -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(3)
    whole = torch.randn(8, 9, generator=made)
    shared = torch.randn(3, 5, generator=made)
    return {
        "bytes": torch.arange(7, dtype=torch.int8),
        "float": torch.randn(5, 4, generator=made),
        "half": torch.randn(5, 4, generator=made).half(),
        "bfloat": torch.randn(6, generator=made).bfloat16(),
        "double": torch.randn(6, generator=made).double(),
        "transposed": torch.randn(4, 6, generator=made).bfloat16().t(),
        "columns": whole[:, 2:4],
        "rows": whole[3:],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "one": shared,
        "same": shared,
        "parameter": torch.nn.Parameter(torch.randn(7, generator=made)),
        "uint16": torch.arange(4).to(torch.uint16),
    }


@ZIP_AND_OLD
@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict", "module"])
def test_every_value_is_torchs(
    state: dict[str, Tensor], new: bool, key: str | None, tmp_path: Path
) -> None:
    del state["uint16"]  # named below
    whole = state if key is None else {key: state, "step": 3, "best": torch.tensor(1.0)}
    path = save(tmp_path / "x.pt", whole, new)
    loaded = torch.load(path, weights_only=True)
    loaded = loaded if key is None else loaded[key]
    file = TorchFile(path)
    assert list(file.entries()) == list(loaded)
    for name, expected in loaded.items():
        dtype, shape = file.entries()[name]
        assert (f"torch.{dtype}", shape) == (str(expected.dtype), tuple(expected.shape))
        assert torch.equal(file.load(name), expected), name


@ZIP_AND_OLD
def test_a_dtype_that_is_not_read(state: dict[str, Tensor], new: bool, tmp_path: Path) -> None:
    file = TorchFile(save(tmp_path / "x.pt", state, new))
    assert file.entries()["uint16"] == ("uint16", (4,))
    with pytest.raises(CheckpointError, match="uint16 is uint16, which is not read"):
        file.load("uint16")


def test_a_module_s_state_dict(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    file = TorchFile(save(tmp_path / "x.pt", module.state_dict()))
    for name, expected in module.state_dict().items():
        assert torch.equal(file.load(name), expected)


def test_what_a_training_run_adds_is_left_alone(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    extras = {
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(rate=0.1),
        "loss": np.float64(0.5),
        "dtype": np.dtype("float32"),
        "seen": {1, 2},
        "device": torch.device("cpu"),
        "kind": torch.bfloat16,
    }
    file = TorchFile(save(tmp_path / "x.pt", {"model": module.state_dict(), **extras}))
    assert list(file.entries()) == ["weight", "bias"]


def test_no_file_stays_mapped(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = TorchFile(save(tmp_path / "x.pt", state))
    for name in ("float", "transposed"):
        file.load(name)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_file_that_changes_is_not_read_on(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", state)
    file = TorchFile(path)
    save(path, {name: value + 1 for name, value in state.items() if name != "uint16"})
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        file.load("float")


class Spy:
    """Unpickling it makes a folder: what a hostile file would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@ZIP_AND_OLD
@pytest.mark.parametrize("place", ["alone", "in the state", "beside the state"])
def test_a_pickle_runs_no_code(new: bool, place: str, tmp_path: Path) -> None:
    proof = tmp_path / "was-here"
    pickle.loads(pickle.dumps(Spy(proof)))
    assert proof.is_dir(), "the trap does not work, so the test would prove nothing"
    proof.rmdir()
    values = {
        "alone": Spy(proof),
        "in the state": {"x": torch.ones(2), "y": Spy(proof)},
        "beside the state": {"model": {"x": torch.ones(2)}, "y": Spy(proof)},
    }
    said = refusal(save(tmp_path / "x.pt", values[place], new))
    assert "holds Python's posix.mkdir; nothing of it was run" in said
    assert not proof.exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.nn.Linear(2, 2), "holds Python's torch.nn.modules.linear.Linear; nothing"),
        (lambda: [torch.ones(2)], "holds a list; a state dict"),
        (lambda: torch.ones(2), "holds a Tensor; a state dict"),
        (lambda: {3: torch.ones(2)}, "3 is a tensor without a name"),
        (lambda: {"x": "text"}, "x is a str; a state dict holds nothing but named tensors"),
        (lambda: {"x": torch.eye(2).to_sparse()}, "x is a sparse tensor"),
        (lambda: {"x": torch.empty(3, device="meta")}, "x is a tensor without values"),
    ],
)
@ZIP_AND_OLD
def test_what_is_no_state_dict(
    make: Callable[[], object], said: str, new: bool, tmp_path: Path
) -> None:
    assert said in refusal(save(tmp_path / "x.pt", make(), new))


@ZIP_AND_OLD
def test_bombs(new: bool, tmp_path: Path) -> None:
    """Files of a few kilobytes whose tensors have gigabytes."""
    expanded = {"x": torch.ones(1).expand(10**9)}
    assert "one stored value is several" in refusal(save(tmp_path / "a.pt", expanded, new))
    window = {"x": torch.ones(1000).as_strided((500, 500), (1, 1))}
    assert "one stored value is several" in refusal(save(tmp_path / "b.pt", window, new))
    one = torch.ones(1000)
    many = {f"x{number}": one for number in range(100)}
    assert "more than two names share" in refusal(save(tmp_path / "c.pt", many, new))


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int) -> Path:
    """The archive with other members."""
    target = path.with_suffix(".changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_archives_that_torch_does_not_write(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", state)
    same = rewritten(path, lambda _, data: data, zipfile.ZIP_STORED)
    assert torch.equal(TorchFile(same).load("float"), state["float"])
    packed = rewritten(path, lambda _, data: data, zipfile.ZIP_DEFLATED)
    assert "is a compressed or encrypted archive" in refusal(packed)
    big = rewritten(
        path, lambda name, data: b"big" if name.endswith("byteorder") else data, zipfile.ZIP_STORED
    )
    assert "big-endian" in refusal(big)
    short = rewritten(
        path, lambda name, data: data[:-4] if "/data/" in name else data, zipfile.ZIP_STORED
    )
    assert "truncated or damaged" in refusal(short)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        other.writestr("readme.txt", "hello")
    assert "a zip archive without data.pkl" in refusal(tmp_path / "other.pt")


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    script = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))  # type: ignore[no-untyped-call]
    script.save(str(tmp_path / "x.pt"))
    assert "is a TorchScript program" in refusal(tmp_path / "x.pt")


@ZIP_AND_OLD
@pytest.mark.parametrize("size", [100, 700, -1])
def test_a_truncated_file_is_refused(
    state: dict[str, Tensor], new: bool, size: int, tmp_path: Path
) -> None:
    path = save(tmp_path / "x.pt", state, new)
    path.write_bytes(path.read_bytes()[:size])
    assert "truncated or damaged" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "is no file of torch.save: it begins with b'<!DOCTYPE html>'"),
        (pickle.dumps({"x": 1}), "is a pickle that torch.save did not write"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"\0" * 257 + b"ustar" + b"\0" * 250, "is a tar archive, as torch.save wrote until 2017"),
    ],
)
def test_what_is_no_file_of_torch(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert said in refusal(path)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02r\xff\xff\xff\x7f.",  # a place in the memo that needs 16 GiB
        b"\x80\x02(" + b"(" * 100_000 + b".",
        b"\x80\x02c__builtin__\neval\n.",
        b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
        b"\x80\x02}X\x01\x00\x00\x00xccollections\nOrderedDict\n)\x81)Rs.",
    ],
)
def test_programs_that_make_no_sense(program: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", program)
    assert refusal(tmp_path / "x.pt")


def test_the_child_is_where_pickles_are_run() -> None:
    """Its unpickler knows no name of Python's but one."""
    for name in ("os.system", "builtins.eval", "builtins.getattr", "torch.load", "torch.Tensor"):
        module, _, part = name.rpartition(".")
        with pytest.raises(RefusedError, match="nothing of it was run"):
            pickle_child._Unpickler(io.BytesIO()).find_class(module, part)
