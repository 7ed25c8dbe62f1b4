"""python synonyms.py: rates, bytes left alone, order, kills, and what it refuses."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import nltk
import pytest
import tiny
import torch
from tiny import settings_for

import synonyms
from configs import ROOT, UserError
from nanostories import storage
from nanostories.dataset import storybook
from nanostories.dataset.shards import Dataset
from nanostories.text import lexical_substitution, wordnet
from nanostories.text.words import split_words
from synonyms import SEPARATOR

pytestmark = pytest.mark.usefixtures("nltk_data")


def written(folder, train, val):
    for name, stories in (("train.txt", train), ("val.txt", val)):
        (folder / name).write_text(SEPARATOR.join(stories))
    return ["--source=train.txt", "--val_source=val.txt", "--tokenizer=bytes", "--workers=1"]


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["synonyms.py", *words])
        synonyms.main()


@pytest.fixture(scope="module")
def stories():
    return [story.text for story in storybook.stories(260, seed=9)]


@pytest.fixture(scope="module")
def made(stories, nltk_data, tmp_path_factory):
    """(the folder that the command wrote of 240 stories and 20 of val, those)."""
    folder = tmp_path_factory.mktemp("syn")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call(*written(folder, stories[:240], stories[240:]), "--out=syn")
    return folder / "syn"


def lines_of(folder):
    return [json.loads(line) for line in open(folder / "replacements.jsonl", encoding="utf-8")]


def test_what_it_writes(made, stories):
    """Half of the stories, 30 % of their content words; the rest is there byte for byte."""
    got = json.loads((made / "synonyms.json").read_text())["rates"]
    assert got["train"]["stories"] == 240 and got["val"]["stories"] == 20
    assert got["train"]["story_fraction"] == pytest.approx(0.5, abs=0.1)
    assert got["train"]["word_fraction"] == pytest.approx(0.3, abs=0.01)
    lines = lines_of(made)
    assert {line["split"] for line in lines} == {"train", "val"}
    assert all(line["replacements"] for line in lines)
    for split, name, first in (("train", "stories.txt", 0), ("val", "stories_val.txt", 240)):
        new = (made / name).read_text().split(SEPARATOR)
        swapped = {line["story"]: line["replacements"] for line in lines if line["split"] == split}
        for number, text in enumerate(new):
            pieces, last = [], 0
            for start, old, other, _ in swapped.get(number, []):
                assert text[start : start + len(other)] == other
                pieces += [text[last:start], old]
                last = start + len(other)
            assert "".join([*pieces, text[last:]]) == stories[first + number]
        assert 0 < len(swapped) < len(new)
    # train.py takes the folder as it is, and nothing else is left.
    data = Dataset(made, "train")
    data.verify()
    assert data.stories == 240 and Dataset(made, "val").stories == 20
    assert not list(made.parent.glob(".*"))
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["source"] == "train.txt (synonyms)"
    assert {"stories.txt", "stories_val.txt", "replacements.jsonl"} <= manifest["files"].keys()


def test_whatever_the_order(made, stories, tmp_path, monkeypatch):
    """A story becomes the same among others and in another place; another seed chooses others."""
    order = random.Random(1).sample(range(240), 240)
    monkeypatch.chdir(tmp_path)
    words = written(tmp_path, [stories[i] for i in order], stories[240:])
    call(*words, "--out=again")
    before = (made / "stories.txt").read_text().split(SEPARATOR)
    again = (tmp_path / "again" / "stories.txt").read_text().split(SEPARATOR)
    assert again == [before[i] for i in order]
    call(*words, "--out=other", "--seed=1")
    other = (tmp_path / "other" / "stories.txt").read_text().split(SEPARATOR)
    assert other != again


def test_the_first_stories_alone(made, stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = written(tmp_path, stories[:240], stories[240:])
    call(*words, "--out=few", "--max_stories=30", "--max_val_stories=5")
    for name, count in (("stories.txt", 30), ("stories_val.txt", 5)):
        every, few = ((x / name).read_text().split(SEPARATOR) for x in (made, tmp_path / "few"))
        assert few == every[:count]


def test_context(stories, tmp_path, monkeypatch):
    """The other mode: fewer words have a synonym that fits, and each is a word of the stories."""
    monkeypatch.chdir(tmp_path)
    call(*written(tmp_path, stories[:60], stories[240:]), "--out=syn", "--mode=context",
         "--story_fraction=1")  # fmt: skip
    got = json.loads((tmp_path / "syn" / "synonyms.json").read_text())["rates"]["train"]
    assert 0.005 < got["word_fraction"] < 0.3
    lines = [line for line in lines_of(tmp_path / "syn") if line["split"] == "train"]
    swaps = [swap for line in lines for swap in line["replacements"]]
    known = {word for text in stories[:60] for word in split_words(text)}
    made = sum(bool(pos) for *_, pos in swaps)  # articles are not counted
    assert 10 < made == round(got["word_fraction"] * got["content_words"])
    assert {new for _, _, new, pos in swaps if pos} <= known


def same(*folders):
    """Whether data folders have the same texts, replacements and tokens."""
    names = ("stories.txt", "stories_val.txt", "replacements.jsonl", "train_000.bin")
    return all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
               for name in names)  # fmt: skip


def stopped_at(step, *words):
    """The command, stopped before it writes its file number `step`, or when it is about to end."""
    write, remove, calls = storage.write_text, synonyms.remove_work_folder, iter(range(9))

    def stop_at_file(*args):
        if next(calls) == step:
            raise KeyboardInterrupt
        write(*args)

    def stop_at_end(path):
        if (path / "key.json").exists():
            raise KeyboardInterrupt
        remove(path)

    with pytest.MonkeyPatch.context() as patch:
        if step == "end":
            patch.setattr(synonyms, "remove_work_folder", stop_at_end)
        else:
            patch.setattr(storage, "write_text", stop_at_file)
        with pytest.raises(KeyboardInterrupt):
            call(*words)


def test_stopped_twice(stories, tmp_path, monkeypatch):
    """A block that was not completed counts for nothing."""
    monkeypatch.chdir(tmp_path)
    words = [*written(tmp_path, stories[:40], stories[240:]), "--story_fraction=0", "--out=syn"]
    stopped_at(2, *words)
    assert [path.name for path in (tmp_path / ".syn.work").rglob("0*")] == ["000000.jsonl"]
    (tmp_path / ".syn.work" / "train" / "000000.jsonl.part").write_text('{"text": "half a st')
    stopped_at(0, *words)
    call(*words)
    assert (tmp_path / "syn" / "replacements.jsonl").read_bytes() == b""
    assert (tmp_path / "syn" / "stories.txt").read_text() == SEPARATOR.join(stories[:40])


@pytest.mark.parametrize("step", [*range(3), "end"])
def test_stopped_and_resumed(step, made, stories, tmp_path, monkeypatch):
    """Wherever it stops, it goes on with the blocks that are not complete."""
    monkeypatch.chdir(tmp_path)
    words = written(tmp_path, stories[:240], stories[240:])
    stopped_at(step, *words, "--out=syn")
    read, substitute = [], lexical_substitution.substitute
    monkeypatch.setattr(
        lexical_substitution, "substitute", lambda *args: read.append(args[0]) or substitute(*args)
    )
    call(*words, "--out=syn")
    assert same(tmp_path / "syn", made) and not list(tmp_path.glob(".*"))
    rates = [json.loads((x / "synonyms.json").read_text())["rates"]
             for x in (tmp_path / "syn", made)]  # fmt: skip
    assert rates[0] == rates[1]
    assert bool(read) == (step != "end")
    assert bool(set(read) & set(stories[240:])) == (step in (0, 1))


@pytest.mark.parametrize("change", [
    "--seed=1", "--mode=context", "--word_fraction=0.2", "--story_fraction=0.4", "val.txt",
])  # fmt: skip
def test_other_settings_begin_anew(change, stories, tmp_path, monkeypatch):
    """What a stopped command left is only gone on with by the same one, on the same stories."""
    monkeypatch.chdir(tmp_path)
    words = written(tmp_path, stories[:30], stories[240:])
    stopped_at("end", *words, "--out=syn")
    if change == "val.txt":
        written(tmp_path, stories[:30], stories[244:])
    else:
        words = [*words, change]
    call(*words, "--out=syn")
    call(*words, "--out=fresh")
    assert same(tmp_path / "syn", tmp_path / "fresh")


@pytest.mark.slow
def test_on_several_cores(made, stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NLTK_DATA", os.pathsep.join(nltk.data.path))
    words = written(tmp_path, stories[:240], stories[240:])
    call(*words, "--out=syn", "--workers=2")
    assert same(tmp_path / "syn", made)


def test_odd_stories(tmp_path, monkeypatch):
    """Empty ones, half a character, and what would look like an end on disk."""
    monkeypatch.chdir(tmp_path)
    odd = ["", "A \ud800 b.", "One day.<|endoftext|>Two days.", " \n", "İ caf\u00e9 “x”."]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in odd)
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "val.txt").write_text("The end.")
    call("--source=train.jsonl", "--val_source=val.txt", "--tokenizer=bytes", "--workers=1",
         "--out=syn")  # fmt: skip
    new = (tmp_path / "syn" / "stories.txt").read_text().split(SEPARATOR)
    assert new == ["A \ufffd b.", "One day.", "Two days.", "İ caf\u00e9 “x”."]
    assert json.loads((tmp_path / "syn" / "synonyms.json").read_text())["rates"]["train"][
        "stories"] == 4  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed(stories, tmp_path):
    """Killed in the middle it goes on, and the folder has the bytes of one that was not killed."""
    many = [f"({n}) {text}" for n in range(12) for text in stories]  # two blocks
    words = written(tmp_path, many, stories[240:])
    env = {**os.environ, "NLTK_DATA": os.pathsep.join(nltk.data.path)}
    command = [sys.executable, str(ROOT / "synonyms.py"), *words]
    process = subprocess.Popen([*command, "--out=killed"], cwd=tmp_path, env=env,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    first = tmp_path / ".killed.work" / "train" / "000000.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if first.exists():
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists() and not (tmp_path / "killed").exists()
    (first.parent / "000001.jsonl.part").write_text('{"text": "half a st')
    for out in ("killed", "whole"):
        done = subprocess.run([*command, f"--out={out}"], cwd=tmp_path, env=env,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert same(tmp_path / "killed", tmp_path / "whole")


def test_likelihood(data, tmp_path):
    """A word's is that of the text with it, token for token."""
    tiny.train(settings_for(data, tmp_path / "run"))
    loaded = synonyms.load_model(str(tmp_path / "run"))
    text = "One day, a big dog ran to the park."
    word = next(word for word in wordnet.content_words(text) if word.text == "big")
    scores = synonyms.log_likelihoods(loaded, text, word, ["the", "zzzz", "big"])

    def whole(text):
        ids = torch.tensor([loaded.bos_ids + loaded.tokenizer.encode(text)])
        logs = loaded.model(ids[:, :-1]).log_softmax(-1)
        return logs.gather(2, ids[:, 1:, None]).sum().item()

    expected = [whole(text.replace("big", form)) for form in ("the", "zzzz", "big")]
    assert scores == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("words, why", [
    (["--mode=lesk"], "mode must be wordnet or context, not 'lesk'"),
    (["--model=out/x"], "a model is for --mode=context"),
    (["--model=./nowhere", "--mode=context"], "'./nowhere' is no folder here"),
    (["--story_fraction=1.5"], "story_fraction must be between 0 and 1, not 1.5"),
    (["--word_fraction=-0.1"], "word_fraction must be between 0 and 1"),
    (["--val_source="], "name the validation stories with --val_source"),
    (["--source=instruct:train.txt"], "stories get synonyms, not Instruct records"),
    (["--val_source=instruct:val.txt"], "stories get synonyms, not Instruct records"),
    (["--seed=99999999999999999999"], "seed must be below 2^63"),
    (["--workers=-1"], "workers must be 0 or more, not -1"),
    (["--out=/"], "out must name a folder, not '/'"),
    (["--out=."], "out must name a folder, not '.'"),
    (["--tokenizer=nope"], "nope"),
    (["--tokenizer=bpe", "--vocab_size=999999"], "vocab_size must be at most 65,536"),
    (["--source=nowhere.txt"], "nowhere.txt"),
])  # fmt: skip
def test_wrong_settings(words, why, stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(why)) as error:
        call(*written(tmp_path, stories[:4], stories[4:6]), "--out=syn", *words)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.txt", "val.txt"]


def test_without_wordnet(stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nltk.data, "path", [])
    for cached in (wordnet._tagger, wordnet.reader, wordnet.synonyms):
        cached.cache_clear()
    with pytest.raises(UserError, match=r"python -m nltk\.downloader wordnet"):
        call(*written(tmp_path, stories[:4], stories[4:6]), "--out=syn")
    for cached in (wordnet._tagger, wordnet.reader):
        cached.cache_clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.txt", "val.txt"]
