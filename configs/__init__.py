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


def run(main):
    """Call a script's main(): what a user can mend ends in one line, not in a traceback."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        if rank != "0":  # what all ranks meet, the first one says; torchrun then ends the others
            time.sleep(1)
            name = f"{name}: rank {rank}"
        sys.exit(f"{name}: {error}")
    except BrokenPipeError:
        sys.exit(128 + signal.SIGPIPE)  # the reader of our output, `| head` say, went away
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"{name}: the disk is full; free some space and run the command again ({error})")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


# ---- what the scripts declare ------------------------------------------------------------------


def declared(path):
    """{setting: help text} of the classes called *Settings in a Python file.

    Read from the source: one script knows the others' names without importing them.
    """
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
              type(None): "none"}  # fmt: skip


def plain_types(declared_type):
    """`int | None` -> (int, NoneType)"""
    return typing.get_args(declared_type) or (declared_type,)


def wrong_type(value, declared_type, where):
    names = " or ".join(TYPE_NAMES[kind] for kind in plain_types(declared_type))
    return UserError(f"{where} takes {names}, not {value!r}")


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
    if type(value) is int and float in kinds:
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
    modules = [name for name, value in names.items() if inspect.ismodule(value)]
    return {name: names[name] for name in names if name[0] != "_" and name not in modules}


def load(cls, argv=None, positional=None):
    """The settings of a script, a `cls`, and {name: "default", a config file or "command line"}.

    argv: default sys.argv[1:]. positional: the field that a bare word not ending in .py sets, for
    `python -m eval.loss out/run`, or those that bare words set in turn. A field declared as a tuple
    collects all that it is given. Raises UserError for what does not fit; exits after --help.
    """
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
    return cls(**values | command_line), origin


def show(settings, origin):
    """Print the settings, one a line, and where each value that is no default came from."""
    for name, value in dataclasses.asdict(settings).items():
        source = "" if origin[name] == "default" else f"  # {origin[name]}"
        print(f"{name} = {value!r}{source}")


def print_help(cls):
    """--help: the script's docstring, then each setting with its default and its comment."""
    print((inspect.getdoc(sys.modules[cls.__module__]) or "") + "\n\nsettings:")
    bases = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    files = dict.fromkeys(inspect.getsourcefile(base) for base in bases)  # the script's own last
    help_text = {name: text for path in files for name, text in declared(path).items()}
    for field in dataclasses.fields(cls):
        print(f"  --{field.name}={field.default!r}".ljust(40), help_text[field.name])


# ---- ranges ------------------------------------------------------------------------------------

POSITIVE, NOT_NEGATIVE, FRACTION = "at least 1", "0 or more", "at least 0 and below 1"


def check_ranges(settings, ranges=None, choices=None):
    """Raise UserError for the first setting outside its range, as nan and infinity always are.

    ranges: {POSITIVE, NOT_NEGATIVE or FRACTION: names}. choices: {name: the values it may take}.
    """
    bounds = {POSITIVE: (1, math.inf), NOT_NEGATIVE: (0, math.inf), FRACTION: (0, 1)}
    for range_, names in (ranges or {}).items():
        low, high = bounds[range_]
        for name in names:
            if not low <= (value := getattr(settings, name)) < high:
                raise UserError(f"{name} must be {range_}, not {value}")
    for name, allowed in (choices or {}).items():
        if (value := getattr(settings, name)) not in allowed:
            *rest, last = [choice or "nothing" for choice in allowed]
            raise UserError(f"{name} must be {', '.join(rest)} or {last}, not '{value}'")
