"""A study in stages: its plan cut into parts, the ones that matter most first.

    stages = '''
    small models: 64-2-4, 128-2-4
    instructions instruct: 64-2-4
    large models: 256-2-4
    '''

A line names a stage, a setting of eval.study, and which of that setting's words the stage adds. The
plan of a stage is that of a study of all words up to there. So it repeats nothing of the stages
before it, and the report is whole after each.
"""

from dataclasses import replace

from configs import UserError, pick
from eval.reporting.study_jobs import listed

# Settings that name models of the grid.
OF_THE_GRID = ("syn", "instruct", "ood", "architectures", "corpora", "table1", "reward",
               "diversity", "interpret")  # fmt: skip
STAGED = ("models", "heads", *OF_THE_GRID, "baselines")


def parse_stages(settings):
    """{stage: settings of the study up to it}, in order; {"": settings} of a study without stages.

    settings: of eval.study. UserError for a line that is none, for words that the settings do not
    have, and for words in no stage."""
    words = {name: listed(text) for name, text in pick(settings, *STAGED).items()}
    added = {}  # {stage: {(setting, word)}}
    for line in filter(str.strip, settings.stages.splitlines()):
        head, colon, text = line.partition(":")
        stage, setting = head.split() if colon and len(head.split()) == 2 else ("", "")
        if setting not in STAGED:
            raise UserError(
                "stages are lines such as 'small models: 64-2-4, 128-2-4', a stage and one of "
                f"{', '.join(STAGED)}; not '{line.strip()}'"
            )
        for word in listed(text):
            if word not in words[setting]:
                raise UserError(f"stages: {stage} has '{word}', which is not one of the {setting}")
            added.setdefault(stage, set()).add((setting, word))
    if not added:
        return {"": settings}
    so_far, result = set(), {}
    for stage, pairs in added.items():
        so_far |= pairs
        # In the order of the settings, which is that of the report's tables.
        parts = {name: ", ".join(word for word in words[name] if (name, word) in so_far)
                 for name in STAGED}  # fmt: skip
        result[stage] = replace(settings, **parts)
    for name in STAGED:
        if left := [word for word in words[name] if (name, word) not in so_far]:
            raise UserError(f"stages: no stage has '{left[0]}' of the {name}")
    return result


def select_stages(settings):
    """`parse_stages` up to the stage that settings.stage names; UserError if there is none."""
    stages = parse_stages(settings)
    names = list(stages)
    if settings.stage and settings.stage not in names:
        known = f"the stages are {', '.join(names)}" if settings.stages else "the study has none"
        raise UserError(f"unknown stage '{settings.stage}': {known}")
    last = names.index(settings.stage) if settings.stage else len(names) - 1
    return {name: stages[name] for name in names[: last + 1]}
