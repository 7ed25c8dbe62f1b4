"""Is it the data it says, the tokenizer, the index, the model? Another one is refused in one line,
and what is somebody else's is never replaced."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.torch import load_file, save_file
from story_data import made
from tiny import settings_for

import configs
import prepare
import train
from configs import ROOT, UserError
from eval import instruct, interpret, loss, side_by_side, skills, vocabulary
from eval.memorization import inverted_index
from eval.memorization.nearest_story import StoryIndex
from model import GPT
from nanostories import storage
from nanostories.dataset import sources
from nanostories.dataset.shards import Dataset
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.training import checkpoint, export, huggingface, run_config

STORIES = [f"Tom had {number} red balls." for number in range(60)]


def flip(path, place=0.5):
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def prepared(source, **settings):
    settings = {"tokenizer": "bytes", "workers": 1} | settings
    return prepare.prepare(prepare.Settings(source=source, **settings))


def write(path, stories):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("<|endoftext|>".join(stories))


def open_as_train_does(monkeypatch, *words):
    """The data that a command line of train.py opens."""
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    settings = run_config.complete(*configs.load(train.Settings))
    return train.open_data(settings)


# ---- the source --------------------------------------------------------------------------------


@pytest.fixture
def two_sources(tmp_path, monkeypatch):
    """a/mine.txt, prepared, and b/mine.txt."""
    monkeypatch.chdir(tmp_path)
    write("a/mine.txt", STORIES)
    write("b/mine.txt", [story.replace("red", "old") for story in STORIES])
    prepared("a/mine.txt")


@pytest.mark.parametrize("source", ["b/mine.txt", "c/mine.txt", "b/mine.jsonl", "mine.txt"])
def test_another_source_of_the_same_name(two_sources, source, monkeypatch):
    with pytest.raises(UserError) as error:
        open_as_train_does(monkeypatch, f"--source={source}", "--tokenizer=bytes")
    told = f"not made of '{source}' as it is now; make it with: python prepare.py --source={source}"
    assert told in str(error.value)


@pytest.mark.parametrize("source", ["a/mine.txt", "./a/mine.txt", "b/../a/mine.txt"])
def test_the_same_source(two_sources, source, monkeypatch):
    open_as_train_does(monkeypatch, f"--source={source}", "--tokenizer=bytes")
    open_as_train_does(monkeypatch, "--source=b/mine.txt", "--dataset=./data/mine-bytes")
    os.utime("a/mine.txt")  # newer, and the same
    open_as_train_does(monkeypatch, f"--source={source}", "--tokenizer=bytes")
    Path("a/mine.txt").unlink()
    open_as_train_does(monkeypatch, "--source=a/mine.txt", "--tokenizer=bytes")


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text(path.read_text() + "<|endoftext|>More."),
        lambda path: path.write_text(path.read_text().upper()),
        lambda path: Path("b/mine.txt").rename(path),  # of the same size, and older than the data
        lambda path: (path.parent.rename("c"), Path("b").rename(path.parent)),
    ],
)
def test_a_source_that_has_changed(two_sources, change, monkeypatch):
    tiny.train(settings_for("data/mine-bytes", "out/run", max_iters=1))
    change(Path("a/mine.txt"))
    with pytest.raises(UserError, match=r"was not made of 'a/mine\.txt' as it is now"):
        open_as_train_does(monkeypatch, "--source=a/mine.txt", "--tokenizer=bytes")
    # The tokens of a run are still there.
    tiny.train(settings_for("data/mine-bytes", "out/run", max_iters=2, resume=True))


def test_files_that_join_or_leave_a_glob(two_sources, monkeypatch):
    source = "c/*.txt"
    for name in ("one", "two"):
        write(f"c/{name}.txt", STORIES)
    prepared(source)
    open_as_train_does(monkeypatch, f"--source={source}", "--tokenizer=bytes")
    Path("c/two.txt").rename("two.txt")
    with pytest.raises(UserError, match="as it is now"):
        open_as_train_does(monkeypatch, f"--source={source}", "--tokenizer=bytes")
    Path("two.txt").rename("c/two.txt")
    open_as_train_does(monkeypatch, f"--source={source}", "--tokenizer=bytes")
    write("c/three.txt", STORIES)
    with pytest.raises(UserError, match="as it is now"):
        open_as_train_does(monkeypatch, f"--source={source}", "--tokenizer=bytes")


def test_the_command_makes_what_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs" / "storybook.py")
    cases = {
        (config, "--source=b/my own.txt"): f"{config} '--source=b/my own.txt' --tokenizer=bpe",
        ("--dataset=data/few",): "--source=tinystories --tokenizer=gpt2 --out=data/few",
        ("--source=s", "--dataset=data/s-gpt2-without-words+summary"):
            "--source=s --tokenizer=gpt2 --hold_out=words+summary",
    }  # fmt: skip
    for words, command in cases.items():
        with pytest.raises(UserError) as error:
            open_as_train_does(monkeypatch, *words)
        assert str(error.value).endswith(f"make it with: python prepare.py {command}")


def test_a_tokenizer_of_the_same_name(two_sources, monkeypatch):
    for folder, size in (("x/run", 300), ("y/run", 310)):
        prepared("storybook", tokenizer="bpe", vocab_size=size, stories=60, out=folder)
    prepared("a/mine.txt", tokenizer="x/run/tokenizer.json")
    words = "--source=a/mine.txt", "--tokenizer={}/run/tokenizer.json"
    open_as_train_does(monkeypatch, *(word.format("x") for word in words))
    with pytest.raises(UserError, match=r"has another tokenizer than 'y/run/tokenizer\.json'"):
        open_as_train_does(monkeypatch, *(word.format("y") for word in words))


# ---- the data of a run -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the data of Instruct records and two runs on it."""
    top = tmp_path_factory.mktemp("identity")
    prepared("instruct:storybook", stories=80, val_fraction=0.2, out=str(top / "data"))
    for name in ("run", "other"):
        tiny.train(settings_for(str(top / "data"), top / name, max_iters=1))
    return top


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of `trained`, for changes."""
    shutil.copytree(trained, tmp_path, symlinks=True, dirs_exist_ok=True)
    for name in ("run", "other"):
        path = tmp_path / name / "config.json"
        path.write_text(path.read_text().replace(str(trained / "data"), str(tmp_path / "data")))
    return tmp_path


def main(command, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, words)])
    command.main()


READERS = [
    (loss, ["run"]), (skills, ["run"]), (interpret, ["run"]), (side_by_side, ["run"]),
    (instruct, ["run"]), (vocabulary, ["run", "other"]),
]  # fmt: skip


@pytest.mark.parametrize(("command", "runs"), READERS)
def test_evaluations_refuse_other_data(command, runs, copied, monkeypatch):
    prepared("instruct:storybook", stories=80, val_fraction=0.2, seed=2, out=str(copied / "data"))
    with pytest.raises(UserError, match=r"holds other data than '.*run' was trained on"):
        main(command, monkeypatch, *(copied / run for run in runs))
    assert not (copied / "run" / "eval").exists()


@pytest.mark.parametrize("name", ["val_000.bin", "val_stories.npy", "val_answer.npy"])
def test_evaluations_refuse_damaged_data(name, copied, monkeypatch):
    flip(copied / "data" / name, 0.9)
    with pytest.raises(UserError, match=rf"{name} does not match the sha256 in manifest\.json"):
        main(loss, monkeypatch, copied / "run")


def test_the_model_card_leaves_out_other_data(copied):
    loaded = checkpoint.load_run(copied / "run")
    assert "## Data" in export.model_card(loaded, "x", True)
    prepared("instruct:storybook", stories=60, val_fraction=0.2, out=str(copied / "data"))
    assert "## Data" not in export.model_card(loaded, "x", True)


def test_the_model_card_has_what_fits_a_cell(copied):
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75}
    storage.write_json(copied / "run" / "eval" / "x.json", {
        "loss": 1.25, "accuracy": interval, "stories": [interval] * 99, "of": {"one": interval}
    })  # fmt: skip
    card = export.model_card(checkpoint.load_run(copied / "run"), "x", True)
    table = card.split("## Result: x\n")[1].split("\n#")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "loss", "accuracy mean", "accuracy low", "accuracy high", "of one"
    ]  # fmt: skip


def test_token_ids_outside_the_vocabulary(copied):
    """A folder with the right hashes can hold some; wte has rows of padding for them."""
    path, manifest = copied / "data" / "train_000.bin", copied / "data" / "manifest.json"
    tokens = np.fromfile(path, "<u2")
    tokens[7] = 257
    tokens.tofile(path)
    facts = storage.read_json(manifest)
    facts["files"][path.name]["sha256"] = storage.sha256(path)
    storage.write_json(manifest, facts)
    with pytest.raises(UserError, match=r"train_000\.bin has token 257, of a vocabulary of 257"):
        tiny.train(settings_for(str(copied / "data"), copied / "new"))


def test_another_manifest_is_no_data(copied):
    names = ("format", "tokenizer", "vocab_size", "splits", "files")
    with_lists = {name: ["a.txt"] for name in names}
    for text in ("[]", "{}", '{"name": "my app", "version": 1}', json.dumps(with_lists)):
        (copied / "data" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="is no data folder"):
            Dataset(copied / "data", "train")


@pytest.mark.parametrize("folder", ["data", "run"])
def test_another_tokenizer_beside_the_data_or_the_weights(folder, copied, tmp_path):
    path = copied / folder / "tokenizer.json"
    saved = path.read_text()
    path.write_text(saved.replace(' "a": 97', ' "b": 97', 1).replace(' "b": 98', ' "a": 98', 1))
    assert path.read_text() != saved
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged: .* has another sha256"):
        Tokenizer.load(path)
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged: .* has another sha256"):
        tiny.train(settings_for(str(copied / "data"), copied / "run", resume=True, max_iters=2))


# ---- the index ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*inverted_index.ARRAYS, "words", "SHA256SUMS"])
def test_a_flipped_bit_of_the_index(name, tmp_path):
    data = made(tmp_path / "data", ["a b c", "b c d", "the cat sat"])
    StoryIndex(data, 1)
    (path,) = inverted_index.index_folder(data).glob(f"0000/{name}*")
    for place in (0.01, 0.3, 0.6, 0.999):
        flip(path, place)
        with pytest.raises(UserError, match="is damaged: remove it"):
            StoryIndex(data, 1)
        flip(path, place)
    StoryIndex(data, 1)


# ---- gzip --------------------------------------------------------------------------------------


def archive(path, stories, damage=lambda data: data):
    text, packed = json.dumps([{"story": story} for story in stories]).encode(), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("data00.json")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    path.write_bytes(damage(gzip.compress(packed.getvalue(), 0)))
    return str(path)


def test_the_checksum_of_gzip(tmp_path):
    """Uncompressed in its blocks, so that a changed letter is valid but for the checksum."""
    path = archive(tmp_path / "a.tar.gz", STORIES)
    assert list(sources.read(path)) == STORIES
    for damage in (
        lambda data: data.replace(b"had 7 red", b"had 7 bad"),
        lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:],
        lambda data: data[:-4],
    ):
        path = archive(tmp_path / "b.tar.gz", STORIES, damage)
        with pytest.raises(UserError, match="is a damaged archive"):
            prepared(path, out=str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()


# ---- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(value, copied, tmp_path):
    loaded = checkpoint.load_run(copied / "run")
    export.export(loaded, tmp_path / "hf")
    huggingface.load(str(tmp_path / "hf"))
    for folder in (copied / "run" / "latest", tmp_path / "hf"):
        weights = load_file(folder / "model.safetensors")
        list(weights.values())[3].view(-1)[5] = value
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    sums = copied / "run" / "latest" / "SHA256SUMS"
    names = checkpoint.CHECKPOINT_FILES
    sums.write_text("".join(f"{storage.sha256(sums.with_name(x))}  {x}\n" for x in names))
    for load in (checkpoint.load_run, huggingface.load):
        with pytest.raises(UserError, match=r"holds nan or inf"):
            load(copied / "run" if load is checkpoint.load_run else str(tmp_path / "hf"))


@pytest.mark.parametrize("neo", [False, True])
def test_more_layers_than_config_json_says(neo, copied, tmp_path):
    loaded = checkpoint.load_run(copied / "run")
    if neo:
        config = replace(loaded.model.config, scale_attention=False, qkv_bias=False)
        loaded.model = GPT(config)
    export.export(loaded, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    layers = "num_layers" if neo else "n_layer"
    assert config[layers] == 2
    kinds = {"attention_types": [[["global"], 1]]} if neo else {}
    storage.write_json(path, config | {layers: 1} | kinds)
    with pytest.raises(UserError, match=r"weights hold h\.1\..*config\.json has no place for"):
        huggingface.load(str(tmp_path / "hf"))
    storage.write_json(path, config | {layers: "2"})
    with pytest.raises(UserError, match=r"damaged|do not fit its config\.json"):
        huggingface.load(str(tmp_path / "hf"))


# ---- what is never replaced --------------------------------------------------------------------


def listing(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "manifest.json").write_text('{"name": "app", "files": {}}'),
        lambda folder: (folder / "manifest.json").write_text("no JSON"),
        lambda folder: (folder / "notes.txt").write_text("mine"),
        lambda folder: write(folder / "backup" / "manifest.json", ["{}"]),
        lambda folder: (folder / ".git").mkdir(),
    ],
)
def test_prepare_replaces_only_what_it_wrote(spoil, tmp_path):
    out = prepared("storybook", stories=60, out=str(tmp_path / "x"))
    StoryIndex(Dataset(out, "train"), 1)
    spoil(out)
    before = listing(tmp_path)
    with pytest.raises(UserError, match="not replaced"):
        prepared("storybook", stories=50, out=str(out))
    assert listing(tmp_path) == before


def test_a_data_folder_with_its_index_is_replaced(tmp_path):
    out = prepared("storybook", stories=60, out=str(tmp_path / "x"))
    StoryIndex(Dataset(out, "train"), 1)
    prepared("storybook", stories=50, out=str(out))
    assert not (out / "inverted_index").exists()


@pytest.mark.parametrize("out", ["new/..", "new/../mine", "new/../mine/../../{}"])
def test_a_folder_that_is_not_there_leads_to_no_other(out, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    write(tmp_path / "a.txt", STORIES)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="name that, or another folder"):
        prepared("a.txt", out=out.format(tmp_path.name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "mine"]
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]


def test_the_folder_behind_a_link_is_replaced(tmp_path):
    out = prepared("storybook", stories=60, out=str(tmp_path / "disk" / "x"))
    (tmp_path / "x").symlink_to(out)
    prepared("storybook", stories=50, out=str(tmp_path / "x"))
    assert (tmp_path / "x").is_symlink() and Dataset(out, "train").stories < 51
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "x"]


@pytest.fixture
def clone(tmp_path):
    """A folder to call make in, with a stand-in for Python that prints its command."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", ".venv/ready"):
        write(tmp_path / name, [""])
    python = tmp_path / ".venv" / "bin" / "python"
    write(python, ['#!/bin/sh\necho "ran $@"\n'])
    python.chmod(0o755)
    write(tmp_path / "out" / "storybook" / "latest" / "state.json", ["{}"])
    write(tmp_path / "out" / "mine" / "config.json", ["{}"])
    write(tmp_path / "data" / "storybook-bpe" / "manifest.json", ["{}"])
    return tmp_path


def make(folder, *words, answer=""):
    done = subprocess.run(
        ["make", *words], cwd=folder, input=answer, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("plotted", [False, True])
def test_make_story_keeps_a_run(clone, plotted):
    if plotted:
        write(clone / "out" / "storybook" / "loss.png", [""])
        os.utime(clone / "out" / "storybook" / "loss.png", (1, 1))
    before = listing(clone / "out") | listing(clone / "data")
    printed = make(clone, "story")
    assert listing(clone / "out") | listing(clone / "data") == before
    assert ("ran train.py --resume --out_dir=out/storybook" in printed) != plotted
    assert "ran train.py configs" not in printed and "ran prepare.py" not in printed


def test_make_story_trains_where_there_is_no_run(clone):
    shutil.rmtree(clone / "out")
    shutil.rmtree(clone / "data")
    printed = make(clone, "story")
    assert "ran prepare.py configs/storybook.py" in printed
    assert "ran train.py configs/storybook.py" in printed


def test_make_clean_keeps_runs_and_data(clone):
    before = listing(clone / "out") | listing(clone / "data")
    make(clone, "clean")
    for answer in ("", "n\n", "\n", "yes please\n"):
        assert "Remove" in make(clone, "clean-all", answer=answer)
    assert listing(clone / "out") | listing(clone / "data") == before
    make(clone, "clean-all", answer="y\n")
    assert not (clone / "out").exists() and not (clone / "data").exists()
