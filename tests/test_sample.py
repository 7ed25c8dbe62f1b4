"""The commands that use a trained model: sample.py and eval/loss.py."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from tiny import metrics

import sample
from configs import ROOT, UserError
from eval.loss import groups_of_text, score
from model import GPT, GPTConfig
from nanostories.dataset.tokenizer import build
from nanostories.inference.generate import Completion
from nanostories.training import checkpoint, model_settings
from train import Settings, train

EOT = 256


@pytest.fixture(scope="module")
def model():
    """Random weights, sharp enough that its choices differ from step to step."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(257, 48, 2, 2, 32)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


# ---- the commands ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    """A run folder with the random model and the bytes tokenizer."""
    out = tmp_path_factory.mktemp("out") / "random"
    checkpoint.create_run_folder(out, model.config, Settings(), build("bytes"), {})
    state = {"step": 1, "best_step": 1, "kept_steps": [], "max_length": 40}
    state["model"] = asdict(model.config)
    state["data"] = {}
    checkpoint.write_checkpoint(out, model.state_dict(), {}, state)
    return out


def call(script, *arguments, cwd=ROOT):
    command = [sys.executable, *script.split(), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )


def main(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
    sample.main()
    return capsys.readouterr()


def test_command_prints_prompt_and_continuation(run, capsys, monkeypatch):
    same = ("--out_dir", run, "--start", "Once é", "--seed=4", "--num_samples=2")
    text = main(capsys, monkeypatch, *same)
    assert text.out.startswith("Once é") and text.out.count("Once é") == 2
    lines = main(capsys, monkeypatch, *same, "--json").out.splitlines()
    stories = [json.loads(line) for line in lines]
    assert len(stories) == 2
    for story in stories:  # the streamed text is the whole text, characters cut by tokens included
        assert story["prompt"] == "Once é" and story["text"].startswith("Once é")
        assert story["text"] in text.out


def test_drafts_are_shown_sentence_by_sentence(run, capsys, monkeypatch):
    """What the terminal shows is the story that a program gets; a prompt may end within a word."""
    same = (run, "--start=Once é ", "--drafts=6", "--num_samples=2", "--max_new_tokens=12")
    text = main(capsys, monkeypatch, *same).out
    lines = main(capsys, monkeypatch, *same, "--json").out.splitlines()
    stories = [json.loads(line)["text"] for line in lines]
    assert sample.SEPARATOR.join(stories) + "\n" == text and stories[0] != stories[1]
    assert all(story.startswith("Once é ") for story in stories)


def test_command_says_where_training_ended(run, capsys, monkeypatch):
    printed = main(capsys, monkeypatch, run, "--temperature=0", "--start=ab")
    assert "[stopped at 40 tokens, the longest story in training]" in printed.err


INSTRUCTION = (
    "--words", "come, road, sad", "--summary", "A bus becomes jealous of a car.",
    "--features", "dialogue, bad ending", "--sentence", "The bus felt sad.",
)  # fmt: skip
PROMPT = (
    "Words: come, road, sad\nRandom sentence: The bus felt sad.\nFeatures: Dialogue, BadEnding\n"
    "Summary: A bus becomes jealous of a car.\nStory: \n\n"
)


def test_an_instruction_and_its_dry_run(run, capsys, monkeypatch):
    # No model is needed to see the prompt.
    dry = main(capsys, monkeypatch, *INSTRUCTION, "--dry_run", "--out_dir=nowhere")
    assert dry.out == PROMPT + "\n"
    dry = main(capsys, monkeypatch, *INSTRUCTION, "--dry_run", "--start=Once")
    assert dry.out == PROMPT + "Once\n"
    arguments = ("--words=ab", "--start=O", "--max_new_tokens=4", "--json")
    printed = main(capsys, monkeypatch, run, *arguments)
    story = json.loads(printed.out)
    assert story["prompt"] == "Words: ab\nStory: \n\nO" and len(story["text"]) > len(PROMPT) / 9
    assert "was not trained on instructions" in printed.err
    with pytest.raises(UserError, match="serve takes no instruction"):
        main(capsys, monkeypatch, run, "--words=ab", "--serve")
    with pytest.raises(UserError, match="no feature 'dialog'; did you mean Dialogue"):
        main(capsys, monkeypatch, run, "--features=dialog")


def test_prompts_from_a_file(run, tmp_path, capsys, monkeypatch):
    path = tmp_path / "prompts.txt"
    path.write_text("Tom\n\nSue had\n", encoding="utf-8")
    arguments = ("--max_new_tokens=3", "--beams=2", "--json")
    lines = main(capsys, monkeypatch, run, f"--start=FILE:{path}", *arguments).out.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["Tom", "Sue had"]


def test_prompts_end_where_lines_do(run, tmp_path, capsys, monkeypatch):
    path = tmp_path / "prompts.txt"
    text = "\ufeffA\u2028b\x0cc\r\nD\x85e\x1cf\u2029g \n\n  \r\nh"
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        path.write_bytes(text.encode(encoding))
        dry = main(capsys, monkeypatch, f"--start=FILE:{path}", "--dry_run").out
        assert dry.split(sample.SEPARATOR) == ["A\u2028b\x0cc", "D\x85e\x1cf\u2029g ", "h\n"]


def test_a_prompt_that_is_too_long_is_named_and_the_others_are_done(run, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("Tom\n\n" + "long " * 20 + "\nSue\n")
    done = call("sample.py", run, f"--start=FILE:{path}", "--json", "--num_samples=2")
    prompts = [json.loads(line)["prompt"] for line in done.stdout.splitlines()]
    assert prompts == ["Tom", "Tom", "Sue", "Sue"] and done.returncode == 1
    problem = "line 3: the prompt has 101 tokens, but the model ends at 40; it is left out"
    assert done.stderr == f"{path}, {problem}\n"
    path.write_text("long " * 20)
    done = call("sample.py", run, f"--start=FILE:{path}")
    assert done.stderr.startswith(f"sample.py: {path}, line 1: the prompt has") and not done.stdout


def test_characters_that_the_terminal_lacks(run, monkeypatch):
    """Its encoding, or the file's that stdout is: shown as escapes; JSON stays JSON."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = call("sample.py", run, "--start=Zoé 😀", "--max_new_tokens=5")
    assert done.returncode == 0 and done.stdout.startswith("Zo\\xe9 \\U0001f600")
    done = call("sample.py", run, "--start=Zoé 😀", "--max_new_tokens=5", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["prompt"] == "Zoé 😀"
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")  # and half of a surrogate pair, in any
    done = call("sample.py", run, "--start=a\udcff", "--max_new_tokens=5")
    assert done.returncode == 0 and done.stdout.startswith("a\\udcff")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_story_commands_the_terminal(monkeypatch, capsys, is_terminal):
    """A file gets the story as it is."""
    text, loaded = "\x1b]0;title\x07 a\x9b31m b", SimpleNamespace(max_length=99)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    items = [(0, text.encode(), Completion([1], ended=True))]
    sample.print_stories(loaded, ["\x1b[2J"], [[0]], items)
    shown = capsys.readouterr().out
    assert shown == "\x1b[2J" + text + "\n" if not is_terminal else shown.count("\ufffd") == 4


def test_penalties_and_stop_strings(run, capsys, monkeypatch):
    def texts(*arguments):
        printed = main(capsys, monkeypatch, run, "--start=ab", "--json", *arguments).out
        return [json.loads(line)["text"] for line in printed.splitlines()]

    for arguments in (["--temperature=0"], ["--beams=2"]):
        [plain] = texts(*arguments)
        [other] = (text.replace("\ufffd", "") for text in texts(*arguments, "--no_repeat_ngram=1"))
        assert len(set(other)) == len(other) > 5 and other not in plain
        assert texts(*arguments, "--repetition_penalty=3") not in ([plain], [other])
    [plain] = texts("--temperature=1")
    stop = next(c for c in plain[4:] if c != "\ufffd")
    stopped = texts("--temperature=1", "--stop=never", f"--stop={stop}")
    assert stopped == [plain[: plain.index(stop, 2) + 1]]
    assert texts("--temperature=1", "--stop=\udcffx\udcff") == [plain]  # bytes that are no text


@pytest.mark.parametrize("arguments", [
    "num_samples --beams=2 --num_samples=3", "num_samples --temperature=0 --num_samples=3",
    "num_samples --top_k=1 --num_samples=3", "temperature --beams=2 --temperature=1.5",
    "seed --beams=2 --seed=3", "top_p --beams=2 --top_p=0.5", "host --host=0.0.0.0",
    "port --port=80", "allow_host --allow_host=a", "start --serve --start=a", "json --serve --json",
    "beams --serve --beams=2", "seed --serve --seed=7", "num_samples --serve --num_samples=2",
    "revision --revision=main", "drafts --beams=2 --drafts=4", "drafts --temperature=0 --drafts=4",
    "drafts --serve --drafts=4", "batch_size --drafts=4 --batch_size=8",
])  # fmt: skip
def test_settings_that_mean_nothing_together(run, capsys, monkeypatch, arguments):
    name, *arguments = arguments.split()
    with pytest.raises(UserError, match=f"^{name} has no effect here: "):
        main(capsys, monkeypatch, f"--out_dir={run}", *arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out_dir=out/nowhere"], "no run in 'out/nowhere'"),
        (["--top_p=0"], "top_p must be above 0"),
        (["--temperature=-1"], "temperature must be 0 or more"),
        (["--temperature=nan"], "temperature must be 0 or more"),
        (["--weights=int4"], "weights must be auto, float32, bfloat16 or int8, not 'int4'"),
        (["--batch_size=0"], "batch_size must be at least 1"),
        (["--num_samples=0"], "num_samples must be at least 1"),
        (["--drafts=0"], "drafts must be at least 1"),
        (["--repetition_penalty=0"], "repetition_penalty must be above 0"),
        (["--repetition_penalty=inf"], "repetition_penalty must be above 0"),
        (["--no_repeat_ngram=-1"], "no_repeat_ngram must be 0 or more"),
        (["--stop="], "stop must be a text, not nothing"),
        (["--strat=a"], "unknown setting 'strat'; did you mean 'start'?"),
        (["--start=FILE:nowhere.txt"], "prompts cannot be read from 'nowhere.txt'"),
        (["--start=" + "long " * 20], "the prompt has 101 tokens, but the model ends at 40"),
    ],
)
def test_errors(run, capsys, monkeypatch, arguments, message):
    if not arguments[0].startswith("--out_dir"):
        arguments = [f"--out_dir={run}", *arguments]
    with pytest.raises(UserError) as error:
        main(capsys, monkeypatch, *arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_a_run_the_boxed_model_writes(tmp_path):
    words = "--start=Once upon a time", "--max_new_tokens=8", "--temperature=0"
    done = call(str(ROOT / "sample.py"), *words, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("Once upon a time, there was a")
    [line] = done.stderr.splitlines()
    assert line.startswith("no trained run in 'out/' yet, so this is the model that comes with")
    assert line.endswith(os.path.relpath(ROOT / "pretrained", tmp_path))


def test_a_run_comes_before_the_boxed_model(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert model_settings.default_run() == "out/mine"
    assert capsys.readouterr().err == "the newest run: out/mine\n"
    monkeypatch.setattr(model_settings, "ROOT", tmp_path)
    with pytest.raises(UserError, match="'pretrained' is missing"):
        model_settings.pretrained()


def test_damaged_checkpoints_are_refused(run, tmp_path):
    weights = run / "latest" / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-7])
        with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
            checkpoint.load_run(run)
    finally:
        weights.write_bytes(whole)
    checkpoint.load_run(run)


# ---- eval/loss.py ------------------------------------------------------------------------------


def test_bits_per_byte_of_a_text(run, tmp_path, model):
    texts = ["A cat.", "é" * 60, "", "A dog sat. " * 12]  # the last is longer than block_size
    source = tmp_path / "mine.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    done = call("-m eval.loss", run, f"--source={source}")
    assert done.returncode == 0, done.stderr
    size = sum(len(text.encode()) + 1 for text in texts)
    nats = 0.0
    with torch.no_grad():  # by the definition: every token once, windows slide by half
        for text in texts:
            ids = torch.tensor([256, *text.encode(), 256])
            seen = 0
            for begin in range(0, max(1, len(ids) - 1 - 24), 24):
                part = ids[begin : begin + 49]
                log_p = model(part[None, :-1])[0].log_softmax(-1)
                for i in range(seen - begin, len(part) - 1):
                    nats -= log_p[i, part[i + 1]].item()
                seen = begin + len(part) - 1
            assert seen == len(ids) - 1
    bits = nats / 0.6931471805599453 / size
    assert f"bits per byte {bits:.4f}\n" in done.stdout
    result = json.loads((run / "eval" / "loss.json").read_text())
    assert result["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert result["bytes"] == size and result["tokens"] == sum(map(len, map(str.encode, texts))) + 4


def test_scoring_does_not_depend_on_grouping(run):
    loaded = checkpoint.load_run(run)
    texts = [f"Story number {i}. " * (i % 7 + 1) for i in range(40)]
    sums = [
        score(
            loaded.model, groups_of_text(iter(texts), loaded.tokenizer, size), EOT, 4, torch.no_grad
        ).sum(0)
        for size in (1, 7, 40)
    ]
    assert sums[0].tolist() == pytest.approx(sums[1].tolist(), rel=1e-6)
    assert sums[0].tolist() == pytest.approx(sums[2].tolist(), rel=1e-6)


def test_scoring_makes_its_batches_where_the_model_is(run, monkeypatch):
    loaded = checkpoint.load_run(run)
    model, tokenizer = loaded.model.to("meta"), loaded.tokenizer
    devices = []
    monkeypatch.setattr(
        "eval.loss.PackedDataLoader", lambda *_, **kwargs: devices.append(kwargs["device"])
    )
    monkeypatch.setattr("eval.loss.evaluate", lambda *_: (0.0, 0))
    score(model, groups_of_text(iter(["One.", "Two."]), tokenizer, 1), EOT, 4, torch.no_grad)
    assert devices == [torch.device("meta")] * 2


def test_trained_and_evaluated_loss_agree(tmp_path):
    """train.py's validation loss and eval/loss.py's are one number."""
    import prepare

    data = prepare.prepare(
        prepare.Settings(source="storybook", tokenizer="bytes", stories=60, val_fraction=0.2,
                         out=str(tmp_path / "data"), workers=1)
    )  # fmt: skip
    settings = Settings(dataset=str(data), out_dir=str(tmp_path / "run"), n_layer=1, n_head=2,
                        n_embd=16, block_size=128, row_tokens=256, batch_size=2, max_iters=3,
                        device="cpu", dtype="float32")  # fmt: skip
    train(settings)
    done = call("-m eval.loss", tmp_path / "run", "--batch_size=3")
    expected = metrics(tmp_path / "run")[-1]["val_bpb"]
    assert f"bits per byte {expected:.4f}\n" in done.stdout, done.stderr
