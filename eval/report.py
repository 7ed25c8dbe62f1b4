"""The report of a study: one HTML file with everything, the paper's results beside ours.

    python -m eval.report out/study_small      # writes out/study_small/report.html and report.json

It reads what eval.study has made and measures nothing; what is missing is marked as such. The page
loads nothing, from the network or elsewhere, follows the light or dark setting, fits a phone and
prints. report.json holds the study's scale in words, the claims with their verdicts
(claims.VERDICTS), the scaling law, what width and depth give, and the differences that other
architectures and stories make, headline.png the first figure.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from configs import UserError, load, run
from eval import bootstrap
from eval.reporting import charts, model_sections, scaling_law, story_sections, variants
from eval.reporting.claims import VERDICTS, evaluate_claims
from eval.reporting.page import render, templates
from eval.reporting.results import read_study
from eval.reporting.width_and_depth import width_and_depth
from eval.study_power import power_of
from nanostories import storage


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # folder of the study


def scale_of(study):
    """The scale of a study in words, "" without a model: what its verdicts are about."""
    return " ".join(templates().get_template("sections.html").module.scale(study).split())


def make_sections(study, claims, law, power):
    """{name: what its macro in sections.html takes} of a results.Study, its claims, its law and the
    power of its claims."""
    of_study = (*model_sections.SECTIONS, *story_sections.SECTIONS, *variants.SECTIONS)
    of_claims = {"claims": claims, "verdicts": VERDICTS, "scale": scale_of(study)}
    svgs = [charts.chart(draw, **labels) for draw, labels in model_sections.headline(study)]
    return {function.__name__: function(study) for function in of_study} | {
        "headline": of_claims | {"svgs": svgs},
        "claims": of_claims | {"power": power},
        "width_and_depth": width_and_depth(study),
        "scaling": model_sections.scaling(study, law),
        "questions": story_sections.questions(study, claims, law),
        "sources": {},
        "commands": {"study": study},
    }


def main():
    settings, _ = load(Settings, positional="out_dir")
    if not settings.out_dir:
        raise UserError("usage: python -m eval.report out/<study>")
    study, out = read_study(settings.out_dir), Path(settings.out_dir)
    claims, law = evaluate_claims(study), scaling_law.fit_twice(scaling_law.curves_of(study))
    power = power_of(study, claims)
    scale, sections = scale_of(study), make_sections(study, claims, law, power)
    subtitle = f"{scale or out.name}; judge: {study.settings['judge'] or 'none'}"
    page = render("The TinyStories study, reproduced", subtitle, sections)
    storage.write_text(out / "report.html", page.encode("utf-8", "replace").decode())
    rows = [
        asdict(claim) | {"verdict": claim.verdict, "power": power.get(claim.text)}
        for claim in claims
    ]
    facts = {"scale": scale, "claims": rows, "scaling": law}
    facts["width_and_depth"] = sections["width_and_depth"]
    for name in ("architectures", "corpora"):
        facts[name] = [
            {"model": row["run"][0].name, "kind": row["run"][0].kind, "less": row["other"][0].kind}
            | row["values"]
            for row in sections[name]["rows"]
        ]
    storage.write_json(out / "report.json", facts)
    if panels := model_sections.headline(study):
        charts.picture(out / "headline.png", *panels, size=(9, 4))
    print(f"\n{'':58}{'verdict':24}value")
    for claim in claims:
        print(f"{claim.text:58}{claim.verdict:24}{bootstrap.format_interval(claim.value)}")
    print(f"\n{out / 'report.html'}")


if __name__ == "__main__":
    run(main)
