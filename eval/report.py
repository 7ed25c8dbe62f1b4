"""The report of a study: one HTML file with everything, the paper's results beside ours.

    python -m eval.report out/study_small      # writes out/study_small/report.html and report.json

It reads what eval.study has made and measures nothing; what is missing is marked as such. The page
loads nothing, from the network or elsewhere, follows the light or dark setting, fits a phone and
prints. report.json holds the claims and the scaling law, headline.png the first figure.
"""

import shlex
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import jinja2

from configs import UserError, load, run
from eval import bootstrap, published
from eval.reporting import charts, model_sections, scaling_law, story_sections
from eval.reporting.claims import evaluate_claims
from eval.reporting.page import Section, figure, folded, listing, table, text
from eval.reporting.results import read_study
from eval.reporting.study_state import FAILED, PENDING
from nanostories import storage


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # folder of the study


def make_sections(study, claims, law):
    """The [Section] of a results.Study, its claims and its scaling law."""
    models, generated = model_sections, story_sections
    sources = [text("Where the paper and the student report contradict themselves or the data."),
               listing(published.ERRORS)]  # fmt: skip
    return [
        Section("headline", "In short", headline(study, claims)),
        Section("claims", "The claims, tested", models.verdicts(claims)),
        Section("models", "Models and data", models.models(study)),
        Section("losses", "Loss", models.losses(study)),
        Section("grid", "Size and skill", models.grid(study)),
        Section("trends", "What improves with size, and when", models.trends(study)),
        Section("stories", "Stories side by side", generated.side_by_side(study)),
        Section("knowledge", "Facts, reasoning, context", generated.knowledge(study)),
        Section("instruct", "Instructions", generated.instruct(study)),
        Section("diversity", "Do they copy?", generated.diversity(study)),
        Section("interpret", "Heads and neurons", generated.interpret(study)),
        Section("scaling", "Scaling law", models.scaling(study, law)),
        Section("heads", "Attention heads", models.heads(study)),
        Section("syn", "TinyStories-Syn", generated.syn(study)),
        Section("reward", "TinyStories-Reward", generated.reward(study)),
        Section("sources", "Errors in the sources", sources),
        Section("commands", "How it was made", commands(study)),
    ]


def headline(study, claims):
    """What this study is, its main figure, and the verdicts on the claims."""
    grid, summary = study.grid, "No model of the grid has been trained yet."
    if grid:
        blocks = [run.block_parameters for run in grid]
        summary = (f"{len({run.name for run in grid})} models with {min(blocks):,} to "
                   f"{max(blocks):,} parameters without embeddings, {max(r.seed for r in grid)} "
                   f"seeds of each, {grid[0].tokens:,} training tokens a run.")  # fmt: skip
    verdicts = {}
    for claim in claims:
        verdicts.setdefault(claim.verdict, []).append(claim.text)
    return [
        text(f"TinyStories (Eldan & Li 2023), reproduced: {summary}"),
        figure(model_sections.headline(study, charts.chart),
               "Left: validation loss along training. Right: grammar, consistency and plot against "
               "size with 95 % intervals, relative: 0 is chance, 1 is all right (with a judge: 0 "
               "is the paper's model 64-2, 1 is GPT-4)."),
        text("The paper's claims:"),
        listing([f"{verdict}: {'; '.join(texts)}" for verdict, texts in verdicts.items()]),
    ]  # fmt: skip


def commands(study):
    """Where all of it comes from: commands, hashes, versions, and what failed."""
    names = {
        status: [job["name"] for job in study.jobs if job["status"] == status]
        for status in (FAILED, PENDING)
    }
    env = {k: v for k, v in study.grid[0].env.items() if k != "data"} if study.grid else {}
    files = [[f"{folder}/{name}", facts["sha256"]] for folder, manifest in study.data.items()
             for name, facts in manifest["files"].items()]  # fmt: skip
    lines = [f"python {shlex.join(job['command'])}" for job in study.jobs]
    return [
        text(f"{len(lines)} jobs: {len(names[FAILED])} failed, {len(names[PENDING])} pending."),
        listing([f"{status}: {name}" for status in names for name in names[status]]),
        table("The machine and its versions, from the first run.", ["what", "value"],
              [[name, str(value)] for name, value in env.items()], "wrap"),
        table("sha256 of the data.", ["file", "sha256"], files),
        folded(f"all {len(lines)} commands", lines),
    ]  # fmt: skip


def render(title, subtitle, sections):
    """The page, a str. All texts are escaped but those that are Markup."""
    template = (Path(__file__).parent / "reporting" / "page.html").read_text(encoding="utf-8")
    nonce = sha256(repr((title, subtitle, sections)).encode("utf-8", "surrogatepass")).hexdigest()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template)
    return page.render(title=title, subtitle=subtitle, sections=sections, nonce=nonce[:24])


def main():
    settings, _ = load(Settings, positional="out_dir")
    if not settings.out_dir:
        raise UserError("usage: python -m eval.report out/<study>")
    study, out = read_study(settings.out_dir), Path(settings.out_dir)
    claims, law = evaluate_claims(study), scaling_law.fit(scaling_law.curves_of(study))
    sections = make_sections(study, claims, law)
    subtitle = f"{out.name}: {study.settings['source']}, {study.settings['judge'] or 'no judge'}"
    page = render("The TinyStories study, reproduced", subtitle, sections)
    storage.write_text(out / "report.html", page.encode("utf-8", "replace").decode())
    rows = [asdict(claim) | {"verdict": claim.verdict} for claim in claims]
    storage.write_json(out / "report.json", {"claims": rows, "scaling": law})
    model_sections.headline(study, partial(charts.picture, out / "headline.png"))
    print(f"\n{'':58}{'verdict':15}value")
    for claim in claims:
        print(f"{claim.text:58}{claim.verdict:15}{bootstrap.format_interval(claim.value)}")
    print(f"\n{out / 'report.html'}")


if __name__ == "__main__":
    run(main)
