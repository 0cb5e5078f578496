"""Counters of the machine: which are taken, and what a wrapped one means."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from llama_edge.runtimes.machine import EnergyCounter, peak_rss_bytes, read_bandwidth


def write_zone(folder: Path, name: str, energy_uj: int, range_uj: int = 999) -> Path:
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder / "energy_uj"


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    first = write_zone(tmp_path / "intel-rapl:0", "package-0", 100)
    second = write_zone(tmp_path / "intel-rapl:1", "package-1", 200)
    write_zone(tmp_path / "intel-rapl:0:0", "core", 50)
    counter = EnergyCounter.find(tmp_path)
    assert counter is not None
    before = counter.read()
    assert before == (100, 200)
    first.write_text("400")
    second.write_text("300")
    assert counter.joules_since(before) == 400e-6


def test_a_counter_that_starts_again_is_no_negative_energy(tmp_path: Path) -> None:
    energy = write_zone(tmp_path / "intel-rapl:0", "package-0", 990)
    counter = EnergyCounter.find(tmp_path)
    assert counter is not None
    before = counter.read()
    energy.write_text("10")
    assert counter.joules_since(before) == 20e-6


def test_no_counter_where_none_is(tmp_path: Path) -> None:
    assert EnergyCounter.find(tmp_path / "absent") is None
    folder = tmp_path / "intel-rapl:0"
    write_zone(folder, "package-0", 1)
    (folder / "energy_uj").write_text("not a number")
    assert EnergyCounter.find(tmp_path) is None


def test_peak_memory_grows_with_what_is_touched() -> None:
    before = peak_rss_bytes()
    block = np.ones(before // 8 + (32 << 20) // 8)  # more than this process has ever had
    assert peak_rss_bytes() >= before + (16 << 20)
    assert block[-1] == 1


def test_a_child_does_not_take_over_our_peak() -> None:
    block = np.ones((512 << 20) // 8)
    code = "from llama_edge.runtimes.machine import peak_rss_bytes; print(peak_rss_bytes())"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert int(output) < block.nbytes < peak_rss_bytes()


def test_bandwidth_is_that_of_a_machine() -> None:
    assert 1e8 < read_bandwidth(2) < 1e13
