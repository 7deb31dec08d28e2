"""Budgets of presets: steps become epochs of the set at hand, and the bank is no larger than the set."""

from __future__ import annotations

import pytest

from fastmc.budget import fitted
from fastmc.config import config_of, preset_config, to_plain, upgraded
from train.command.parse import parse


@pytest.mark.parametrize(
    "clips, epochs, milestones, bank",
    [
        (431, 385, (321,), 256),  # 13 batches an epoch: 5,000 steps are 384.6 epochs
        (720, 228, (190,), 512),
        (40091, 4, (3,), 1024),  # NTU-60
        (20, 5000, (4167,), 16),  # fewer than a batch; training it is another's error
    ],
)
def test_a_tiny_run_has_its_steps_on_every_set(clips, epochs, milestones, bank):
    config = fitted(preset_config("tiny"), clips)
    assert (config.optim.epochs, config.optim.milestones, config.settings.bank_size) == (epochs, milestones, bank)
    assert config.optim.warmup_epochs == pytest.approx(epochs / 60 * 2)
    assert config.log.probe_every == max(1, round(epochs / 6))
    assert fitted(config, clips) == config, "again changes nothing"
    assert config_of(to_plain(config)) == config


def test_what_is_said_on_the_command_line_is_not_fitted():
    for words in (["--epochs", "60"], ["--milestones", "50"], ["--epochs=60"]):
        given = fitted(parse(["--preset", "tiny", *words]), 431)
        assert (given.optim.steps, given.optim.epochs, given.optim.milestones) == (0, 60, (50,))
        assert given.settings.bank_size == 256
    assert fitted(parse(["--preset", "tiny", "--bank-size", "1024"]), 431).settings.bank_size == 1024
    half = fitted(parse(["--preset", "tiny", "--steps", "2000", "--method", "b1"]), 431)
    assert (half.optim.epochs, half.settings.bank_size) == (154, 256)


def test_the_paper_and_runs_of_before_keep_their_epochs():
    paper = preset_config("paper", "ntu60")
    assert fitted(paper, 40091) == paper == fitted(paper, 100) and paper.optim.epochs == 750
    before = to_plain(preset_config("tiny"))
    for group, name in (("optim", "steps"), ("settings", "fit_bank")):
        del before[group][name]
    read = config_of(upgraded(before))
    assert fitted(read, 431) == read and read.optim.epochs == 60
