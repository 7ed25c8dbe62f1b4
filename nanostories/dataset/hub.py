"""
Data sets of the hub: those that we know by name, at a pinned commit, and any other.

What was downloaded once is found again without a network.
"""

import contextlib
import errno

from configs import UserError
from nanostories.dataset import readers

OFFLINE = "without a network, use --source=storybook or a local file"

# Plain text on the hub: repository, the commit we read (so that runs repeat), start of file names.
_REPO = ("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64")
_INSTRUCT_REPO = ("roneneldan/TinyStoriesInstruct", "ee050ed1f8720795be342921335e821856a2b42e")
NAMED = {
    "tinystories": (*_REPO, "TinyStories"),
    "tinystories-v2": (*_REPO, "TinyStoriesV2-GPT4"),
    "tinystories-instruct": (*_INSTRUCT_REPO, "TinyStories-Instruct"),
}


def commit(repo, revision):
    """The commit hash of a data set at a branch, a tag, a commit or, for "", now."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(repo, revision=revision or None, timeout=20).sha


def download(name, split, revision):
    """The path of a named data set's file in the hub's cache. A broken download is resumed."""
    file = f"{NAMED[name][2]}-{'train' if split == 'train' else 'valid'}.txt"
    return download_file(name, file, revision)


def download_file(name, file, revision=""):
    """The path in the hub's cache of any file beside a named data set's."""
    repo, pinned, _ = NAMED[name]
    what = {"repo_id": repo, "repo_type": "dataset", "revision": revision or pinned}
    what["filename"] = file
    with reaching(name):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return hf_hub_download(**what, local_files_only=True)
        except LocalEntryNotFoundError:
            commit(repo, what["revision"])  # without a network it fails at once, a download later
            return hf_hub_download(**what)


def read(source, revision, read_row):
    """
    The rows of hub:owner/name, or of the split named in hub:owner/name:split, each read_row(row,
    source), see readers.py.
    """
    _, repo, *split = source.split(":")
    with reaching(source):
        import datasets

        # Not streamed: a download that breaks is resumed, and a second run needs no network.
        split = (split or ["train"])[0]
        table = datasets.load_dataset(repo, split=split, revision=revision or None)
    table = table.select_columns(readers.columns(table.column_names, source, read_row))
    yield from (read_row(record, source) for record in table)


@contextlib.contextmanager
def reaching(source):
    """Turn what goes wrong on the way to the hub into one line. A full disk stays what it is."""
    try:
        yield
    except Exception as error:  # of several HTTP libraries, with no common ancestor
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        why = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"'{source}' cannot be had from the hub ({why[0]}); {OFFLINE}") from error
