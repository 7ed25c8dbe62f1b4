"""python reward.py: its steps, run folder, resume, ranks, and what it refuses."""

import json
import math
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from tiny import call_ranks, settings_for

import prepare
import reward
from configs import ROOT, UserError
from eval import reward_frontier
from nanostories.dataset import packing
from nanostories.inference import kv_cache, sampling
from nanostories.inference.decoder import Decoder
from nanostories.rl import policy_gradient
from nanostories.rl.reference import Reference
from nanostories.training import checkpoint, run_config
from nanostories.training.logger import RunLogger
from reward import Settings, start_or_resume, train_step


@pytest.fixture(scope="module", autouse=True)
def small_baseline():
    """Few completions of the reference, which every run generates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanostories.rl.reference.BASELINE_SIZE", 32)
        yield


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A run whose stories are short, and some of them about a dog."""
    out = tmp_path_factory.mktemp("base") / "run"
    tiny.train(settings_for(data, out, max_iters=60))
    return str(out)


def reward_settings(base, out, **changes):
    settings = Settings(
        word="dog", init_from=base, out_dir=str(out), start="One day", min_words=5, batch_size=8,
        max_new_tokens=12, max_iters=4, save_interval=2, micro_batch_size=8, learning_rate=1e-3,
        device="cpu",
    )  # fmt: skip
    settings = reward.complete(settings, dict.fromkeys(vars(settings), "default"))
    return replace(settings, **changes)


def train(settings):
    reward.check(settings)
    return reward.train(settings)


def metrics_of(out):
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """The settings of a finished run."""
    settings = reward_settings(base, tmp_path_factory.mktemp("reward") / "run")
    train(settings)
    return settings


@pytest.fixture(scope="module")
def reference(base):
    return Reference(reward_settings(base, "unused"), torch.device("cpu"))


def weights(out):
    return checkpoint.read_tensors(checkpoint.resolve_checkpoint(out), "model.safetensors")


def test_the_run_folder(finished, base):
    """As train.py's: weights, log, samples, plot; sample.py and eval can load it."""
    out = Path(finished.out_dir)
    lines = metrics_of(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for name in ("reward", "kl", "k1", "k2", "k3", "loss", "about", "mentions", "repetition",
                 "perplexity", "words", "ended", "grad_norm", "lr"):  # fmt: skip
        assert all(name in line for line in lines), name
    assert abs(lines[0]["kl"]) < 1e-6 < lines[-1]["kl"]
    assert (out / "monitor.png").exists() and "--- step 4" in (out / "samples.txt").read_text()
    loaded = checkpoint.load_model(str(out))
    assert loaded.is_run() and loaded.provenance["step"] == 4
    config = checkpoint.read_config(out)["train"]
    assert config["dataset"] == checkpoint.read_config(base)["train"]["dataset"]
    assert checkpoint.steps_of(out) == [2, 4]


def test_a_run_from_a_run_has_its_data(base, data, tmp_path):
    """eval finds the data that the reference's run named, another than it was trained on."""
    prepare.prepare(prepare.Settings(
        source="storybook", stories=60, tokenizer=data, out=str(tmp_path / "x"), workers=1
    ))  # fmt: skip
    first = reward_settings(base, tmp_path / "first", dataset=str(tmp_path / "x"), max_iters=1)
    train(first)
    train(reward_settings(first.out_dir, tmp_path / "second", max_iters=1))
    for name in ("first", "second"):
        assert checkpoint.data_folder(str(tmp_path / name)) == str(tmp_path / "x")


def test_the_frontier_reads_the_run_folder(finished, reference):
    [(_, settings, stored, steps)] = reward_frontier.read_runs([finished.out_dir])
    assert settings["kl_factor"] == finished.kl_factor and steps.shape == (4, 2)
    assert stored["rewards"] == reference.rewards and stored["prompts"] == 1


def test_the_reference_is_frozen(reference, finished, base, tmp_path):
    settings = reward_settings(base, tmp_path / "run")
    _, policy, optimizers = start_or_resume(settings, reference)
    train_step(policy, reference, optimizers, settings, 0, 1e-3)
    before, model = checkpoint.load_model(base).model.state_dict(), reference.model
    assert not any(weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    for after in (policy.state_dict(), weights(finished.out_dir)):
        assert not all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_loss_scores_the_sampled_tokens(base, tmp_path, monkeypatch, temperature):
    """The log-probabilities of sampling are those of the gradient, <|endoftext|> included."""
    drawn, sample_token = [], sampling.sample_token

    def recorded(logits, noise, **sampling_kwargs):
        sampled = sample_token(logits, noise, **sampling_kwargs)
        logs = (logits / sampling_kwargs["temperature"]).log_softmax(-1)
        logs = logs.gather(1, sampled[:, None])[:, 0]
        drawn.extend(zip(sampled.tolist(), logs.tolist(), strict=True))
        return sampled

    settings = reward_settings(base, tmp_path / "run", temperature=temperature, max_new_tokens=120,
                               micro_batch_size=60)  # fmt: skip
    reference = Reference(settings, torch.device("cpu"))
    _, policy, _ = start_or_resume(settings, reference)
    monkeypatch.setattr(kv_cache, "sample_token", recorded)
    decoder = "nanostories.rl.reference.open_decoder"  # the one in torch, which calls it
    monkeypatch.setattr(decoder, lambda model, *_: Decoder(model))
    prompts = [reference.prompts[0]] * 60
    completions = reference.generate(policy, prompts, [[7, i] for i in range(60)])
    batch = packing.pad_batch(prompts, completions, reference.loaded.tokenizer.eot, "cpu")
    log_pi = reward.compare_in_micro_batches(policy, reference.model, batch, settings)[0]
    assert any(completion.ended for completion in completions)
    for row, completion in enumerate(completions):
        ids = completion.ids + [reference.loaded.tokenizer.eot] * completion.ended
        assert batch.targets[row][batch.completion_mask[row]].tolist() == ids
    mask = batch.completion_mask
    scored = zip(batch.targets[mask].tolist(), log_pi[mask].tolist(), strict=True)
    for (token, log), (other, its) in zip(sorted(drawn), sorted(scored), strict=True):
        assert token == other and log == pytest.approx(its, abs=1e-4)


def test_the_reward_never_sees_the_prompt(base, tmp_path):
    """A prompt with the word earns nothing; only the completion counts."""
    settings = reward_settings(base, tmp_path / "run", start="The dog dog dog")
    reference = Reference(settings, torch.device("cpu"))
    seen, reward_function = [], reference.reward_function
    reference.reward_function = lambda texts: seen.extend(texts) or reward_function(texts)
    _, policy, optimizers = start_or_resume(settings, reference)
    texts, _ = train_step(policy, reference, optimizers, settings, 0, 1e-3)
    assert len(seen) == 8 and seen == texts
    assert not any("dog dog" in text for text in seen)


def same(one, other, **tolerance):
    for name, weight in weights(one).items():
        torch.testing.assert_close(weight, weights(other)[name], **tolerance)


def alike(one, other):
    """The same run up to rounding. (Adam takes full steps by gradients that are nothing but
    rounding, as those of the keys' biases: hence the tolerance, a tenth of two steps.)
    """
    same(one, other, rtol=1e-3, atol=2e-4)
    for first, second in zip(metrics_of(one), metrics_of(other), strict=True):
        for name in first.keys() - {"seconds"}:
            assert first[name] == pytest.approx(second[name], rel=1e-3, abs=1e-5), name


def test_resumed(finished, base, tmp_path):
    """Stopped after two steps and resumed: bit for bit the run that was not stopped."""
    settings = reward_settings(base, tmp_path / "run")
    train(replace(settings, max_iters=2))
    again = reward.complete(
        Settings(resume=True, out_dir=settings.out_dir, max_iters=4),
        dict.fromkeys(vars(settings), "default")
        | dict.fromkeys(("resume", "max_iters"), "command line"),
    )
    train(again)
    same(settings.out_dir, finished.out_dir, rtol=0, atol=0)
    texts = (Path(x.out_dir, "metrics.jsonl").read_text() for x in (again, finished))
    timeless = [re.sub(r'"seconds": [\d.]+', "", text) for text in texts]
    assert timeless[0] == timeless[1]


def test_a_longer_run_says_what_its_learning_rate_is(base, tmp_path, capsys):
    settings = reward_settings(base, tmp_path / "run", max_iters=2, schedule="linear")
    train(settings)
    assert "learning rate is" not in (printed := capsys.readouterr().out)
    assert f"to go on: reward.py --resume --out_dir={settings.out_dir}" in printed
    origin = dict.fromkeys(vars(settings), "default")
    origin |= dict.fromkeys(("resume", "max_iters"), "command line")
    more = Settings(resume=True, out_dir=settings.out_dir, max_iters=3)
    train(reward.complete(more, origin))
    assert "after step 4 the learning rate is" not in capsys.readouterr().out
    train(reward.complete(replace(more, max_iters=5), origin))
    assert f"after step 4 the learning rate is {settings.min_lr}" in capsys.readouterr().out


def test_train_py_does_not_resume_it(finished):
    origin = dict.fromkeys(vars(settings_for("", "")), "default")
    with pytest.raises(UserError, match=r"is a run of reward\.py: resume it with that"):
        run_config.complete(settings_for("", finished.out_dir, resume=True), origin)


def test_a_run_without_a_step_has_no_place_on_the_frontier(finished, tmp_path):
    for name in ("config.json", "reference.json"):
        shutil.copy(Path(finished.out_dir) / name, tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="has no step yet"):
        reward_frontier.read_runs([str(tmp_path)])


def test_another_reference_is_refused(base, tmp_path):
    settings = reward_settings(base, tmp_path / "run", max_iters=2)
    train(settings)
    reference = Reference(settings, torch.device("cpu"))
    reference.loaded.provenance["sha256"] = "another"
    with pytest.raises(UserError, match="is no longer the model"):
        start_or_resume(replace(settings, resume=True), reference)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_in_micro_batches(method, base, tmp_path):
    """Each pass is computed again for its gradient: the same steps, up to rounding."""
    for size in (8, 3):
        out = tmp_path / f"{size}"
        train(reward_settings(base, out, micro_batch_size=size, method=method, max_iters=2))
    alike(tmp_path / "8", tmp_path / "3")


def two_ranks(settings):
    sys.modules["nanostories.rl.reference"].BASELINE_SIZE = 32
    train(settings)


def test_every_step_has_other_completions(reference, base, tmp_path):
    """Of the same model: nothing is learned between the two steps."""
    settings = reward_settings(base, tmp_path / "run")
    _, policy, optimizers = start_or_resume(settings, reference)
    first, second = (
        train_step(policy, reference, optimizers, settings, step, 0.0)[0] for step in (0, 1)
    )
    assert not set(first) & set(second)


def test_the_gradient_is_of_the_mean_over_completions(reference, base, tmp_path, monkeypatch):
    settings = reward_settings(base, tmp_path / "run")
    _, policy, optimizers = start_or_resume(settings, reference)
    bias = policy.ln_f.bias
    monkeypatch.setattr(
        "nanostories.rl.policy_gradient.loss", lambda *_: bias.sum().expand(settings.batch_size)
    )
    _, metrics = train_step(policy, reference, optimizers, settings, 0, 0.0)
    assert metrics["grad_norm"] == pytest.approx(len(bias) ** 0.5)


def test_the_best_interval_has_the_highest_penalized_reward(tmp_path):
    state = {"step": 0, "seconds": 0.0, "tokens": 0, "last_evaluation": 0, "best": None}
    state["best_step"] = 0
    log = RunLogger(tmp_path, state)
    for step, (mean, kl) in enumerate([(0.2, 0.0), (0.5, 0.0), (0.1, 0.0), (0.9, 50.0)], 1):
        state["step"] = step
        log.write(step=step, reward=mean, kl=kl)
        reward.end_interval(log, state, 0.02, [])
    assert state["best_step"] == 2 and state["best"] == 0.5


def test_there_is_no_dropout(reference, base, tmp_path):
    _, policy, _ = start_or_resume(reward_settings(base, tmp_path / "run"), reference)
    assert not policy.training and not reference.model.training


def test_endoftext_precedes_every_prompt(base, tmp_path, monkeypatch):
    """Also where a published model's config has no token before a prompt."""
    load = checkpoint.load_model
    monkeypatch.setattr(
        checkpoint, "load_model", lambda *a, **k: replace(load(*a, **k), bos_ids=[])
    )
    reference = Reference(reward_settings(base, tmp_path / "run"), torch.device("cpu"))
    assert reference.prompts[0][0] == reference.loaded.tokenizer.eot


def test_the_standard_error_of_a_steps_mean_reward(reference):
    error = torch.tensor(reference.rewards).std() / reference.settings.batch_size**0.5
    assert reference.metrics["reward_error"] == pytest.approx(error.item())


@pytest.mark.slow
def test_two_ranks(base, tmp_path):
    """Each generates half of a batch, all are compared, and the steps are those of one rank."""
    settings = reward_settings(base, tmp_path / "two", max_iters=2)
    errors = tmp_path / "errors"
    assert call_ranks(2, two_ranks, settings, errors=errors) == [0, 0], errors.read_text()
    train(replace(settings, out_dir=str(tmp_path / "one")))
    alike(tmp_path / "one", tmp_path / "two")


def test_groups_of_several_prompts(base, tmp_path):
    (tmp_path / "prompts.txt").write_text("One day\nThe dog\n\nOnce\n")
    start = f"FILE:{tmp_path}/prompts.txt"
    settings = reward_settings(base, tmp_path / "run", start=start, group_size=4)
    reference = Reference(settings, torch.device("cpu"))
    seen, generate = [], reference.generate
    reference.generate = lambda model, prompts, seeds: (
        seen.append(prompts) or generate(model, prompts, seeds)
    )
    _, policy, optimizers = start_or_resume(settings, reference)
    for step in (0, 1):
        train_step(policy, reference, optimizers, settings, step, 1e-3)
    one, two, three = reference.prompts
    assert seen == [[one] * 4 + [two] * 4, [three] * 4 + [one] * 4]


def test_stop_on_alarm(base, tmp_path, monkeypatch):
    monkeypatch.setattr("nanostories.rl.monitor.alarms", lambda metrics, baseline: ["repetition"])
    settings = reward_settings(base, tmp_path / "run", max_iters=9, stop_on_alarm=True)
    assert train(settings)["step"] == 5
    assert checkpoint.steps_of(settings.out_dir)[-1] == 5
    assert metrics_of(settings.out_dir)[-1]["alarm_repetition"] == 1


@pytest.mark.slow
def test_without_a_kl_penalty_it_collapses_and_raises_alarms(data, tmp_path):
    """The reward rises towards 1 far from the reference; with a KL penalty the policy stays near.

    How the policy breaks (one word again and again, or rare words) is a matter of rounding, and so
    is whether the repetition of so few short stories exceeds the reference's.
    """
    out = tmp_path / "base"
    tiny.train(settings_for(data, out, n_embd=64, max_iters=600))
    alarms, rewards = {}, {}
    for factor in (0.0, 0.2):
        settings = reward_settings(
            str(out), tmp_path / f"kl_{factor}", word="ball", start="Once upon a time",
            min_words=20, batch_size=16, group_size=16, max_new_tokens=100, temperature=0.8,
            micro_batch_size=32, kl_factor=factor, max_iters=45,
        )  # fmt: skip
        train(settings)
        lines = metrics_of(settings.out_dir)
        alarms[factor] = {name for line in lines for name in line if name.startswith("alarm_")}
        rewards[factor] = lines[-1]["reward"]
        print(factor, alarms[factor], lines[-1])
    far = {"alarm_kl", "alarm_perplexity"}
    assert far <= alarms[0.0] and rewards[0.0] > 0.7
    assert not far & alarms[0.2] and rewards[0.2] < 0.3


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reward.py", *map(str, words)])
        reward.main()


FEW = ("--word=dog", "--start=One day", "--batch_size=4", "--max_new_tokens=8", "--min_words=0",
       "--max_iters=2", "--device=cpu")  # fmt: skip


class Stopped:
    """A StopSignal that comes after some steps."""

    def __init__(self, steps):
        self.left = steps

    def __call__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def awake(self, now):
        return now

    @property
    def received(self):
        self.left -= 1
        return self.left <= 0


def test_stopped_between_checkpoints(finished, base, tmp_path, monkeypatch):
    """Intervals and samples are those of the run that was not stopped, and so is the rest."""
    settings = reward_settings(base, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("reward.StopSignal", Stopped(3))
        train(settings)
    assert checkpoint.steps_of(settings.out_dir)[-1] == 3
    state = train(replace(settings, resume=True))
    same(settings.out_dir, finished.out_dir, rtol=0, atol=0)
    expected = checkpoint.read_state(finished.out_dir)
    for name in ("best", "best_step", "last_evaluation"):
        assert state[name] == expected[name], name
    texts = [Path(x.out_dir, "samples.txt").read_text() for x in (settings, finished)]
    assert texts[0] == texts[1]


def test_what_was_learned_before_a_nan_is_kept(base, tmp_path, monkeypatch):
    loss, calls = policy_gradient.loss, []

    def broken(*args):
        calls.append(1)
        return loss(*args) * (math.nan if len(calls) == 4 else 1.0)

    monkeypatch.setattr(policy_gradient, "loss", broken)
    with pytest.raises(UserError, match="step 4: the gradient is nan"):
        train(reward_settings(base, tmp_path / "run", save_interval=100))
    assert checkpoint.steps_of(tmp_path / "run") == [3]


@pytest.mark.parametrize("step, line", [
    (3, "the model's output is nan or inf"),  # step 4 cannot generate with these weights
    (4, "step 4: a weight or moment is nan or inf"),
])  # fmt: skip
def test_weights_that_are_nan_are_never_saved(base, tmp_path, monkeypatch, step, line):
    step_of = reward.train_step

    def spoiled(policy, reference, optimizers, settings, number, lr):
        result = step_of(policy, reference, optimizers, settings, number, lr)
        if number == step - 1:
            policy.ln_f.weight.data[0] = math.nan
        return result

    monkeypatch.setattr(reward, "train_step", spoiled)
    with pytest.raises(UserError, match=f"{line}.*; .* step 2 is saved"):
        train(reward_settings(base, tmp_path / "run"))
    assert checkpoint.steps_of(tmp_path / "run") == [2]


def test_without_a_name_it_starts_from_the_boxed_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = reward.complete(reward.Settings(), dict.fromkeys(vars(reward.Settings()), "default"))
    assert settings.init_from == os.path.relpath(ROOT / "pretrained")
    assert capsys.readouterr().out == (
        f"no init_from: starting from {settings.init_from}, which comes with nanoStories\n"
    )


@pytest.mark.parametrize("words, why", [
    (["--init_from=./nowhere"], "nowhere"),
    (["--method=ppo"], "method must be naive, reinforce, rloo or grpo, not 'ppo'"),
    (["--top_sentences=-1"], "top_sentences must be 0 or more"),
    (["--kl_factor=much"], "kl_factor takes a number, not 'much'"),
    (["--kl_factor=-1"], "kl_factor must be 0 or more, not -1"),
    (["--batch_size=5", "--group_size=2"], "must be a multiple of group_size (2)"),
    (["--group_size=1"], "group_size must be at least 2"),
    (["--batch_size=0"], "batch_size must be at least 1"),
    (["--temperature=0"], "temperature must be above 0"),
    (["--word= "], "name the word"),
    (["--max_iters=0"], "set the length of the run"),
    (["--learning_rate=-1"], "learning_rate must be 0 or more"),
    (["--repetition_penalty=inf"], "repetition_penalty must be 0 or more"),
    (["--beta2=1"], "beta2 must be at least 0 and below 1"),
    (["--temperature=1e-9"], "temperature must be above 0"),
    (["--temperature=inf"], "temperature must be above 0"),
    (["--word=123"], "name the word"),
    (["--embedder="], "embedder must be model, or"),
    (["--embedder=__main__"], "embedder '__main__' cannot be loaded"),
    (["--start=FILE:./none.txt"], "prompts cannot be read"),
    (["--embedder=./no-model"], "embedder './no-model' cannot be loaded"),
])  # fmt: skip
def test_wrong_settings(words, why, base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(why)) as error:
        call(*FEW, f"--init_from={base}", "--out_dir=run", *words)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_overwritten(finished, base):
    with pytest.raises(UserError, match="holds a run already"):
        call(*FEW, f"--init_from={base}", f"--out_dir={finished.out_dir}")
    with pytest.raises(UserError, match="is not a run of reward"):
        call("--resume", f"--out_dir={base}")  # train.py's


def test_a_nan_gradient_changes_no_weight(reference, base, tmp_path, monkeypatch):
    settings = reward_settings(base, tmp_path / "run")
    _, policy, optimizers = start_or_resume(settings, reference)
    bias, before = policy.ln_f.bias, policy.wte.weight.clone()
    monkeypatch.setattr(policy_gradient, "loss", lambda *_: (bias.sum() * math.nan).expand(8))
    _, metrics = train_step(policy, reference, optimizers, settings, 0, 1e-3)
    assert math.isnan(metrics["grad_norm"])
    assert torch.equal(before, policy.wte.weight) and bias.isfinite().all()
