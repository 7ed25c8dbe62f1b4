"""benchmarks/gpu_check.py: its schedule with parts of a few lines, its summary from made-up
figures, and, slow, all of it in tiny sizes."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from benchmarks import gpu_check, gpu_parts, gpu_schedule, gpu_summary, step_profile
from benchmarks.gpu_check import Settings
from benchmarks.gpu_schedule import DONE, FAILED, STARTED, Command, Part, State
from configs import ROOT, UserError
from nanostories import storage
from tests.benchmarks.test_training import NANOGPT

VERSION = {"commit": "1a2b3c", "source": "0", "gpu": "H100"}


def python(tmp_path, name, code="", seconds=30.0, **changes):
    """A Part of one command, which notes in tmp_path/ran that it ran."""
    note = f"import time; open({str(tmp_path / 'ran')!r}, 'a').write('{name} '); {code}"
    return Part(name, seconds, (Command("log", ("-c", note)),), **changes)


def ran(tmp_path):
    path = tmp_path / "ran"
    return path.read_text().split() if path.exists() else []


def state_in(tmp_path, **changes):
    """The state as a new call reads it."""
    return State(tmp_path / "out", VERSION | changes)


def go(tmp_path, parts, seconds=60.0, version=None, **options):
    """One call; returns the names of the parts for the next."""
    state = state_in(tmp_path, **version or {})
    return gpu_schedule.run_parts(parts, state, time.monotonic() + seconds, **options)


# ---- the schedule ------------------------------------------------------------------------------


def test_parts_run_in_order_and_once(tmp_path):
    parts = [python(tmp_path, "b", "print('said')"), python(tmp_path, "a")]
    assert go(tmp_path, parts) == []
    assert (tmp_path / "out" / "b" / "log").read_text() == "said\n"
    assert [state_in(tmp_path).status(part) for part in parts] == [DONE, DONE]
    assert go(tmp_path, parts) == [] and ran(tmp_path) == ["b", "a"]


def test_a_part_starts_only_if_its_time_is_left(tmp_path):
    parts = [python(tmp_path, name, seconds=s) for name, s in (("a", 5), ("b", 500), ("c", 9))]
    assert go(tmp_path, parts) == ["b"] and ran(tmp_path) == ["a", "c"]
    assert go(tmp_path, parts, seconds=600) == [] and ran(tmp_path) == ["a", "c", "b"]


def test_each_part_takes_of_the_time_of_the_call(tmp_path):
    parts = [python(tmp_path, "a", "time.sleep(2)", seconds=9), python(tmp_path, "b", seconds=9)]
    assert go(tmp_path, parts, seconds=10) == ["b"] and ran(tmp_path) == ["a"]


TRAINING = """
import os, signal, sys, time
run = sys.argv[-1].removeprefix("--out_dir=")
steps = max(map(int, os.listdir(run + "/checkpoints"))) if "--resume" in sys.argv else 0
signal.signal(signal.SIGTERM, lambda *_: globals().update(stop=True))
stop = False
while steps < 20 and not stop:
    print(f"step {(steps := steps + 1)}", flush=True)
    time.sleep(0.1)
os.makedirs(f"{run}/checkpoints/{steps}")
print("stopped after" if stop else "done with", f"step {steps}")
"""


def training(tmp_path, **changes):
    """A Part whose command stops as train.py does, and is resumed as that is, then another."""
    (tmp_path / "train.py").write_text(TRAINING)
    run = str(tmp_path / "out" / "train" / "run")
    words = (str(tmp_path / "train.py"), f"--out_dir={run}")
    commands = (Command("train.log", words, run, "done with step 20"),
                *python(tmp_path, "loss").commands)  # fmt: skip
    return replace(Part("train", 60, commands, least=0.5), **changes)


def test_a_training_is_stopped_in_time_and_resumed(tmp_path):
    began = time.monotonic()
    assert go(tmp_path, [training(tmp_path)], seconds=1) == ["train"]
    assert time.monotonic() - began < 1.8 and ran(tmp_path) == []
    assert state_in(tmp_path).status(training(tmp_path)) == STARTED
    assert [*tmp_path.glob("out/train/run/checkpoints/*")]  # it had the time to save
    assert go(tmp_path, [training(tmp_path)]) == [] and ran(tmp_path) == ["loss"]
    log = (tmp_path / "out" / "train" / "train.log").read_text().splitlines()
    steps = [int(line.split()[1]) for line in log if line.startswith("step ")]
    assert steps == [*range(1, 21)]  # none twice


def test_a_training_that_was_stopped_is_not_done(tmp_path):
    """By a signal of somebody else: it saves, and its exit status is 0."""
    part = training(tmp_path)
    stop = "import os; os.kill(os.getppid(), 15)"
    assert stop not in TRAINING
    (tmp_path / "train.py").write_text(TRAINING.replace("stop = False", "stop = True"))
    assert go(tmp_path, [part]) == ["train"] and ran(tmp_path) == []
    assert state_in(tmp_path).records["train"]["finished"] == 0


def test_another_last_line_is_a_failure(tmp_path):
    part = training(tmp_path)
    (tmp_path / "train.py").write_text(TRAINING.replace("steps < 20", "steps < 2"))
    assert go(tmp_path, [part]) == [] and ran(tmp_path) == []
    assert "not 'done with step 20'" in state_in(tmp_path).records["train"]["error"]


def test_nothing_is_left_running(tmp_path):
    """A command that does not obey, and what it started, are killed."""
    child = "import time\nfor i in range(99): time.sleep(0.1); open('{}', 'a').write('x')"
    child = child.format(tmp_path / "alive")
    code = ("import signal, subprocess, sys; signal.signal(15, signal.SIG_IGN);"
            f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(30)")  # fmt: skip
    began = time.monotonic()
    assert go(tmp_path, [python(tmp_path, "a", code, least=0.1)], seconds=1, grace=0.5) == ["a"]
    assert time.monotonic() - began < 4
    size = (tmp_path / "alive").stat().st_size
    time.sleep(0.5)
    assert size == (tmp_path / "alive").stat().st_size > 0


def test_a_failure_is_recorded_and_stops_no_other(tmp_path):
    fails = python(tmp_path, "a", "print('why'); 1 / 0")
    parts = [fails, python(tmp_path, "b")]
    assert go(tmp_path, parts) == [] and ran(tmp_path) == ["a", "b"]
    record = state_in(tmp_path).records["a"]
    assert record["status"] == FAILED
    assert "exit status 1" in record["error"] and "why" in record["error"]
    assert record["error"].endswith("ZeroDivisionError: division by zero")
    go(tmp_path, parts)
    assert ran(tmp_path) == ["a", "b"]
    go(tmp_path, parts, retry=True)
    assert ran(tmp_path) == ["a", "b", "a"]


def test_a_part_that_takes_too_long_failed(tmp_path):
    parts = [python(tmp_path, "a", "time.sleep(30)", seconds=0.6), python(tmp_path, "b")]
    assert go(tmp_path, parts) == [] and ran(tmp_path) == ["a", "b"]
    assert "not done in 1 s" in state_in(tmp_path).records["a"]["error"]


def test_the_time_of_all_calls_counts(tmp_path):
    part = training(tmp_path, seconds=1.8)
    assert go(tmp_path, [part], seconds=0.7) == ["train"]
    assert go(tmp_path, [part], seconds=0.7) == ["train"]
    assert state_in(tmp_path).records["train"]["seconds"] >= 1.4
    assert go(tmp_path, [part], seconds=9) == []
    assert state_in(tmp_path).status(part) == FAILED


CALLER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from nanostories import storage
from tests.benchmarks.test_gpu_check import go, killed_in_the_second
path = Path({path!r})
with storage.lock(path / "out") as lock:
    go(path, [killed_in_the_second(path)], lock=lock)
"""


def killed_in_the_second(tmp_path):
    """A Part of two commands; the second one sleeps at first, and leaves its process id."""
    pid = str(tmp_path / "out" / "part" / "pid")
    code = f"import os, time\nif not os.path.exists({pid!r}):\n"
    code += f"    open({pid!r}, 'w').write(str(os.getpid()) + ' '); time.sleep(60)\n"
    second = Command("second", ("-c", code + python(tmp_path, "second").commands[0].words[1]))
    return Part("part", 50, (*python(tmp_path, "first").commands, second))


def test_after_a_kill_the_next_call_goes_on(tmp_path):
    code, pid = CALLER.format(root=str(ROOT), path=str(tmp_path)), tmp_path / "out" / "part" / "pid"
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while not (pid.exists() and pid.read_text().endswith(" ")) and caller.poll() is None:
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    record = state_in(tmp_path).records["part"]
    assert (record["status"], record["finished"]) == (STARTED, 1)
    with pytest.raises(UserError, match="or one that it started"), storage.lock(tmp_path / "out"):
        pass  # the command runs on: another one would get in its way
    os.kill(int(pid.read_text()), signal.SIGKILL)
    assert go(tmp_path, [killed_in_the_second(tmp_path)]) == []
    assert ran(tmp_path) == ["first", "second"]
    assert state_in(tmp_path).records["part"]["status"] == DONE


@pytest.mark.parametrize("change", [{"commit": "4d5e6f"}, {"source": "1"}, {"gpu": "A100"}])
def test_another_version_keeps_what_is_done_and_begins_the_rest_anew(tmp_path, change):
    done, train = python(tmp_path, "a"), training(tmp_path)
    fails = python(tmp_path, "b", "1 / 0")
    assert go(tmp_path, [done, fails]) == []
    assert go(tmp_path, [train], seconds=1) == ["train"]
    (tmp_path / "out" / "train" / "old").touch()
    assert go(tmp_path, [done, train, fails], version=change) == []
    assert ran(tmp_path) == ["a", "b", "loss", "b"]  # `a` once
    state = state_in(tmp_path, **change)
    assert not state.is_current(done) and state.status(done) == DONE
    assert state.records["a"]["version"] == VERSION
    assert state.records["train"]["version"] == VERSION | change
    assert not (tmp_path / "out" / "train" / "old").exists()
    assert (tmp_path / "out" / "train" / "train.log").read_text().startswith("step 1\n")


def test_other_commands_run_again(tmp_path):
    go(tmp_path, [python(tmp_path, "a")])
    go(tmp_path, [python(tmp_path, "a", "print('more')")])
    assert ran(tmp_path) == ["a", "a"]


def test_a_part_that_cannot_run_says_why(tmp_path, capsys):
    parts = [python(tmp_path, "a", problem="no data: make some"), python(tmp_path, "b")]
    assert go(tmp_path, parts) == [] and ran(tmp_path) == ["b"]
    assert "--- a is left out: no data: make some\n" in capsys.readouterr().out
    assert go(tmp_path, [python(tmp_path, "a")]) == [] and ran(tmp_path) == ["b", "a"]


# ---- a call ------------------------------------------------------------------------------------


def call(tmp_path, parts, seconds=60.0, version=None, **settings):
    state, settings = state_in(tmp_path, **version or {}), Settings(**settings)
    return gpu_check.call(parts, state, settings, time.monotonic() + seconds)


def test_the_exit_status(tmp_path, capsys):
    good, bad = python(tmp_path, "good"), python(tmp_path, "bad", "1 / 0")
    long = python(tmp_path, "long", seconds=500)
    assert call(tmp_path, [good, bad, long]) == 3
    assert "more to do, call it again: long" in capsys.readouterr().out
    assert call(tmp_path, [good, bad, long], seconds=600) == 1
    assert "failed, or left out: bad;" in capsys.readouterr().out
    assert call(tmp_path, [good, long]) == 0
    assert call(tmp_path, [good, python(tmp_path, "none", problem="no data")]) == 1
    assert ran(tmp_path) == ["good", "bad", "long"]


def test_parts_are_named_by_how_they_begin(tmp_path):
    parts = [python(tmp_path, name, "1 / 0") for name in ("kernels-a", "kernels-b", "race")]
    assert call(tmp_path, parts, only="race") == 1 and ran(tmp_path) == ["race"]
    assert call(tmp_path, parts, only="kernels, race") == 1  # named: the failed one, too
    assert ran(tmp_path) == ["race", "kernels-a", "kernels-b", "race"]
    assert call(tmp_path, parts, retry=True) == 1 and len(ran(tmp_path)) == 7
    with pytest.raises(UserError, match="no part 'races'; there are kernels-a, kernels-b, race"):
        call(tmp_path, parts, only="races")


def test_anew(tmp_path, capsys):
    parts = [python(tmp_path, "a"), python(tmp_path, "b")]
    assert call(tmp_path, parts) == 0
    assert call(tmp_path, parts, version={"commit": "4d5e6f"}) == 0
    assert "done before, by other code or on another GPU: a, b;" in capsys.readouterr().out
    assert call(tmp_path, parts, anew=True, only="b") == 0
    assert call(tmp_path, parts) == 0 and ran(tmp_path) == ["a", "b", "b"]


def test_too_few_minutes_for_a_part(tmp_path):
    parts = [python(tmp_path, "a"), python(tmp_path, "b", seconds=100)]
    with pytest.raises(UserError, match=r"b needs 2\.0 minutes: --minutes=1\.5 is too few"):
        call(tmp_path, parts, minutes=1.5)
    assert call(tmp_path, parts, seconds=110, minutes=2) == 0
    assert call(tmp_path, parts, minutes=0.1) == 0  # nothing is left to do


def test_settings_stay_for_the_next_call(tmp_path):
    (tmp_path / "model.py").touch()
    words = [f"--nanogpt={tmp_path}", "--epochs=3", "--minutes=5"]
    settings, origin = gpu_check.load(Settings, words)
    state = state_in(tmp_path)
    assert gpu_check.complete(settings, origin, state) == settings
    state.write()
    settings, origin = gpu_check.load(Settings, ["--epochs=4"])
    settings = gpu_check.complete(settings, origin, state_in(tmp_path))
    assert (settings.nanogpt, settings.epochs, settings.minutes) == (str(tmp_path), 4, 9.0)
    (tmp_path / "model.py").unlink()
    with pytest.raises(UserError, match="no nanoGPT in"):
        gpu_check.complete(settings, origin, state_in(tmp_path))


# ---- the parts ---------------------------------------------------------------------------------


def data_in(tmp_path, tokens, vocab_size=10_000):
    for name in ("gpt2", "bpe"):
        folder = tmp_path / f"mine-{name}"
        folder.mkdir(exist_ok=True)
        facts = {"vocab_size": vocab_size, "splits": {"train": {"tokens": tokens}}}
        (folder / "manifest.json").write_text(json.dumps(facts))
    return Settings(data=str(tmp_path / "mine"), out=str(tmp_path / "out"))


def test_every_part_fits_in_a_call(tmp_path):
    """Of nine minutes, in the order that matters, each with a folder of its own."""
    parts = gpu_parts.all_parts(data_in(tmp_path, 10**7))
    gpu_check.check_minutes(Settings().minutes, parts)
    names = [part.name for part in parts]
    groups = list(dict.fromkeys(name.split("-")[0] for name in names))
    assert groups == ["tests", "train", "race", "speed", "kernels", "generation"]
    assert len({*names}) == len(names) == 18
    for part in parts:
        texts = [word for command in part.commands for word in command.words]
        inside = [word for word in texts if str(tmp_path / "out") in word and "train" not in word]
        assert all(f"/out/{part.name}" in word or "/out/tests-run" in word for word in inside)


@pytest.mark.parametrize("tiny", [False, True])
def test_every_script_takes_the_settings_of_its_commands(tmp_path, tiny):
    """Of both forms: only the tiny one is run without a GPU."""
    (tmp_path / "model.py").touch()
    settings = replace(data_in(tmp_path, 10**7), nanogpt=str(tmp_path), tiny=tiny)
    commands = [c for part in gpu_parts.all_parts(settings) for c in part.commands]
    scripts = set()
    for command in commands:
        script, *words = command.words[command.words[0] == "-m" :]
        if script != "pytest":
            module = importlib.import_module(script.removesuffix(".py"))
            gpu_check.load(module.Settings, words, positional="out_dir")
            scripts.add(script)
    assert len(scripts) == 9 + tiny  # with prepare.py


def test_few_stories_are_trained_on_for_epochs_and_many_by_the_clock(tmp_path):
    settings = data_in(tmp_path, 10**7)
    assert gpu_parts.training_limit(settings, "ts_33m") == "--max_iters=611"  # 80 M / 131,072
    [grown] = gpu_parts.training_limit(settings, "fast_33m").split("--max_iters=")[1:]
    assert 1000 < int(grown) < 2000  # its first steps are smaller
    settings = data_in(tmp_path, 10**8)
    assert gpu_parts.training_limit(settings, "ts_33m") == "--max_minutes=4.0"


def test_missing_data_and_a_missing_nanogpt_are_a_line(tmp_path):
    settings = replace(data_in(tmp_path, 10**7), data=str(tmp_path / "none"))
    parts = {part.name: part for part in gpu_parts.all_parts(settings)}
    advice = f"python prepare.py configs/ts_33m.py --out={tmp_path / 'none'}-gpt2"
    assert advice in parts["train-ts_33m"].problem and advice in parts["tests-run"].problem
    assert "git clone https://github.com/karpathy/nanoGPT" in parts["race"].problem
    assert not parts["speed-768-4"].problem and not parts["kernels-loss"].problem
    assert gpu_parts.missing_packages("json", "no_such") == (
        "not installed: no_such; try: pip install no_such")  # fmt: skip


def test_another_vocabulary_than_the_config_s_is_a_line(tmp_path):
    settings = data_in(tmp_path, 10**7, vocab_size=4096)
    problem = gpu_parts.data_problem(settings, "fast_33m")
    assert "a vocabulary of 4,096, the config one of 10,000" in problem
    assert gpu_parts.data_problem(settings, "ts_33m") == ""


# ---- the summary -------------------------------------------------------------------------------


def write(path, facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))


def test_goals_are_met_missed_or_not_measured(tmp_path):
    out = tmp_path / "out"
    state = state_in(tmp_path)
    part = python(tmp_path, "speed-768-4")
    state.begin(part)["status"] = DONE
    write(out / "speed-768-4/speed.json", {"cases": [{"ratio": {"median": 1.25}}]})
    write(out / "speed-64-8/speed.json", {"cases": [{"ratio": {"median": 2.6}}]})
    write(out / "speed-256-8/speed.json", {"cases": [{"nanoStories": {}}]})  # without nanoGPT
    (out / "speed-512-8").mkdir()
    (out / "speed-512-8/speed.json").write_text('{"cases": [')  # cut off
    us = {"nanostories": 100, "flash": 251, "flex": 249, "compile": 10}
    implementations = {name: {"both_us": time} for name, time in us.items()} | {"cudnn": {}}
    cases = [{"name": f"D={D} T=512 causal", "implementations": implementations} for D in (16, 32)]
    write(out / "kernels-attention/bench.json", {"cases": cases})
    cases = [{"name": "loss C=256", "implementations": {"nanostories": {}, "compile": us}}]
    write(out / "kernels-loss/bench.json", {"cases": cases})
    speeds = {"batch of 1024": 500_001.0, "bfloat16": 900.0}
    result = {"tokens_per_second": speeds, "ratio": {"bfloat16 / transformers": {"median": 9.0}}}
    write(out / "generation-256-8/generation.json", {"results": [result]})
    curves = {"nanoGPT": [{"seconds": 90.0}]}
    write(out / "race/race.json", {"seconds_to_nanogpt": 30.0, "curves": curves})
    lines = gpu_summary.write([part], state)
    assert lines[0].endswith(": 4 of 13 goals met, 4 missed, 5 not measured yet")
    rows = {line.split(" |")[0][2:]: line for line in lines if line.startswith("| ")}
    step = rows["training step at 768-4, over compiled nanoGPT's"]
    assert step.endswith("| 1.25x | 1.25x | met | H100 | 1a2b3c |")
    assert "2.60x | missed" in rows["training step at 64-8, over compiled nanoGPT's"]
    for size in ("256-8", "512-8"):
        assert "not measured yet" in rows[f"training step at {size}, over compiled nanoGPT's"]
    assert "2.49x | missed" in rows["attention with heads of 16, over the fastest of torch's"]
    assert "2.49x | met" in rows["attention with heads of 32, over the fastest of torch's"]
    assert "0.00x | missed" in rows["loss at width 256, over torch.compile's"]
    assert "500,001 tok/s | met" in rows["1,024 stories at once at 256-8"]
    assert "9.00x | missed" in rows["one story at 256-8, over transformers'"]
    assert (out / "summary.md").read_text().startswith("\n".join(lines))


def test_a_race_that_is_lost_is_missed(tmp_path):
    facts = {"seconds_to_nanogpt": None, "curves": {"nanoGPT": [{"seconds": 90.0}]}}
    assert gpu_summary.times_as_soon(facts) == 0


def test_the_parts_and_the_models_are_in_the_summary(tmp_path):
    out, state = tmp_path / "out", state_in(tmp_path)
    parts = [python(tmp_path, "a", "print('x | y'); 1 / 0"), python(tmp_path, "b", problem="none")]
    gpu_schedule.run_parts(parts, state, time.monotonic() + 60)
    run = out / "train-ts_33m" / "ts_33m"
    loss = {"bits_per_byte": 0.5123, "bits_per_byte_95": 0.004, "source": "data/mine-gpt2"}
    write(run / "eval/loss.json", loss)
    line = {"step": 7, "tokens": 1000, "seconds": 30.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 7, "val_loss": 1}\n')
    (run / "loss.png").touch()
    gpu_summary.write(parts, state)
    text = (out / "summary.md").read_text()
    assert "| a | failed | " in text and "ZeroDivisionError" in text
    assert "| b | missing |  |  |  | none |" in text
    assert "| ts_33m | 7 | 1,000 | 0.5 | 0.5123 ± 0.0040 | data/mine-gpt2 |" in text
    assert "![train-ts_33m/ts_33m/loss.png](train-ts_33m/ts_33m/loss.png)" in text


def test_the_table_of_a_profile():
    kernels = [{"name": "k" * 200, "calls": 2.0, "us": 750.0}]
    kernels += [{"name": f"small{i}", "calls": 1.0, "us": 125.0} for i in range(2)]
    facts = {"environment": {"device": "H100"}, "settings": {"size": "64-8"}, "step_us": 2000.0}
    lines = step_profile.format_table(facts | {"kernels": kernels}, shown=1)
    assert lines[0] == "64-8 on H100: 2.00 ms a step, 1.00 ms in kernels"
    assert max(map(len, lines)) <= 100 and " 75.0%      2  kkk" in lines[2]
    assert lines[3].split() == ["250.0", "25.0%", "2", "2", "others"]


# ---- all of it ---------------------------------------------------------------------------------


def tiny_call(tmp_path, *words):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--device=cpu",
         f"--out={tmp_path / 'out'}", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


@pytest.mark.slow
def test_the_tiny_form_in_two_calls(tmp_path):
    (tmp_path / "model.py").write_text(NANOGPT)
    code, output, seconds = tiny_call(tmp_path, f"--nanogpt={tmp_path}", "--minutes=1.5")
    assert code == 3 and seconds < 90, output
    state = json.loads((tmp_path / "out" / "state.json").read_text())["parts"]
    first = {name: record for name, record in state.items() if record["status"] == DONE}
    assert "tiny-data" in first and len(first) < 10 and "not measured yet" in output

    code, output, _ = tiny_call(tmp_path)
    assert code == 0, output
    state = json.loads((tmp_path / "out" / "state.json").read_text())["parts"]
    parts = gpu_parts.all_parts(Settings(tiny=True, device="cpu", out=str(tmp_path / "out")))
    assert {*state} == {part.name for part in parts}  # the first call took those that fitted
    assert {record["status"] for record in state.values()} == {DONE}
    for name, record in first.items():
        assert state[name] == record and f"--- {name}:" not in output
    summary = (tmp_path / "out" / "summary.md").read_text()
    for config in ("ts_33m", "fast_33m"):
        assert f"| {config} | 12 | " in summary
        assert f"(train-{config}/{config}/loss.png)" in summary
        assert (tmp_path / "out" / f"train-{config}" / "stories.txt").read_text().count("---") >= 9
    assert "(race/race.png)" in summary and "(kernels-attention/bench.png)" in summary
    for size in gpu_parts.SIZES:
        [row] = [x for x in summary.splitlines() if f"training step at {size}," in x]
        assert " | met | cpu | " in row or " | missed | cpu | " in row
    for size in gpu_parts.PROFILED:
        profile = tmp_path / "out" / f"speed-profile-{size}" / "profile.json"
        assert len(json.loads(profile.read_text())["kernels"]) > 20
        assert "us a step" in profile.with_suffix(".txt").read_text()
