"""The report of a study: one HTML file with everything, the paper's results beside ours.

    python -m eval.report out/study_small      # writes out/study_small/report.html and report.json

It reads what eval.study has made and measures nothing; what is missing is marked as such. The page
loads nothing, from the network or elsewhere, follows the light or dark setting, fits a phone and
prints. report.json holds the claims and the scaling law, headline.png the first figure.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from configs import UserError, load, run
from eval import bootstrap
from eval.reporting import charts, model_sections, scaling_law, story_sections
from eval.reporting.claims import evaluate_claims
from eval.reporting.page import render
from eval.reporting.results import read_study
from nanostories import storage


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # folder of the study


def make_sections(study, claims, law):
    """{name: what its macro in sections.html takes} of a results.Study, its claims and its law."""
    of_study, verdicts = (*model_sections.SECTIONS, *story_sections.SECTIONS), {}
    for claim in claims:
        verdicts.setdefault(claim.verdict, []).append(claim.text)
    svg = model_sections.headline(study, charts.chart)
    return {function.__name__: function(study) for function in of_study} | {
        "headline": {"grid": study.grid, "svg": svg, "verdicts": verdicts},
        "claims": {"claims": claims, "verdicts": verdicts},
        "scaling": model_sections.scaling(study, law),
        "sources": {},
        "commands": {"study": study},
    }


def main():
    settings, _ = load(Settings, positional="out_dir")
    if not settings.out_dir:
        raise UserError("usage: python -m eval.report out/<study>")
    study, out = read_study(settings.out_dir), Path(settings.out_dir)
    claims, law = evaluate_claims(study), scaling_law.fit(scaling_law.curves_of(study))
    subtitle = f"{out.name}: {study.settings['source']}, {study.settings['judge'] or 'no judge'}"
    sections = make_sections(study, claims, law)
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
