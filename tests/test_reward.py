"""python reward.py: its steps, folder, resume, ranks, sweep, and what it refuses."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from tiny import call_ranks, settings_for

import reward
from configs import UserError
from nanostories.dataset import packing
from nanostories.inference import kv_cache, sampling
from nanostories.rl.reference import Reference
from nanostories.training import checkpoint
from reward import Run, Settings


@pytest.fixture(scope="module", autouse=True)
def few_stories():
    """Of the reference, which every run tells anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanostories.rl.reference.BASE", 32)
        yield


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A run whose stories are short, and some of them about a dog."""
    out = tmp_path_factory.mktemp("base") / "run"
    tiny.train(settings_for(data, out, max_iters=60))
    return str(out)


def asked(base, out, **changes):
    settings = Settings(
        word="dog", init_from=base, out_dir=str(out), start="One day", least_words=5, stories=8,
        max_new_tokens=12, max_iters=4, eval_interval=2, rows=8, learning_rate=1e-3, device="cpu",
    )  # fmt: skip
    settings = reward.complete(settings, dict.fromkeys(vars(settings), "default"))
    return replace(settings, **changes)


def start(settings):
    reward.check(settings)
    run = Run(settings, Reference(settings, torch.device("cpu")))
    run.run()
    return run


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("reward") / "run"
    return start(asked(base, out))


def weights(out):
    return checkpoint.read_tensors(checkpoint.resolve_checkpoint(out), "model.safetensors")


def test_the_folder(made, base):
    """As train.py's: weights, log, stories, picture; sample.py and eval take it."""
    out = Path(made.settings.out_dir)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for name in ("reward", "kl", "k1", "k2", "k3", "loss", "about", "mentions", "repetition",
                 "perplexity", "words", "ended", "grad_norm", "lr"):  # fmt: skip
        assert all(name in line for line in lines), name
    assert abs(lines[0]["kl"]) < 1e-6 < lines[-1]["kl"]
    assert (out / "watch.png").exists() and "--- step 4" in (out / "samples.txt").read_text()
    found = checkpoint.load_model(str(out))
    assert found.is_run() and found.provenance["step"] == 4
    config = checkpoint.read_config(out)["train"]
    assert config["dataset"] == checkpoint.read_config(base)["train"]["dataset"]
    assert checkpoint.steps_of(out) == [2, 4]


def test_the_reference_is_frozen(made, base):
    model = made.reference.model
    before = checkpoint.load_model(base).model.state_dict()
    assert not any(weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    after = made.model.state_dict()
    assert not all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_was_sampled_is_what_is_taught(base, tmp_path, monkeypatch, temperature):
    """The log-probabilities of the draws are those of the gradient, <|endoftext|> included."""
    drawn, choose = [], sampling.sample_token

    def recorded(logits, luck, **how):
        chosen = choose(logits, luck, **how)
        logs = (logits / how["temperature"]).log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        drawn.extend(zip(chosen.tolist(), logs.tolist(), strict=True))
        return chosen

    settings = asked(base, tmp_path / "run", temperature=temperature, max_new_tokens=120, rows=60)
    reference = Reference(settings, torch.device("cpu"))
    run = Run(settings, reference)
    monkeypatch.setattr(kv_cache, "sample_token", recorded)
    prompts = [reference.prompts[0]] * 60
    told = reference.tell(run.model, prompts, [[7, i] for i in range(60)])
    rows = packing.pad_batch(prompts, told, reference.found.tokenizer.eot, "cpu")
    log_pi = run.compared(rows)[0]
    assert any(story.ended for story in told)
    for row, story in enumerate(told):
        ids = story.ids + [reference.found.tokenizer.eot] * story.ended
        assert rows.targets[row][rows.completion_mask[row]].tolist() == ids
    mask = rows.completion_mask
    scored = zip(rows.targets[mask].tolist(), log_pi[mask].tolist(), strict=True)
    for (token, log), (other, its) in zip(sorted(drawn), sorted(scored), strict=True):
        assert token == other and log == pytest.approx(its, abs=1e-4)


def test_the_reward_never_sees_the_prompt(base, tmp_path):
    """A prompt that names the word earns nothing; rated is what comes after it."""
    settings = asked(base, tmp_path / "run", start="The dog dog dog")
    reference = Reference(settings, torch.device("cpu"))
    seen, topic = [], reference.topic
    reference.topic = lambda texts: seen.extend(texts) or topic(texts)
    run = Run(settings, reference)
    run.step(1e-3)
    assert len(seen) == 8 and seen == run.texts
    assert not any("dog dog" in text for text in seen)


def same(one, other, **tolerance):
    for name, weight in weights(one).items():
        torch.testing.assert_close(weight, weights(other)[name], **tolerance)


def alike(one, other):
    """
    The same run up to rounding. (Adam takes full steps by gradients that are nothing but rounding,
    as those of the keys' biases: hence the tolerance, a tenth of two steps.)
    """
    same(one, other, rtol=1e-3, atol=2e-4)
    for lines in zip(*((x / "metrics.jsonl").read_text().splitlines() for x in (one, other)),
                     strict=True):  # fmt: skip
        mine, theirs = map(json.loads, lines)
        for name in mine.keys() - {"seconds"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def test_resumed(made, base, tmp_path):
    """Stopped after two steps and gone on with: bit for bit the run that was not stopped."""
    settings = asked(base, tmp_path / "run")
    start(replace(settings, max_iters=2))
    again = reward.complete(
        Settings(resume=True, out_dir=settings.out_dir, max_iters=4),
        dict.fromkeys(vars(settings), "default") | {"max_iters": "command line"},
    )
    start(again)
    same(settings.out_dir, made.settings.out_dir, rtol=0, atol=0)
    mine, theirs = (Path(x.out_dir, "metrics.jsonl").read_text() for x in (again, made.settings))
    timeless = [re.sub(r'"seconds": [\d.]+', "", text) for text in (mine, theirs)]
    assert timeless[0] == timeless[1]


def test_another_reference_is_refused(base, tmp_path):
    settings = asked(base, tmp_path / "run", max_iters=2)
    start(settings)
    reference = Reference(settings, torch.device("cpu"))
    reference.found.provenance["sha256"] = "another"
    with pytest.raises(UserError, match="is not the model any more"):
        Run(replace(settings, resume=True), reference)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_in_several_passes(method, base, tmp_path):
    """A pass at a time, each computed again for its gradient: the same steps, up to rounding."""
    for rows in (8, 3):
        start(asked(base, tmp_path / f"{rows}", rows=rows, method=method, max_iters=2))
    alike(tmp_path / "8", tmp_path / "3")


def two_ranks(settings):
    sys.modules["nanostories.rl.reference"].BASE = 32
    start(settings)


def test_every_step_tells_other_stories(made, base, tmp_path):
    """Of the same model: nothing is learned between the two."""
    settings = asked(base, tmp_path / "run")
    run = Run(settings, made.reference)
    run.step(0.0)
    first = run.texts
    run.step(0.0)
    assert not set(first) & set(run.texts)


def test_the_gradient_is_of_the_mean_over_stories(made, base, tmp_path, monkeypatch):
    settings = asked(base, tmp_path / "run")
    run = Run(settings, made.reference)
    bias = run.model.ln_f.bias
    monkeypatch.setattr(
        "nanostories.rl.policy_gradient.loss", lambda *_: bias.sum().expand(settings.stories)
    )
    assert run.step(0.0)["grad_norm"] == pytest.approx(len(bias) ** 0.5)


def test_the_best_interval_is_worth_most(made, base, tmp_path):
    """Reward less what its KL costs."""
    settings = asked(base, tmp_path / "run", kl_factor=0.02)
    run = Run(settings, made.reference)
    run.texts = []
    for step, (reward_, kl) in enumerate([(0.2, 0.0), (0.5, 0.0), (0.1, 0.0), (0.9, 50.0)], 1):
        run.state["step"] = step
        run.log.lines.append({"step": step, "reward": reward_, "kl": kl})
        run.judge()
    assert run.state["best_step"] == 2 and run.state["best"] == 0.5


def test_there_is_no_dropout(made):
    assert not made.model.training


def test_before_every_prompt_stands_the_end_of_a_story(base, tmp_path, monkeypatch):
    """Also where a published model's config says to begin with nothing."""
    load = checkpoint.load_model
    monkeypatch.setattr(
        "nanostories.rl.reference.checkpoint.load_model",
        lambda *a, **k: replace(load(*a, **k), bos_ids=[]),
    )
    reference = Reference(asked(base, tmp_path / "run"), torch.device("cpu"))
    assert reference.prompts[0][0] == reference.found.tokenizer.eot


def test_the_error_of_a_steps_mean_reward(made):
    rewards, stories = torch.tensor(made.reference.rewards), made.settings.stories
    error = rewards.std() / stories**0.5
    assert made.reference.base["reward_error"] == pytest.approx(error.item())


@pytest.mark.slow
def test_two_ranks(base, tmp_path):
    """They tell half of the stories each, compare all of them, and take the same steps as one."""
    settings = asked(base, tmp_path / "two", max_iters=2)
    errors = tmp_path / "errors"
    assert call_ranks(2, two_ranks, settings, errors=errors) == [0, 0], errors.read_text()
    start(replace(settings, out_dir=str(tmp_path / "one")))
    alike(tmp_path / "one", tmp_path / "two")


def test_groups_of_several_prompts(base, tmp_path):
    (tmp_path / "prompts.txt").write_text("One day\nThe dog\n\nOnce\n")
    settings = asked(base, tmp_path / "run", start=f"FILE:{tmp_path}/prompts.txt", group=4)
    reference = Reference(settings, torch.device("cpu"))
    told, tell = [], reference.tell
    reference.tell = lambda model, prompts, seeds: (
        told.append(prompts) or tell(model, prompts, seeds)
    )
    run = Run(settings, reference)
    run.step(1e-3)
    run.step(1e-3)
    one, two, three = reference.prompts
    assert told == [[one] * 4 + [two] * 4, [three] * 4 + [one] * 4]


def test_stop_on_alarm(base, tmp_path, monkeypatch):
    monkeypatch.setattr("nanostories.rl.monitor.alarms", lambda now, base: ["repetition"])
    run = start(asked(base, tmp_path / "run", max_iters=9, stop_on_alarm=True))
    assert run.state["step"] == 5 and checkpoint.steps_of(run.settings.out_dir)[-1] == 5
    assert run.log.lines[-1]["alarm_repetition"] == 1


@pytest.mark.slow
def test_without_a_tie_it_breaks_and_alarms_say_so(data, tmp_path):
    """Reward near 1 for one word again and again; with a tie to the reference nothing sounds."""
    out = tmp_path / "base"
    tiny.train(settings_for(data, out, n_embd=64, max_iters=600))
    sounding = {}
    for factor in (0.0, 0.05):
        settings = asked(
            str(out), tmp_path / f"kl_{factor}", word="ball", start="Once upon a time",
            least_words=20, stories=16, group=16, max_new_tokens=100, temperature=0.8,
            rows=32, kl_factor=factor, max_iters=45,
        )  # fmt: skip
        run = start(settings)
        names = {name for line in run.log.lines for name in line if name.startswith("alarm_")}
        sounding[factor] = names
        last = run.log.lines[-1]
        print(factor, names, last["reward"], last["kl"], last["repetition"], run.texts[0][:80])
    assert {"alarm_kl", "alarm_perplexity", "alarm_repetition"} <= sounding[0.0]
    assert not sounding[0.05]


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reward.py", *map(str, words)])
        reward.main()


FEW = ("--word=dog", "--start=One day", "--stories=4", "--max_new_tokens=8", "--least_words=0",
       "--max_iters=2", "--device=cpu")  # fmt: skip


def test_a_sweep(base, tmp_path, capsys):
    """A run for each factor, and the plot; a second call has nothing left to do."""
    words = (*FEW, f"--init_from={base}", f"--out_dir={tmp_path / 'sweep'}")
    call(*words, "--kl_factor=0,0.1")
    found = json.loads((tmp_path / "sweep" / "frontier.json").read_text())
    assert [run["kl_factor"] for run in found["runs"]] == [0, 0.1]
    capsys.readouterr()
    call(*words, "--kl_factor=0,0.1")
    assert "step " not in capsys.readouterr().out
    with pytest.raises(UserError, match="--resume continues the same run"):
        call(*words, "--kl_factor=0,0.1", "--learning_rate=0.1")
    call(*words, "--kl_factor=0,0.1", "--max_iters=3")
    assert checkpoint.steps_of(tmp_path / "sweep" / "kl_0.1")[-1] == 3


class Stopped:
    """machine.Interrupt, asked to stop after some steps."""

    def __init__(self, steps):
        self.left = steps

    def __call__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def asked(self):
        self.left -= 1
        return self.left <= 0


def test_a_sweep_that_is_stopped(base, tmp_path, monkeypatch):
    """It ends there, with no plot; another call finishes it."""
    words = (*FEW, f"--init_from={base}", f"--out_dir={tmp_path / 'sweep'}", "--kl_factor=0,0.1")
    with monkeypatch.context() as patch:
        patch.setattr("nanostories.training.distributed.StopSignal", Stopped(1))
        call(*words)
    assert checkpoint.steps_of(tmp_path / "sweep" / "kl_0") == [1]
    assert [x.name for x in (tmp_path / "sweep").iterdir()] == ["kl_0"]
    call(*words)
    assert checkpoint.steps_of(tmp_path / "sweep" / "kl_0")[-1] == 2
    assert (tmp_path / "sweep" / "frontier.png").exists()


def test_what_an_alarm_ended_stays_ended(base, tmp_path, monkeypatch):
    monkeypatch.setattr("nanostories.rl.monitor.alarms", lambda now, base: ["repetition"])
    words = (*FEW, f"--init_from={base}", f"--out_dir={tmp_path / 'sweep'}", "--stop_on_alarm")
    for _ in range(2):
        call(*words, "--kl_factor=0,0.1", "--max_iters=9")
        assert checkpoint.steps_of(tmp_path / "sweep" / "kl_0.1")[-1] == 5


def test_stopped_between_checkpoints(made, base, tmp_path, monkeypatch):
    """Interval and stories told are those of the run that was not stopped, and so is the rest."""
    settings = asked(base, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("nanostories.training.distributed.StopSignal", Stopped(3))
        start(settings)
    assert checkpoint.steps_of(settings.out_dir)[-1] == 3
    run = start(replace(settings, resume=True))
    same(settings.out_dir, made.settings.out_dir, rtol=0, atol=0)
    for name in ("best", "best_step", "evaluated", "end"):
        assert run.state[name] == made.state[name], name
    texts = [Path(x.out_dir, "samples.txt").read_text() for x in (settings, made.settings)]
    assert texts[0] == texts[1]


def test_what_was_learned_before_a_nan_is_kept(base, tmp_path, monkeypatch):
    update = Run.update

    def broken(run, lr):
        if run.state["step"] == 3:
            raise UserError("the gradient is nan")
        return update(run, lr)

    monkeypatch.setattr(Run, "update", broken)
    with pytest.raises(UserError, match="is nan"):
        start(asked(base, tmp_path / "run", eval_interval=100))
    assert checkpoint.steps_of(tmp_path / "run") == [3]


@pytest.mark.parametrize("words, why", [
    (["--init_from="], "name the model to begin with"),
    (["--init_from=./nowhere"], "nowhere"),
    (["--method=ppo"], "method must be naive, reinforce, rloo or grpo: 'ppo'"),
    (["--best=-1"], "best must be a number, and not negative"),
    (["--kl_factor=much"], "kl_factor takes numbers from 0 on, not 'much'"),
    (["--kl_factor=0.1,-1"], "kl_factor takes numbers from 0 on"),
    (["--stories=5", "--group=2"], "must be a multiple of group (2)"),
    (["--group=1"], "compares the stories of a group: 2 at least"),
    (["--stories=0"], "stories must be at least 1"),
    (["--temperature=0"], "temperature must be above 0"),
    (["--word= "], "name the word"),
    (["--max_iters=0"], "say how long"),
    (["--learning_rate=-1"], "learning_rate must be a number, and not negative"),
    (["--repeat_cost=inf"], "repeat_cost must be a number, and not negative"),
    (["--beta2=1"], "beta2 must be at least 0 and below 1"),
    (["--temperature=1e-9"], "temperature must be above 0"),
    (["--temperature=inf"], "temperature must be above 0"),
    (["--word=123"], "name the word"),
    (["--embedder="], "embedder is model, or"),
    (["--embedder=__main__"], "embedder '__main__' cannot be had"),
    (["--start=FILE:./none.txt"], "prompts cannot be read"),
    (["--embedder=./no-model"], "embedder './no-model' cannot be had"),
])  # fmt: skip
def test_wrong_settings(words, why, base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(why)) as error:
        call(*FEW, f"--init_from={base}", "--out_dir=run", *words)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_overwritten(made, base):
    with pytest.raises(UserError, match="holds a run already"):
        call(*FEW, f"--init_from={base}", f"--out_dir={made.settings.out_dir}")
    with pytest.raises(UserError, match="is no run of reward"):
        call("--resume", f"--out_dir={base}")  # train.py's


def test_a_gradient_that_is_no_number_changes_no_weight(made, base, tmp_path, monkeypatch):
    settings = asked(base, tmp_path / "run")
    run = Run(settings, made.reference)
    bias, before = run.model.ln_f.bias, run.model.wte.weight.clone()
    monkeypatch.setattr(
        "nanostories.rl.policy_gradient.loss", lambda *_: (bias.sum() * float("nan")).expand(8)
    )
    with pytest.raises(UserError, match="nan or inf"):
        run.step(1e-3)
    assert torch.equal(before, run.model.wte.weight) and bias.isfinite().all()
