"""
The report of a study: one HTML file that holds everything, the paper's results beside ours.

    python -m eval.report out/study_small      # writes out/study_small/report.html and report.json

It reads what eval.study has made and measures nothing; what is missing is marked as such. The file
loads nothing, from the network or elsewhere, reads in light and dark and on a phone, and prints.
report.json has the claims and the scaling law, headline.png the figure that it opens with.
"""

import shlex
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import jinja2

from configs import UserError, load, run
from eval import bootstrap, published
from eval.reporting import charts, model_sections, results, scaling_law, story_sections
from eval.reporting.claims import FAILS, HOLDS, claims
from eval.reporting.page import Section, figure, folded, listing, table, text
from nanostories import storage


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # folder of the study


def opening(study, found):
    """The headline: what this study is, its figure, and the claims in a word each."""
    grid = study.grid
    what = (
        f"{len({run.name for run in grid})} models from {min(r.blocks for r in grid):,} to "
        f"{max(r.blocks for r in grid):,} parameters without embeddings, "
        f"{max(r.seed for r in grid)} seeds of each, {grid[0].tokens:,} tokens a run."
        if grid else "No model of the grid has been trained yet."
    )  # fmt: skip
    said = [
        f"{verdict}: {'; '.join(claim.text for claim in found if claim.verdict == verdict)}"
        for verdict in dict.fromkeys((HOLDS, FAILS, *(claim.verdict for claim in found)))
        if any(claim.verdict == verdict for claim in found)
    ]
    shown = model_sections.headline(study)
    return Section("headline", "In short", [
        text(f"TinyStories (Eldan & Li 2023) once more: {what}"),
        figure(shown and charts.chart(*shown[0], **shown[1]),
               "Left: validation loss along training. Right: grammar, consistency and plot against "
               "size with 95 % intervals, relative: 0 is chance, 1 all right (with a judge: 0 the "
               "paper's model 64-2, 1 GPT-4)."),
        text("Of what the paper claims"),
        listing(said),
    ])  # fmt: skip


def made(study):
    """Where all of it comes from: commands, hashes, versions, and what failed."""
    failed = [piece["name"] for piece in study.pieces if piece["status"] == "failed"]
    left = [piece["name"] for piece in study.pieces if piece["status"] == "left"]
    env = study.grid[0].env if study.grid else {}
    env = {name: value for name, value in env.items() if name != "data"}
    files = [[f"{folder}/{name}", facts["sha256"]] for folder, manifest in study.data.items()
             for name, facts in manifest["files"].items()]  # fmt: skip
    lines = [f"python {shlex.join(piece['command'])}" for piece in study.pieces]
    blocks = [text(f"{len(study.pieces)} pieces: {len(failed)} failed, {len(left)} not made.")]
    blocks += [listing([f"failed: {name}" for name in failed] + [f"not made: {x}" for x in left])]
    return Section("made", "How it was made", [
        *blocks,
        table("The machine and its versions, of the first run.", ["what", "which"],
              [[name, str(value)] for name, value in env.items()], "wrap"),
        table("sha256 of the data.", ["file", "sha256"], files),
        folded(f"all {len(lines)} commands", lines),
    ])  # fmt: skip


def report(study):
    """([Section], [Claim], scaling law) of a gather.Study."""
    found = claims(study)
    law = scaling_law.law(scaling_law.curves_of(study))
    slips = Section("slips", "Slips of the sources", [
        text("Where the seeds of this study contradict themselves or the data, noted and not "
             "copied."),
        listing(published.SLIPS),
    ])  # fmt: skip
    models, told = model_sections, story_sections
    sections = [
        opening(study, found), models.verdicts(found), models.models(study), models.losses(study),
        models.grid(study), models.trends(study), told.side_by_side(study), told.knowledge(study),
        told.instruct(study), told.diversity(study), told.inside(study),
        models.scaling(study, law), models.heads(study), told.syn(study), told.reward(study),
        slips, made(study),
    ]  # fmt: skip
    return sections, found, law


def render(title, facts, sections):
    """The page, a str. All texts are escaped but those that are Markup."""
    template = (Path(__file__).parent / "reporting" / "page.html").read_text(encoding="utf-8")
    nonce = sha256(repr((title, facts, sections)).encode("utf-8", "surrogatepass")).hexdigest()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template)
    return page.render(title=title, facts=facts, sections=sections, nonce=nonce[:24])


def main():
    settings, _ = load(Settings, positional="out_dir")
    if not settings.out_dir:
        raise UserError("usage: python -m eval.report out/<study>")
    study = results.read(settings.out_dir)
    sections, found, law = report(study)
    out, name = Path(settings.out_dir), Path(settings.out_dir).name
    judge = study.settings["judge"] or "no judge"
    facts = f"{name}: {study.settings['source']}, {judge}"
    page = render("The TinyStories study, re-run", facts, sections)
    storage.write_text(out / "report.html", page.encode("utf-8", "replace").decode())
    rows = [asdict(claim) | {"verdict": claim.verdict} for claim in found]
    storage.write_json(out / "report.json", {"claims": rows, "scaling": law})
    if shown := model_sections.headline(study):
        charts.picture(out / "headline.png", *shown[0], **shown[1])
    print(f"\n{'':58}{'verdict':14}value")
    for claim in found:
        print(f"{claim.text:58}{claim.verdict:14}{bootstrap.format_interval(claim.value)}")
    print(f"\n{out / 'report.html'}")


if __name__ == "__main__":
    run(main)
