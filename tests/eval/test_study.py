"""python -m eval.study: its jobs, their status, failures, and a kill in the middle."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import configs
import train
from configs import ROOT, UserError
from eval import published, study, study_estimate
from eval.reporting.study_jobs import (
    ARCHITECTURES,
    Job,
    Size,
    equal_width,
    parse_options,
    plan_jobs,
    sizes,
)
from eval.reporting.study_state import DONE, FAILED, PENDING, StudyState, hash_commands
from eval.study import Runner, Settings
from model import GPT, GPTConfig
from nanostories import storage
from nanostories.training import checkpoint

TINY = """
source = "storybook"
tokenizer = "bpe"
vocab_size = 400
models = "16-1-2, 16-2-2"
seeds = 1
options = '''
prepare.py: --stories=300 --workers=1 --val_fraction=0.1
eval.skills: --questions=20
eval.fluency: --stories=4 --max_new_tokens=10
eval.side_by_side: --max_new_tokens=20
eval.judge prompts: --max_new_tokens=10
'''
block_size = 128
batch_size = 1
row_tokens = 256
max_iters = 40
learning_rate = 1e-2
warmup_iters = 5
eval_interval = 10
eval_stories = 8
"""


@pytest.fixture
def settings(tmp_path):
    return Settings(
        out_dir=str(tmp_path / "study"), dataset=str(tmp_path / "data"), source="mine.txt",
        models="64-2-4, 128-2-4", heads="64-2-8", syn="64-2-4", instruct="128-2-4",
        reward="128-2-4", diversity="64-2-4", interpret="64-2-4", seeds=2,
    )  # fmt: skip


@pytest.fixture
def no_words(monkeypatch):
    """Skip loading WordNet, which a study with synonyms checks first: it is slow."""
    monkeypatch.setattr("nanostories.text.wordnet.pos_tags", lambda words: None)
    monkeypatch.setattr("nanostories.text.wordnet.reader", lambda: None)


# ---- the plan ----------------------------------------------------------------------------------


def test_sizes():
    assert sizes("64-2-4, 128-1-8 64-2-4", "models") == [Size(64, 2, 4), Size(128, 1, 8)]
    assert str(Size(64, 2, 4)) == "64-2-4" and Size(64, 2, 4).parameters == 12 * 2 * 64**2
    for text in ("64-2", "64-2-4-1", "a-2-4", "64-0-4", "64-2-3", "64--4"):
        with pytest.raises(UserError, match=f"models: .*'{text}'"):
            sizes(text, "models")


def test_the_plan(settings):
    jobs = plan_jobs(settings, {"batch_size": 2, "source": "other", "seed": 9})
    runs = sorted(Path(job.run).name for job in jobs.values() if job.run)
    assert runs == sorted([
        "64-2-4-s1", "64-2-4-s2", "128-2-4-s1", "128-2-4-s2", "64-2-8-s1", "64-2-8-s2",
        "syn-64-2-4-s1", "instruct-128-2-4-s1", "instruct-128-2-4-s2", "reward-128-2-4-s1",
        "naive-128-2-4-s1"])  # fmt: skip
    assert len({job.output for job in jobs.values()}) == len(jobs)
    seen = []
    for name, job in jobs.items():  # each after what it needs
        assert set(job.needs) <= set(seen), name
        seen.append(name)
    words = jobs["train 64-2-4-s2"].command
    assert {"--batch_size=2", "--n_embd=64", "--n_layer=2", "--n_head=4", "--seed=2"} <= set(words)
    assert not {"--source=other", "--seed=9", "--save_steps=log"} & set(words)
    assert "--save_steps=log" in jobs["train 64-2-4-s1"].command
    for name, job in jobs.items():
        if name.startswith("eval.skills"):
            assert ("--steps" in job.command) == name.endswith(("64-2-4-s1", "128-2-4-s1")), name
    for script in ("vocabulary", "instruct", "diversity", "interpret", "reward", "side_by_side"):
        assert any(name.startswith(f"eval.{script}") for name in jobs), script
    assert not any("paper" in name for name in jobs)


def test_what_the_seeds_have_beside_the_grid(settings):
    """The report's first method, its table 1, the slides' prompts, instructions held out."""
    jobs = plan_jobs(replace(settings, ood="128-2-4", table1="64-2-4"), {"learning_rate": 0.01})
    naive = jobs["naive 128-2-4"].command
    assert {"--method=naive", "--kl_factor=0", "--repetition_penalty=0"} <= set(naive)
    assert jobs["eval.reward naive-128-2-4-s1"].output.endswith("naive-128-2-4-s1/eval/reward.json")
    held_out = jobs["data ood"]
    assert "--hold_out=words+summary" in held_out.command and held_out.needs == ("data",)
    assert held_out.output == f"{settings.dataset}-ood-without-words+summary/manifest.json"
    folder = f"--dataset={settings.dataset}-ood-without-words+summary"
    assert folder in jobs["train ood-128-2-4-s1"].command
    both = jobs["eval.instruct ood-128-2-4-s1"]
    assert both.needs == ("train ood-128-2-4-s1", "train instruct-128-2-4-s1")
    assert both.output.endswith("eval/instruct-beside-instruct-128-2-4-s1.json")
    words = jobs["train table1-64-2-4-s1"].command
    assert "--learning_rate=0.0001" in words and "--learning_rate=0.01" not in words
    assert f"--dataset={settings.dataset}" in words and "--warmup_iters=1000" in words
    slides = jobs["eval.judge slides 64-2-4-s1"]
    assert slides.command[-2:] == ("--prompts=slides", "--mode=prompts")
    assert slides.output.endswith("eval/judge-slides.json")


def test_other_architectures_have_as_many_parameters(settings):
    """Each as near as a width can come to it; all else is the plain model's."""
    for size in (Size(64, 2, 4), Size(128, 2, 4), Size(256, 2, 8)):
        for kind, (_, fields) in ARCHITECTURES.items():
            width = equal_width(size, kind, 2048, 512)
            config = {"vocab_size": 2048, "n_layer": size.layers, "n_head": size.heads}
            plain = GPT(GPTConfig(**config, n_embd=size.width)).num_params()
            other = GPT(GPTConfig(**config, **fields, n_embd=width)).num_params()
            step = 1.1 * 2 * size.heads / size.width  # of the width that heads allow
            assert abs(other / plain - 1) < step, (size, kind, width)
    jobs = plan_jobs(
        replace(settings, architectures="128-2-4", tokenizer="bpe", vocab_size=2048), {}
    )
    plain, words = (set(jobs[f"train {x}128-2-4-s2"].command) for x in ("", "rope-"))
    out = f"--out_dir={settings.out_dir}/rope-128-2-4-s2"
    assert words - plain == {"--positions=rope", out, "--n_embd=136"}
    assert "eval.skills untied-128-2-4-s2" in jobs and "eval.fluency swiglu-128-2-4-s1" in jobs


def test_other_stories_are_measured_on_the_plain_ones(settings):
    options = "prepare.py v1: --max_stories=9\ntrain.py v1: --max_iters=7\ntrain.py 64: --beta1=0.8"
    more = replace(settings, corpora="64-2-4", options=options, v1_source="one.txt", val_source="v")
    jobs = plan_jobs(more, {"max_iters": 5})
    v1 = jobs["data v1"]
    assert {"--source=one.txt", "--val_source=v", "--max_stories=9",
            f"--tokenizer={settings.dataset}"} <= set(v1.command)  # fmt: skip
    assert "--source=storybook" in jobs["data storybook"].command
    assert jobs["data syn"].command[0] == "synonyms.py"
    words = jobs["train v1-64-2-4-s2"].command
    assert words[1:4] == ("--max_iters=5", "--beta1=0.8", "--max_iters=7")  # the last one counts
    assert f"--dataset={settings.dataset}-v1" in words
    for kind in ("v1", "v2", "syn", "storybook", "once", "twice"):
        for script in ("eval.loss", "eval.skills"):
            job = jobs[f"{script} {kind}-64-2-4-s2"]
            assert f"--dataset={settings.dataset}" in job.command
    assert f"--dataset={settings.dataset}" in jobs["eval.loss 64-2-4-s1"].command
    assert f"--dataset={settings.dataset}" not in jobs["eval.skills 64-2-4-s1"].command
    with pytest.raises(UserError, match="options are lines"):
        parse_options("train.py v3: --max_iters=7")


def test_fluency_is_read_of_every_model_and_along_those_that_are_searched_for_copies(settings):
    jobs = plan_jobs(replace(settings, diversity="128-2-4"), {})
    assert (
        "eval.fluency 64-2-4-s2" in jobs
        and "--steps" not in jobs["eval.fluency 128-2-4-s1"].command
    )
    along = jobs["eval.fluency steps 128-2-4-s1"]
    assert "--steps" in along.command and along.output.endswith("/eval/fluency-steps.json")
    assert "eval.fluency steps 64-2-4-s1" not in jobs
    assert "eval.fluency 64-2-8-s1" not in jobs  # of the table of heads


def test_instructions_are_followed_by_every_seed(settings):
    jobs = plan_jobs(replace(settings, hold_out="words+features", ood="128-2-4"), {})
    for name in ("instruct-128-2-4-s1", "instruct-128-2-4-s2", "ood-128-2-4-s1"):
        assert "--pair=words+features" in jobs[f"eval.instruct {name}"].command
    assert "--hold_out=words+features" in jobs["data ood"].command


def test_new_jobs_leave_the_commands_of_the_others_as_they_were(settings):
    """A result is kept by its command's words and those of what it needs: a study goes on."""
    keys = hash_commands(plan_jobs(settings, {"batch_size": 2}))
    more = hash_commands(
        plan_jobs(replace(settings, ood="128-2-4", table1="64-2-4"), {"batch_size": 2})
    )
    assert keys.items() < more.items()


def test_a_judge_and_baselines(settings):
    more = replace(settings, judge="a-teacher", baselines="gpt2, gpt2-xl")
    jobs = plan_jobs(more, {})
    graded = [name for name in jobs if name.startswith("eval.judge paper")]
    assert len(graded) == 4 and "--judge=a-teacher" in jobs[graded[0]].command
    assert "eval.interpret gpt2" in jobs and "eval.interpret gpt2-xl" not in jobs
    for script in ("judge report", "judge synonyms syn", "judge instruct"):
        assert any(name.startswith(f"eval.{script}") for name in jobs), script
    assert "--judge=a-teacher" in jobs["eval.reward reward-128-2-4-s1"].command
    assert jobs["eval.skills gpt2-xl"].output == "out/published/gpt2-xl/eval/skills.json"


def test_options():
    options = parse_options("eval.judge prompts: --beams=5\n\neval.skills: --seed=1 'a b'")
    assert options == {"eval.judge prompts": ["--beams=5"], "eval.skills": ["--seed=1", "a b"]}
    for wrong in ("--beams=5", "eval.skill: --seed=1", "eval.skills: a\neval.skills: b"):
        with pytest.raises(UserError, match="options are lines"):
            parse_options(wrong)
    with pytest.raises(UserError, match="No closing quotation"):
        parse_options("eval.skills: 'a")


@pytest.mark.parametrize("name", ["study_small", "study_medium", "study_paper"])
def test_the_configs(name, no_words):
    settings, recipe = study.complete_settings(Settings(), [f"configs/{name}.py"])
    values = study.read_config_file(f"configs/{name}.py")
    known = {field: values[field] for field in vars(settings) if field in values}
    settings = replace(settings, **known)
    study.check(settings)
    assert settings.out_dir == f"out/{name}" and settings.dataset == f"data/{name}"
    assert plan_jobs(settings, recipe) and "learning_rate" in recipe


class Loaded(Exception):
    """What a script would do after it has loaded its settings is not done."""


def script_settings(command, monkeypatch):
    """The settings that a script resolves from the words of a command; UserError if it cannot."""
    name, *words = command[1:] if command[0] == "-m" else (command[0][:-3], *command[1:])
    module, real_load = importlib.import_module(name), configs.load

    def load(cls, positional=None):
        raise Loaded(real_load(cls, list(words), positional)[0])

    with monkeypatch.context() as patch:
        patch.setattr(configs, "load", load)
        if hasattr(module, "load"):
            patch.setattr(module, "load", load)
        with pytest.raises(Loaded) as caught:
            module.main()
    return caught.value.args[0]


@pytest.mark.parametrize("name", ["study_small", "study_medium", "study_paper"])
def test_every_script_knows_the_settings_of_its_commands(name, monkeypatch):
    """One command for each script and mode, and with a device where the study gives it one."""
    settings, recipe = study.complete_settings(Settings(), [f"configs/{name}.py"])
    values = study.read_config_file(f"configs/{name}.py")
    assert set(values) <= set(vars(settings)) | set(recipe)
    known = {field: values[field] for field in vars(settings) if field in values}
    more = {"judge": "a-teacher", "baselines": "gpt2", "val_source": "val.txt"}
    jobs = plan_jobs(replace(settings, **known | more), recipe)
    commands = {job_name.rpartition(" ")[0]: job.command for job_name, job in jobs.items()}
    commands |= {job_name: job.command for job_name, job in jobs.items() if "gpt2" in job_name}
    assert len(commands) > 20
    for command in commands.values():
        device = [] if command[0] in ("prepare.py", "synonyms.py") else ["--device=cpu"]
        loaded = script_settings([*command, *device], monkeypatch)
        assert not device or loaded.device == "cpu", command
    resumed = script_settings(["train.py", "--resume", "--out_dir=out/x"], monkeypatch)
    assert resumed.resume and resumed.out_dir == "out/x"
    assert script_settings(["reward.py", "--resume", "--out_dir=out/x"], monkeypatch).resume
    with pytest.raises(UserError, match="unknown setting"):
        script_settings(["-m", "eval.skills", "--prompts=3"], monkeypatch)


@pytest.mark.parametrize("change, why", [
    ({"models": ""}, "name the models"), ({"seeds": 0}, "seeds"), ({"jobs": -1}, "jobs"),
    ({"syn": "32-1-2"}, "syn: 32-1-2 is not one of the models"), ({"heads": "64-2"}, None),
])  # fmt: skip
def test_wrong_settings(change, why, settings, no_words):
    settings = replace(settings, **change)
    with pytest.raises(UserError, match=why or "heads: '64-2'"):
        study.check(settings)
        plan_jobs(settings, {})


def test_missing_word_lists_are_an_error_at_the_start(settings, monkeypatch):
    def missing():
        raise UserError("no WordNet")

    monkeypatch.setattr("nanostories.text.wordnet.pos_tags", lambda words: None)
    monkeypatch.setattr("nanostories.text.wordnet.reader", missing)
    with pytest.raises(UserError, match="no WordNet"):
        study.check(settings)
    study.check(replace(settings, syn=""))


def test_a_judge_without_a_key(settings, monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    settings = replace(settings, syn="", judge="a-teacher")
    with pytest.raises(UserError, match="JUDGE_API_KEY"):
        study.check(settings)
    study.check(replace(settings, base_url="http://localhost:11434/v1"))


# ---- what is done ------------------------------------------------------------------------------


def shell(name, code, output, needs=(), weight=1.0):
    return Job(name, ("-c", code), str(output), needs, weight)


def made(path):
    return f"open({str(path)!r}, 'a').write('made ')"


def go(settings, jobs, count=2):
    with storage.lock(settings.out_dir) as lock:
        state = StudyState(settings, jobs)
        Runner(settings, state, count, lock).run()
    return state


def test_outputs_are_kept_and_a_failed_job_stops_no_other(settings, tmp_path, capsys):
    a, b, c, d = (tmp_path / name for name in "abcd")
    jobs = {
        "a": shell("a", made(a), a), "b": shell("b", made(b), b, ("a",)),
        "bad": shell("bad", made(tmp_path / "half") + "; raise SystemExit(3)", tmp_path / "half",
                     ("a",)),
        "after": shell("after", made(d), d, ("bad",)),
        "lies": shell("lies", "pass", tmp_path / "nothing"),
    }  # fmt: skip
    state = go(settings, jobs)
    expected = {"a": DONE, "b": DONE, "bad": FAILED, "after": PENDING, "lies": FAILED}
    assert state.status == expected
    out = capsys.readouterr().out
    assert "bad FAILED: see" in out and "logs/bad.log" in out
    jobs["bad"] = shell("bad", made(c), c, ("a",))
    state = go(settings, jobs)
    assert state.status == expected | {"bad": DONE, "after": DONE}
    assert a.read_text() == "made " == b.read_text()
    b.unlink()  # a missing output is made again, and nothing else
    go(settings, jobs)
    assert b.read_text() == "made " == a.read_text()


def test_a_changed_command_runs_again_with_the_jobs_after_it(settings, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    jobs = {"a": shell("a", made(a), a), "b": shell("b", made(b), b, ("a",))}
    go(settings, jobs)
    before = hash_commands(jobs)["b"]
    jobs["a"] = shell("a", made(a) + "  # other", a)
    assert hash_commands(jobs)["b"] != before
    go(settings, jobs)
    assert a.read_text() == b.read_text() == "made made "


def test_a_run_of_other_settings_is_refused(settings, monkeypatch):
    job = Job("train x", ("train.py", "--seed=1"), "x/latest", run="x")
    Path(settings.out_dir).mkdir()
    StudyState(settings, {"train x": job}).write()
    monkeypatch.setattr(checkpoint, "steps_of", lambda folder: [10])
    StudyState(settings, {"train x": job})
    with pytest.raises(UserError, match="'x' was trained with other settings"):
        StudyState(settings, {"train x": replace(job, command=("train.py", "--seed=2"))})


def test_a_part_of_a_study_keeps_the_rows_of_the_rest(settings, tmp_path, monkeypatch):
    """Called for a part, then for all with another recipe: the first call's jobs are known."""
    Path(settings.out_dir).mkdir()
    one, two = (Job(f"train {x}", ("train.py", "--lr=1"), f"{x}/latest", run=x) for x in "ab")
    StudyState(settings, {"train a": one, "train b": two}).write()
    StudyState(settings, {"train a": one}).write()
    monkeypatch.setattr(checkpoint, "steps_of", lambda folder: [10])
    assert StudyState(settings, {"train a": one, "train b": two}).other_jobs == []
    with pytest.raises(UserError, match="'b' was trained with other settings"):
        StudyState(settings, {"train b": replace(two, command=("train.py", "--lr=2"))})
    with pytest.raises(UserError, match="'c' was trained with other settings"):
        StudyState(settings, {"c": Job("c", ("train.py",), "c/latest", run="c")})


def test_a_result_that_was_changed_since_is_made_again(settings, tmp_path):
    a = tmp_path / "a"
    jobs = {"a": shell("a", made(a), a)}
    go(settings, jobs)
    a.write_text("of another study")
    assert StudyState(settings, jobs).status == {"a": PENDING}


def test_a_training_that_was_stopped_is_not_done(settings, tmp_path, monkeypatch):
    """It has saved a checkpoint and exits with 0, but is not finished."""
    monkeypatch.setattr(checkpoint, "steps_of", lambda folder: [])
    out = tmp_path / "run"
    for line, expected in (("stopped after step 3", FAILED), ("done with step 9", DONE)):
        code = f"print('\\n{line}; ...'); {made(out)}"
        job = Job("train", ("-c", code), str(out), run=str(out))
        assert go(settings, {"train": job}).status == {"train": expected}


def test_an_error_of_one_job_is_its_own(settings, tmp_path, monkeypatch, capsys):
    b = tmp_path / "b"
    run_job = Runner.run_job
    monkeypatch.setattr(
        Runner,
        "run_job",
        lambda self, job, cores: 1 / 0 if job.name == "a" else run_job(self, job, cores),
    )
    jobs = {"a": shell("a", "", tmp_path / "a"), "b": shell("b", made(b), b)}
    assert go(settings, jobs, count=1).status == {"a": FAILED, "b": DONE}
    assert "a: ZeroDivisionError" in capsys.readouterr().out


def test_a_signal_stops_it(settings, tmp_path):
    """Running jobs get the signal; finished ones are recorded, the rest stay pending."""
    done, late = tmp_path / "done", tmp_path / "late"
    wait = f"import os, time; os.kill({os.getpid()}, 15); time.sleep(60); {made(late)}"
    jobs = {"done": shell("done", made(done), done, weight=9), "late": shell("late", wait, late)}
    begun = time.monotonic()
    with pytest.raises(UserError, match="the same command continues"):
        go(settings, jobs, count=1)
    assert time.monotonic() - begun < 30 and not late.exists()
    state = StudyState(settings, jobs)
    assert state.status == {"done": DONE, "late": PENDING}
    seconds = state.rows["late"]["seconds"]
    assert 0 < seconds < 30
    jobs["late"] = shell("late", made(late), late)  # another command: its time is its own
    assert StudyState(settings, jobs).rows["late"]["seconds"] == 0
    jobs["late"] = shell("late", wait, late)
    with pytest.raises(UserError, match="the same command continues"):
        go(settings, jobs, count=1)
    assert StudyState(settings, jobs).rows["late"]["seconds"] > seconds


def test_a_job_that_finishes_while_stopping_is_recorded(settings, tmp_path):
    last = tmp_path / "last"
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN)"
    code += f"; os.kill({os.getpid()}, 15); time.sleep(0.5); {made(last)}"
    jobs = {"last": shell("last", code, last)}
    with pytest.raises(UserError, match="the same command continues"):
        go(settings, jobs, count=1)
    assert StudyState(settings, jobs).status == {"last": DONE}


def test_the_longest_chain_comes_first(settings, tmp_path):
    Path(settings.out_dir).mkdir()
    jobs = {"short": shell("short", "", "s", weight=1), "long": shell("long", "", "l", weight=5),
              "base": shell("base", "", "b", weight=2),
              "on base": shell("on base", "", "o", ("base",), weight=4)}  # fmt: skip
    state = StudyState(settings, jobs)
    assert state.ready(set()) == ["base", "long", "short"]
    state.set("base", DONE)
    assert state.ready({"long"}) == ["on base", "short"]


def test_one_study_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", command(tmp_path, "one")[2:])
    with storage.lock(tmp_path / "one"), pytest.raises(UserError, match="another command is writ"):
        study.main()
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(
    "out_dir, dataset",
    [
        ("out/paper", "data/paper"),
        (str(ROOT / "out" / "paper"), "data/paper"),
        ("a/paper", "a/paper/data"),
        ("out/b/paper", "out/b/paper/data"),
        ("/big/out/paper", "/big/out/paper/data"),
        ("paper", "paper/data"),
    ],
)
def test_studies_of_one_name_share_no_data(out_dir, dataset):
    settings, _ = study.complete_settings(Settings(out_dir=out_dir), ["configs/study_small.py"])
    assert settings.dataset == dataset


def test_a_damaged_state(settings):
    Path(settings.out_dir).mkdir()
    (Path(settings.out_dir) / "study.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        StudyState(settings, {})


def test_each_job_has_its_cores():
    if not hasattr(os, "sched_getaffinity"):
        assert study.split_cores(2) == [None, None]
        return
    cores = os.sched_getaffinity(0)
    assert set.union(*study.split_cores(1)) == cores
    both = study.split_cores(2) if len(cores) > 1 else [set(), set()]
    assert not both[0] & both[1]
    assert study.split_cores(len(cores) + 1) == [None] * (len(cores) + 1)


# ---- the command -------------------------------------------------------------------------------


def command(tmp_path, name, *words):
    config = tmp_path / "tiny.py"
    config.write_text(TINY)
    return [sys.executable, "-m", "eval.study", str(config), f"--out_dir={tmp_path / name}",
            f"--dataset={tmp_path / (name + '-data')}", *words]  # fmt: skip


def normal(folder):
    """The report of a study, without the names of its folders."""
    report = (folder / "report.html").read_text()
    nonce = report.partition("'nonce-")[2].partition("'")[0]
    return report.replace(nonce, "").replace(str(folder), "").replace(folder.name, "")


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_with_the_same_report(tmp_path):
    """Killed outright while it trains, and once more by a signal; then called again to its end. The
    study that is cut short is one in two stages, too."""
    one, two = "left-alone", "cut-short"  # words that no report has
    staged = command(tmp_path, two, "--stages=first models: 16-1-2\nsecond models: 16-2-2")
    subprocess.run(command(tmp_path, one), cwd=ROOT, check=True, capture_output=True)
    run = subprocess.Popen(staged, cwd=ROOT, start_new_session=True)
    wait_for(lambda: list(tmp_path.glob(f"{two}/16-*/checkpoints/*")))
    run.kill()
    run.wait()
    again = subprocess.run(staged, cwd=ROOT, capture_output=True, text=True)
    if again.returncode:  # what the killed one had started still held the lock
        assert "has not ended yet" in again.stderr
        wait_for(lambda: not locked(tmp_path / f".{two}.lock"))
        run = subprocess.Popen(staged, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        time.sleep(8)
        run.send_signal(signal.SIGTERM)
        _, stderr = run.communicate(timeout=60)
        assert not run.returncode or "the same command continues" in stderr
        subprocess.run(staged, cwd=ROOT, check=True, capture_output=True)
    assert normal(tmp_path / one) == normal(tmp_path / two)
    state = json.loads((tmp_path / two / "study.json").read_text())
    assert {job["status"] for job in state["jobs"]} == {DONE}


def locked(path):
    import fcntl

    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_for(true, seconds=90):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_config_is_needed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study.py", "--seeds=1"])
    with pytest.raises(UserError, match="name a study"):
        study.main()


def test_dry_run_makes_nothing(tmp_path, monkeypatch, capsys):
    hours = lambda jobs, *_: sum(job.command[0] == "train.py" for job in jobs) / 4  # noqa: E731
    monkeypatch.setattr("eval.study_estimate.training_hours", hours)
    monkeypatch.setattr(sys, "argv", command(tmp_path, "none", "--dry_run")[2:])
    study.main()
    out = capsys.readouterr().out
    assert "pending  python train.py" in out and not (tmp_path / "none").exists()
    assert "2 trainings: about 0.5 hours" in out and "judge: 0 calls" in out


# ---- what it will take -------------------------------------------------------------------------


def test_trainings_of_a_width_or_a_size_have_settings_of_their_own(settings):
    """They follow the recipe, so that they win; the report's table 1 stays as it is."""
    options = "train.py 64: --learning_rate=3e-3\ntrain.py 64-2-8: --beta2=0.9"
    jobs = plan_jobs(replace(settings, options=options, table1="64-2-4"), {"learning_rate": 0.01})
    words = jobs["train 64-2-4-s1"].command
    assert words[1:3] == ("--learning_rate=0.01", "--learning_rate=3e-3")
    assert jobs["train syn-64-2-4-s1"].command[1:3] == words[1:3]
    assert "--beta2=0.9" in jobs["train 64-2-8-s2"].command and "--beta2=0.9" not in words
    assert "--learning_rate=3e-3" not in jobs["train 128-2-4-s1"].command
    assert "--learning_rate=3e-3" not in jobs["train table1-64-2-4-s1"].command
    with pytest.raises(UserError, match="options are lines"):
        parse_options("train.py 64-2: --beta2=0.9")


def test_both_comparisons_of_the_papers_study_are_fair():
    """A width has the learning rate of its ts_*.py, the report's models its whole recipe."""
    settings, recipe = study.complete_settings(Settings(), ["configs/study_paper.py"])
    values = study.read_config_file("configs/study_paper.py")
    known = {field: values[field] for field in vars(settings) if field in values}
    jobs = plan_jobs(replace(settings, **known), recipe)

    def trained(name):
        return configs.load(train.Settings, jobs[f"train {name}"].command[1:])[0]

    for size, config in {"64-8-16": "ts_1m", "256-8-16": "ts_8m", "512-8-16": "ts_28m",
                         "768-4-16": "ts_33m"}.items():  # fmt: skip
        rate = configs.read_config_file(f"configs/{config}.py")["learning_rate"]
        assert trained(f"{size}-s1").learning_rate == rate
    for name in ("64-4-2-s1", "512-12-4-s1", "syn-512-12-4-s1", "instruct-128-8-4-s1"):
        given = vars(trained(name))
        # Here for a whole epoch, as in the report.
        assert given == given | published.TABLE_1 | {"max_iters": 0} and given["n_head"] in (2, 4)


def test_hours_follow_tokens_and_sizes(settings, monkeypatch):
    """Three sizes are timed; another takes as long as the nearest one, in proportion."""
    timed = []

    def run(command, **_):
        [sizes] = [word[8:].split(",") for word in command if word.startswith("--sizes=")]
        [out] = [word[6:] for word in command if word.startswith("--out=")]
        timed.append(sizes)
        cases = [{"nanoStories": {"tokens_per_second": 1000.0}} for _ in sizes]
        storage.write_json(out, {"cases": cases})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    recipe = {"max_iters": 1000, "batch_size": 2, "row_tokens": 1800}
    models = replace(settings, models="64-2-4", heads="", syn="", instruct="", reward="",
                     diversity="", interpret="", seeds=2)  # fmt: skip
    jobs = [j for j in plan_jobs(models, recipe).values() if j.run]
    assert study_estimate.training_hours(jobs, models, "cpu") == pytest.approx(2.0)
    epochs = [replace(job, command=(*job.command, "--max_iters=0")) for job in jobs]
    hours = 2 * study_estimate.EPOCH / 1000 / 3600
    assert study_estimate.training_hours(epochs, models, "cpu") == pytest.approx(hours)
    some = plan_jobs(replace(models, options="prepare.py: --max_stories=500"), recipe).values()
    some = [replace(job, command=(*job.command, "--max_iters=0")) for job in some]
    hours = 2 * 500 * study_estimate.STORY / 1000 / 3600
    assert study_estimate.training_hours(some, models, "cpu") == pytest.approx(hours)
    larger = replace(models, models="64-2-4, 64-4-4, 128-2-4, 256-2-4, 512-2-4", seeds=1)
    jobs = [j for j in plan_jobs(larger, recipe).values() if j.run]
    weights = [job.weight for job in jobs]
    expected = 3 + weights[1] / weights[0] + weights[3] / weights[2]
    assert study_estimate.training_hours(jobs, larger, "cpu") == pytest.approx(expected)
    assert timed[-1] == ["64-2", "128-2", "512-2"]


def test_judge_calls_are_those_of_the_scripts(settings):
    """paper: 50 beginnings, 10 stories of each, in two turns; report: 15 in one."""
    jobs = plan_jobs(replace(settings, judge="a-teacher"), {})
    judged = [job for name, job in jobs.items() if name.startswith("eval.judge report")]
    calls, read, written = study_estimate.judge_calls(judged)
    assert calls == 2 * 15 and written == calls * 500 and 300 < read / calls < 1500
    paper = [job for name, job in jobs.items() if name.startswith("eval.judge paper")]
    assert study_estimate.judge_calls(paper)[0] == 2 * 50 * 10 * 2
    [reward] = [jobs["eval.reward reward-128-2-4-s1"]]
    assert study_estimate.judge_calls([reward])[0] == 3 * 200


def test_one_job_judges_at_a_time(settings, tmp_path):
    """Several modes of a run share its file of replies; others go on meanwhile."""
    settings, folder = replace(settings, judge="a-teacher"), tmp_path / "open"
    folder.mkdir()
    begin = (
        "import sys, time; from pathlib import Path; folder, out = map(Path, sys.argv[1:3]);"
        "mine = folder / out.name; mine.touch();"
    )
    wait_for_both = (
        "late = time.time() + 60\nwhile time.time() < late and not all("
        "(out.parent / f'judged-{x}').exists() for x in 'ab'): time.sleep(0.05)\n"
    )
    end = "out.write_text(' '.join(sorted(x.name for x in folder.iterdir()))); mine.unlink()"
    jobs = {}
    for name in ("judged-a", "judged-b", "plain"):
        is_judged = name.startswith("judged")
        wait = "time.sleep(0.5);" if is_judged else wait_for_both
        words = ("-c", begin + wait + end, str(folder), str(tmp_path / name))
        words += ("--judge=a-teacher",) * is_judged
        jobs[name] = Job(name, words, str(tmp_path / name), ())
    go(settings, jobs, count=3)
    seen = [(tmp_path / name).read_text().split() for name in jobs]
    assert [sum(x.startswith("judged") for x in names) for names in seen[:2]] == [1, 1]
    assert "plain" in seen[0] + seen[1]


def test_all_judging_shares_max_cost(settings, tmp_path):
    """Each job may spend what the replies so far leave; when nothing is left, next to nothing."""
    settings = replace(settings, judge="a-teacher", max_cost=5.0, price_in=1.0, price_out=2.0)
    reply = {"request": {"model": "a-teacher"}, "usage": {"prompt_tokens": 1_000_000,
             "completion_tokens": 1_000_000}}  # fmt: skip
    other = reply | {"request": {"model": "another"}}

    def job(name, *needs):
        out = tmp_path / name / "judge.json"
        out.parent.mkdir()
        code = (
            "import sys; from pathlib import Path; out = Path(sys.argv[1]);"
            f"lines = {json.dumps(reply)!r}, {json.dumps(other)!r}, '{{\"half';"
            "(out.parent / 'judge_replies.jsonl').write_text('\\n'.join(lines));"
            "out.write_text(' '.join(sys.argv[2:]))"
        )
        words = ("-c", code, str(out), "--judge=a-teacher")
        return Job(name, words, str(out), needs)

    jobs = {"a": job("a"), "b": job("b", "a"), "c": job("c", "b")}
    go(settings, jobs)
    given = [(tmp_path / name / "judge.json").read_text() for name in "abc"]
    assert [words.split("--max_cost=")[1].split()[0] for words in given] == ["5.0", "2.0", "1e-09"]
    assert all("--price_in=1.0 --price_out=2.0" in words for words in given)
    with pytest.raises(UserError, match="max_cost needs prices"):
        study.check(replace(settings, syn="", price_in=0.0, price_out=0.0))
