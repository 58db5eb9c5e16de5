"""The trainings of a comparison in parallel processes, with one thread each."""

import contextlib
import gc
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from factor_transfer.config.read import as_toml, read_recipe
from factor_transfer.config.recipe import ALONE
from factor_transfer.distributed.signals import SAVED, defer_signals, raise_on_signals
from factor_transfer.distributed.workers import begin_helper, starting_workers, worker_context
from factor_transfer.errors import InputError, Interrupted, first_line
from factor_transfer.methods import TERMS, own_terms
from factor_transfer.methods.own import Location, load, locate
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.lock import act_for, holder_token
from factor_transfer.pipeline.stages.paraphraser import make_paraphraser
from factor_transfer.pipeline.stages.student import fill_cache, make_students
from factor_transfer.pipeline.stages.teacher import make_teacher
from factor_transfer.training.log import Display

# The memory of a process with PyTorch and one training of small networks; images need additional memory.
_PROCESS_BYTES = 2**30
_SIGTERM = 15


def default_jobs(experiment: Experiment) -> int:
    """The default number of processes: one per processor, as far as memory allows; only one on a GPU."""
    if experiment.fabric.device.type != "cpu" or experiment.fabric.world_size > 1:
        return 1
    if any(locate(TERMS[name]) is None for name in own_terms()):  # only this process knows them
        return 1
    images, more = experiment.data.train.images, experiment.data.unlabelled
    process_bytes = _PROCESS_BYTES + (3 * images.nbytes if isinstance(images, Tensor) else 0)
    if more is not None and isinstance(more.images, Tensor):  # each process has them twice, alone and with the others
        process_bytes += 2 * more.images.nbytes
    return max(1, min(_processors(), _available_bytes() // process_bytes))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """The memory that new processes can have, including that which the system uses to cache files."""
    try:
        available = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)
        if available:
            return 1024 * int(available[1])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2**40  # unknown on this system, so memory is no limit


@dataclass(frozen=True)
class Task:
    """The work that a process does at a time.

    Attributes:
        name: the name of the task in error messages.
        seed: the seed of its students; ``None`` for the task that trains teacher and paraphraser and fills the cache.
        methods: the methods of its students, which are trained in lockstep, or the methods whose targets are cached.
        first: whether it needs no result of another task.
    """

    name: str
    seed: int | None
    methods: tuple[str, ...]
    first: bool = False


@dataclass
class _Worker:
    """A process, which does one task after the other, so that it reads the images only once."""

    process: Any
    connection: Connection
    task: Task | None = None
    stages: dict[str, tuple[int, int]] = field(default_factory=dict)  # completed steps and all steps


class ProcessJobs:
    """A runner that trains the students of a comparison in several processes on this machine.

    Students that learn from labels alone start immediately, at the same time as the teacher; all others start when
    teacher, paraphraser and factor cache are complete. With a factor cache, each student has its own process; without
    one, the students of a seed are trained in lockstep, since they share the teacher's forward passes. Seeds that do
    not divide evenly among the processes are split into groups of methods, so that no processor is idle at the end.

    Args:
        count: the largest number of processes at the same time, at least 1.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise InputError(f"--jobs must be at least 1, got {count}")
        self.count = count

    def runs(
        self, experiment: Experiment, methods: Sequence[str], seeds: Sequence[int], score: Callable[..., Any]
    ) -> list[dict[str, Any]]:
        """Train teacher and paraphraser, then train and score a student per method and seed.

        Args:
            experiment: the experiment, whose work dir this process has locked.
            methods: the methods, such as ``["student", "factor"]``.
            seeds: the seeds of the students.
            score: a module-level function ``(experiment, artefact or error) -> dict`` that returns the record of a run.

        Returns:
            The records of the runs, seed by seed.

        Raises:
            InputError: teacher or paraphraser could not be trained, a process was killed, or the processes cannot
                import a term that is defined outside this package.
            Interrupted: a signal requested a stop; each training has written its checkpoint.
        """
        terms = _own_terms()
        tasks = plan(experiment, methods, seeds, self.count)
        experiment.say(f"{self.count} processes, each with one thread")
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder, f"{experiment.recipe.name}.toml")
            recipe.write_text(as_toml(experiment.recipe), encoding="utf-8")
            records = _Pool(self.count, experiment, recipe, terms, score).run(tasks)
        by_run = {(run["method"], run["seed"]): run for runs in records for run in runs}
        return [by_run[method, seed] for seed in seeds for method in methods]


def _own_terms() -> dict[str, Location]:
    """Where the processes find the terms that are defined outside this package."""
    places = {}
    for name in own_terms():
        place = locate(TERMS[name])
        if place is None:
            raise InputError(
                f"other processes cannot import the term {name!r}, which is defined in a function or a notebook; "
                "define it at the top level of a file, or give --jobs 1"
            )
        places[name] = place
    return places


def plan(experiment: Experiment, methods: Sequence[str], seeds: Sequence[int], processes: int) -> list[Task]:
    """The tasks of a comparison for a number of processes, in the order in which they should start."""
    terms = [method for method in methods if method != ALONE]
    tasks = [Task("teacher", None, tuple(terms), first=True)]
    if ALONE in methods:
        tasks += [Task(f"{ALONE}, seed {seed}", seed, (ALONE,), first=True) for seed in seeds]
    cached = experiment.recipe.cache.views is not None
    rest = len(seeds) % processes  # of these, some processes would have one more than others
    for index, seed in enumerate(seeds if terms else ()):
        is_last = index >= len(seeds) - rest
        parts = len(terms) if cached else processes // gcd(processes, rest) if is_last else 1
        groups = [tuple(terms[part::parts]) for part in range(min(parts, len(terms)))]
        tasks += [Task(f"{', '.join(group)}, seed {seed}", seed, group) for group in groups]
    return tasks


class _Pool:
    """The running processes, with their output and results."""

    def __init__(
        self,
        count: int,
        experiment: Experiment,
        recipe: Path,
        terms: Mapping[str, Location],
        score: Callable[..., Any],
    ) -> None:
        self.count, self.experiment, self.recipe, self.terms, self.score = count, experiment, recipe, terms, score
        self.display = Display(experiment.console, several=True)
        self.context = worker_context(__name__, "factor_transfer.distributed.fabric")
        self.workers: list[_Worker] = []
        self.prepared = False

    def run(self, tasks: Sequence[Task]) -> list[Any]:
        """Run all tasks, and return their results in no particular order."""
        waiting, outcomes, stopped, stopping = list(tasks), [], list[str](), False
        with defer_signals() as stop:
            try:
                while waiting or self._busy():
                    if stop.signal and not stopping:
                        stopping = True
                        self.display.say("Stopping: each training finishes its step and saves its state")
                        waiting.clear()
                        for worker in self._busy():
                            worker.process.terminate()
                    self._start(waiting)
                    for task, kind, value in self._finished():
                        if kind == "stopped":
                            stopped.append(value)
                            if not stop.signal:  # the process received the signal directly
                                stop.signal = _SIGTERM
                        elif kind == "error":
                            if not stop.signal:  # a process that is terminated may end before it can report why
                                raise InputError(value)
                        elif task.seed is None:
                            self.prepared = True
                        else:
                            outcomes.append(value)
            finally:
                busy = self._busy()
                for worker in busy:
                    worker.process.terminate()
                for worker in busy:  # with its connection open, since it still reports what it saves
                    worker.process.join()
                for worker in self.workers:
                    worker.connection.close()  # ends a process that waits for a task
                    worker.process.join()
        if stop.signal:
            lines = dict.fromkeys(line for saved in stopped for line in saved.splitlines())
            raise Interrupted("\n".join(lines) or SAVED, stop.signal)
        return outcomes

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.task is not None]

    def _start(self, waiting: list[Task]) -> None:
        ready = [task for task in waiting if task.first or self.prepared]
        # The teacher uses the processors that are idle during its training.
        parallel = sum(task.first and task.seed is not None for task in ready)
        for task in ready[: self.count - len(self._busy())]:
            waiting.remove(task)
            threads = max(1, self.count - parallel) if task.seed is None else 1
            # The threads that fill the cache do not wait for each other, so they may share processors with students.
            cache_threads = self.count if task.seed is None else threads
            worker = self._idle()
            worker.task = task
            with contextlib.suppress(ConnectionError):  # it has died, which _finished reports
                worker.connection.send((task, threads, cache_threads))

    def _idle(self) -> _Worker:
        """A process without a task; a new one if there is none."""
        self.workers = [worker for worker in self.workers if worker.task is not None or worker.process.is_alive()]
        for worker in self.workers:
            if worker.task is None:
                return worker
        ours, theirs = self.context.Pipe()
        settings = self.recipe, self.experiment.work_dir, self.experiment.command, holder_token()
        process = self.context.Process(target=_work, args=(theirs, *settings, self.terms, self.score))
        with starting_workers():
            process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours))
        return self.workers[-1]

    def _finished(self) -> Iterator[tuple[Task, str, Any]]:
        """Show the output of the processes for up to 0.2 seconds, and yield the tasks that have ended, with results."""
        by_connection = {worker.connection: worker for worker in self._busy()}
        for connection in wait(list(by_connection), timeout=0.2):
            worker = by_connection[connection]  # type: ignore[index]
            while (task := worker.task) is not None:
                try:
                    if not worker.connection.poll():
                        break
                    kind, *values = worker.connection.recv()
                except (EOFError, ConnectionError):
                    worker.process.join()
                    kind, values = "error", [_died(task, worker.process.exitcode)]
                if kind in ("done", "error", "stopped"):
                    worker.task, worker.stages = None, {}
                    self.display.job(task.name, {})
                    yield task, kind, *values
                else:
                    self._show(worker, kind, *values)

    def _show(self, worker: _Worker, kind: str, *values: Any) -> None:
        assert worker.task is not None
        if kind in ("say", "epoch"):
            getattr(self.display, kind)(*values)
            return
        stage = values[0]
        if kind == "start":
            _, total, completed = values
            worker.stages[stage] = completed, total
        elif kind == "update" and stage in worker.stages:
            worker.stages[stage] = values[1], worker.stages[stage][1]
        elif kind == "stop":
            worker.stages.pop(stage, None)
        self.display.job(worker.task.name, worker.stages)


def _died(task: Task, code: int) -> str:
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return (
        f"the process of {task.name} ended {how}; it may have been killed, for example for lack of memory. The same "
        "command resumes the comparison; fewer --jobs need less memory"
    )


class RemoteDisplay(Display):
    """A display that sends its output to the parent process.

    Args:
        connection: the pipe to the parent process.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(Console(quiet=True))
        self.connection = connection

    def say(self, text: str) -> None:
        """Print a line in the parent process."""
        self.connection.send(("say", text))

    def say_once(self, text: str) -> None:
        """Print nothing, since the parent process has printed the line."""

    def start(self, stage: str, total: int, completed: int) -> None:
        """Add the row of a stage in the parent process."""
        self.connection.send(("start", stage, total, completed))

    def update(self, stage: str, completed: int, figures: str) -> None:
        """Show the progress of a stage in the parent process."""
        self.connection.send(("update", stage, completed, figures))

    def epoch(self, text: str) -> None:
        """Print the line of an epoch in the parent process."""
        self.connection.send(("epoch", text))

    def stop(self, stage: str) -> None:
        """Remove the row of a stage in the parent process."""
        self.connection.send(("stop", stage))


def _work(
    connection: Connection,
    recipe: Path,
    work_dir: Path,
    command: str,
    token: str | None,
    terms: Mapping[str, Location],
    score: Callable[..., Any],
) -> None:
    """Do tasks until there are no more; the main function of a process."""
    os.setsid()  # a Ctrl-C reaches this process only once, through its parent
    begin_helper()
    try:
        TERMS.update({name: load(place) for name, place in terms.items()})
    except InputError as error:
        connection.send(("error", str(error)))
        return
    act_for(token)  # after code from outside has run: it may not use the work dir
    experiment = Experiment(read_recipe(recipe), work_dir, RemoteDisplay(connection), command)
    experiment.threads_are_set = True
    while True:
        try:
            task, threads, experiment.cache_threads = connection.recv()
        except (EOFError, ConnectionError):
            return
        torch.set_num_threads(threads)
        outcome = _outcome(experiment, task, score)
        connection.send(outcome)
        if outcome[0] == "stopped":
            return
        # Free the memory of this task before the next one.
        experiment.forget_logits()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _outcome(experiment: Experiment, task: Task, score: Callable[..., Any]) -> tuple[str, Any]:
    """How a task ended, and its result or a message."""
    try:
        with raise_on_signals():
            return "done", _run_task(experiment, task, score)
    except Interrupted as error:
        return "stopped", error.saved
    except (InputError, OSError) as error:
        return "error", str(error)
    except (RuntimeError, MemoryError) as error:
        return "error", f"{task.name}: {first_line(error)}"


def _run_task(experiment: Experiment, task: Task, score: Callable[..., Any]) -> Any:
    several = [experiment.with_method(method, task.seed) for method in task.methods]
    if task.seed is not None:
        return [score(*one) for one in zip(several, make_students(several), strict=True)]
    make_teacher(experiment)
    if any(one.recipe.needs_paraphraser for one in several):
        make_paraphraser(experiment)
    if several:
        fill_cache(several)
    return None
