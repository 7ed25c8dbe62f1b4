"""Settings: where a value comes from, and what is refused."""

from dataclasses import dataclass

import pytest

import configs
from configs import ROOT, UserError, load


@dataclass(frozen=True)
class Settings:
    start: str = ""  # the prompt
    n_layer: int = 4  # blocks
    learning_rate: float = 1e-3  # steps
    resume: bool = False  # go on
    compile: bool | None = None  # or not
    out_dir: str = ""  # run folder


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "mine.py"
        path.write_text(text)
        return str(path)

    return write


def test_order_is_defaults_files_command_line(config):
    path = config("n_layer = 6\nlearning_rate = 2\nbatch_size = 3  # train.py's, not this script's")
    settings, origin = load(Settings, ["--n_layer=8", path, "--resume", "--start", "a b"])
    assert settings == Settings(start="a b", n_layer=8, learning_rate=2.0, resume=True)
    assert origin["n_layer"] == "command line"
    assert origin["learning_rate"] == path
    assert origin["compile"] == "default"


def test_a_config_file_may_compute_and_touches_nothing(config):
    path = config("import math\n_half = 2\nn_layer = int(math.sqrt(_half * 8))")
    assert load(Settings, [path])[0].n_layer == 4
    assert Settings.n_layer == 4 and not hasattr(configs, "n_layer")


@pytest.mark.parametrize("text", ["12", "a=b", "True", "-1", "--x", "__import__('os')"])
def test_text_stays_text(text):
    assert load(Settings, [f"--start={text}"])[0].start == text


def test_bare_word_and_booleans():
    assert load(Settings, ["out/x"], positional="out_dir")[0].out_dir == "out/x"
    assert load(Settings, ["--resume", "--n_layer=2"])[0].resume
    assert load(Settings, ["--resume", "false", "--compile=True"])[0].compile is True
    assert load(Settings, ["--compile=none", "--n-layer=3"])[0].compile is None


def test_a_tuple_collects_words():
    @dataclass(frozen=True)
    class Settings:
        runs: tuple = ()

    assert load(Settings, ["a", "--runs=b", "c"], positional="runs")[0].runs == ("a", "b", "c")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--n_layers=3"], "unknown setting 'n_layers'; did you mean 'n_layer'?"),
        (["--zzz=3"], "unknown setting 'zzz'; --help lists the settings"),
        (["--n_layer=x"], "--n_layer takes a whole number, not 'x'"),
        (["--n_layer=1.5"], "--n_layer takes a whole number, not '1.5'"),
        (["--resume=maybe"], "--resume takes True or False, not 'maybe'"),
        (["--n_layer"], "--n_layer needs a value"),
        (["nothing.py"], "no config file 'nothing.py'"),
        (["word"], "'word' is neither a config file"),
    ],
)
def test_errors_of_the_command_line(argv, message):
    with pytest.raises(UserError) as error:
        load(Settings, argv)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("n_layer = 'six'", "n_layer takes a whole number, not 'six'"),
        ("n_layer = True", "n_layer takes a whole number, not True"),
        ("n_layer = 1.0", "n_layer takes a whole number, not 1.0"),
        ("n_lair = 1", "unknown setting 'n_lair'; did you mean 'n_layer'?"),
        ("n_layer = (", "SyntaxError"),
        ("n_layer = 1 / 0", "ZeroDivisionError"),
    ],
)
def test_errors_of_a_config_file(config, text, message):
    path = config(text)
    with pytest.raises(UserError) as error:
        load(Settings, [path])
    assert message in str(error.value) and path in str(error.value)


def test_a_text_where_a_config_file_should_have_several(config):
    from sample import Settings as Sample

    with pytest.raises(UserError, match=r"stop takes a tuple, as \('a', 'b'\), not 'The end'"):
        load(Sample, [config("stop = 'The end'")])


def test_help_shows_each_setting_with_its_comment(capsys):
    with pytest.raises(SystemExit) as stop:
        load(Settings, ["--help"])
    assert stop.value.code == 0
    assert "--n_layer=4" in (text := capsys.readouterr().out) and "blocks" in text


def test_every_shipped_config_loads_in_every_script():
    from prepare import Settings as Prepare
    from sample import Settings as Sample
    from train import Settings as Train

    paths = [path for path in ROOT.glob("configs/*.py") if path.name != "__init__.py"]
    assert len(paths) >= 7
    for path in paths:
        for settings in (Prepare, Train, Sample):
            load(settings, [str(path)])


def test_every_setting_says_what_it_is():
    for script in [*ROOT.glob("*.py"), *ROOT.glob("eval/*.py")]:
        for name, text in configs.declared(script).items():
            assert len(text) > 3, f"{script.name}: {name} has no comment"
