"""No number is accepted, saved or reported that is none: ranges, nan in weights, JSON, memory."""

import dataclasses
import importlib
import json
import math
import sys
import typing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from tiny import settings_for

import configs
import train
from configs import RANGES, ROOT, UserError, check_ranges, load
from eval import harness, loss
from eval.interpret import parse_neurons
from eval.reporting.study_jobs import sizes
from model import GPTConfig
from nanostories.inference.decoder import Decoder
from nanostories.inference.generate import Completion, beam_search, generate
from nanostories.storage import from_json, read_json, write_json
from nanostories.training import checkpoint, run_config
from nanostories.training.logger import RunLogger

HUGE = (10**30, -(10**30), 10**400, -(10**400))  # the larger ones are no float, either
NONE_FINITE = (math.nan, math.inf, -math.inf)


def settings_classes():
    """The Settings of every script, evaluation and benchmark."""
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("eval/*.py"), *ROOT.glob("benchmarks/*.py"),
                        *ROOT.glob("nanostories/**/*.py")]):  # fmt: skip
        if "\nclass Settings" in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield pytest.param(name, id=name)


def numbers(cls):
    """{setting: its types} of those that are numbers."""
    kinds = {name: configs.plain_types(hint) for name, hint in typing.get_type_hints(cls).items()}
    fields = (field.name for field in dataclasses.fields(cls))
    return {name: kinds[name] for name in fields if {int, float} & {*kinds[name]}}


def one_line(*arguments, name):
    with pytest.raises(UserError) as error:
        check_ranges(*arguments)
    text = str(error.value)
    assert text.startswith(name) and "\n" not in text and len(text) < 200


# ---- ranges ------------------------------------------------------------------------------------


def test_every_range_is_finite_and_in_order():
    for low, high in RANGES.values():
        assert math.isfinite(low) and math.isfinite(high) and low < high


@pytest.mark.parametrize("module", list(settings_classes()))
def test_every_number_of_every_script_has_a_range(module):
    """On the command line, in a config file, and in the settings of a run that is resumed."""
    cls = importlib.import_module(module).Settings
    check_ranges(cls())
    for name, kinds in numbers(cls).items():
        assert math.isfinite(getattr(cls, name)), name
        for value in HUGE + NONE_FINITE:
            one_line(replace(cls(), **{name: value}), name=name)
        for value in ("1", True, None, [1], 1.5 if float not in kinds else "1.5"):
            one_line(replace(cls(), **{name: value}), name=f"{name} takes")
        for text in ("nan", "inf", "-inf", "1e400", "-1", "9" * 30, "9" * 5000, "x", ""):
            if text == "-1" and getattr(cls, name) == -1:
                continue
            with pytest.raises(UserError, match=name) as error:
                load(cls, [f"--{name}={text}"])
            assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    "value",
    [
        "float('nan')",
        "float('inf')",
        "10**5000",
        "'3'",
        "True",
        "-(10**5000)",
        "[3] * 999",
        "__import__('numpy').ones(99)",
    ],
)
@pytest.mark.parametrize("name", ["learning_rate", "batch_size", "out_dir"])
def test_what_a_config_file_may_not_hold(tmp_path, name, value):
    path = tmp_path / "mine.py"
    path.write_text(f"{name} = {value}")
    if name == "out_dir" and value == "'3'":
        return
    with pytest.raises(UserError, match=name) as error:
        load(train.Settings, [str(path)])
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_the_largest_seed_works_everywhere(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=1, seed=2**63 - 1)
    run_config.check(settings)
    assert tiny.train(settings)["step"] == 1


@pytest.mark.parametrize("changes, message", [
    ({"block_size": 1}, "block_size must be at least 2"),
    ({"n_head": 5}, "n_embd 32 is not a multiple of n_head 5"),
    ({"batch_size": 10**6, "gradient_accumulation_steps": 2}, "a step of 2,000,000 rows"),
    ({"batch_size": 10**5, "n_embd": 2**12, "row_tokens": 2**14}, "GB of memory or more"),
    ({"n_embd": 2**16, "n_layer": 1024}, "GB of memory or more"),
    ({"bfloat16_residual": True, "dtype": "float32"}, "bfloat16_residual needs dtype=bfloat16"),
    ({"block_size": 2**20, "row_tokens": 10**6, "n_embd": 2**16}, "GB of memory or more"),
])  # fmt: skip
def test_settings_that_mean_nothing_together(data, tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        run_config.check(settings_for(data, tmp_path / "run", **changes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_warm_up_longer_than_the_run_is_mentioned(data, tmp_path, capsys):
    tiny.train(settings_for(data, tmp_path / "run", max_iters=2, warmup_iters=5))
    assert "step 2, the schedule's last, is still within the warm-up" in capsys.readouterr().out


@pytest.mark.parametrize("work", [
    lambda: torch.empty(10**15), lambda: bytearray(10**15), lambda: [0] * 10**16,
])  # fmt: skip
def test_too_little_memory_is_one_line(work, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sample.py"])
    with pytest.raises(SystemExit) as error:
        configs.run(work)
    assert error.value.code.startswith("sample.py: out of memory") and "\n" not in error.value.code


def test_another_runtime_error_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        configs.run(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


@pytest.mark.parametrize(
    "text",
    [
        "64-2-²",
        "64-2-0",
        "64-2",
        f"{'9' * 5000}-2-4",
        "64-2-4-1",
        "-64-2-4",
        "64-1000-4",
        "nan-2-4",
        "1e3-2-4",
    ],
)
def test_sizes_of_a_study_are_numbers_that_can_be(text):
    with pytest.raises(UserError, match=r"models: .* is not width-layers-heads"):
        sizes(text, "models")


@pytest.mark.parametrize("text", [f"0:{'9' * 5000}", f"{'9' * 5000}:0", "0:²", "0:1e3", "-1:0"])
def test_neurons_are_numbers_that_can_be(text):
    with pytest.raises(UserError, match="neurons are named layer:neuron"):
        parse_neurons(SimpleNamespace(neurons=text), GPTConfig())


# ---- weights -----------------------------------------------------------------------------------


def spoil(step, what, value):
    """For `each_step`: a weight or a moment of the optimizer is `value` after this step, from 1."""

    def spoiled(train_step, model, optimizers, *rest):
        result = train_step(model, optimizers, *rest)
        if rest[3] + 1 == step:
            state = optimizers[0].state[model.ln_f.weight]
            tensor = model.ln_f.weight if what == "weight" else state["exp_avg_sq"]
            tensor.data[3] = value
        return result

    return spoiled


@pytest.mark.parametrize("value", NONE_FINITE)
@pytest.mark.parametrize("what", ["weight", "moment"])
def test_what_is_not_finite_is_never_saved(data, tmp_path, what, value):
    settings = settings_for(data, tmp_path / "run", max_iters=4, save_interval=2)
    with tiny.each_step(spoil(4, what, value)), pytest.raises(UserError) as error:
        tiny.train(replace(settings, eval_interval=3))
    assert "step 4: " in str(error.value) and "step 3 is saved, no later one" in str(error.value)
    assert checkpoint.steps_of(tmp_path / "run") == [2, 3]
    for name in ("latest", "best"):
        tensors = checkpoint.read_tensors(tmp_path / "run" / name, "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_before_the_first_save_the_error_says_that_nothing_is_saved(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=9, log_interval=2)
    with tiny.each_step(tiny.poison([3], "loss")), pytest.raises(UserError) as error:
        tiny.train(settings)
    assert "no step is saved" in str(error.value)
    assert checkpoint.steps_of(tmp_path / "run") == []


def test_a_validation_loss_that_is_nan_ends_the_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "validate", lambda *_: (math.nan, math.nan))
    settings = settings_for(data, tmp_path / "run", max_iters=4, save_steps="log", eval_interval=3)
    with pytest.raises(UserError, match=r"step 3: validation loss nan; .* step 2 is saved"):
        tiny.train(settings)
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.parametrize("work", [
    lambda model: generate(Decoder(model), [[256, 65]], 256, [0], temperature=0.0),
    lambda model: generate(Decoder(model), [[256, 65]], 256, [0], temperature=1.0),
    lambda model: generate(Decoder(model), [[256, 65]], 256, [0], temperature=1.0, top_p=0.5),
    lambda model: beam_search(Decoder(model), [256, 65], 256),
    lambda model: harness.completion_nlls(model, [[256]], [Completion([65])], 256, 1),
])  # fmt: skip
def test_nothing_is_generated_or_scored_by_weights_that_overflow(work):
    model = tiny.random_model()
    with torch.no_grad():
        model.h[0].mlp.c_proj.weight.mul_(1e38), model.h[1].mlp.c_fc.weight.mul_(1e38)
    with pytest.raises(FloatingPointError, match="the model's output is nan or inf"):
        work(model)


# ---- JSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", NONE_FINITE)
def test_json_is_written_without_nan_or_not_at_all(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(UserError, match=r"a\.json is not written: a number in it is nan"):
        write_json(path, {"scores": [1, {"loss": value}]})
    assert read_json(path) == {"loss": 1.5} and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[1, Infinity]", '{"a": 1e999}', "-1e400"])
def test_json_that_holds_nan_is_damaged(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_json(path)
    path.write_text(f"1\n{text}\n")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_json(path, lines=True)


def test_finite_json_is_read_as_it_is():
    text = '{"a": [1.5, -2e-3, 12345678901234567890, null, "NaN", true]}'
    assert from_json(text) == json.loads(text)


def test_a_run_writes_no_nan(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=4, skip_nonfinite=True)
    with tiny.each_step(tiny.poison([2], "loss")):
        tiny.train(settings)
    for path in Path(tmp_path / "run").rglob("*.json*"):
        read_json(path, lines=path.suffix == ".jsonl")


@pytest.mark.parametrize("line", ["3", "null", "[]", '{"a": 1}', '{"step": NaN}', '{"step": "x"}'])
def test_a_line_of_the_log_that_is_none_is_left_out(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 2.5}}\n{line}\n')
    state = {"seconds": 0.0, "tokens": 0, "step": 3, "last_evaluation": 3}
    assert RunLogger(tmp_path, state).lines == [{"step": 1, "loss": 2.5}]


def test_a_loss_whose_perplexity_no_float_holds(data, tmp_path, monkeypatch):
    tiny.train(settings_for(data, tmp_path / "run", max_iters=1))
    monkeypatch.setattr(loss, "score", lambda *_: np.array([[9000.0, 9, 30]]))
    monkeypatch.setattr(sys, "argv", ["loss.py", str(tmp_path / "run"), "--device=cpu"])
    loss.main()
    assert read_json(tmp_path / "run" / "eval" / "loss.json")["loss"] == 1000
