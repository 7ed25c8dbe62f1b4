"""The index of the training stories: as right as reading them all, and right after a kill."""

import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from story_data import made

from configs import UserError
from eval.memorization import inverted_index, nearest_story
from eval.memorization.nearest_story import NearestStory, StoryIndex
from nanostories.dataset import storybook, tokenizer
from nanostories.dataset.shards import Dataset
from nanostories.text.metrics import ngram_precision
from nanostories.text.words import ngrams, word_spans, words_and_marks

ODD = "aA bB.İß’'\"-é漢字😀\u0301\u200d_9,\n\t\x1c\u2028<|>"
texts = st.one_of(
    st.lists(st.sampled_from(["a", "b", "Cat", ",", "don't", "\n"]), max_size=12).map(" ".join),
    st.text(ODD, max_size=20), st.text(st.characters(codec="utf-8"), max_size=12),
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """Segments of three stories, and no waiting for the disk."""
    monkeypatch.setattr(inverted_index, "STORIES", 3)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def bigrams(stories):
    return [set(ngrams(words_and_marks(story), 2)) for story in stories]


def by_reading(words, stories):
    """The NearestStory by the definition: of equals the first, and (0, n, None) where none shares
    any. stories: the bigrams of each, a set.
    """
    grams = ngrams(words, 2)
    hits = [sum(gram in story for gram in grams) for story in stories]
    best = max(hits)
    return NearestStory(best, max(0, len(words) - 1), hits.index(best) if best else None)


def test_words_and_marks():
    text = 'Lily\'s "tea-time" isn’t at 5:30... İstanbul!'
    words = words_and_marks(text)
    assert words == [
        "lily's", '"', "tea-time", '"', "isn't", "at", "5", ":", "30", ".", ".", ".",
        "i", "̇", "stanbul", "!",
    ]  # fmt: skip
    assert [text[i:j] for i, j in word_spans(text)][:12] == [
        "Lily's", '"', "tea-time", '"', "isn’t", "at", "5", ":", "30", ".", ".", "."
    ]  # fmt: skip
    assert len(word_spans(text)) == len(words) and words_and_marks(" \n\t\u2028") == []


@given(st.text(ODD, max_size=30))
def test_words_hold_all_but_blanks(text):
    assert "".join(words_and_marks(text)) == "".join(text.split()).lower().replace("’", "'")
    assert len(word_spans(text)) == len(words_and_marks(text))


SOME = [
    "The cat sat.\n\nThen Tom’s dog ran!",
    "  \u00a0漢字 don't\u2028end\n",
    '"Oh, no!" he said.',
    ODD,
]
TOKENIZERS = [tokenizer.build("bytes"), tokenizer.build("bpe", 300, SOME * 3)]


@settings(deadline=None)  # the first call imports pyarrow
@given(st.lists(st.one_of(texts, st.sampled_from(SOME)), min_size=1, max_size=5))
def test_words_from_tokens_are_those_of_the_text(stories):
    """However a tokenizer cuts it: blanks before, after and between tokens, and half letters."""
    for one in TOKENIZERS:
        ids, lengths = one.encode_stories(stories)
        numbers, texts = inverted_index.number_chunks([ids, ids], one)
        stream, _, words = inverted_index.word_stream(numbers, texts)
        words_read = [["", *words][i] for i in stream]
        expected = [word for text in stories for word in ["", *words_and_marks(text)]]
        assert words_read == expected * 2  # in the second block, all chunks are known
        assert len(lengths) == len(stories)


number = iter(range(10**6))


@settings(deadline=None, max_examples=40)
@given(
    stories=st.lists(texts, min_size=1, max_size=9),
    texts_searched=st.lists(texts, max_size=4),
    block=st.integers(1, 60),
)
def test_the_index_is_as_right_as_reading(stories, texts_searched, block, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inverted_index, "STORIES", 3)
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(inverted_index, "BLOCK", block)
        folder = tmp_path_factory.getbasetemp() / f"index-{next(number)}"
        index = StoryIndex(made(folder, stories), workers=1)
        assert len(index.segments) == -(-len(stories) // 3)
        every = bigrams(stories)
        for text in [*texts_searched, *stories, " ".join(stories)]:
            words = words_and_marks(text)
            assert index.nearest(words) == by_reading(words, every)
        assert [index.text(i) for i in range(len(stories))] == stories


def test_many_stories(quick, tmp_path, monkeypatch):
    """Stories that share much, in segments of 50, and every way to split the work."""
    monkeypatch.setattr(inverted_index, "STORIES", 50)
    stories = [story.text for story in storybook.stories(330, seed=5)]
    index = StoryIndex(made(tmp_path / "data", stories[:300]), workers=1)
    cut = [text[len(text) // 3 :] for text in [*stories[::40], *stories[300:]]]
    asked = [words_and_marks(text) for text in cut]
    every = bigrams(stories[:300])
    expected = [by_reading(words, every) for words in asked]
    for pruning in (0.0, 0.3, 0.55, 1.0):
        monkeypatch.setattr(nearest_story, "PRUNING", pruning)
        assert [index.nearest(words) for words in asked] == expected
    for words, near in zip(asked, expected, strict=True):
        story = words_and_marks(stories[near.story])
        assert near.precision == pytest.approx(ngram_precision(words, story))


def test_the_first_of_equals(quick, tmp_path):
    """In one segment and over several."""
    index = StoryIndex(made(tmp_path / "data", ["x y.", "a b c.", "a b c!", "z.", "a b c d."]), 1)
    assert index.nearest(["a", "b", "c"]) == (2, 2, 1)
    assert index.nearest(["a", "b", "c", "d"]) == (3, 3, 4)
    assert index.nearest(["q", "r"]) == (0, 1, None) and np.isnan(index.nearest(["a"]).precision)


def test_repeated_bigrams_count_as_often(tmp_path):
    """a b a b a b: story 0 has ba, 2 of 5; story 1 has ab, 3 of 5."""
    index = StoryIndex(made(tmp_path / "data", ["b a", "a b", "c c"]), 1)
    assert index.nearest(list("ababab")) == (3, 5, 1)


def test_the_files(quick, tmp_path):
    """What the head of inverted_index.py says of them, for a segment of two stories."""
    data = made(tmp_path / "data", ["The cat. Then Tom saw the cat", "A cat"])
    index = StoryIndex(data, 1)
    (one,) = index.segments
    assert sorted(one.words) == [".", "a", "cat", "saw", "the", "then", "tom"]
    expected = ["", "the", "cat", ".", "then", "tom", "saw", "the", "cat", "", "a", "cat"]
    assert [["", *one.words][i] for i in one.stream] == expected
    names = {tuple(divmod(int(key), 8)): i for i, key in enumerate(one.bigrams)}
    cat = names[one.words.index("the") + 1, one.words.index("cat") + 1]
    assert one.posting_ends[-1] == len(one.postings) == 7
    assert one.postings[
        one.posting_ends[cat - 1] if cat else 0 : one.posting_ends[cat]
    ].tolist() == [0]
    # Tom has a capital inside a sentence; Then stands at the beginning of one.
    counts = dict(zip(["", *one.words], one.word_counts.tolist(), strict=True))
    assert counts["tom"] == [1, 1, 1] and counts["then"] == [1, 0, 0] and counts["the"] == [2, 1, 0]


def test_stories_as_the_data_has_them(quick, tmp_path):
    """Over several shards; one that spells <|endoftext|>; of Instruct's records, the story."""
    stories = ["One <|endoftext|> more.", "", "Two\n\ntwo.", "Three."]
    prompts = ["Words: dog cat\nStory: "] * 4
    data = made(tmp_path / "data", stories, prompts=prompts, shard_tokens=60)
    assert len(data.shards) > 1
    index = StoryIndex(data, 1)
    assert [index.text(i) for i in range(4)] == stories
    assert index.nearest(["dog", "cat"]).matched == 0 and "dog" not in index.numbers
    assert index.nearest(words_and_marks("<|endoftext|> more")) == (5, 5, 0)


def test_another_data_folder_has_another_index(quick, tmp_path):
    """Also where it takes the place of the old one, whose index has stayed."""
    data = made(tmp_path / "data", ["a b"])
    StoryIndex(data, 1)
    (tmp_path / "data" / "inverted_index").rename(tmp_path / "kept")
    shutil.rmtree(tmp_path / "data")
    other = made(tmp_path / "data", ["c d"])
    (tmp_path / "kept").rename(tmp_path / "data" / "inverted_index")
    assert inverted_index.index_folder(other) != inverted_index.index_folder(data)
    assert StoryIndex(other, 1).nearest(["c", "d"]).matched == 1
    assert StoryIndex(other, 1).nearest(["a", "b"]).matched == 0


def test_an_index_is_built_once(quick, tmp_path, monkeypatch):
    data = made(tmp_path / "data", ["a b", "b c", "c d", "d e"])
    StoryIndex(data, 1)
    monkeypatch.setattr(inverted_index, "build", None)
    assert StoryIndex(data, 1).nearest(["d", "e"]) == (1, 1, 3)


def test_large_segments_are_cut_by_tokens(quick, tmp_path, monkeypatch):
    """At most 12 tokens, a byte and <|endoftext|> each; a longer story is alone."""
    monkeypatch.setattr(inverted_index, "TOKENS", 12)
    data = made(tmp_path / "data", ["aaaa", "bbbb", "cccc", "d" * 40, "e", "f", "g", "h"])
    assert inverted_index.segment_boundaries(data) == [0, 2, 3, 4, 7, 8]
    assert StoryIndex(data, 1).nearest(["e", "f"]).matched == 0


# ---- kills -------------------------------------------------------------------------------------


def _slow_build(folder, pause):
    """Build with a pause before each file is written, and flushed; three stories a segment."""
    inverted_index.STORIES = 3
    os.fsync = lambda file: time.sleep(pause)
    build, save = inverted_index.build, np.save

    def slow(path, array):
        time.sleep(pause)
        save(path, array)

    np.save = slow

    def logged(data_folder, split, block):
        with open(folder / "built", "a") as file:
            file.write(f"{block[2].name}\n")
        build(data_folder, split, block)

    inverted_index.build = logged
    StoryIndex(Dataset(folder, "train"), 1)


@pytest.mark.parametrize("seconds", [0.15, 0.4])
def test_killed_and_gone_on_with(seconds, quick, tmp_path):
    """kill -9 in the middle; the segments that are there are whole, and the others are made."""
    stories = [story.text for story in storybook.stories(12)]
    data = made(tmp_path / "data", stories)
    folder = inverted_index.index_folder(data)
    process = multiprocessing.get_context("fork").Process(
        target=_slow_build, args=(data.folder, 0.02)
    )
    process.start()
    deadline = time.monotonic() + 30
    while not folder.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix == ""}
    assert len(before) < 4
    index = StoryIndex(data, 1)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(after) == ["0000", "0001", "0002", "0003"]
    assert before.items() <= after.items()
    for text in stories:
        words = words_and_marks(text)[4:]
        assert index.nearest(words) == by_reading(words, bigrams(stories))


@pytest.mark.slow
def test_killed_again_and_again(quick, tmp_path):
    """Twelve times at any moment: what is there is always whole, and in the end all of it."""
    stories = [story.text for story in storybook.stories(30)]
    data = made(tmp_path / "data", stories)
    folder, draw = inverted_index.index_folder(data), np.random.default_rng(0)
    every = bigrams(stories)
    for _ in range(12):
        process = multiprocessing.get_context("fork").Process(
            target=_slow_build, args=(data.folder, 0.01)
        )
        process.start()
        time.sleep(draw.uniform(0.1, 0.5))
        process.kill()
        process.join()
        for path in folder.glob("????"):
            one = inverted_index.Segment(path)
            first = 3 * int(path.name)
            words_read = " ".join(["", *one.words][i] for i in one.stream)
            words = (["", *words_and_marks(text)] for text in stories[first : first + 3])
            assert words_read == " ".join(" ".join(each) for each in words)
    index = StoryIndex(data, 1)
    assert len(index.segments) == 10 and all(path.name.isdigit() for path in folder.iterdir())
    for text in stories:
        words = words_and_marks(text)[4:]
        assert index.nearest(words) == by_reading(words, every)


def test_what_a_killed_command_left_is_removed(quick, tmp_path):
    """Half a segment, one that was about to be removed, and the index of other data."""
    data = made(tmp_path / "data", ["a b", "b c"])
    folder = inverted_index.index_folder(data)
    for name in (".0000.1.new", ".0001.2.old", "..0001.2.new.removed", "../train-0123456789abcdef"):
        (folder / name).mkdir(parents=True)
        (folder / name / "stream.npy").write_bytes(b"x")
    assert StoryIndex(data, 1).nearest(["b", "c"]) == (1, 1, 1)
    assert [path.name for path in folder.iterdir()] == ["0000"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / "0000").stat().st_mode & 0o777 == folder.stat().st_mode & 0o777


def test_a_failed_build_leaves_nothing(quick, tmp_path, monkeypatch):
    def full(path, array):
        raise OSError(28, "No space left on device")

    data = made(tmp_path / "data", ["a b"])
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        StoryIndex(data, 1)
    assert not list(inverted_index.index_folder(data).iterdir())


@pytest.mark.parametrize(
    "name", ["stream", "word_counts", "bigrams", "posting_ends", "postings", "words"]
)
def test_damage_is_reported(name, quick, tmp_path):
    """A file that is missing, empty, cut off or, whole in itself, of another length."""
    data = made(tmp_path / "data", ["a b c", "b c d"])
    StoryIndex(data, 1)
    (path,) = inverted_index.index_folder(data).glob(f"0000/{name}.*")
    before = path.read_bytes()
    shorter = before[: before.rfind(b"\n", 0, -1) + 1]
    if name != "words":
        np.save(path, np.load(path)[:-1])
        shorter = path.read_bytes()
    for damaged in (None, b"", before[:-2], shorter):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged: remove it"):
            StoryIndex(data, 1)
        path.touch()
    path.write_bytes(before)
    assert StoryIndex(data, 1).nearest(["c", "d"]) == (1, 1, 1)


@pytest.mark.slow
def test_workers_build_the_same(tmp_path, monkeypatch):
    """Two processes, five segments; and stories on both sides of number 65,535."""
    many = [f"w{i % 500} x{i // 500}" for i in range(inverted_index.STORIES + 3)]
    data = made(tmp_path / "data", many)
    index = StoryIndex(data, 2)
    assert len(index.segments) == 2
    for i in (0, 65_535, 65_536, 65_538):
        assert index.nearest(many[i].split()) == (1, 1, i)


def test_two_at_once(quick, tmp_path):
    """The second waits for the first and builds nothing again."""
    data = made(tmp_path / "data", ["a b", "b c", "c d", "d e", "e f", "f g", "g h"])
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_slow_build, args=(data.folder, 0.01)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (data.folder / "built").read_text().split() == ["0000", "0001", "0002"]
    assert StoryIndex(data, 1).nearest(["g", "h"]) == (1, 1, 6)
