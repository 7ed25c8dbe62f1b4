"""Text to token ids and back, without loss: four byte-level BPE tokenizers in one class.

    gpt2       GPT-2's own, 50,257 tokens (tiktoken downloads its two files once)
    gpt2-10k   10,000 of them, the paper's top-10K idea: the most frequent on the corpus, closed
               under merging and with all 256 bytes kept, so that any text still round-trips
    bpe        trained on the corpus with rustbpe, any size; needs no network
    bytes      the 256 bytes: the baseline, and the smallest possible head

Bytes per token on held-out real stories: gpt2 4.06, gpt2-10k 4.05, a bpe of 4,096 trained on
TinyStories 4.05. So a small model's head shrinks 12 times while stories stay as short.

All run in tiktoken. `save` writes a Hugging Face tokenizer.json, which the `tokenizers` library
reads too. <|endoftext|> is always the last id and separates stories: in a story those 13 characters
are ordinary text.
"""

import contextlib
import errno
import itertools
import json
import re
from pathlib import Path

import numpy as np
import tiktoken

from configs import UserError
from nanostories.storage import read_json, sha256

EOT = "<|endoftext|>"
NAMES = ("gpt2", "gpt2-10k", "bpe", "bytes")
MAX_VOCAB = 65_536  # token ids are stored as uint16
TOP_10K = 10_000

# Pairs of regexes that split text before merging; no merge crosses a split. tiktoken runs the first
# of a pair, whose possessive `++` never backtracks. tokenizer.json holds the second: it splits the
# same way without `++`, which not every regex engine has.
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
# GPT-4's pattern, rustbpe's default: it keeps `.` and the line ends after it together, and needs
# 1.8 % fewer tokens than GPT-2's for a 4,096 BPE on real stories.
BPE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s*[\r\n]|\s++$|\s+(?!\S)|\s",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
)
# tiktoken's regex engine overflows its stack (it panics) on about a million blanks in a row, so
# runs of blanks are cut at this length, far above any story's.
MAX_BLANKS = 100_000
MAX_TOKEN = 128  # bytes of a trained token: a longer one is a run of equal characters, or damage


class Tokenizer:
    """A tiktoken.Encoding with the name, the size and the separator that the project needs. name:
    one of NAMES. ranks: {token bytes: id}, ids 0..n-1 in the order of merging, no <|endoftext|>.
    patterns: a pair as above. tokens: list of bytes, those of each id. Picklable."""

    def __init__(self, name, ranks, patterns):
        if len(ranks) >= MAX_VOCAB:
            raise UserError(f"over {MAX_VOCAB:,} tokens: their ids are stored as uint16")
        self.name, self.ranks, self.patterns = name, ranks, patterns
        self.tokens = sorted(ranks, key=ranks.get)
        self.eot, self.vocab_size = len(ranks), len(ranks) + 1
        self.encoding = tiktoken.Encoding(
            name, pat_str=patterns[0], mergeable_ranks=ranks, special_tokens={EOT: self.eot}
        )

    def encode(self, text):
        """The ids of `text`, list of int; never <|endoftext|>, even where the text contains it."""
        return [i for part in _split_blanks(text) for i in self.encoding.encode_ordinary(part)]

    def encode_prompt(self, text):
        """The ids of a text that a story continues: the first ids of the whole. Blanks and line
        ends before a word are split differently from those at the end of a text: GPT-2's tokens of
        " \\n\\n" are " ", "\\n\\n", but before a word they are " ", "\\n", "\\n"."""
        if text[-1:].isspace():
            *ids, last = self.encode(text + "A")
            if self.tokens[last] == b"A":
                return ids
            if self.tokens[last] == (text[-1] + "A").encode():  # a blank joins the word
                return ids + self.encode(text[-1])
        return self.encode(text)

    def encode_stories(self, stories):
        """(tokens, lengths) of a list of str as they are stored: the ids of all stories, uint16,
        each with <|endoftext|> in front, and the number of each one's ids, int64."""
        joined = EOT.join(["", *stories])
        longest = max(map(len, stories), default=0)
        if stories and joined.count(EOT) == len(stories) and longest <= MAX_BLANKS:
            ids = self.encoding.encode_to_numpy(joined, allowed_special={EOT}).astype(np.uint16)
            return ids, np.diff(np.flatnonzero(ids == self.eot), append=len(ids))
        # Slower: a story contains <|endoftext|> as text, or may contain too many blanks.
        ids = [np.array([self.eot, *self.encode(story)], np.uint16) for story in stories]
        lengths = np.array([len(story_ids) for story_ids in ids], np.int64)
        return np.concatenate([np.empty(0, np.uint16), *ids]), lengths

    def decode(self, ids):
        """The text of `ids`; bytes that are not UTF-8 (a cut character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids):
        """The exact bytes of `ids`. Raises KeyError for an id outside the vocabulary."""
        return self.encoding.decode_bytes([int(i) for i in ids])

    @property
    def token_bytes(self):
        """The number of bytes of each token, int64 (vocab_size,); <|endoftext|> counts as one."""
        return np.array([*map(len, self.tokens), 1], np.int64)

    def same_as(self, other):
        """Whether both give every text the same ids, whatever their names."""
        return (self.patterns, self.ranks) == (other.patterns, other.ranks)

    def save(self, path):
        """Write a Hugging Face tokenizer.json, which puts <|endoftext|> in front of every text."""
        filled = json.loads(Path(__file__).with_name("tokenizer_template.json").read_text("utf-8"))
        filled["added_tokens"][0]["id"] = self.eot
        filled["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = self.patterns[1]
        filled["post_processor"]["special_tokens"][EOT]["ids"] = [self.eot]
        characters = _byte_characters()
        written = {token: "".join(map(characters.get, token)) for token in self.tokens}
        merges = (merge_parts(token, self.ranks) for token in self.tokens if len(token) > 1)
        filled["model"]["vocab"] = {token: i for i, token in enumerate([*written.values(), EOT])}
        filled["model"]["merges"] = [f"{written[a]} {written[b]}" for a, b in merges]
        text = json.dumps(filled, ensure_ascii=False, indent=1)
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path):
        """The tokenizer of a tokenizer.json, or of the folder that holds one: one that `save`
        wrote, or GPT-2's as the hub has it, also as its older vocab.json."""
        path = Path(path)
        if path.is_dir():
            older = not (path / "tokenizer.json").exists() and (path / "vocab.json").exists()
            path = path / ("vocab.json" if older else "tokenizer.json")
        if not path.is_file():
            raise UserError(f"no tokenizer at '{path}'")
        for record in map(path.with_name, ("manifest.json", "config.json")):  # of data, of a run
            with contextlib.suppress(KeyError, TypeError):  # older, or a published model's
                stated = record.exists() and read_json(record)["files"][path.name]["sha256"]
                if stated and stated != sha256(path):
                    raise UserError(f"{path} is damaged: {record.name} has another sha256 of it")
        try:
            vocab, patterns = json.loads(path.read_text(encoding="utf-8")), GPT2_PATTERN
            if path.name != "vocab.json":
                vocab, patterns = _read_model(vocab)
            eot = vocab.get(EOT, len(vocab))
            byte_of = {char: byte for byte, char in _byte_characters().items()}
            ranks = {bytes(map(byte_of.get, t)): i for t, i in vocab.items() if i != eot}
            if sorted(ranks.values()) != list(range(eot)):
                raise ValueError("ids are not 0..n-1 with <|endoftext|> last")
            if not all(bytes([byte]) in ranks for byte in range(256)):
                raise ValueError("not every byte is a token")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"'{path}' is not a byte-level BPE like GPT-2's ({error!r})") from error
        # The format has no place for the name.
        names = {256: "bytes", TOP_10K - 1: "gpt2-10k"}
        name = names.get(len(ranks), "gpt2") if patterns == GPT2_PATTERN else "bpe"
        return cls(name, ranks, patterns)


def _byte_characters():
    """{byte: printable character}, GPT-2's alphabet for writing tokens of any bytes in JSON."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [*printable, *range(256, 256 + len(others))]
    return dict(zip(printable + others, map(chr, characters), strict=True))


def _read_model(saved):
    """(vocabulary, patterns) of the JSON of a tokenizer.json; ValueError for another kind."""
    vocab, splitter = saved["model"]["vocab"], saved["pre_tokenizer"]
    pairs = (p.split(" ") if isinstance(p, str) else p for p in saved["model"]["merges"])
    merged = [vocab["".join(pair)] for pair in pairs]
    if merged != sorted(merged):
        raise ValueError("its merges are not in the order of their ids")
    if splitter["type"] == "ByteLevel":  # the hub's GPT-2: the library has its pattern built in
        if splitter.get("add_prefix_space") or not splitter.get("use_regex", True):
            raise ValueError("its ByteLevel adds a space, or does not split words")
        return vocab, GPT2_PATTERN
    regex = splitter["pretokenizers"][0]["pattern"]["Regex"]
    (patterns,) = (pair for pair in (GPT2_PATTERN, BPE_PATTERN) if pair[1] == regex)
    return vocab, patterns


def _split_blanks(text):
    """`text` in parts whose runs of blanks the regex engine can take: nearly always [text]."""
    if len(text) <= MAX_BLANKS:
        return [text]
    runs = (run.span() for run in re.finditer(r"\s+", text))
    cuts = [i for start, end in runs for i in range(start + MAX_BLANKS, end, MAX_BLANKS)]
    return [text[i:j] for i, j in itertools.pairwise([0, *cuts, len(text)])]


def build(name, vocab_size=4096, texts=()):
    """The tokenizer called `name`, or the one saved in the tokenizer.json (or folder) at that path.
    texts: iterable of str that bpe is trained on and gpt2-10k is counted on. vocab_size: of bpe,
    with <|endoftext|>; a small corpus runs out of pairs to merge and gives fewer."""
    if name == "bytes":
        return Tokenizer(name, {bytes([i]): i for i in range(256)}, GPT2_PATTERN)
    if name == "bpe":
        return Tokenizer(name, train_bpe(vocab_size, texts), BPE_PATTERN)
    if name in ("gpt2", "gpt2-10k"):
        gpt2 = Tokenizer("gpt2", gpt2_ranks(), GPT2_PATTERN)
        if name == "gpt2":
            return gpt2
        return Tokenizer(name, most_frequent(gpt2, texts, TOP_10K), GPT2_PATTERN)
    if Path(name).exists():
        return Tokenizer.load(name)
    raise UserError(f"no tokenizer '{name}': it is one of {', '.join(NAMES)}, or a tokenizer.json")


def train_bpe(vocab_size, texts):
    """{token bytes: id} of a BPE trained on `texts`, at most vocab_size - 1 tokens (no EOT)."""
    if not 257 <= vocab_size <= MAX_VOCAB:
        limits = f"257 (the bytes and {EOT}) to {MAX_VOCAB:,} (ids are stored as uint16)"
        raise UserError(f"vocab_size must be {limits}, not {vocab_size:,}")
    import rustbpe  # only training needs it

    trainer = rustbpe.Tokenizer()
    parts = (part for text in texts for part in _split_blanks(text))
    trainer.train_from_iterator(parts, vocab_size - 1, pattern=BPE_PATTERN[0])
    # No token is made of a longer one, so without the long ones it is a BPE still.
    short = (token for token, _ in trainer.get_mergeable_ranks() if len(token) <= MAX_TOKEN)
    return {bytes(token): rank for rank, token in enumerate(short)}


def gpt2_ranks():
    """{token bytes: id} of GPT-2, 50,256 tokens; UserError where its files are out of reach."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a bad hash a ValueError
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise UserError(
            "GPT-2's tokenizer files are neither cached nor to be had from the network: use "
            "--tokenizer=bpe, which needs none, or set TIKTOKEN_CACHE_DIR to a folder with them"
        ) from error
    return {t: encoding.encode_single_token(t) for t in encoding.token_byte_values()}


def most_frequent(full, texts, vocab_size):
    """{token bytes: id} of the vocab_size - 1 tokens of the Tokenizer `full` that `texts` use most,
    in `full`'s order, closed under merging: with a token come the two that it is merged from. So it
    encodes as `full` does, but splits the tokens that it lacks into their parts, down to bytes:
    lossless, unlike the paper's tokenizer, which maps rare words to <unk>."""
    counts, texts = np.zeros(full.vocab_size, dtype=np.int64), iter(texts)
    for batch in iter(lambda: list(itertools.islice(texts, 1024)), []):
        counts += np.bincount(full.encode_stories(batch)[0], minlength=full.vocab_size)
    kept = {token for token in full.tokens if len(token) == 1}
    for i in np.argsort(-counts[:-1], kind="stable"):
        stack, new = [full.tokens[i]], set()
        while stack:  # the token and what it is merged from, unless kept
            token = stack.pop()
            if token not in kept:
                new.add(token)
                stack.extend(merge_parts(token, full.ranks))
        # A token with too many parts for the places left is skipped for the next that fits.
        if len(kept) + len(new) < vocab_size:
            kept |= new
        if len(kept) == vocab_size - 1:
            break
    return {token: i for i, token in enumerate(t for t in full.tokens if t in kept)}


def merge_parts(token, ranks):
    """The two parts that BPE merges into `token` last, by repeating its merges."""
    cuts = [i for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
    if len(cuts) == 1:  # a quarter of GPT-2's tokens, half of a 4,096 BPE's
        return [token[: cuts[0]], token[cuts[0] :]]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        i = joined.index(min(joined))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
