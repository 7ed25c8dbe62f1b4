"""
Text to token ids and back, without loss: four byte-level BPE tokenizers behind one class.

    gpt2       GPT-2's own, 50,257 tokens (tiktoken downloads its two files once)
    gpt2-10k   10,000 of them, the paper's top-10K idea: the most frequent on the corpus, closed
               under merging and with all 256 bytes kept, so that any text still round-trips
    bpe        trained on the corpus with rustbpe, any size; needs no network
    bytes      the 256 bytes; the baseline, and the smallest possible head

Measured on held-out real stories, bytes per token: gpt2 4.06, gpt2-10k 4.05, a bpe of 4,096
trained on TinyStories 4.05. A small model's head shrinks 12 times at no cost in length.

All run in tiktoken. `save` writes a Hugging Face tokenizer.json, so the `tokenizers` library reads
the very file that we do. <|endoftext|> is always the last id; it separates stories and is never
the encoding of text: a story that holds those 13 characters keeps them as ordinary text.
"""

import errno
import functools
import hashlib
import itertools
import json
import re
from pathlib import Path

import numpy as np
import tiktoken

from configs import UserError

EOT = "<|endoftext|>"
NAMES = ("gpt2", "gpt2-10k", "bpe", "bytes")
MAX_VOCAB = 65_536  # token ids are stored as uint16
TOP_10K = 10_000

# How text is cut into pieces before merging: no merge crosses a piece. The first of each pair runs
# in tiktoken: a possessive `++` never backtracks. Its twin cuts the same pieces without it and is
# what tokenizer.json holds, because not every regex engine knows `++`.
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
# GPT-4's pattern, rustbpe's default: it keeps `.` and the line ends after it together, and takes
# 1.8 % fewer tokens than GPT-2's for a 4,096 BPE on real stories.
BPE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s*[\r\n]|\s++$|\s+(?!\S)|\s",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
)
# tiktoken's regex engine overflows its stack on about a million blanks in a row (it panics), so
# blank runs are cut at this length, far above any story's.
LONGEST_BLANK = 100_000


class Tokenizer:
    """
    A tiktoken.Encoding with the name, the size and the separator that the project needs.

    name: one of NAMES. vocab_size: all tokens, <|endoftext|> included. eot: its id, the last one.
    encoding: the tiktoken.Encoding. Picklable, so that worker processes can be handed one.
    """

    def __init__(self, name, ranks, patterns):
        """ranks: {token bytes: id}, ids 0..n-1 in the order of merging. patterns: a pair, above."""
        if len(ranks) >= MAX_VOCAB:
            raise UserError(
                f"the tokenizer has over {MAX_VOCAB:,} tokens; ids are stored as uint16"
            )
        self.name = name
        self.patterns = patterns
        self.eot = len(ranks)
        self.vocab_size = len(ranks) + 1
        self.encoding = tiktoken.Encoding(
            name, pat_str=patterns[0], mergeable_ranks=ranks, special_tokens={EOT: self.eot}
        )

    def encode(self, text):
        """The ids of `text`, a list of int; never <|endoftext|>, even where the text spells it."""
        return [i for part in _parts(text) for i in self.encoding.encode_ordinary(part)]

    def encode_prompt(self, text):
        """
        The ids of a text that a story is to go on from, as they begin that whole story's.

        Line ends at the end are cut apart otherwise when nothing follows them: GPT-2's tokens of
        " \\n\\n" are " ", "\\n\\n", but before a word they are " ", "\\n", "\\n".
        """
        if not text.endswith("\n"):
            return self.encode(text)
        return self.encode(text + "A")[:-1]  # one letter is one token, and never joins a line end

    def encode_stories(self, stories):
        """
        (tokens, lengths) of a list of str as they are stored: uint16, every story's ids with
        <|endoftext|> in front, and int64, how many are each one's. One call for all is quicker.
        """
        joined = "".join(EOT + story for story in stories)
        plain = (
            joined.count(EOT) == len(stories) and max(map(len, stories), default=0) <= LONGEST_BLANK
        )
        if plain and stories:
            ids = self.encoding.encode_to_numpy(joined, allowed_special={EOT}).astype(np.uint16)
            return ids, np.diff(np.flatnonzero(ids == self.eot), append=len(ids))
        # A story spells <|endoftext|> itself, or is long enough to need `encode`'s care.
        each = [np.array([self.eot, *self.encode(story)], np.uint16) for story in stories]
        lengths = np.array([len(ids) for ids in each], np.int64)
        return np.concatenate([np.empty(0, np.uint16), *each]), lengths

    def decode(self, ids):
        """The text of `ids`; bytes that are no UTF-8 (a cut character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids):
        """The exact bytes of `ids`. Raises KeyError for an id outside the vocabulary."""
        return self.encoding.decode_bytes([int(i) for i in ids])

    @functools.cached_property
    def token_bytes(self):
        """The bytes of each token, int64 (vocab_size,); <|endoftext|> counts as one."""
        sizes = np.ones(self.vocab_size, np.int64)
        for token, i in self.ranks.items():
            sizes[i] = len(token)
        return sizes

    @functools.cached_property
    def ranks(self):
        """{token bytes: id} of every token but <|endoftext|>."""
        tokens = self.encoding.token_byte_values()
        return {token: self.encoding.encode_single_token(token) for token in tokens}

    @functools.cached_property
    def fingerprint(self):
        """A hex digest of all that decides an encoding: two that are equal encode alike."""
        digest = hashlib.sha256(self.patterns[1].encode())
        for token in sorted(self.ranks, key=self.ranks.get):
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    def same_as(self, other):
        """Whether both give every text the same ids, whatever their names."""
        return self.fingerprint == other.fingerprint

    def save(self, path):
        """Write a Hugging Face tokenizer.json, which puts <|endoftext|> before every text."""
        text = json.dumps(_hub_format(self), ensure_ascii=False, indent=1)
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path):
        """
        The tokenizer of a tokenizer.json, or of the folder that holds one: one that `save` wrote,
        or GPT-2's as the hub has it, also as its older vocab.json.

        Raises UserError if the file is missing, damaged or another kind of tokenizer.
        """
        path = Path(path)
        if path.is_dir():
            older = not (path / "tokenizer.json").exists() and (path / "vocab.json").exists()
            path = path / ("vocab.json" if older else "tokenizer.json")
        if not path.is_file():
            raise UserError(f"no tokenizer at '{path}'")
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            patterns = GPT2_PATTERN
            if path.name == "vocab.json":
                vocab = saved
            else:
                vocab, patterns = saved["model"]["vocab"], _patterns_of(saved["pre_tokenizer"])
                pairs = (
                    p.split(" ") if isinstance(p, str) else p for p in saved["model"]["merges"]
                )
                merged = [vocab["".join(pair)] for pair in pairs]
                if merged != sorted(merged):
                    raise ValueError("its merges are not in the order of their ids")
            eot = vocab.get(EOT, len(vocab))
            codes = {char: byte for byte, char in _byte_chars().items()}
            ranks = {bytes(map(codes.get, t)): i for t, i in vocab.items() if i != eot}
            if sorted(ranks.values()) != list(range(eot)):
                raise ValueError("ids are not 0..n-1 with <|endoftext|> last")
            if not all(bytes([byte]) in ranks for byte in range(256)):
                raise ValueError("not every byte is a token")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"'{path}' is not a byte-level BPE like GPT-2's ({why})") from error
        return cls(_name_of(ranks, patterns), ranks, patterns)


def _patterns_of(pre_tokenizer):
    """The pair of patterns that a tokenizer.json cuts text by; raises ValueError for others."""
    if pre_tokenizer["type"] == "ByteLevel":  # the hub's GPT-2: its pattern is the library's own
        if pre_tokenizer.get("add_prefix_space") or not pre_tokenizer.get("use_regex", True):
            raise ValueError("its ByteLevel adds a space, or does not cut words")
        return GPT2_PATTERN
    regex = pre_tokenizer["pretokenizers"][0]["pattern"]["Regex"]
    (patterns,) = (p for p in (GPT2_PATTERN, BPE_PATTERN) if p[1] == regex)
    return patterns


def _parts(text):
    """`text` in pieces whose blank runs the regex engine can take: nearly always [text]."""
    if len(text) <= LONGEST_BLANK:
        return [text]
    runs = [run.span() for run in re.finditer(r"\s+", text)]
    cuts = [i for start, end in runs for i in range(start + LONGEST_BLANK, end, LONGEST_BLANK)]
    return [text[i:j] for i, j in itertools.pairwise([0, *cuts, len(text)])]


def _name_of(ranks, patterns):
    """The name of a loaded tokenizer, which the hub's format has no place for."""
    if patterns != GPT2_PATTERN:
        return "bpe"
    return {256: "bytes", TOP_10K - 1: "gpt2-10k"}.get(len(ranks), "gpt2")


# ----------------------------------------------------------------------------------------------
# making one


def build(name, vocab_size=4096, texts=()):
    """
    The tokenizer called `name`, or the one saved in the tokenizer.json (or folder) at that path.

    vocab_size: of bpe, <|endoftext|> included; on a small corpus rustbpe runs out of pairs to merge
    and the tokenizer is smaller: see its vocab_size. texts: iterator of str, read by bpe (to train
    on) and gpt2-10k (to count), once. Raises UserError for an unknown name, a size that is not
    257..65,536, or GPT-2's files out of reach.
    """
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
        raise UserError(
            f"vocab_size must be 257 (the bytes and {EOT}) to {MAX_VOCAB:,} (ids are stored as "
            f"uint16), not {vocab_size:,}"
        )
    import rustbpe  # only training needs it

    trainer = rustbpe.Tokenizer()
    parts = (part for text in texts for part in _parts(text))
    trainer.train_from_iterator(parts, vocab_size - 1, pattern=BPE_PATTERN[0])
    merged = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    return {bytes(token): rank for token, rank in merged}


def gpt2_ranks():
    """{token bytes: id} of GPT-2, 50,256 tokens; UserError where its files cannot be had."""
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
    """
    {token bytes: id} of the vocab_size - 1 tokens of `full` that `texts` use most, in `full`'s
    order, closed under merging: with a token come the two that it is merged from, down to bytes.

    Closed, the subset encodes as `full` does wherever the tokens of `full` are in it, and splits
    the others into their parts: the result is lossless, a tokenizer that maps rare words to
    <unk>, as the paper's does, is not.
    """
    counts, texts = np.zeros(full.vocab_size, dtype=np.int64), iter(texts)
    for batch in iter(lambda: list(itertools.islice(texts, 1024)), []):
        counts += np.bincount(full.encode_stories(batch)[0], minlength=full.vocab_size)
    tokens = sorted(full.ranks, key=full.ranks.get)
    kept = {token for token in tokens if len(token) == 1}
    for i in np.argsort(-counts[:-1], kind="stable"):
        family, new = [tokens[i]], []
        while family:  # the token and what it is merged from, as far as not yet kept
            token = family.pop()
            if token not in kept:
                new.append(token)
                family.extend(_merged_from(token, full.ranks))
        # A family too big for the places left is passed over for the next that fits.
        if len(kept) + len(set(new)) < vocab_size:
            kept.update(new)
        if len(kept) == vocab_size - 1:
            break
    return {token: i for i, token in enumerate(t for t in tokens if t in kept)}


def _merged_from(token, ranks):
    """The two parts that BPE merges into `token` last, found by replaying its merges."""
    splits = [(token[:i], token[i:]) for i in range(1, len(token))]
    splits = [(a, b) for a, b in splits if a in ranks and b in ranks]
    if len(splits) == 1:  # the usual case of long tokens, and quicker
        return list(splits[0])
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        i = joined.index(min(joined))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


# ----------------------------------------------------------------------------------------------
# tokenizer.json


@functools.cache
def _byte_chars():
    """{byte: printable character}, GPT-2's alphabet for writing tokens of any bytes in JSON."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def _hub_format(tokenizer):
    """The dict of the `tokenizers` library's JSON: its BPE model, byte-level, with EOT in front."""
    chars, ranks = _byte_chars(), tokenizer.ranks
    order = sorted(ranks, key=ranks.get)
    spelled = {token: "".join(chars[byte] for byte in token) for token in order}
    merges = [_merged_from(token, ranks) for token in order if len(token) > 1]
    eot = {"SpecialToken": {"id": EOT, "type_id": 0}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.patterns[1]}, "behavior": "Isolated"}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokenizer.eot, "content": EOT, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split | {"invert": False}, byte_level | {"use_regex": False}],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [eot, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [eot, *({"Sequence": {"id": name, "type_id": 0}} for name in "AB")],
            "special_tokens": {EOT: {"id": EOT, "ids": [tokenizer.eot], "tokens": [EOT]}},
        },
        "decoder": byte_level | {"use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spelled[token]: ranks[token] for token in order} | {EOT: tokenizer.eot},
            "merges": [f"{spelled[a]} {spelled[b]}" for a, b in merges],
        },
    }
