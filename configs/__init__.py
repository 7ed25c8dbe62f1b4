"""Settings: a frozen dataclass in each script, plain Python config files, and the command line.

    python train.py configs/ts_33m.py --batch_size=32 --compile

The order is defaults < config files, left to right < command line. A script declares its settings
once, in a dataclass called `Settings`; the comment beside a field is its --help. A config file,
`name = value` lines, may hold settings of several scripts: each takes its own, and a name that no
script knows is an error. Command-line text is converted by the declared type and never evaluated,
so `--start=12` stays text.
"""

import ast
import contextlib
import dataclasses
import difflib
import errno
import functools
import inspect
import math
import os
import runpy
import signal
import sys
import time
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """Something the user can mend: its text is one clear line, shown without a traceback."""


@contextlib.contextmanager
def explained(what, *kinds):
    """Turn an error of these kinds in the block into a UserError: `what`, then its own text."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{what}{error}") from error


def printable(text):
    """The text without what a terminal obeys: control characters and marks of direction."""
    return "".join(c if c.isprintable() or c in "\n\t\xa0\u200c\u200d" else "\ufffd" for c in text)


def run(main):
    """Call a script's main(): what a user can mend ends in one line, not in a traceback."""
    name, debug = Path(sys.argv[0]).name, "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    for stream in ("stdin", "stdout", "stderr"):  # closed, by `>&-` say: the next file opened would
        if getattr(sys, stream) is None:  # get its number, and with it all that is printed
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_RDWR), "r+"))
    if hasattr(sys.stdout, "reconfigure"):  # a character that its encoding lacks is no error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        if sys.stdout:  # None where it was lost, see print0
            sys.stdout.flush()
    except (UserError, FloatingPointError) as error:
        rank = os.environ.get("RANK", "0")
        if rank != "0":  # what all ranks meet, the first one says; torchrun then ends the others
            time.sleep(1)
            name = f"{name}: rank {rank}"
        sys.exit(printable(f"{name}: {error}"))
    except BrokenPipeError:
        sys.stdout = None  # else Python writes to it once more
        sys.exit(128 + 13)  # SIGPIPE: the reader of our output, `| head` say, went away
    except OSError as error:
        if debug:
            raise
        sys.stdout, line = None, " ".join(str(error).split()) or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            line = f"the disk is full; free some space and run the command again ({line})"
        sys.exit(printable(f"{name}: {line}"))
    except (MemoryError, RuntimeError) as error:
        if debug or (not isinstance(error, MemoryError) and "alloc" not in str(error)):
            raise
        what = f"{name}: out of memory, lower batch_size or the model's size: {error}"
        sys.exit(" ".join(what.split())[:300])
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def require_posix(what):
    """Raise UserError on Windows."""
    if not hasattr(os, "pread"):
        raise UserError(f"{what} does not run on Windows itself: use WSL 2 there")


def clean_up_when_killed():
    """Let a plain `kill`, or a terminal that closes, end a script as Ctrl-C does."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, signal.SIGTERM)  # Windows has no SIGHUP
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


# ---- what the scripts declare ------------------------------------------------------------------


def declared(path):
    """{setting: help text} of the classes called *Settings in a Python file, read from the source:
    one script knows the others' names without importing them."""
    source, help_texts = Path(path).read_text(encoding="utf-8"), {}
    if "Settings" not in source:  # most files: not worth parsing
        return help_texts
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            for field in node.body:
                if isinstance(field, ast.AnnAssign):
                    comment = lines[field.end_lineno - 1][field.end_col_offset :]
                    help_texts[field.target.id] = comment.strip(" #")
    return help_texts


@functools.cache
def known_names():
    """Every setting that some script of the project declares."""
    scripts = [*ROOT.glob("*.py"), *ROOT.glob("eval/**/*.py"), *ROOT.glob("nanostories/**/*.py")]
    return {name for script in scripts for name in declared(script)}


def unknown_setting(name, where, names):
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "; --help lists the settings"
    return UserError(f"{where}: unknown setting '{name}'{hint}")


# ---- values and their types --------------------------------------------------------------------

BOOLS = {"true": True, "1": True, "false": False, "0": False}
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text",
              type(None): "none", tuple: "a tuple, as ('a', 'b')"}  # fmt: skip


def plain_types(declared_type):
    """`int | None` -> (int, NoneType)"""
    return typing.get_args(declared_type) or (declared_type,)


def shorten(value):
    """A value as it is shown in an error, in one short line."""
    try:
        return " ".join(repr(value).split())[:80]
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "so large a number"


def wrong_type(value, declared_type, where):
    names = " or ".join(TYPE_NAMES[kind] for kind in plain_types(declared_type))
    return UserError(f"{where} takes {names}, not {shorten(value)}")


def parse_text(text, declared_type, where):
    """Command-line text as a value of `declared_type`; raises UserError if it is not one."""
    kinds = plain_types(declared_type)
    if type(None) in kinds and text.lower() == "none":
        return None
    if tuple in kinds:
        return (text,)  # one of several
    if bool in kinds and text.lower() in BOOLS:
        return BOOLS[text.lower()]
    for kind in (kind for kind in kinds if kind in (int, float, str)):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise wrong_type(text, declared_type, where)


def check_type(value, declared_type, where):
    """A config file's value if it fits `declared_type` (an int serves as a float), or UserError."""
    kinds = plain_types(declared_type)
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds and abs(value) < 2**1023:
        return float(value)
    raise wrong_type(value, declared_type, where)


# ---- loading -----------------------------------------------------------------------------------


def read_config_file(path):
    """The `name = value` pairs of a config file, which is run in a namespace of its own."""
    if not Path(path).is_file():
        raise UserError(f"no config file '{path}'")
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    return {k: v for k, v in names.items() if k[0] != "_" and not inspect.ismodule(v)}


def load(cls, argv=None, positional=None):
    """The settings of a script, a `cls`, and {name: "default", a config file or "command line"}.
    argv: default sys.argv[1:]. positional: the field that a bare word not ending in .py sets, for
    `python -m eval.loss out/run`, or those that bare words set in turn. A field declared as a tuple
    collects all that it is given. Raises UserError for what does not fit; exits after --help."""
    words = list(sys.argv[1:] if argv is None else argv)
    hints = typing.get_type_hints(cls)
    values = {field.name: field.default for field in dataclasses.fields(cls)}
    origin = dict.fromkeys(values, "default")
    command_line = {}  # applied after every file
    positions = [positional] if isinstance(positional, str) else list(positional or ())
    while words:
        word = words.pop(0)
        if word in ("--help", "-h"):
            print_help(cls)
            sys.exit(0)
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            name = name.replace("-", "_")
            if name not in values:
                raise unknown_setting(name, "command line", values)
            if not equals:
                # A bare --resume means True; anything else takes the next word, `--start "a b"`.
                if bool in plain_types(hints[name]) and not (words and words[0].lower() in BOOLS):
                    text = "true"
                elif words:
                    text = words.pop(0)
                else:
                    raise UserError(f"--{name} needs a value")
            value = parse_text(text, hints[name], f"--{name}")
        elif word.endswith(".py"):
            for name, value in read_config_file(word).items():
                if name in values:
                    values[name] = check_type(value, hints[name], f"{word}: {name}")
                    origin[name] = word
                elif name not in known_names():
                    raise unknown_setting(name, word, known_names())
            continue
        elif positions:
            name = positions.pop(0) if len(positions) > 1 else positions[0]
            value = parse_text(word, hints[name], name)
        else:
            raise UserError(f"'{word}' is neither a config file (*.py) nor a --setting")
        is_tuple = hints[name] is tuple
        command_line[name] = command_line.get(name, ()) + value if is_tuple else value
    origin |= dict.fromkeys(command_line, "command line")
    settings = cls(**values | command_line)
    check_ranges(settings)
    return settings, origin


def show(settings, origin, print_line=print):
    """Print the settings, one a line, and where each value that is no default came from."""
    for name, value in dataclasses.asdict(settings).items():
        source = "" if origin[name] == "default" else f"  # {origin[name]}"
        print_line(f"{name} = {value!r}{source}")


def pick(settings, *names):
    """{name: value} of some of the settings."""
    return {name: getattr(settings, name) for name in names}


def print_help(cls):
    """--help: the script's docstring, then each setting with its default and its comment."""
    print((inspect.getdoc(sys.modules[cls.__module__]) or "") + "\n\nsettings:")
    bases = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    files = dict.fromkeys(inspect.getsourcefile(base) for base in bases)  # the script's own last
    help_text = {name: text for path in files for name, text in declared(path).items()}
    for field in dataclasses.fields(cls):
        print(f"  --{field.name}={field.default!r}".ljust(40), help_text[field.name])
    print("  --debug".ljust(40), "show the traceback of an error of disk or network")


# ---- ranges ------------------------------------------------------------------------------------

# {(lowest, highest): settings}: the values that a number may have, in whichever script it is one.
# The highest are beyond any use: they keep slips of the keyboard from taking hours or all memory.
_RANGES = {
    (0, 2**63 - 1): "seed",  # what numpy, torch and the page's JSON all take
    (0, 1 - 2**-53): "dropout beta1 beta2 muon_momentum",
    (2**-53, 1 - 2**-53): "val_fraction prompt_fraction",
    (0, 1): "max_similarity story_fraction word_fraction",
    (1e-9, 1): "top_p",
    (0, 10): "learning_rate min_lr muon_lr_scale embedding_lr_scale",
    (0, 100): "temperature judge_temperature weight_decay",
    (1e-3, 600): "timeout turn_seconds",
    (0, 1000): "repetition_penalty kl_factor beams arch",
    (0, 1024): "workers jobs",
    (1, 1024): "n_layer n_head concurrency tries seeds drafts",
    (0, 2**16 - 1): "port",
    (2, 2**20): "block_size",
    (4, 10**6): "head_stories",
    (2, 10**6): "prompts questions",
    (1, 10**6): "batch_size micro_batch_size group_size gradient_accumulation_steps row_tokens "
    "num_samples num_prompts max_new_tokens max_tokens distinct_words count length rounds steps "
    "points",
    (1e-3, 10**6): "sweep_minutes",
    (0, 10**6): "minutes grad_clip min_words top_sentences top_neurons random_neurons shown",
    (1, 2**16): "n_embd vocab_size",
    (1, 10**9): "eval_interval log_interval stories tokens",
    (0, 10**9): "max_iters max_minutes eval_stories save_interval warmup_iters "
    "lr_decay_iters grow_iters top_k no_repeat_ngram max_stories max_val_stories min_length "
    "max_calls max_cost price_in price_out first_step",
}
RANGES = {name: key for key, names in _RANGES.items() for name in names.split()}

# {setting: the texts that it may be}, likewise.
CHOICES = {
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "linear", "constant"),
    "positions": ("learned", "rope"),
    "gelu": ("tanh", "erf"),
    "mlp": ("gelu", "relu2", "swiglu"),
    "loss_on": ("all", "story"),
    "save_steps": ("log", ""),
    "weights": ("auto", "float32", "bfloat16", "int8"),
    "near_duplicates": ("keep", "drop"),
}


def check_ranges(settings):
    """Raise UserError for the first number outside its range, as nan and infinity always are, or
    text that is none of its choices. settings: a dataclass. A default may lie outside: 0 for "all",
    say. Where `x` has another range than in other scripts, or other choices, the class has an
    attribute `x_range` or `x_choices`."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if {int, float} & {*plain_types(hints[name])}:
            low, high = getattr(settings, f"{name}_range", None) or RANGES[name]
            value = check_type(value, hints[name], name)
            if value != field.default and not low <= value <= high:
                wrong = f"{range_text(value, low, high)}, not {shorten(value)}"
                raise UserError(f"{name} must be {wrong}")
        elif value != field.default:
            allowed = getattr(settings, f"{name}_choices", CHOICES.get(name))
            if allowed and value not in allowed:
                *rest, last = [choice or "nothing" for choice in allowed]
                raise UserError(f"{name} must be {', '.join(rest)} or {last}, not '{value}'")


def range_text(value, low, high):
    """What is wrong with a value outside of low..high, in words: "at least 1", "0 or more", ..."""
    if high < 1 or (low, high) == (0, 1):
        return "between 0 and 1" if low or high == 1 else "at least 0 and below 1"
    if high < value < math.inf:
        return "below 2^63" if high == 2**63 - 1 else f"at most {high:,}"
    return f"at least {low:,}" if low >= 1 else f"above 0 ({low} or more)" if low else "0 or more"
