import json
import sys
from pathlib import Path

import pytest

from benchmarks import peer_drivers, peers
from benchmarks.peer_page import Row
from benchmarks.stock_executorch import ToolError, measure
from llama_edge.quantize.calibration import LENGTH

ROWS = (Row(name="one", title="first"), Row(name="two", title="second"))


@pytest.mark.parametrize("option", ["--out", "--work"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["peers.py", option, str(tmp_path / "file")])
    monkeypatch.setattr(peers, "measure_all", lambda *_: pytest.fail("work began"))
    with pytest.raises(SystemExit) as ended:
        peers.main()
    assert ended.value.code == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_tool_that_fails_while_it_is_timed_is_a_row() -> None:
    def reading(row: Row) -> str:
        if row.name == "one":
            raise ToolError("time", "Traceback\nout of memory")
        return "loading\n" + json.dumps([3.0, 2.0, 1.0])

    one, two = peers.with_speed(ROWS, reading, rounds=2)
    assert one.missing == "time failed: out of memory"
    assert not two.missing
    assert (two.decode_tokens_per_s, two.prefill_tokens_per_s) == (3.0, 1.0)


def test_speeds_are_medians() -> None:
    readings = iter([[1.0, 10.0, 5.0], [9.0, 20.0, 5.0], [2.0, 90.0, 5.0]])
    (row,) = peers.with_speed(ROWS[:1], lambda _: json.dumps(next(readings)), rounds=3)
    assert (row.decode_tokens_per_s, row.long_decode_tokens_per_s) == (2.0, 20.0)


def test_a_command_that_fails_says_its_last_line(tmp_path: Path) -> None:
    script = "import sys; print('beginning'); sys.exit('no such model')"
    with pytest.raises(ToolError, match=r"^build failed: no such model$"):
        measure([sys.executable, "-c", script], tmp_path / "log", "build")


def test_a_program_that_is_not_there_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^cmake failed: .*nowhere"):
        measure([tmp_path / "nowhere"], tmp_path / "log", "cmake")


def test_a_command_is_measured(tmp_path: Path) -> None:
    cpu_s, peak_mib = measure(
        [sys.executable, "-c", "held = bytearray(64 << 20)"], tmp_path / "log", "it"
    )
    assert cpu_s > 0
    assert peak_mib > 64


def test_every_tool_has_a_driver_that_builds() -> None:
    built = {peer.name for peer in peers.PEERS if peer.tools and not peer.ours}
    assert built == set(peer_drivers.BUILDERS)


def test_the_importance_matrix_has_chunks_of_our_length() -> None:
    assert peer_drivers.CALIBRATION_LENGTH == LENGTH
