"""An inverted index of the training stories: which of them hold a given pair of words.

    segments = open_index(Dataset("data/tinystories-bpe", "train"))    # builds what is missing

Stories are cut into words and punctuation (words.words_and_marks), and indexed in segments of
65,536 stories. A segment is a folder data/<name>/inverted_index/train-<hash of the data>/<number>:

    words.txt           its distinct words, one a line; the first has number 1
    stream.npy          all its words in order by their numbers, a 0 before each story
    word_counts.npy     (words + 1, 3): the occurrences of each word; of these, those inside a
                        sentence and after a blank; of these, those with a capital letter
    bigrams.npy         its distinct bigrams, ascending: first * (words + 1) + second
    posting_ends.npy    where the posting list of each bigram ends
    postings.npy        the posting lists, one after the other: the stories that hold the bigram,
                        ascending, each once
    SHA256SUMS          the sha256 of each of these files

A segment is written whole or not at all, so after a kill the next command builds only the missing
ones. The folder's name holds the sha256 of the shards: an index always belongs to its data.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import shutil
from collections import defaultdict

import numpy as np
from tqdm import tqdm

from configs import UserError
from nanostories import storage
from nanostories.dataset.shards import Dataset
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.dataset.workers import cpu_count, worker_pool
from nanostories.text.words import words_and_marks

ARRAYS = ("stream", "word_counts", "bigrams", "posting_ends", "postings")
VERSION = 4  # of the files above and of what a word is
STORIES = 1 << 16  # in a segment: their numbers in it are uint16
TOKENS = 1 << 25  # in a segment at most, unless a single story has more: 0.5 GB to build
MAX_WORKERS = 4  # by default: together they stay under 4 GB
BLOCK = 1 << 19  # tokens processed together: their arrays fit a cache
_SENTENCE_ENDS = tuple(".!?…:\"“”'’")  # after these a capital letter means nothing


def index_folder(data):
    """The folder of the segments of a Dataset."""
    names = [*data.manifest["splits"][data.split]["shards"], f"{data.split}_stories.npy"]
    names += ["tokenizer.json", *([f"{data.split}_answer.npy"] if data.answers is not None else [])]
    facts = [VERSION, STORIES, TOKENS, *(data.manifest["files"][name]["sha256"] for name in names)]
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return data.folder / "inverted_index" / f"{data.split}-{name}"


def segment_boundaries(data):
    """The first story of each segment of a Dataset, and the number of all stories: a list."""
    bounds = [0]
    while bounds[-1] < data.stories:
        full = np.searchsorted(data.starts, data.starts[bounds[-1]] + TOKENS, side="right") - 1
        bounds.append(int(min(max(full, bounds[-1] + 1), bounds[-1] + STORIES, data.stories)))
    return bounds


def story_text(data, tokenizer, i):
    """The text of story number i of a Dataset; of an Instruct record, its story."""
    ids = data.story(i)[data.answers[i] if data.answers is not None else 1 :]
    return tokenizer.decode(ids.tolist())


def token_blocks(data, first, last, tokens=BLOCK):
    """Yield the tokens of stories first to last of a Dataset, uint16, in blocks of about `tokens`
    that end with a story; of Instruct records, <|endoftext|> and the story."""
    while first < last:
        start = data.starts[first]
        shard_end = data.shard_ends[np.searchsorted(data.shard_ends, start, side="right")]
        stop = np.searchsorted(data.starts, min(start + tokens, shard_end), side="right") - 1
        stop = min(max(first + 1, int(stop)), last)  # a longer story: alone
        ids = np.asarray(data.read(start, data.starts[stop] - start))
        if data.answers is not None:
            is_story = np.ones(len(ids), bool)
            begins = (data.starts[first:stop] - start).tolist()
            for begin, answer in zip(begins, data.answers[first:stop].tolist(), strict=True):
                is_story[begin + 1 : begin + answer] = False
            ids = ids[is_story]
        yield ids
        first = stop


def number_chunks(blocks, tokenizer):
    """(the numbers of the chunks of stories in order, an int32 array for each block; the texts of
    the chunks by number; 0 is <|endoftext|>, ""). blocks: arrays of the stories' tokens, uint16.

    Chunks are the text between blanks, found in the tokens: so each is cut into words only once. A
    chunk may hold blanks, even inside: only what stands between two blanks must not be cut."""
    import pyarrow  # half a second to import

    begins, ends = np.zeros((2, tokenizer.vocab_size), bool)  # whether a token does so with a blank
    begins[tokenizer.eot] = ends[tokenizer.eot] = True
    for token, i in tokenizer.ranks.items():
        begins[i], ends[i] = token[:1].isspace(), token[-1:].isspace()
    known = {tokenizer.eot.to_bytes(2, "little"): 0}  # numbers by the bytes of the tokens
    numbers = []
    for ids in blocks:
        starts = np.flatnonzero(begins[ids] | np.append(True, ends[ids[:-1]]))
        ids, offsets = ids.astype("<u2"), 2 * np.append(starts, len(ids)).astype(np.int32)
        buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(ids)]
        chunks = pyarrow.Array.from_buffers(pyarrow.binary(), len(starts), buffers)
        encoded = chunks.dictionary_encode()  # hashes each chunk's bytes
        block = [known.setdefault(key, len(known)) for key in encoded.dictionary.to_pylist()]
        numbers.append(np.array(block, np.int32)[encoded.indices.to_numpy()])
    texts = [tokenizer.decode(np.frombuffer(key, "<u2").tolist()) for key in list(known)[1:]]
    return numbers, ["", *texts]


def word_stream(numbers, texts):
    """(stream, word counts, words) of stories, see the head of this file. numbers: of their chunks
    in order, a list of arrays of whole stories. texts: of the chunks."""
    vocabulary = defaultdict(itertools.count(1).__next__, {"": 0})
    cut = [[0], *([vocabulary[w] for w in words_and_marks(text)] for text in texts[1:])]
    sizes = np.array([len(words) for words in cut])
    flat = np.fromiter(itertools.chain.from_iterable(cut), np.int64, sizes.sum())
    starts = np.cumsum(sizes) - sizes
    texts = [text.strip() for text in texts]
    ended = np.array([not i or text.endswith(_SENTENCE_ENDS) for i, text in enumerate(texts)])
    capital = np.array([text[:1].isupper() for text in texts])
    first_word = np.append(flat, 0)[starts]
    dtype = np.uint16 if len(vocabulary) <= 1 << 16 else np.uint32
    stream, counts = [], np.zeros((len(vocabulary), 3), np.int64)
    for chunks in numbers:
        chunks = chunks[sizes[chunks] > 0]  # without those of blanks alone
        lengths = sizes[chunks]
        at = np.cumsum(lengths) - lengths  # of each chunk's words in the stream
        words = flat[np.arange(lengths.sum()) + np.repeat(starts[chunks] - at, lengths)]
        later = chunks[1:][~ended[chunks[:-1]] & (chunks[1:] > 0)]  # no first word of a sentence
        for i, some in enumerate((words, first_word[later], first_word[later[capital[later]]])):
            counts[:, i] += np.bincount(some, minlength=len(counts))
        stream.append(words.astype(dtype))
    return np.concatenate(stream), counts, list(vocabulary)[1:]


def invert(stream, size):
    """(bigrams, posting ends, postings) of a stream of word numbers below `size`."""
    # A bigram and its story are one integer: so numpy sorts them several times as fast.
    pairs, filled, story = np.empty(len(stream), np.uint64), 0, -1
    for i in range(0, len(stream), BLOCK):
        block = stream[i : i + BLOCK + 1].astype(np.uint64)
        first, second = block[:-1], block[1:]
        stories = story + np.cumsum(first == 0)
        some = ((first * np.uint64(size) + second) << np.uint64(16)) | stories.astype(np.uint64)
        some = some[(first > 0) & (second > 0)]
        pairs[filled : filled + len(some)] = some
        filled, story = filled + len(some), int(stories[-1]) if len(stories) else story
    pairs = pairs[:filled]
    pairs.sort()
    new = np.diff(pairs, prepend=~pairs[:1]) != 0
    postings = pairs.astype(np.uint16)[new]  # the lower 16 bits
    pairs >>= np.uint64(16)
    starts = np.flatnonzero(np.diff(pairs, prepend=~pairs[:1]))
    bigrams = pairs[starts].astype(np.uint32 if size**2 <= 1 << 32 else np.uint64)
    ends = np.cumsum(np.add.reduceat(new, starts, dtype=np.uint32)) if filled else starts
    return bigrams, ends.astype(np.uint32), postings


def build(data_folder, split, block):
    """Make a segment, whole or not at all. block: (first story, last story, segment folder)."""
    first, last, folder = block
    data = Dataset(data_folder, split)
    blocks = token_blocks(data, first, last)
    stream, counts, words = word_stream(*number_chunks(blocks, Tokenizer.load(data.folder)))
    arrays = (stream, counts, *invert(stream, len(counts)))
    try:
        with storage.atomic_folder(folder) as part:
            for name, array in zip(ARRAYS, arrays, strict=True):
                np.save(part / f"{name}.npy", array)
            (part / "words.txt").write_bytes("".join(f"{word}\n" for word in words).encode())
            (part / "SHA256SUMS").write_bytes(_sums(part).encode())
    except OSError:
        if not folder.is_dir():  # else a worker that outlived its killed command was quicker
            raise


def _sums(folder):
    names = ["words.txt", *(f"{name}.npy" for name in ARRAYS)]
    return "".join(f"{storage.sha256(folder / name)}  {name}\n" for name in names)


class Segment:
    """A segment opened: its ARRAYS and `words`; size: of its word numbers, with 0; stories: how
    many it has. Raises UserError where a file is missing or does not match its sha256."""

    def __init__(self, folder):
        try:
            if (folder / "SHA256SUMS").read_bytes() != _sums(folder).encode():
                raise ValueError
            for name in ARRAYS:
                mode = "r" if name in ("stream", "postings") else None  # the large ones are mapped
                # np.memmap's own slices take ten times as long as those of plain arrays.
                setattr(self, name, np.load(folder / f"{name}.npy", mode).view(np.ndarray))
            self.words = (folder / "words.txt").read_bytes().decode().split("\n")[:-1]
        except (FileNotFoundError, ValueError, EOFError):
            raise UserError(f"{folder} is damaged: remove it, to build it anew") from None
        self.size, self.stories = len(self.word_counts), int(self.word_counts[0, 0])


def open_index(data, workers=0):
    """The Segments of a Dataset in order; the missing ones are built first, by so many workers."""
    folder, bounds = index_folder(data), itertools.pairwise(segment_boundaries(data))
    blocks = [(*pair, folder / f"{i:04}") for i, pair in enumerate(bounds)]
    if not all(path.is_dir() for *_, path in blocks):
        try:
            _build_missing(data, folder, blocks, workers)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise  # `configs.run` explains it
            raise UserError(f"the index of the stories cannot be written: {error}") from None
    return [Segment(path) for *_, path in blocks]


def _build_missing(data, folder, blocks, workers):
    """Build the blocks (first story, last story, folder) that have no folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with storage.lock(folder.parent, wait=True):
        outdated = [path for path in folder.parent.glob(f"{data.split}-*") if path != folder]
        for path in [*outdated, *folder.glob(".*")]:  # other data's, and what a kill left
            old = path.with_name(f".{path.name}.removed")
            with contextlib.suppress(OSError):
                path.rename(old)  # a worker that still writes it can no longer finish it
            shutil.rmtree(old, ignore_errors=True)
        missing = [block for block in blocks if not block[2].is_dir()]
        if not missing:
            return
        stories = sum(last - first for first, last, _ in missing)
        print(f"indexing {stories:,} stories in {folder} ...", flush=True)
        workers = min(len(missing), workers or min(MAX_WORKERS, cpu_count()))
        build_block = functools.partial(build, data.folder, data.split)
        bar = tqdm(total=stories, desc="indexing", unit=" stories", disable=None)
        with bar, worker_pool(build_block, workers) as built:
            for (first, last, _), _ in built(missing):
                bar.update(last - first)
