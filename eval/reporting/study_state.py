"""What a study has done: out/<study>/study.json, a row for each of its jobs.

    state = StudyState(settings, jobs)      # eval.study's settings, and study_jobs.plan_jobs
    state.status["train 64-2-4-s1"]         # "done"

A job is done when its output is there, unchanged since it was made by the very same command.
"""

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from configs import ROOT, UserError
from nanostories import storage
from nanostories.training import checkpoint

DONE, FAILED, PENDING = "done", "failed", "pending"  # the status of a job


def hash_commands(jobs):
    """{name: a hash of the job's command and of those of all jobs that it needs}."""
    keys = {}
    for name, job in jobs.items():  # each after those that it needs
        text = json.dumps([job.command, [keys[need] for need in job.needs]])
        keys[name] = sha256(text.encode()).hexdigest()[:16]
    return keys


def digest(output):
    """The sha256 of an output that is a file, "" for a folder, None where there is none."""
    path = ROOT / output
    return storage.sha256(path) if path.is_file() else "" if path.exists() else None


class StudyState:
    """The file out/<study>/study.json: the study's settings, and a row for each of its jobs, with
    the hash of its command, the status and hash of its output, and for how many seconds the command
    ran, over all calls. It is written at each change."""

    def __init__(self, settings, jobs):
        self.path, self.jobs, self.rows = Path(settings.out_dir) / "study.json", jobs, {}
        self.settings = {k: v for k, v in vars(settings).items() if k != "dry_run"}
        before, keys = self.read(), hash_commands(jobs)
        # Of jobs that an earlier call planned and this one does not.
        self.other_jobs = [row for name, row in before.items() if name not in jobs]
        for name, job in jobs.items():
            old, output = before.get(name, {}), digest(job.output)
            same = old.get("key") == keys[name]
            if job.run and not same and checkpoint.steps_of(job.run):
                why = "was trained with other settings: remove it, or name another --out_dir"
                raise UserError(f"'{job.run}' {why}")
            made = same and old["status"] == DONE and output is not None
            status = DONE if made and old["sha256"] == output else PENDING
            row = {k: v for k, v in asdict(job).items() if k != "weight"}
            seconds = old.get("seconds", 0.0) if same else 0.0
            row |= {"key": keys[name], "status": status, "sha256": output, "seconds": seconds}
            self.rows[name] = row
        self.chain = {}  # the weight of a job and of the heaviest chain of jobs after it
        for name, job in reversed(jobs.items()):
            after = (self.chain[x] for x, other in jobs.items() if name in other.needs)
            self.chain[name] = job.weight + max(after, default=0.0)

    def read(self):
        """{name: row} of the file, {} where there is none."""
        if not self.path.exists():
            return {}
        try:
            study = storage.read_json(self.path)
            return {row["name"]: row for row in [*study["jobs"], *study["other_jobs"]]}
        except (UserError, KeyError, TypeError):
            raise UserError(
                f"{self.path} is damaged or from another version: remove it and the runs beside "
                "it, or name another --out_dir"
            ) from None

    def write(self):
        study = {"settings": self.settings, "jobs": [*self.rows.values()]}
        storage.write_json(self.path, study | {"other_jobs": self.other_jobs})

    @property
    def status(self):
        return {name: row["status"] for name, row in self.rows.items()}

    def names(self, status):
        return [name for name, row in self.rows.items() if row["status"] == status]

    def set(self, name, status):
        """Record the status of a job and the hash of its output."""
        self.rows[name] |= {"status": status, "sha256": digest(self.jobs[name].output)}
        self.write()

    def ready(self, started):
        """Names of the jobs that can start now, first those that the longest chain waits for."""
        done, waiting = set(self.names(DONE)), [x for x in self.names(PENDING) if x not in started]
        ready = [name for name in waiting if done.issuperset(self.jobs[name].needs)]
        return sorted(ready, key=lambda name: -self.chain[name])
