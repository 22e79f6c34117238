"""The energy counters of Linux, as files."""

from __future__ import annotations

import os

import pytest

from tunesmith.telemetry import EnergyMeter


@pytest.fixture
def powercap(tmp_path):
    def put(package, value, most=10_000_000):
        place = tmp_path / package
        place.mkdir(exist_ok=True)
        (place / "energy_uj").write_text(f"{value}\n")
        (place / "max_energy_range_uj").write_text(f"{most}\n")

    put("intel-rapl:0", 1_000_000)
    put("intel-rapl:1", 9_000_000)
    put("intel-rapl:0:0", 500)
    return tmp_path, put


def test_packages_are_added_and_what_is_in_them_is_not_counted_twice(powercap):
    root, put = powercap
    meter = EnergyMeter(root)
    assert meter.joules() == 0.0
    put("intel-rapl:0", 3_000_000)
    put("intel-rapl:0:0", 900_000)
    assert meter.joules() == pytest.approx(2.0)


def test_a_counter_that_starts_again_counts_on(powercap):
    root, put = powercap
    meter = EnergyMeter(root)
    put("intel-rapl:1", 500_000)
    assert meter.joules() == pytest.approx(1.5)
    put("intel-rapl:1", 1_500_000)
    assert meter.joules() == pytest.approx(2.5)


def test_without_readable_counters_there_is_no_figure(powercap, tmp_path):
    root, _ = powercap
    assert EnergyMeter(tmp_path / "none").joules() is None
    (root / "intel-rapl:1/energy_uj").unlink()
    os.mkdir(root / "intel-rapl:1/energy_uj")
    assert EnergyMeter(root).joules() is None


def test_the_platform_that_holds_the_packages_is_not_added_to_them(powercap):
    root, put = powercap
    put("intel-rapl:2", 1_000_000)
    for package, name in (("intel-rapl:0", "package-0"), ("intel-rapl:2", "psys")):
        (root / package / "name").write_text(f"{name}\n")
    meter = EnergyMeter(root)
    put("intel-rapl:0", 3_000_000)
    put("intel-rapl:2", 4_000_000)
    assert meter.joules() == pytest.approx(2.0)
