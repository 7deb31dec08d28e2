"""What bench/ computes beside timings."""

from __future__ import annotations

from dataclasses import replace

from conftest import write_small_store

from bench.accuracy import make_table, raw_accuracy
from bench.supervised import supervised_accuracy
from fastmc.data.store import PackedStore
from train.config import parse


def test_accuracy_table_has_means_and_single_values():
    def report(value: float) -> dict:
        return {"knn_top1": value, "linear_top1": value + 1, "linear_top5": value + 2}

    reports = {
        (m, s): {**report(10.0 * s + (m == "a2mc")), "random_init": report(1.0)} for m in ("b1", "a2mc") for s in (1, 2)
    }
    table = make_table(("b1", "a2mc"), (1, 2), reports, raw=report(5.0)).splitlines()
    assert table[0] == "| method | kNN top-1 | linear top-1 | linear top-5 |"
    assert table[2] == "| raw coordinates | 5.0 | 6.0 | 7.0 |"
    assert table[3] == "| untrained | 1.0 (1.0, 1.0) | 2.0 (2.0, 2.0) | 3.0 (3.0, 3.0) |"
    assert table[4].startswith("| b1 | 15.0 (10.0, 20.0) |")
    assert table[5].startswith("| a2mc | 16.0 (11.0, 21.0) |")


def test_raw_accuracy_of_the_small_store(data_root):
    """Its classes are frequencies, which raw coordinates tell apart better than chance."""
    config = replace(parse(["--frames", "32", "--linear-epochs", "5"]), protocol="xsub")
    accuracy = raw_accuracy(PackedStore.open(data_root / "small"), config)
    assert 100 / 3 < accuracy["knn_top1"] < 100
    assert accuracy["linear_top5"] == 100


def test_supervised_encoder_learns_classes_that_are_plain_to_see(tmp_path):
    flags = ["--frames", "8", "--encoder", "1x16", "--batch-size", "8", "--epochs", "30", "--milestones", "25"]
    config = replace(parse([*flags, "--jitter-joints", "0", "--shear", "0.1", "--lr", "1e-2"]), protocol="xsub")
    store = write_small_store(tmp_path / "lifted", lift=1.0)
    accuracy = supervised_accuracy(config, store)
    assert accuracy > 80  # chance is 33
    assert accuracy == supervised_accuracy(config, store)
