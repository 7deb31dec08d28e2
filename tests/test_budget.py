"""Budgets of presets: steps become epochs of the set at hand, and the bank is no larger than the set."""

from __future__ import annotations

import json
from dataclasses import replace

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
    for words in (["--epochs", "60"], ["--epochs=60"]):
        given = fitted(parse(["--preset", "tiny", *words]), 431)
        assert (given.optim.steps, given.optim.epochs, given.optim.milestones) == (0, 60, (50,))
        assert given.settings.bank_size == 256
    assert fitted(parse(["--preset", "tiny", "--bank-size", "1024"]), 431).settings.bank_size == 1024
    half = fitted(parse(["--preset", "tiny", "--steps", "2000", "--method", "b1"]), 431)
    assert (half.optim.epochs, half.settings.bank_size) == (154, 256)


def test_epochs_that_were_asked_for_are_those_of_the_run():
    """Of a run of 1,000 epochs, a stretch of 16.7: the others keep their share."""
    words = ("--probe-every 5", "--checkpoint-every=2", "--warmup_epochs 1", "--mixing-from 10", "--milestones 40 50")
    asked = (5, 2, 1.0, 10, (40, 50))
    for given in range(len(words)):
        config = fitted(parse(["--preset", "tiny", *words[given].split()]), 188)
        found = (config.log.probe_every, config.log.checkpoint_every, config.optim.warmup_epochs)
        found += (config.settings.mixing_from, config.optim.milestones)
        usual = (167, 83, pytest.approx(33.3, abs=0.1), 0, (833,))
        assert (config.optim.steps, config.optim.epochs) == (5000, 1000)
        assert found == (*usual[:given], asked[given], *usual[given + 1 :])
    assert fitted(parse(["--preset", "tiny", "--mixing-from", "5"]), 40091).settings.mixing_from == 5
    assert fitted(parse(["--preset", "tiny", "--milestones"]), 188).optim.milestones == ()


@pytest.mark.parametrize("method", ["aimclr", "hiclr", "cpm"])
def test_phases_of_a_method_keep_their_share_of_the_epochs_that_were_asked_for(method, tmp_path):
    """They would begin after the end of a short run."""
    words = ("--preset", "tiny", "--method", method)
    for epochs, half in ((60, 30), (10, 5), (1, 0)):
        config = fitted(parse([*words, "--epochs", str(epochs)]), 431)
        assert (config.settings.mining_from, config.optim.milestones) == (half, (50,))
        assert fitted(config, 431) == config, "again changes nothing"
        assert replace(of_file(tmp_path / "run.json", to_plain(config), clips=431), config=None) == config
    longer = of_file(tmp_path / "run.json", to_plain(config), "--epochs", "240")
    assert longer.settings.mining_from == 120
    of_steps = to_plain(fitted(parse(words), 188))
    assert of_file(tmp_path / "run.json", of_steps, "--epochs", "20").settings.mining_from == 10
    asked = fitted(parse([*words, "--epochs", "10", "--mining-from", "7"]), 431)
    assert asked.settings.mining_from == 7


def of_file(path, plain, *words, clips=188):
    path.write_text(json.dumps(plain))
    return fitted(parse(["--config", str(path), *words]), clips)


def test_what_a_file_of_ones_own_says_is_not_fitted(tmp_path):
    own = {"preset": "tiny", "settings": {"bank_size": 1024}, "optim": {"milestones": [40]}, "log": {"probe_every": 3}}
    config = of_file(tmp_path / "own.json", own)
    assert (config.settings.bank_size, config.optim.milestones, config.log.probe_every) == (1024, (40,), 3)
    assert (config.optim.epochs, config.log.checkpoint_every) == (1000, 83)
    fits = {"preset": "tiny", "settings": {"bank_size": 1024, "fit_bank": True}}
    assert of_file(tmp_path / "own.json", fits).settings.bank_size == 128


@pytest.mark.parametrize("method", ["a2mc", "aimclr", "cpm"])
def test_settings_of_a_run_are_fitted_to_another_set_as_a_preset_is(method, tmp_path):
    """The bank grows back, and an epoch that became none or one does."""
    words = ("--preset", "tiny", "--method", method, "--probe-every", "7")
    for first, then in ((100, 40091), (40091, 100), (188, 431)):
        plain = to_plain(fitted(parse(words), first))
        found = of_file(tmp_path / "config.json", plain, clips=then)
        assert replace(found, config=None) == fitted(parse(words), then)
        assert found.log.probe_every == 7


def test_the_bank_of_a_run_of_before_grows_back_to_its_preset_s(tmp_path):
    plain = to_plain(fitted(parse(["--preset", "tiny"]), 188))
    del plain["given"], plain["unfitted"]
    assert of_file(tmp_path / "config.json", plain).settings.bank_size == 128
    assert of_file(tmp_path / "config.json", plain, clips=960).settings.bank_size == 512
    plain["settings"] |= {"bank_size": 64, "fit_bank": False}
    assert of_file(tmp_path / "config.json", plain, clips=960).settings.bank_size == 64


def test_what_was_changed_by_hand_since_it_was_fitted_stays(tmp_path):
    plain = to_plain(fitted(parse(["--preset", "tiny"]), 188))
    plain["optim"]["milestones"] = [40]
    found = of_file(tmp_path / "config.json", plain)
    assert (found.optim.epochs, found.optim.milestones) == (1000, (40,))
    assert of_file(tmp_path / "config.json", to_plain(found), clips=431).optim.milestones == (40,)
    plain["optim"]["epochs"] = 10
    with pytest.raises(ValueError, match=r"optim\.steps = 5000 makes 1000 epochs, and optim\.epochs = 10"):
        of_file(tmp_path / "config.json", plain)
    assert of_file(tmp_path / "config.json", plain, "--epochs", "20").optim.epochs == 20


def test_steps_and_epochs_are_two_budgets(tmp_path):
    with pytest.raises(ValueError, match="--steps 780 and --epochs 10 are two budgets: give one of both"):
        parse(["--preset", "tiny", "--steps", "780", "--epochs", "10"])
    assert parse(["--preset", "tiny", "--steps", "0", "--epochs", "10"]).optim.epochs == 10
    (tmp_path / "own.json").write_text(json.dumps({"preset": "tiny", "optim": {"steps": 780, "epochs": 10}}))
    with pytest.raises(ValueError, match=r"both optim\.steps and optim\.epochs"):
        parse(["--config", str(tmp_path / "own.json")])


@pytest.mark.parametrize("wrong", [{"given": 5}, {"given": [5]}, {"unfitted": 5}, {"unfitted": {"optim.epochs": 60}}])
def test_a_record_that_is_none_is_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match=r"(given|unfitted) (must be|cannot be)"):
        of_file(tmp_path / "config.json", {**to_plain(preset_config("tiny")), **wrong})


def test_the_paper_and_runs_of_before_keep_their_epochs():
    paper = preset_config("paper", "ntu60")
    assert fitted(paper, 40091) == paper == fitted(paper, 100) and paper.optim.epochs == 750
    before = to_plain(preset_config("tiny"))
    for group, name in (("optim", "steps"), ("settings", "fit_bank")):
        del before[group][name]
    read = config_of(upgraded(before))
    assert fitted(read, 431) == read and read.optim.epochs == 60
