"""The jobs of ``compare --slurm``: one per method and seed, each a command, submitted to Slurm by submitit."""

import logging
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from factor_transfer.config.recipe import ALONE
from factor_transfer.errors import InputError, first_line
from factor_transfer.models.optional import installed, pip_install
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment, program, program_call
from factor_transfer.pipeline.stages.student import student_folder

_MINUTES = 24 * 60  # the default time limit of a job
_LIMITS = ("time", "cpus_per_task", "gpus_per_node", "mem", "account", "qos", "constraint", "exclude", "nodelist")


def _as_overrides(row: str) -> list[str]:
    """The changes to a recipe that make it one of the row of a comparison."""
    method, _, setting = row.partition(",")
    labels = ["student.labels=all"] if method == ALONE else []  # it has nothing else to learn from
    return [*([setting, f"variant={setting}"] if setting else []), f"transfer.method={method}", *labels]


class Jobs:
    """A runner that trains the students of a comparison in Slurm jobs.

    Args:
        partition: the partition of the cluster.
        settings: options of sbatch for each job, as ``KEY=VALUE``, separated by spaces; ``time`` is in minutes.

    Raises:
        InputError: submitit or Slurm is not installed, or an option is unknown.
    """

    def __init__(self, partition: str, settings: str = "") -> None:
        if not installed("submitit"):
            raise InputError(f"submitit is not installed; {pip_install('slurm')}")
        if shutil.which("sbatch") is None:
            raise InputError(
                "sbatch was not found, so no Slurm jobs can be submitted; without --slurm, compare runs on this machine"
            )
        self.parameters: dict[str, Any] = {"partition": partition, "time": _MINUTES}
        for setting in shlex.split(settings):
            key, equals, value = setting.partition("=")
            if not equals or key not in _LIMITS:
                raise InputError(f"invalid --slurm-args {setting!r}; valid are KEY=VALUE with {', '.join(_LIMITS)}")
            self.parameters[key] = int(value) if value.isdigit() else value

    def runs(
        self, experiment: Experiment, methods: Sequence[str], seeds: Sequence[int], score: Callable[..., dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Train teacher and paraphraser, then all students at the same time; wait for the jobs, and score the students.

        Args:
            experiment: the experiment, whose work dir must be on a file system that all nodes share.
            methods: the methods, such as ``["student", "factor"]``.
            seeds: the seeds of the students.
            score: a function ``(experiment, artefact or error) -> dict`` that returns the record of a run.

        Returns:
            The records of the runs, seed by seed.

        Raises:
            InputError: teacher or paraphraser could not be trained, or a job cannot define a term of one's own.
        """
        stages = ["teacher"]
        if experiment.needs_paraphraser(methods):
            stages.append("pretrain")
        arguments = shlex.split(experiment.command)
        for stage in stages:
            (error,) = self._run(experiment, {stage: [stage, *arguments]}).values()
            if error:
                raise error
        pairs = {f"{method}-seed{seed}": (method, seed) for seed in seeds for method in methods}
        commands = {
            name: ["train", *arguments, *_as_overrides(method), f"student.seed={seed}"]
            for name, (method, seed) in pairs.items()
        }
        students: dict[tuple[str, int], Artefact | Exception] = {}
        for name, error in self._run(experiment, commands).items():
            folder = student_folder(experiment.work_dir, experiment.with_method(*pairs[name]).recipe)
            students[pairs[name]] = (
                error or artefact.find(folder) or InputError(f"the job finished without a student in {folder}")
            )
        return [
            score(experiment.with_method(method, seed), students[method, seed]) for seed in seeds for method in methods
        ]

    def _run(self, experiment: Experiment, commands: dict[str, list[str]]) -> dict[str, InputError | None]:
        """Submit commands as jobs, wait for all of them, and return the error of each by its name, or ``None``."""
        import submitit

        logging.getLogger("submitit").setLevel(logging.ERROR)  # it logs warnings wherever Slurm has no accounting
        executor = submitit.SlurmExecutor(folder=experiment.work_dir / "slurm")
        jobs = {}
        try:
            for name, command in commands.items():
                executor.update_parameters(**self.parameters, job_name=name)
                jobs[name] = executor.submit(subprocess.run, [*program_call(), *command], check=True)
                experiment.say(f"job {jobs[name].job_id}  {program()} {shlex.join(command)}")
            return {name: self._failure(name, job) for name, job in jobs.items()}
        except submitit.core.utils.FailedJobError as error:  # sbatch rejects the job
            raise InputError(f"Slurm rejected the job: {error}") from error
        except BaseException:  # nothing waits for the other jobs any more
            for job in jobs.values():
                job.cancel(check=False)
            raise

    @staticmethod
    def _failure(name: str, job: Any) -> InputError | None:
        error = job.exception()
        if error is None:
            return None
        messages = [line for line in (job.stderr() or "").splitlines() if line.startswith(("Error: ", "Stopped: "))]
        why = messages[-1].removeprefix("Error: ") if messages else first_line(error)
        return InputError(f"job {job.job_id} ({name}) failed: {why}\nIts log: {job.paths.stderr}")
