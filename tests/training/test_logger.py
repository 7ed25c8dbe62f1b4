"""report_to: a run's lines in TensorBoard and Weights & Biases, and what happens without them."""

import importlib.machinery
import sys
import types
from dataclasses import replace
from importlib.util import find_spec

import pytest
import tiny
from tiny import call_ranks, settings_for

import reward
from configs import UserError
from nanostories.training import run_config
from nanostories.training.logger import SERVICES


class FakeWandb(types.ModuleType):
    """Stands for the package wandb: keeps what it is given. fail: the call that raises."""

    def __init__(self, fail=""):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.calls, self.fail = [], fail

    def init(self, **settings):
        self._call("init", settings)
        return self

    def define_metric(self, name, step_metric):
        self._call("define_metric", (name, step_metric))

    def log(self, line):
        self._call("log", line)

    def _call(self, name, value):
        if self.fail == name:
            raise ConnectionError(f"no {name},\ntoday")
        self.calls.append((name, value))

    def values(self, name):
        return [value for call, value in self.calls if call == name]


@pytest.fixture
def fake(monkeypatch):
    def install(fail=""):
        monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fail))
        return sys.modules["wandb"]

    return install


def test_wandb_gets_every_line_and_the_settings(data, tmp_path, fake):
    wandb, settings = fake(), settings_for(data, tmp_path / "run", max_iters=3, report_to="wandb")
    tiny.train(settings)
    assert wandb.values("log") == tiny.metrics(tmp_path / "run")
    [given] = wandb.values("init")
    assert given["config"]["learning_rate"] == 1e-2 and given["name"] == "run"
    assert wandb.values("define_metric") == [("*", "step")]


def test_a_resumed_run_continues_the_same_one(data, tmp_path, fake):
    wandb, settings = fake(), settings_for(data, tmp_path / "run", max_iters=2, report_to="wandb")
    tiny.train(settings)
    tiny.train(replace(settings, resume=True, max_iters=4))
    first, second = wandb.values("init")
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert [line["step"] for line in wandb.values("log") if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("fail", ["init", "define_metric", "log"])
def test_a_service_that_fails_does_not_end_the_run(data, tmp_path, fake, fail, capsys):
    wandb = fake(fail)
    tiny.train(settings_for(data, tmp_path / "run", max_iters=3, report_to="wandb"))
    printed = capsys.readouterr().out
    assert printed.count("the run goes on without wandb: ConnectionError: no") == 1
    assert "done with step 3" in printed and len(tiny.losses(tmp_path / "run")) == 3
    assert wandb.values("log") == []


def test_tensorboard_shows_each_step_once_after_a_resume(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    settings = settings_for(data, out, max_iters=4, save_interval=2, report_to="tensorboard")
    tiny.train(settings)
    for file in (out / "checkpoints" / "4").iterdir():  # as if it was killed in step 4
        file.unlink()
    (out / "checkpoints" / "4").rmdir()
    tiny.train(replace(settings, resume=True))
    shown = EventAccumulator(str(out / "tensorboard")).Reload()
    logged = {line["step"]: line["loss"] for line in tiny.metrics(out) if "loss" in line}
    assert {event.step: event.value for event in shown.Scalars("loss")} == pytest.approx(logged)
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3, 4]
    assert shown.Scalars("val_loss")[-1].step == 4


def test_the_first_rank_alone_logs(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=2, report_to="tensorboard")
    call_ranks(2, tiny.train, settings)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("report_to", ["tensorboard", "wandb", "wandb,tensorboard"])
def test_a_missing_package_is_one_clear_line(data, tmp_path, monkeypatch, report_to):
    monkeypatch.setattr("nanostories.training.logger.find_spec", lambda name: None)
    first = report_to.partition(",")[0]
    line = f"--report_to={first} needs a package: pip install {first}"
    with pytest.raises(UserError, match=line):
        run_config.check(settings_for(data, tmp_path / "run", report_to=report_to))
    with pytest.raises(UserError, match=line):
        reward.check(reward.Settings(report_to=report_to))


def test_another_service_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="tensorboard, wandb or both, not 'mlflow'"):
        run_config.check(settings_for(data, tmp_path / "run", report_to="tensorboard, mlflow"))


def test_no_package_is_imported_unasked(data, tmp_path):
    before = {name for name in SERVICES if name in sys.modules}
    tiny.train(settings_for(data, tmp_path / "run", max_iters=1))
    assert {name for name in SERVICES if name in sys.modules} == before
    assert find_spec("tensorboard")  # the tests have it
