"""A study in stages: what each adds, its minutes by estimate, its report, and the limit of time."""

import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from configs import ROOT, UserError, load
from eval import study, study_estimate
from eval.reporting.study_jobs import Job, plan_jobs
from eval.reporting.study_state import DONE, FAILED, PENDING, hash_commands
from eval.study import Settings
from eval.study_stages import STAGED, listed, parse_stages, select_stages
from nanostories import storage

CONFIG = "configs/study_paper.py"
SESSION = 25  # minutes


@pytest.fixture
def settings(tmp_path):
    return Settings(
        out_dir=str(tmp_path / "study"), dataset=str(tmp_path / "data"), source="mine.txt",
        models="64-2-4, 128-2-4, 256-2-4", heads="64-2-8", instruct="128-2-4", reward="128-2-4",
        seeds=2, stages="first models: 256-2-4 64-2-4\nsecond models: 128-2-4\n"
        "second instruct: 128-2-4\n\nthird reward: 128-2-4\nthird heads: 64-2-8",
    )  # fmt: skip


@pytest.fixture(scope="module")
def paper():
    """(settings, recipe) of the paper's study; nothing of its data is made."""
    settings, _ = load(Settings, [CONFIG, "--dataset=no/data"])
    return study.complete_settings(settings, [CONFIG])


def new_jobs(settings, recipe):
    """{stage: the jobs that it adds}."""
    before, added = {}, {}
    for stage, part in parse_stages(settings).items():
        jobs = plan_jobs(part, recipe)
        added[stage] = [job for name, job in jobs.items() if name not in before]
        before = jobs
    return added


# ---- what a stage adds -------------------------------------------------------------------------


def test_a_stage_is_the_study_of_all_words_up_to_it(settings):
    stages = parse_stages(settings)
    assert list(stages) == ["first", "second", "third"]
    first, second, third = stages.values()
    assert first == replace(
        settings, models="64-2-4, 256-2-4", heads="", instruct="", reward=""
    )  # in the order of the settings
    assert second == replace(settings, heads="", reward="")
    assert third == settings
    assert list(select_stages(replace(settings, stage="second"))) == ["first", "second"]
    whole = replace(settings, stages="")
    assert select_stages(whole) == {"": whole}


@pytest.mark.parametrize("change, why", [
    ({"stages": "64-2-4"}, "stages are lines such as .* not '64-2-4'"),
    ({"stages": "first: 64-2-4"}, "stages are lines"),
    ({"stages": "first seeds: 2"}, "stages are lines .*, baselines; not 'first seeds: 2'"),
    ({"stages": "first models: 64-2"}, "first has '64-2', which is not one of the models"),
    ({"stages": "first syn: 64-2-4"}, "first has '64-2-4', which is not one of the syn"),
    ({"heads": "64-2-8, 64-2-1"}, "no stage has '64-2-1' of the heads"),
    ({"stage": "fourth"}, "unknown stage 'fourth': the stages are first, second, third$"),
    ({"stage": "first", "stages": ""}, "unknown stage 'first': the study has none$"),
])  # fmt: skip
def test_wrong_stages(change, why, settings):
    with pytest.raises(UserError, match=why) as error:
        select_stages(replace(settings, **change))
    assert "\n" not in str(error.value)


def test_a_stage_needs_the_models_of_its_evaluations(settings):
    early = "first instruct: 128-2-4\n" + settings.stages.replace("second instruct: 128-2-4\n", "")
    part = parse_stages(replace(settings, stages=early))["first"]
    with pytest.raises(UserError, match="instruct: 128-2-4 is not one of the models"):
        study.check(part)


@pytest.mark.parametrize("judge", ["", "a-teacher"])
def test_stages_leave_the_commands_of_earlier_ones_as_they_were(paper, judge):
    """So that no result is made twice; and the last is the whole study."""
    settings, recipe = replace(paper[0], judge=judge, base_url="http://localhost/v1"), paper[1]
    parts = parse_stages(settings).values()
    keys = [hash_commands(plan_jobs(part, recipe)) for part in parts]
    assert all(before.items() < after.items() for before, after in pairwise(keys))
    assert keys[-1] == hash_commands(plan_jobs(settings, recipe))


def test_each_size_of_the_papers_study_is_in_one_stage(paper):
    settings, _ = paper
    lines = (line.partition(":") for line in settings.stages.strip().splitlines())
    named = Counter((head.split()[1], word) for head, _, text in lines for word in listed(text))
    known = {(name, word) for name in STAGED for word in listed(getattr(settings, name))}
    assert named == Counter(known) and len(listed(settings.models)) == 26 + 7


# ---- minutes -----------------------------------------------------------------------------------


def test_a_stage_fits_a_session_or_is_one_training_in_two(paper):
    for stage, jobs in new_jobs(*paper).items():
        minutes = study_estimate.h100_minutes(jobs, paper[0])
        alone = sum(bool(job.run) for job in jobs) == 1
        assert minutes <= SESSION or (alone and minutes <= 2 * SESSION), (stage, minutes)


def test_the_table_of_the_docs_is_the_estimate(paper):
    """Its rows: stage, what it adds, jobs, trainings, minutes."""
    rows, total = [], 0.0
    for stage, jobs in new_jobs(*paper).items():
        lines = [line for line in paper[0].stages.splitlines() if line.startswith(f"{stage} ")]
        adds = "; ".join(line.removeprefix(f"{stage} ").replace("models: ", "") for line in lines)
        minutes = study_estimate.h100_minutes(jobs, paper[0])
        trainings = sum(bool(job.run) for job in jobs)
        rows.append(f"| {stage} | {adds} | {len(jobs)} | {trainings} | {minutes:.0f} |")
        total += minutes
    text = (ROOT / "docs/study_gpu.md").read_text()
    assert "\n".join(rows) in text, "\n" + "\n".join(rows)
    assert f"{total / 60:.1f} hours" in text, total / 60


def test_minutes_follow_the_measured_throughput(settings):
    cases = storage.read_json(ROOT / study_estimate.MEASURED)["cases"]
    for case in cases:
        shape = case["n_embd"], case["n_layer"], case["vocab_size"]
        seconds = study_estimate.seconds_per_token(cases, study_estimate.matmul_parameters(*shape))
        assert 1 / seconds == pytest.approx(case["nanoStories"]["tokens_per_second"])
    largest = study_estimate.matmul_parameters(768, 4, 50_257)
    twice = study_estimate.seconds_per_token(cases, 2 * largest)
    assert twice == pytest.approx(2 * study_estimate.seconds_per_token(cases, largest))

    def steps(command, dataset="no/data"):
        """Minutes of a training's steps and validations."""
        command = ("train.py", "--n_embd=768", "--n_layer=4", f"--dataset={dataset}", *command)
        gpt2 = replace(settings, tokenizer="gpt2")
        job = Job("train", command, "", run="x")
        return study_estimate.h100_minutes([job], gpt2) - study_estimate.ALLOWANCES["train.py"]

    minutes = study_estimate.EPOCH / 987_778.88 / 60
    assert minutes < steps(["--eval_interval=10000000"]) < 1.01 * minutes
    assert steps([]) > 1.04 * minutes  # 14 validations
    more = study_estimate.INSTRUCT_EPOCH / study_estimate.EPOCH
    assert steps([], "no/data-instruct") > more * steps([])
    assert steps(["--batch_size=7"]) > steps([]) + study_estimate.EPOCH / 7168 * 0.002 / 60
    others = [Job("a", ("prepare.py",), ""), Job("b", ("-m", "eval.skills", "out/x"), "")]
    assert study_estimate.h100_minutes(others, settings) == 5.5


# ---- running -----------------------------------------------------------------------------------


def shell(output, code="", needs=()):
    """A Job that writes one more line to its output, and then runs the code."""
    write = f"open({str(output)!r}, 'a').write('made ')"
    return Job(output.name, ("-c", f"{write}\n{code}"), str(output), needs)


def go(plans):
    with storage.lock(next(iter(plans.values()))[0].out_dir) as lock:
        return study.run_stages(plans, 1, lock)


@pytest.mark.slow
def test_each_stage_leaves_a_report_and_repeats_nothing(settings, tmp_path, capfd):
    """A job that failed is not tried again in the stages after its own."""
    a, b, bad = (tmp_path / name for name in ("a", "b", "bad"))
    report = Path(settings.out_dir) / "report.html"
    first, second = list(parse_stages(settings).values())[:2]
    one = {"a": shell(a), "bad": shell(bad, "raise SystemExit(1)")}
    two = one | {"b": shell(b, f"assert '</html>' in open({str(report)!r}).read()", ("a",))}
    state = go({"first": (first, one), "second": (second, two)})
    assert state.status == {"a": DONE, "bad": FAILED, "b": DONE}
    assert (a.read_text(), b.read_text(), bad.read_text()) == ("made ", "made ", "made ")
    out = capfd.readouterr().out
    assert "stage first: 2 jobs, 0 of them done" in out
    assert "stage second: 3 jobs, 1 of them done" in out
    del one["bad"], two["bad"]
    assert set(go({"first": (first, one), "second": (second, two)}).status.values()) == {DONE}
    assert a.read_text() == b.read_text() == "made "
    out = capfd.readouterr().out  # a stage that is done prints nothing
    assert "stage first" not in out and "stage second: 2 jobs, 2 of them done" in out
    assert "</html>" in report.read_text()


@pytest.mark.slow
def test_when_its_minutes_are_over_it_stops_with_a_report_and_continues(settings, tmp_path):
    a, slow, late = (tmp_path / name for name in ("a", "slow", "late"))
    seconds, report = 6, Path(settings.out_dir) / "report.html"
    limited, begun = replace(settings, minutes=seconds / 60), time.monotonic()
    jobs = {"a": shell(a), "slow": shell(slow, "import time; time.sleep(90)", ("a",)),
            "late": shell(late, "", ("slow",))}  # fmt: skip
    with pytest.raises(UserError, match="stopped with 2 jobs left; the same command continues"):
        go({"": (limited, jobs)})
    assert seconds <= time.monotonic() - begun < 75 and a.exists() and not late.exists()
    assert "</html>" in report.read_text()
    state = storage.read_json(report.with_name("study.json"))
    assert [job["status"] for job in state["jobs"]] == [DONE, PENDING, PENDING]
    jobs["slow"] = shell(slow, "", ("a",))
    assert set(go({"": (settings, jobs)}).status.values()) == {DONE}
    assert a.read_text() == "made " == late.read_text()


def test_a_dry_run_lists_each_job_below_its_stage(settings, monkeypatch, capsys, tmp_path):
    hours = lambda jobs, *_: sum(job.command[0] == "train.py" for job in jobs) / 4  # noqa: E731
    monkeypatch.setattr("eval.study_estimate.training_hours", hours)
    config = tmp_path / "staged.py"
    config.write_text(f"stages = {settings.stages!r}\n")
    words = [f"--{name}={getattr(settings, name)}" for name in ("models", "heads", "instruct",
             "reward", "seeds", "out_dir", "dataset", "source")]  # fmt: skip
    words = ["study.py", str(config), *words, "--stage=second", "--dry_run"]
    monkeypatch.setattr(sys, "argv", words)
    study.main()
    lines = capsys.readouterr().out.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("stage ")]
    assert [lines[i].split(":")[0] for i in heads] == ["stage first", "stage second"]
    assert all("minutes on an H100, by estimate" in lines[i] for i in heads)
    first, second = lines[heads[0] : heads[1]], lines[heads[1] :]
    assert sum("--n_embd=64" in line for line in first) == 2
    assert not any("--n_embd=128" in line for line in first)
    assert sum("python train.py" in line for line in second) == 4  # two seeds, and two of Instruct
    assert "8 trainings: about 2.0 hours" in lines[-1] and not any("reward.py" in x for x in lines)
