"""Settings, presets, flags and help."""

import dataclasses
import os

import pytest

from experiments.common import app, config
from experiments.common.errors import UserError
from tests.experiments import toy


def parse(*words):
    return config.parse(toy.Config, toy.EXPERIMENT.presets, ["toy", *words])


def test_a_flag_wins_over_the_preset_and_the_preset_over_the_default():
    assert parse("--preset=smoke").log_every == 10
    assert parse("--preset=smoke", "--log_every=7").log_every == 7
    assert toy.Config().log_every == 50


def test_types_of_flags():
    parsed = parse("--widths=2,9", "--learning_rate=0.5", "--nocompare", "--streamed")
    assert parsed.widths == (2, 9)
    assert (parsed.learning_rate, parsed.compare, parsed.streamed) == (0.5, False, True)


def test_an_explicit_method_turns_comparison_off_unless_asked_for():
    assert parse().compare
    assert not parse("--method=adam").compare
    assert parse("--method=adam", "--compare").compare


def test_methods_turn_comparison_on_and_a_method_turns_it_off():
    chosen = parse("--methods=adam")
    assert (chosen.compare, chosen.methods) == (True, ("adam",))
    for words in (["--methods=adam", "--method=sgd"], ["--methods=adam", "--nocompare"]):
        with pytest.raises(UserError, match="--methods"):
            parse(*words)


def test_what_a_binary_wants_of_xla_is_set_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    flags = ("--xla_one=2", "--xla_two=3")
    for threads, wanted in ((0, flags), (1, flags), (2, lambda config: flags)):
        wants = dataclasses.replace(toy.EXPERIMENT, xla_flags=wanted, cpu_threads=threads)
        app.prepare(wants, wants.settings())
        assert os.environ["XLA_FLAGS"] == "--xla_one=1 --xla_two=3"
        assert os.environ.get("PJRT_NPROC") == ("1" if threads else None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--preset=huge"], "--preset=huge: choose one of smoke, quick"),
        (["--method=lbfgs"], "--method=lbfgs: choose one of sgd, adam"),
        (["--learning_rate=2"], "--learning_rate=2.0: must be at most 1"),
        (["--learning_rate=nan"], "must be finite"),
        (["--learning_rate=fast"], "learning_rate"),
        (["--steps=0"], "--steps=0: must be at least 1"),
        (["--widths=3,x"], "--widths=3,x"),
        (["--widths=3,0"], "must be at least 1"),
        (["--stepz=3"], "stepz"),
        (["steps=3"], "'steps=3' is not a flag"),
        (["--batch=65"], "there are 64 examples"),
    ],
)
def test_a_bad_flag_gets_one_line_and_exit_code_2(words, told, capsys):
    assert app.run(toy.EXPERIMENT, ["toy", *words]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("error: ")
    assert told in printed[0]


def test_where_and_how_to_run_is_not_what_is_run():
    base = toy.EXPERIMENT.settings("smoke")
    elsewhere = dataclasses.replace(base, workdir="/x", overwrite=True, num_devices=1)
    assert config.identity(base) == config.identity(elsewhere)
    assert config.suffix(elsewhere, base) == ""
    other = dataclasses.replace(base, steps=61)
    assert config.identity(base) != config.identity(other)
    assert config.suffix(other, base) not in (
        "",
        config.suffix(dataclasses.replace(base, seed=1), base),
    )


def test_an_unknown_setting_is_refused_from_code_too():
    with pytest.raises(UserError, match="no setting is called stepz"):
        toy.EXPERIMENT.settings("smoke", stepz=3)


def test_help_teaches(capsys):
    assert app.run(toy.EXPERIMENT, ["toy", "--help"]) == 0
    text = capsys.readouterr().out
    for wanted in (
        "A toy",
        "Learns the first of five numbers.",
        "smoke",
        "adaptive",
        "./run toy --method=adam",
        "--learning_rate=0.05",
        "Step size.",
        "--checkpoint_every=20",
        "--widths=4,3",
    ):
        assert wanted in text
    for field in dataclasses.fields(toy.Config):
        assert f"--{field.name}" in text
