"""``benchmarks`` by its place, as ``gcfg`` is loaded for every test."""

from pathlib import Path

from harness.find import load_package

load_package("benchmarks", Path(__file__).resolve().parents[2] / "benchmarks")
