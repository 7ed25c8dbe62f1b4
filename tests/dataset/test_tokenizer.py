"""Tokenizers: lossless on any text, and the same in tiktoken and in Hugging Face's tokenizers."""

import itertools
import pickle

import numpy as np
import pytest
import requests
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import UserError
from nanostories.dataset import storybook
from nanostories.dataset import tokenizer as module
from nanostories.dataset.tokenizer import EOT, NAMES, Tokenizer, build

ODD = [
    "",
    EOT,
    f"She said {EOT} aloud.{EOT}",
    "Lone\rcarriage return,\r\nWindows line ends.\r\n\r\n",
    "NUL \0 and control \x1c\x85 bytes",
    "  blanks \t\n\n \u00a0\u2003 before words   ",
    "emoji 🐉👩‍👩‍👧 café ﬁ “quotes” 漢字 ٣½",
    "It's WE'LL don't 12345 !!!\n\n\nOnce",
]
# Characters of every kind, between letters: each its own way to be cut.
EVERY = "".join(
    f"a{chr(i)}b {chr(i)}1"
    for i in [*range(0x500), *range(0x500, 0x110000, 97)]
    if not 0xD800 <= i < 0xE000
)


@pytest.fixture(scope="module")
def stories():
    return [story.text for story in storybook.stories(300, seed=1)]


@pytest.fixture(scope="module")
def made(stories):
    return {name: build(name, 600, iter(stories)) for name in NAMES}


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for name, tokenizer in made.items():
        tokenizer.save(folder / f"{name}.json")
    return folder


texts = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from([*" \n\r\t.!?'aZ0é🐉", EOT, "\0", "the", " dragon"])
).map("".join)


@pytest.mark.parametrize("name", NAMES)
def test_any_text_comes_back(made, name):
    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(texts)
    def check(text):
        ids = made[name].encode(text)
        assert made[name].decode(ids) == text
        assert made[name].decode_bytes(ids) == text.encode()
        assert made[name].eot not in ids

    check()


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_separator(made, name):
    expected = {"gpt2": 50_257, "gpt2-10k": 10_000, "bpe": 600, "bytes": 257}
    tokenizer = made[name]
    assert tokenizer.name == name
    assert tokenizer.vocab_size == expected[name] == tokenizer.encoding.n_vocab
    assert tokenizer.eot == tokenizer.vocab_size - 1
    assert tokenizer.decode([tokenizer.eot]) == EOT
    assert sorted(tokenizer.ranks.values()) == list(range(tokenizer.eot))


@pytest.mark.parametrize("name", NAMES)
def test_hugging_face_reads_our_file(made, saved, stories, name):
    ours, theirs = made[name], tokenizers.Tokenizer.from_file(str(saved / f"{name}.json"))
    assert theirs.get_vocab_size() == ours.vocab_size
    assert theirs.token_to_id(EOT) == ours.eot
    assert theirs.encode("Once").ids == [ours.eot, *ours.encode("Once")]
    # The library finds special tokens in text unless told that text is text.
    theirs.encode_special_tokens = True
    for text in [*stories, *ODD, EVERY]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_is_the_same(made, saved, stories, name):
    loaded = Tokenizer.load(saved / f"{name}.json")
    assert (loaded.name, loaded.vocab_size, loaded.eot) == (
        name,
        made[name].vocab_size,
        made[name].eot,
    )
    assert loaded.same_as(made[name])
    assert pickle.loads(pickle.dumps(loaded)).same_as(made[name])
    others = [other for other in NAMES if other != name]
    assert not any(loaded.same_as(made[other]) for other in others)
    assert [loaded.encode(text) for text in ODD] == [made[name].encode(text) for text in ODD]
    # Built from a path, as `prepare.py --tokenizer=out/run/tokenizer.json` does.
    assert build(str(saved / f"{name}.json")).same_as(loaded)


@pytest.mark.parametrize("name", NAMES)
def test_stories_in_one_call(made, stories, name):
    tokenizer = made[name]
    for batch in ([], stories[:20], ODD, ["tail <", "|endoftext|> head"], [" " * 300_000 + "x"]):
        tokens, lengths = tokenizer.encode_stories(batch)
        expected = [[tokenizer.eot, *tokenizer.encode(story)] for story in batch]
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == list(itertools.chain(*expected))
        assert lengths.tolist() == [len(ids) for ids in expected]


def test_gpt2_is_gpt2(made):
    assert made["gpt2"].encode("Once upon a time") == [7454, 2402, 257, 640]
    assert made["gpt2"].ranks == tiktoken.get_encoding("gpt2")._mergeable_ranks


def test_gpt2_10k_is_the_most_frequent_closed_under_merging(made, stories):
    full, small = made["gpt2"], made["gpt2-10k"]
    assert {bytes([i]) for i in range(256)} <= small.ranks.keys() <= full.ranks.keys()
    for token in small.ranks:
        if len(token) > 1:
            a, b = module.merge_parts(token, full.ranks)
            assert a in small.ranks and b in small.ranks
    # The order of merging is kept, and these few stories use fewer tokens than there is room for.
    order = sorted(small.ranks, key=small.ranks.get)
    assert order == sorted(small.ranks, key=full.ranks.get)
    for story in stories[:50]:
        assert small.decode_bytes(small.encode(story)) == story.encode()
        assert len(small.encode(story)) == len(full.encode(story))


@pytest.mark.parametrize("name", ["gpt2", "bpe"])
def test_merge_parts_repeats_all_merges(made, name):
    """Also where it knows the parts without repeating them."""

    def repeated(token, ranks):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
            i = joined.index(min(joined))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts

    ranks = made[name].ranks
    tokens = [token for token in ranks if len(token) > 1]
    assert all(module.merge_parts(token, ranks) == repeated(token, ranks) for token in tokens)


def test_gpt2_10k_cut_follows_frequency(made):
    # With room for one word beyond the bytes and its parts, the more frequent one gets it.
    full = made["gpt2"]
    texts = [" dragon dragon dragon princess princess knight"]
    parts = {" dragon"}
    family = [" dragon"]
    while family:
        token = family.pop().encode()
        if len(token) > 1:
            found = [part.decode() for part in module.merge_parts(token, full.ranks)]
            parts.update(found)
            family += found
    longer = {part.encode() for part in parts if len(part) > 1}
    cut = module.most_frequent(full, texts, 256 + len(longer) + 1)
    assert {token for token in cut if len(token) > 1} == longer


def test_a_million_blanks():
    # tiktoken panics on them: its regex engine runs out of stack.
    tokenizer = build("bytes")
    text = " " * 1_200_000 + "a" + "\n" * 150_000 + "b"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bpe_on_a_small_corpus_says_its_size():
    tokenizer = build("bpe", 4096, ["aaab aaab"] * 4)
    assert 257 < tokenizer.vocab_size < 300
    assert tokenizer.decode(tokenizer.encode("aaab b\0é")) == "aaab b\0é"
    # The empty corpus leaves the bytes.
    assert build("bpe", 4096, []).vocab_size == 257


@pytest.mark.parametrize("size", [0, 256, 65_537, 100_000])
def test_vocab_size_out_of_range(size):
    with pytest.raises(UserError, match="65,536"):
        build("bpe", size, ["some text"])


def test_no_network_and_no_cache(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise requests.exceptions.ConnectionError("Failed to resolve host")

    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(requests, "get", fail)
    with pytest.raises(UserError, match="--tokenizer=bpe") as error:
        build("gpt2")
    assert "\n" not in str(error.value) and "TIKTOKEN_CACHE_DIR" in str(error.value)


def test_not_a_tokenizer(tmp_path, saved):
    with pytest.raises(UserError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "none.json")
    with pytest.raises(UserError, match="no tokenizer 'bpee'"):
        build("bpee")
    for text in ("", "{}", "[]", "[" * 100_000, (saved / "bpe.json").read_text()[:5000]):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="is not a byte-level BPE like GPT-2's"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["bytes", "gpt2", "bpe"])
def test_a_beginning_has_the_tokens_of_the_whole(name):
    made = build(name, 400, [story.text for story in storybook.stories(200)])
    for beginning in (
        "Story: \n\n",
        "Summary: He ran.\nStory:\n",
        "Once",
        "Café. \n",
        "",
        "a \n \n",
    ):
        for rest in ("Once upon", '"Hi," he said.', "“Hi”", "3 bears", "é", "'t"):
            ids = made.encode(beginning + rest)
            begun = made.encode_prompt(beginning)
            if beginning.endswith("\n"):
                assert ids[: len(begun)] == begun, (beginning, rest)
            assert made.decode(begun) == beginning
