"""TinyStories-Syn: stories in a richer vocabulary. Half of them get 30 % of their content words
replaced by synonyms.

    python synonyms.py --source=tinystories --out=data/tinystories-syn
    python synonyms.py --source=mine.txt --val_source=val.txt --mode=context
    python train.py configs/ts_cpu.py --dataset=data/tinystories-syn --out_dir=out/syn

--mode=wordnet is the student report's method, context ours (text/lexical_substitution.py describes
both). The synonyms of a story depend on the seed and its text, whatever the order of the stories;
in mode context also on the word counts of the corpus's first 32 megabytes. Everything else stays as
it is, byte for byte. The result is a data folder like prepare.py's (which drops duplicates and
truncated stories), with these files besides:

    stories.txt           and stories_val.txt: all stories, `<|endoftext|>` between them
    replacements.jsonl    a line for each story with synonyms: {"split", "story": its number in that
                          file, from 0, "replacements": [[start, old, new, part of speech], ...]};
                          `new` begins at character `start` of the story
    synonyms.json         the settings and the measured rates

A killed command resumes where it stopped.
"""

import functools
import glob
import itertools
import json
import math
import random
import re
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from configs import UserError, check_ranges, clean_up_when_killed, load, pick, run, show
from nanostories import storage
from nanostories.dataset import build, readers, tokenizer
from nanostories.dataset.cleaning import story_hash
from nanostories.dataset.sources import Source, cleaning_rules, is_instruct, slug
from nanostories.dataset.workers import worker_pool
from nanostories.text import lexical_substitution, wordnet
from nanostories.text.lexical_substitution import CONTEXT_CHARS, CorpusCounts

COUNTED_BLOCKS = 32  # of about a megabyte, whose words mode context counts
SEPARATOR = f"\n{tokenizer.EOT}\n"
_LONE_SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # the rest: bytes, not UTF-8


@dataclass(frozen=True)
class Settings:
    source: str = "tinystories"  # any source of prepare.py
    val_source: str = ""  # where val comes from; "": the data set's own
    max_stories: int = 0  # only the first stories of source; 0: all
    max_val_stories: int = 0  # only the first validation stories; 0: all
    out: str = ""  # data folder to write; "": data/<source>-syn
    mode: str = "wordnet"  # wordnet, as the report does; context: synonyms that fit
    story_fraction: float = 0.5  # fraction of the stories that get synonyms
    word_fraction: float = 0.3  # fraction of their content words that are replaced
    model: str = ""  # for context: a run or a published model that picks the likeliest synonym
    tokenizer: str = "gpt2"  # as of prepare.py: gpt2, gpt2-10k, bpe, bytes, or the path of one
    vocab_size: int = 4096  # of bpe, <|endoftext|> included
    seed: int = 0  # of the choice of stories, words and synonyms
    workers: int = 0  # processes; 0: one a core
    mode_choices = "wordnet", "context"


def check(settings, out):
    """Raise UserError for wrong settings, before anything is read or made."""
    check_ranges(settings)
    if settings.model and settings.mode != "context":
        raise UserError("a model is for --mode=context: wordnet takes any synonym")
    if any(map(is_instruct, (settings.source, settings.val_source))):
        raise UserError("stories get synonyms, not Instruct records: name a source of stories")
    if not settings.val_source and settings.source not in readers.NAMED:
        # A story held out by its hash would be in val here and in train of the plain data.
        raise UserError("name the validation stories with --val_source, so that they stay apart")
    build.check_out(out)
    tokenizer.build(settings.tokenizer, settings.vocab_size)
    wordnet.pos_tags(["dog"]), wordnet.reader()


def stories_of(block):
    """Yield the stories of a block of a Source in a form that a text file can hold: without an
    inner <|endoftext|>, and without lone surrogates, which .jsonl may have."""
    for text in readers.texts(block):
        stories = _LONE_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text).split(tokenizer.EOT)
        yield from filter(str.strip, stories)


def load_model(name):
    """The checkpoint.LoadedModel of a run folder, or of a published model."""
    from nanostories.training import checkpoint  # takes seconds, which wordnet should not pay

    return checkpoint.load_model(name)


def log_likelihoods(loaded, text, word, forms):
    """Log-likelihood under a LoadedModel, in nats, of the text around a wordnet.Word with each of
    the forms in its place: list of float, -inf where the text is too long for the model."""
    import torch

    # A token has at least one character; but non-ASCII characters may take several tokens.
    reach, results = min(CONTEXT_CHARS, loaded.max_length // 2), []
    before = text[max(0, word.start - reach) : word.start]
    after = text[word.stop : word.stop + reach // 2]
    for form in forms:
        ids = loaded.bos_ids + loaded.tokenizer.encode(before + form + after)
        if len(ids) > loaded.max_length:
            results.append(-math.inf)
            continue
        ids = torch.tensor([ids])
        with torch.no_grad():
            loss = loaded.model(ids[:, :-1], ids[:, 1:].contiguous(), mean=False)
        results.append(-float(loss.sum()))
    return results


@functools.lru_cache(1)
def make_method(settings, counts):
    """The lexical_substitution method of the settings; made in the worker process that uses it."""
    if settings.mode == "wordnet":
        return lexical_substitution.WordnetSynonyms()
    if not settings.model:
        return lexical_substitution.ContextSynonyms(counts)
    import torch

    if settings.workers != 1:  # the other workers use the other cores
        torch.set_num_threads(1)
    likelihoods = functools.partial(log_likelihoods, load_model(settings.model))
    return lexical_substitution.ContextSynonyms(counts, likelihoods)


def replace_words(settings, counts, block):
    """The stories of a block as lines of .jsonl, list of str. A line has the "text"; of a chosen
    story also the number of "content_words" and the "replacements", by place in the new text."""
    lines = []
    for text in stories_of(block):
        line = {"text": text}
        digest = story_hash(text.encode("utf-8", "surrogatepass"), settings.seed)
        if int.from_bytes(digest[:8], "little") < settings.story_fraction * 2**64:
            line["text"], made, line["content_words"] = lexical_substitution.substitute(
                text, settings.word_fraction, make_method(settings, counts), random.Random(digest)
            )
            line["replacements"], shift = [], 0
            for one in made:
                line["replacements"].append([one.start + shift, one.old, one.new, one.pos])
                shift += len(one.new) - len(one.old)
        lines.append(json.dumps(line))
    return lines


def open_work_folder(path, settings, splits):
    """Make the folder of finished blocks, or keep that of a killed command with the same key."""
    key = pick(settings, "source", "val_source", "max_stories", "max_val_stories", "mode",
               "story_fraction", "word_fraction", "model", "seed")  # fmt: skip
    key["sources"] = {split: [str(one), one.fingerprint()] for split, one in splits.items()}
    key["checkpoint"] = load_model(settings.model).identity() if settings.model else None
    if not (path / "key.json").exists() or storage.read_json(path / "key.json") != key:
        remove_work_folder(path)
        storage.write_json(path / "key.json", key)


def remove_work_folder(path):
    """Remove the folder of finished blocks, its key first: without it no command resumes there."""
    (path / "key.json").unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def write_texts(work, folder, settings):
    """Write the finished blocks as the text files of the data folder; print and keep the rates."""
    rates = {}
    with open(folder / "replacements.jsonl", "w", encoding="utf-8") as replacements:
        for split, name in (("val", "stories_val.txt"), ("train", "stories.txt")):
            rows = (json.loads(line) for path in sorted((work / split).glob("*.jsonl"))
                    for line in path.read_text().splitlines())  # fmt: skip
            counts = Counter()
            with open(folder / name, "wb") as stories:
                for row in rows:
                    text = (SEPARATOR if counts["stories"] else "") + row["text"]
                    stories.write(text.encode("utf-8", "surrogateescape"))
                    if made := row.get("replacements"):
                        line = {"split": split, "story": counts["stories"], "replacements": made}
                        replacements.write(json.dumps(line, ensure_ascii=False) + "\n")
                        counts["replaced"] += sum(bool(pos) for *_, pos in made)
                    counts["stories"] += 1
                    counts["chosen"] += "content_words" in row
                    counts["content_words"] += row.get("content_words", 0)
            rates[split] = {
                "stories": counts["stories"],
                "story_fraction": counts["chosen"] / max(1, counts["stories"]),
                "content_words": counts["content_words"],
                "word_fraction": counts["replaced"] / max(1, counts["content_words"]),
            }
            print("{}: {stories:,} stories, {story_fraction:.4f} of them with synonyms for "
                  "{word_fraction:.4f} of their {content_words:,} content words"
                  .format(split, **rates[split]))  # fmt: skip
    storage.write_json(folder / "synonyms.json", asdict(settings) | {"rates": rates})


def main():
    clean_up_when_killed()
    settings, origin = load(Settings)
    show(settings, origin)
    out = Path(settings.out or f"data/{slug(settings.source)}-syn")
    check(settings, out)

    # 1. The sources, and the blocks that a killed command has finished.
    val_source = settings.val_source or settings.source
    train = Source(settings.source, max_stories=settings.max_stories).pinned()
    val = Source(val_source, "val", max_stories=settings.max_val_stories).pinned()
    splits, work = {"val": val, "train": train}, out.with_name(f".{out.name}.work")
    with storage.lock(out):
        open_work_folder(work, settings, splits)

        # 2. Synonyms, block by block, on all cores.
        counts = CorpusCounts()
        if settings.mode == "context":
            for block in itertools.islice(train.blocks(), COUNTED_BLOCKS):
                for text in stories_of(block):
                    counts.add(text)
        function = functools.partial(replace_words, settings, counts)
        with worker_pool(function, settings.workers) as replace:
            for split, source in splits.items():
                (work / split).mkdir(exist_ok=True)
                done = len(list((work / split).glob("*.jsonl")))
                results = replace(itertools.islice(source.blocks(), done, None))
                for number, lines in enumerate(build.progress(results, source), start=done):
                    storage.write_text(work / split / f"{number:06}.jsonl", "\n".join([*lines, ""]))

        # 3. The data folder.
        texts = {}
        for split, source in splits.items():
            name = f"{glob.escape(str(work / split))}/*.jsonl"
            texts[split] = Source(name, rules=cleaning_rules(source.name))
        build.build_dataset(
            out, texts["train"], texts["val"],
            build.make_tokenizer(settings.tokenizer, settings.vocab_size, texts["train"]),
            workers=settings.workers, add_files=lambda folder: write_texts(work, folder, settings),
            manifest={"source": f"{train} (synonyms)", "val_source": f"{val} (synonyms)",
                      "source_files": train.fingerprint()},
        )  # fmt: skip
        remove_work_folder(work)


if __name__ == "__main__":
    run(main)
