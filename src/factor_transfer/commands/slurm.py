"""``compare --slurm``: a Slurm job for each method and seed, through submitit; each a command that could be typed."""

import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from factor_transfer.config.recipe import needs_paraphraser
from factor_transfer.errors import InputError, first_line
from factor_transfer.models.optional import installed, pip_install
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.student import student_folder

_MINUTES = 24 * 60  # that a job may take, if nothing else is said
_LIMITS = ("time", "cpus_per_task", "gpus_per_node", "mem", "account", "qos", "constraint", "exclude", "nodelist")


class Jobs:
    """Sends commands to a partition.

    Args:
        partition: of the cluster.
        settings: what each job may use: sbatch's options as ``KEY=VALUE``, separated by spaces; ``time`` in minutes.

    Raises:
        InputError: no submitit or no Slurm here, or a setting that there is not.
    """

    def __init__(self, partition: str, settings: str = "") -> None:
        if not installed("submitit"):
            raise InputError(f"submitit is not installed; {pip_install('slurm')}")
        if shutil.which("sbatch") is None:
            raise InputError("sbatch is not here, so there is no Slurm to send jobs to; without --slurm they run here")
        self.parameters: dict[str, Any] = {"partition": partition, "time": _MINUTES}
        for setting in shlex.split(settings):
            key, equals, value = setting.partition("=")
            if not equals or key not in _LIMITS:
                raise InputError(f"--slurm-args says {setting!r}; valid are KEY=VALUE of {', '.join(_LIMITS)}")
            self.parameters[key] = int(value) if value.isdigit() else value

    def runs(
        self, experiment: Experiment, methods: Sequence[str], seeds: Sequence[int], score: Callable[..., dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Train teacher, paraphraser, and then all students at the same time; wait for them, and score them here.

        Args:
            experiment: whose work dir all nodes must see; this process holds it, and lets its jobs in.
            methods: such as ``["student", "factor"]``.
            seeds: of the students.
            score: makes a run's record from an experiment and its student, or the error in its place.

        Returns:
            The records, seed by seed.

        Raises:
            InputError: teacher or paraphraser could not be made.
        """
        stages = ["teacher"]
        if any(map(needs_paraphraser, methods)):
            stages.append("pretrain")
        given = shlex.split(experiment.command)
        for stage in stages:
            (error,) = self._run(experiment, {stage: [stage, *given]}).values()
            if error:
                raise error
        pairs = {f"{method}-seed{seed}": (method, seed) for seed in seeds for method in methods}
        commands = {
            name: ["train", *given, f"transfer.method={method}", f"student.seed={seed}"]
            for name, (method, seed) in pairs.items()
        }
        made: dict[tuple[str, int], Artefact | Exception] = {}
        for name, error in self._run(experiment, commands).items():
            folder = student_folder(experiment.work_dir, experiment.recipe.with_method(*pairs[name]))
            made[pairs[name]] = error or artefact.find(folder) or InputError(f"the job left no student in {folder}")
        return [score(experiment.with_method(method, seed), made[method, seed]) for seed in seeds for method in methods]

    def _run(self, experiment: Experiment, commands: dict[str, list[str]]) -> dict[str, InputError | None]:
        """Send commands, by name, and wait for all; what went wrong with each."""
        import submitit

        logging.getLogger("submitit").setLevel(logging.ERROR)  # it complains wherever Slurm keeps no accounts
        executor = submitit.SlurmExecutor(folder=experiment.work_dir / "slurm")
        jobs = {}
        try:
            for name, command in commands.items():
                executor.update_parameters(**self.parameters, job_name=name)
                call = [sys.executable, "-P", "-m", "factor_transfer", *command]
                jobs[name] = executor.submit(subprocess.run, call, check=True)
                experiment.say(f"job {jobs[name].job_id}  {shlex.join(['factor-transfer', *command])}")
            return {name: self._failure(name, job) for name, job in jobs.items()}
        except submitit.core.utils.FailedJobError as error:  # sbatch refuses it
            raise InputError(f"Slurm does not take the job: {error}") from error
        except BaseException:  # nobody waits for them any more
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
