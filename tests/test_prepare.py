"""prepare.py end to end: the data folder's format, what cleaning drops, and that nothing half-made
is ever left behind."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import configs
import prepare
from configs import UserError
from nanostories.dataset import build, instruct, readers, shards, sources, storybook
from nanostories.dataset.tokenizer import EOT, Tokenizer
from nanostories.storage import atomic_folder
from prepare import Settings

ROOT = Path(__file__).resolve().parent.parent


def write(path, stories):
    path.write_bytes(f"\n{EOT}\n".join(stories).encode())
    return str(path)


def write_jsonl(path, stories):
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    return str(path)


def prepared(tmp_path, source, **settings):
    """The folder that prepare makes of `source`, in this process, by default with byte tokens."""
    settings = {"tokenizer": "bytes", "workers": 1, "out": str(tmp_path / "out")} | settings
    return prepare.prepare(Settings(source=source, **settings))


def stories_of(folder, split):
    """The stories of a split as text, read by the format's description alone."""
    manifest = json.loads((folder / "manifest.json").read_text())
    names = manifest["splits"][split]["shards"]
    tokens = np.concatenate([np.fromfile(folder / name, "<u2") for name in names])
    starts = np.load(folder / f"{split}_stories.npy")
    tokenizer = Tokenizer.load(folder)
    assert starts.dtype == np.int64 and starts[0] == 0
    assert (tokens[starts] == tokenizer.eot).all()
    assert (tokens == tokenizer.eot).sum() == len(starts)
    return [tokenizer.decode(story[1:]) for story in np.split(tokens, starts[1:])]


def listing(folder):
    """Every path under a folder with its content, to see whether anything changed."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# ---- the folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_every_text_is_kept(tmp_path, tokenizer):
    train = [
        "Windows\r\nline ends.",
        "Emoji 🐉 and “quotes”, café.",
        f"The sign said {EOT} and more.",
        "NUL \0 inside.",
        *(story.text for story in storybook.stories(40)),
    ]
    val = [f"val {story}" for story in train[:4]]
    out = prepared(
        tmp_path,
        write_jsonl(tmp_path / "train.jsonl", train),
        val_source=write_jsonl(tmp_path / "val.jsonl", val),
        tokenizer=tokenizer,
        vocab_size=400,
    )
    assert stories_of(out, "train") == train
    assert stories_of(out, "val") == val


def test_manifest(tmp_path):
    train, val = ["One 🐉.", "Two.", "Cut off", "Three."], ["Four."]
    source = write(tmp_path / "train.txt", train)
    out = prepared(
        tmp_path, source, val_source=write(tmp_path / "val.txt", val), keep_unfinished=False
    )
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert (manifest["tokenizer"], manifest["vocab_size"]) == ("bytes", 257)
    assert manifest["dtype"] == "uint16"
    assert manifest["source"] == source
    facts = manifest["splits"]["train"]
    assert facts["stories"] == 3
    assert facts["bytes"] == len("One 🐉.Two.Three.".encode())
    assert facts["tokens"] == facts["bytes"] + 3  # bytes are tokens, and one separator each
    assert facts["shards"] == ["train_000.bin"]
    rules = dict(read=4, repaired=0, empty=0, truncated=1, duplicate=0, in_val=0)
    assert facts["cleaning"] == rules
    names = {path.name for path in out.iterdir()} - {"manifest.json"}
    assert names == manifest["files"].keys()
    assert names == {
        *("tokenizer.json", "train_000.bin", "val_000.bin"),
        *("train_stories.npy", "val_stories.npy"),
    }
    for name, facts in manifest["files"].items():
        data = (out / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    # The reader takes it.
    data = shards.Dataset(out, "train")
    data.verify()
    assert data.story(1).tolist() == [256, *b"Two."]


def test_shards_never_cut_a_story(tmp_path):
    writer = shards.Writer(tmp_path, "train")
    lengths = np.array([4, 3, 3, 12, 1, 9, 2])
    tokens = np.arange(lengths.sum(), dtype=np.uint16)
    for a, b in ((0, 3), (3, 3), (3, 7)):  # in several calls, one of them empty
        part = tokens[lengths[:a].sum() : lengths[:b].sum()]
        index = np.zeros(b - a, shards.STORY)
        index["tokens"] = lengths[a:b]
        index["bytes"] = index["answer"] = np.arange(a, b)
        writer.add(part, index)
    drop = np.array([0, 0, 0, 0, 1, 0, 0], np.uint8)
    facts = writer.finish(drop, shard_tokens=10, answers=True)
    kept = np.split(tokens, np.cumsum(lengths)[:-1])
    expected = [[*kept[0], *kept[1], *kept[2]], kept[3], kept[5], kept[6]]
    written = [np.fromfile(tmp_path / name, "<u2").tolist() for name in facts["shards"]]
    assert written == [list(shard) for shard in expected]
    starts = np.load(tmp_path / "train_stories.npy")
    assert starts.tolist() == [0, 4, 7, 10, 22, 31]
    assert np.load(tmp_path / "train_answer.npy").tolist() == [0, 1, 2, 3, 5, 6]
    assert facts["tokens"] == 33 and facts["stories"] == 6 and facts["bytes"] == 17
    assert not list(tmp_path.glob("*.spill")) and not list(tmp_path.glob("*.index"))


def test_small_blocks_make_the_same_folder(tmp_path, monkeypatch):
    stories = [story.text for story in storybook.stories(60)]
    source = write(tmp_path / "a.txt", [*stories, *stories[:7]])
    whole = listing(prepared(tmp_path, source, val_fraction=0.2))
    monkeypatch.setattr(readers, "BLOCK_BYTES", 900)
    assert listing(prepared(tmp_path, source, val_fraction=0.2)) == whole
    # And so do several processes.
    assert listing(prepared(tmp_path, source, val_fraction=0.2, workers=2)) == whole


def test_instruct_answers(tmp_path, capsys):
    records = [
        "Features: dialogue\nWords: quit, oak\nStory: \n\nTom é saw an oak. Story: the end.",
        "Story:\nOnce.",
        "No field at all.",
        "Summary: Café.\nStory: Twice.\nSummary: Again",
        "Words: an, other\nStory: Once.",  # the same story to another instruction
        "Words: a\nStory: Cut",
        "Words: a\nStory: Val.",
    ]
    source = write(tmp_path / "TinyStories-Instruct-train.txt", records)
    val = write(tmp_path / "val.txt", ["Story: Val."])
    for tokenizer in ("bytes", "bpe"):
        out = prepared(tmp_path, source, val_source=val, tokenizer=tokenizer, vocab_size=300)
        starts, answers = (np.load(out / f"train_{x}.npy") for x in ("stories", "answer"))
        tokens, decode = np.fromfile(out / "train_000.bin", "<u2"), Tokenizer.load(out).decode
        ends = [*starts[1:], len(tokens)]
        stories = [decode(tokens[s + a : e]) for s, a, e in zip(starts, answers, ends, strict=True)]
        assert stories == ["Tom é saw an oak. Story: the end.", "Once.", "Twice."]
        assert decode(tokens[1 : answers[0]]) == (
            "Features: Dialogue\nWords: quit, oak\nStory: \n\n"
        )
        assert np.load(out / "val_answer.npy").shape == (1,)
    facts = json.loads((out / "manifest.json").read_text())["splits"]["train"]["cleaning"]
    rules = dict(read=7, repaired=0, empty=0, truncated=1, duplicate=1, in_val=1)
    assert facts == rules | {"unreadable": 1, "trailing": 1}
    assert "1 in val, 1 unreadable" in capsys.readouterr().out
    assert not (prepared(tmp_path, val, val_source=source) / "train_answer.npy").exists()


@pytest.mark.parametrize("tokenizer", ["bpe", "gpt2"])
def test_a_prompt_has_the_tokens_it_was_trained_with(tmp_path, tokenizer):
    source = "instruct:storybook"
    out = prepared(tmp_path, source, stories=200, tokenizer=tokenizer, vocab_size=600)
    data, tokenizer = shards.Dataset(out, "train"), Tokenizer.load(out)
    for i in range(data.stories):
        prompt = tokenizer.decode(data.prompt(i)[1:])
        assert prompt.endswith("Story: \n\n")
        assert tokenizer.encode_prompt(prompt) == data.prompt(i)[1:].tolist()
        record = instruct.parse_record(tokenizer.decode(data.story(i)[1:]))
        assert record.prompt() == prompt and record.story
    records = [instruct.parse_record(text) for text in stories_of(out, "train")]
    assert data.answer_bytes(tokenizer.token_bytes) == sum(
        len(record.story.encode()) for record in records
    )


def test_encoding_is_repaired_before_records_are_made(tmp_path):
    stray = b"Tom\x92s dog ran. It ran home.\n<|endoftext|>\n\n<|endoftext|>\nTom sat and the cut"
    path = tmp_path / "damaged.txt"
    path.write_bytes(stray)
    val = write(tmp_path / "val.txt", ["The cat sat. It was red."])
    val_source = f"instruct:{val}"
    out = prepared(tmp_path, f"instruct:{path}", val_source=val_source, keep_unfinished=False)
    [text] = stories_of(out, "train")
    assert instruct.parse_record(text).story == "Tom’s dog ran. It ran home."
    facts = json.loads((out / "manifest.json").read_text())["splits"]["train"]["cleaning"]
    rules = dict(read=3, repaired=1, empty=1, truncated=1, duplicate=0, in_val=0)
    assert facts == rules | {"unreadable": 0, "trailing": 0}


def test_no_record_at_all(tmp_path):
    lines = write(tmp_path / "instruct.txt", ["Features: Dialogue", "Story: ", "Once."])
    with pytest.raises(UserError, match=r"2 unreadable.*take tinystories-instruct"):
        prepared(tmp_path, lines)


@pytest.mark.parametrize("given", ["storybook", "file", "val_source"])
def test_hold_out(tmp_path, given):
    """In the tokens written the pair never meets in train, and all else is the control's."""
    settings = {"stories": 400, "tokenizer": "bpe", "vocab_size": 500, "hold_out": "words+summary"}
    settings["workers"] = 2 if given == "file" else 1
    source = "instruct:storybook"
    if given != "storybook":
        texts = list(sources.read(source, stories=400, split="train"))
        source = write(tmp_path / "my-instruct.txt", texts)
    if given == "val_source":
        settings["val_source"] = write(tmp_path / "val.txt", texts[:80])
    control = prepared(tmp_path, source, val_fraction=0.1, **settings)
    held = tmp_path / "out-without-words+summary"

    def records(folder, split):
        return [instruct.parse_record(text) for text in stories_of(folder, split)]

    for split in ("train", "val"):
        pairs = list(zip(records(control, split), records(held, split), strict=True))
        assert len(pairs) > 30 and all(one.story == other.story for one, other in pairs)
        met = [one.has_fields(["words", "summary"]) for one, _ in pairs]
        assert 0.3 < sum(met) / len(met) < 0.6
        assert all(one == other for both, (one, other) in zip(met, pairs, strict=True) if not both)
        if split == "val":
            assert all(one == other for one, other in pairs)
        else:
            assert not any(other.has_fields(["words", "summary"]) for _, other in pairs)
            gone = [set(one.fields) - set(other.fields) for one, other in pairs]
            assert [len(fields) for fields in gone] == met
            assert {name for fields in gone for name, _ in fields} == {"words", "summary"}
    assert (control / "tokenizer.json").read_bytes() == (held / "tokenizer.json").read_bytes()
    manifests = [json.loads((one / "manifest.json").read_text()) for one in (control, held)]
    assert [manifest["hold_out"] for manifest in manifests] == ["", "words+summary"]


@pytest.mark.parametrize(
    ("source", "hold_out", "message"),
    [
        ("storybook", "words+summary", "hold_out is for Instruct records"),
        ("instruct:storybook", "words", "hold_out takes two or more of words, sentence"),
        ("instruct:storybook", "words+words", "hold_out takes two or more"),
        ("instruct:storybook", "words+plot", "hold_out takes two or more"),
    ],
)
def test_hold_out_of_what_is_not_there(tmp_path, source, hold_out, message):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, source, hold_out=hold_out)
    assert not list(tmp_path.iterdir())


def test_stories_are_not_validated_on_records(tmp_path):
    with pytest.raises(UserError, match="val_source=instruct:storybook is for Instruct records"):
        prepared(tmp_path, "storybook", val_source="instruct:storybook")
    assert not list(tmp_path.iterdir())


# ---- cleaning and the split --------------------------------------------------------------------


def test_cleaning_is_counted(tmp_path, capsys):
    train = [
        "One.",
        "Two.",
        "",
        "Itâ€™s one.",
        "One.",
        "It’s one.",
        "Leak.",
        "Leak.",
        "Cut",
        "One.",
    ]
    val = ["Leak.", "Val.", "Leak.", "Cut,"]
    out = prepared(
        tmp_path,
        write(tmp_path / "train.txt", train),
        val_source=write(tmp_path / "val.txt", val),
        keep_unfinished=False,
    )
    assert stories_of(out, "train") == ["One.", "Two.", "It’s one."]
    assert stories_of(out, "val") == ["Leak.", "Val."]
    splits = json.loads((out / "manifest.json").read_text())["splits"]
    assert splits["train"]["cleaning"] == dict(
        read=10, repaired=1, empty=1, truncated=1, duplicate=3, in_val=2
    )
    assert splits["val"]["cleaning"] == dict(
        read=4, repaired=0, empty=0, truncated=1, duplicate=1, in_val=0
    )
    printed = capsys.readouterr().out
    assert "read 10, repaired 1, dropped: 1 empty, 1 truncated, 3 duplicate, 2 in val" in printed


def test_val_fraction(tmp_path):
    stories = [story.text for story in storybook.stories(400)]
    source = write(tmp_path / "a.txt", [*stories, *stories[:100]])
    out = prepared(tmp_path, source, val_fraction=0.25)
    train, val = stories_of(out, "train"), stories_of(out, "val")
    assert not set(train) & set(val) and set(train) | set(val) == set(stories)
    assert 70 < len(val) < 130
    assert stories_of(prepared(tmp_path, source, val_fraction=0.25), "val") == val
    assert stories_of(prepared(tmp_path, source, val_fraction=0.25, seed=1), "val") != val


def test_the_revision_is_of_the_source_alone(tmp_path, monkeypatch):
    """Another data set of the hub has no such commit."""
    import datasets  # slow to import

    asked = set()

    def load(repo, split, revision):
        asked.add((repo, split, revision))
        stories = [f"This is story {i} of {split}." for i in "abcdefgh"]
        return datasets.Dataset.from_dict({"text": stories})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(readers, "hub_commit", lambda repo, revision: f"{repo} at {revision}")
    prepared(tmp_path, "hub:a/b", revision="r", val_source="hub:c/d:test")
    assert asked == {("a/b", "train", "a/b at r"), ("c/d", "test", "c/d at ")}
    asked.clear()
    out = str(tmp_path / "same")
    prepared(tmp_path, "hub:a/b:all", revision="r", val_source="hub:a/b:test", out=out)
    assert asked == {("a/b", "all", "a/b at r"), ("a/b", "test", "a/b at r")}


def test_val_has_a_story_however_few_there_are(tmp_path):
    out = prepared(
        tmp_path, write(tmp_path / "a.txt", ["One.", "Two.", "Three."]), val_fraction=1e-6
    )
    assert len(stories_of(out, "val")) == 1 and len(stories_of(out, "train")) == 2
    assert (
        json.loads((out / "manifest.json").read_text())["splits"]["train"]["cleaning"]["read"] == 3
    )


def test_a_tokenizer_is_made_of_train_stories_only(tmp_path):
    stories = [f"{'zq' * 40} {i}." for i in range(50)]
    source = write(tmp_path / "a.txt", stories)
    seen = list(build.sample_texts(sources.Source(source), 0, 0.5))
    out = prepared(tmp_path, source, val_fraction=0.5)
    assert seen == stories_of(out, "train")


def test_sample_is_bounded_and_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(build, "SAMPLE_BYTES", 10_000)
    source = write(tmp_path / "a.txt", [f"This is story number {i:05}." for i in range(4000)])
    seen = list(build.sample_texts(sources.Source(source), 0, 0))
    assert 5_000 < sum(map(len, seen)) < 11_000
    assert max(seen) > "This is story number 03700."


# ---- nothing half-written ----------------------------------------------------------------------


@pytest.fixture
def old(tmp_path):
    """A data folder that is there already, and the source of its stories."""
    (tmp_path / "data").mkdir()
    source = write(tmp_path / "a.txt", [story.text for story in storybook.stories(30)])
    prepared(tmp_path, source, out=str(tmp_path / "data" / "x"))
    return tmp_path / "data" / "x", source


def full_disk(monkeypatch, name):
    """Let os.fsync, or the writing of the files called `name`, find the disk full."""

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if name == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif name == "shard":
        monkeypatch.setattr(np, "memmap", fail)
    elif name == "spill":
        monkeypatch.setattr(shards.Writer, "add", fail)
    elif name == "tokenizer":
        monkeypatch.setattr(Path, "write_text", fail)
    elif name == "rename":
        monkeypatch.setattr(Path, "rename", fail)


@pytest.mark.parametrize("name", ["fsync", "shard", "spill", "tokenizer", "rename"])
@pytest.mark.parametrize("fresh", [True, False])
def test_full_disk_leaves_all_as_it_was(old, monkeypatch, name, fresh):
    out, source = old
    before = listing(out.parent.parent)
    out = out.parent.parent / "new" / "y" if fresh else out
    argv = ["prepare.py", f"--source={source}", "--tokenizer=bytes", "--workers=1", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", argv)
    with monkeypatch.context() as patch:
        full_disk(patch, name)
        with pytest.raises(SystemExit) as error:
            configs.run(prepare.main)
    assert "the disk is full" in error.value.code and "\n" not in error.value.code
    assert listing(out.parent.parent) == before
    configs.run(prepare.main)
    assert stories_of(out, "train")


def test_second_rename_failing_brings_the_old_back(old):
    out, _ = old
    before = listing(out.parent)
    with pytest.raises(RuntimeError), atomic_folder(out) as folder:
        folder.rmdir()
        out.rename(out.with_name(f".x.{os.getpid()}.old"))
        raise RuntimeError
    assert listing(out.parent) == before


def test_what_a_killed_process_of_this_number_left_is_removed(old):
    out, source = old
    left = out.with_name(f".x.{os.getpid()}.old")
    left.mkdir()
    write(left / "train_000.bin", ["left"])
    prepared(out.parent, source, out=str(out))
    assert [path.name for path in out.parent.iterdir()] == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, UserError("no")])
def test_interrupted_leaves_all_as_it_was(old, monkeypatch, error):
    out, source = old
    before = listing(out.parent)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(build, "find_duplicates", fail)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        prepared(out.parent, source, out=str(out))
    assert listing(out.parent) == before


def test_replaced_when_complete(old, capsys):
    out, source = old
    Path(source).write_text(f"One.{EOT}Two.{EOT}Three.")
    prepared(out.parent, source, out=str(out))
    assert set(stories_of(out, "train") + stories_of(out, "val")) == {"One.", "Two.", "Three."}
    assert [path.name for path in out.parent.iterdir()] == ["x"]
    assert "is replaced when the new one is complete" in capsys.readouterr().out


def test_only_data_folders_are_replaced(tmp_path):
    source = write(tmp_path / "a.txt", ["One.", "Two."])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("important")
    before = listing(tmp_path)
    with pytest.raises(UserError, match="not replaced"):
        prepared(tmp_path, source, out=str(tmp_path / "home"))
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (None, {}, "no source"),
        (b"", {}, "is empty"),
        (b"A\0B.", {}, "binary"),
        (
            b"Cut,",
            {"keep_unfinished": False},
            "no story left after cleaning .read 1, repaired 0, dropped: 0 empty, 1",
        ),
        (b"\n" + EOT.encode() + b"\n" + EOT.encode(), {}, "no story left"),
        (b"Only one.", {}, "no train story is left"),
        (b"One.<|endoftext|>Two.", {"vocab_size": 65_537}, "65,536"),
        (b"One.<|endoftext|>Two.", {"tokenizer": "bpe", "vocab_size": 100}, "257"),
        (b"One.<|endoftext|>Two.", {"tokenizer": "bpee"}, "no tokenizer 'bpee'"),
        (b"One.<|endoftext|>Two.", {"val_fraction": 0.0}, "val_fraction"),
        (b"One.<|endoftext|>Two.", {"val_source": "nowhere.txt"}, "no source 'nowhere.txt'"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path, content, settings, message):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    before = listing(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        prepared(tmp_path, str(tmp_path / "a.txt"), out=str(tmp_path / "data" / "x"), **settings)
    assert "\n" not in str(error.value)
    assert listing(tmp_path) == before


def test_command_and_ctrl_c(tmp_path):
    """The command itself: it makes the default folder; Ctrl-C ends it without a trace."""
    command = [sys.executable, ROOT / "prepare.py", "--source=storybook", "--workers=2"]
    small = ["--tokenizer=bpe", "--vocab_size=300", "--stories=60"]
    done = subprocess.run([*command, *small], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tokenizer bpe, 300 tokens" in done.stdout and done.stderr == ""
    out = tmp_path / "data" / "storybook-bpe"
    assert len(stories_of(out, "train") + stories_of(out, "val")) == 60
    before = listing(tmp_path)
    process = subprocess.Popen(
        [*command, "--tokenizer=bytes", "--stories=100000000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(out.parent.glob(".*.new")):
        time.sleep(0.05)
    time.sleep(1)  # by now the workers have started, or are starting
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, stderr
    assert "Traceback" not in stderr
    assert listing(tmp_path) == before


SLEEPERS = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from nanostories.dataset import workers

class Sleeper:
    def __call__(self, block):
        open(f"{block}/{os.getpid()}", "w").close()
        time.sleep(60)

if __name__ == "__main__":
    with workers.worker_pool(Sleeper(), 2) as work:
        list(work([os.path.dirname(__file__)] * 2))
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_command(tmp_path):
    """kill -9 of the command alone: else they would wait for ever, holding their memory."""
    (tmp_path / "sleepers.py").write_text(SLEEPERS)
    process = subprocess.Popen([sys.executable, tmp_path / "sleepers.py", ROOT])
    deadline = time.monotonic() + 60

    def workers():
        return [path for path in tmp_path.iterdir() if path.name.isdigit()]

    def alive(path):
        try:
            return "Z" not in Path(f"/proc/{path.name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False

    while len(workers()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(map(alive, workers())) and len(workers()) == 2
    process.kill()
    process.wait()
    while any(map(alive, workers())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers()))
