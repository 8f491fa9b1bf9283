"""From a recipe to a finished run: check, open the record, start Ray, train, watch, report. The driver's side."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytrain import asked_to_stop, figures
from polytrain.cluster import Fit, connect, is_own, train_environment
from polytrain.data import sample_suite, storage
from polytrain.data.manifest import Manifest
from polytrain.experiment import Experiment, all_splits, open_experiment
from polytrain.recipe import Recipe, RecipeError
from polytrain.report import LiveLine, duration, freeze_text, plan_text, results_text
from polytrain.run_folder import RunFolder, open_run
from polytrain.secrecy import faults_without_secrets, last_line
from polytrain.tracking import Tracker, artifact_root, chosen_uri, local_uri
from polytrain.training.time_spent import shares_text

if TYPE_CHECKING:
    from polytrain.data.reading import Flow, StreamSource
    from polytrain.data.stream import Streams

FINISHED, FAILED, STOPPED = 0, 1, 130
"""Exit codes."""


def dry_run(recipe: Recipe) -> int:
    """Print the plan and start nothing."""
    make_sample_suite(recipe)
    recipe = with_hparams(recipe)
    experiment, _ = open_experiment(recipe)
    print(plan_text(experiment))
    if experiment.initial:
        print(f"\n{experiment.initial.short()}")
    return FINISHED


def cotrain(recipe: Recipe, *, fresh: bool = False) -> int:
    """Run a recipe, or go on with it where an earlier run stopped. Returns the exit code.

    Raises RecipeError when something is wrong with recipe or manifests, BusyError when another process runs it.
    """
    make_sample_suite(recipe)
    recipe = with_hparams(recipe)
    run = open_run(storage.join(recipe.output, recipe.run_name))
    # A run that goes on needs `model.init` no more, which may be gone by now.
    states = [] if fresh else run.checkpoint_states()
    begun = next((state for state in states if "architecture" in state), None)
    experiment, manifests = open_experiment(recipe, begun=begun)
    with run.held(LiveLine().say) as still_held:
        if fresh:
            run.forget()
        result = run.result()
        if result.get("status") == "finished":
            print(f"{recipe.run_name} is finished; --fresh runs it anew.\n")
            _print_results(experiment, run, result)
            return FINISHED
        _check_continuation(experiment, run)
        run.clear_for_start()
        return _train(experiment, manifests, run, still_held)


def with_hparams(recipe: Recipe) -> Recipe:
    """The recipe with the winners of a sweep, where it asks for them."""
    if not isinstance(recipe.hparams, str):
        return recipe
    from polytrain.sweep import reuse

    return reuse.with_hparams(recipe)


def link_tags(recipe: Recipe) -> dict[str, str]:
    """Tags that lead from a co-training run back to the trials and sweeps that its values came from."""
    if recipe.hparams is None or isinstance(recipe.hparams, str):
        return {}
    taken = recipe.hparams.tasks
    sweeps = dict.fromkeys(task.sweep_run_id for task in taken.values())
    return {"polytrain.hparams_from": " ".join(sweeps)} | {
        f"polytrain.hparams.{name}": task.run_id for name, task in taken.items()
    }


def make_sample_suite(recipe: Recipe) -> None:
    """Make the sample suite where the recipe wants it; nothing happens if it is there."""
    folder = recipe.data.sample_suite
    if folder is None:
        return
    live = LiveLine()
    try:
        sample_suite.make(folder, progress=live.say)
    except FileExistsError as error:
        raise RecipeError(f"data.sample_suite: {error}") from None


def _check_continuation(experiment: Experiment, run: RunFolder) -> None:
    """Refuse to go on with a checkpoint that belongs to other examples."""
    states = [state for state in run.checkpoint_states() if state.get("plan_digest") != experiment.plan.digest]
    if not states:
        return
    state = states[0]
    before = state.get("manifests", {})
    changed = [t for t in experiment.tasks if before.get(t.name) != t.digest]
    what = (
        "\n".join(f"tasks.{t.name}.manifest: {t.manifest} is not what it was" for t in changed) or "the plan is another"
    )
    raise RecipeError(
        f"{what}\nThe checkpoints in {run.at('checkpoints')} were trained on other examples and can't be continued; "
        f"put the manifest back, or start over with --fresh"
    )


# --- the run ------------------------------------------------------------------------------------------------------


def _train(experiment: Experiment, manifests: list[Manifest], run: RunFolder, still_held: Callable[[], None]) -> int:
    recipe = experiment.recipe
    live = LiveLine()
    live.say(f"{recipe.run_name}: {len(experiment.tasks)} tasks, {experiment.schedule.steps:,} steps")
    (run.path / "recipe.yaml").write_text(recipe.yaml())
    if experiment.initial:
        (run.path / "init.txt").write_text(experiment.initial.full())
        if not run.checkpoint_states():
            live.say(experiment.initial.short())
            if recipe.train.freeze:
                live.say(freeze_text(experiment))
    with ThreadPoolExecutor(1) as beside:
        record = beside.submit(_open_record, experiment, manifests, run)
        connect(cpus_for(recipe))
        flow = flow_of(recipe, len(experiment.modalities))
        warm_up(len(experiment.modalities) * flow.processes)
        try:
            tracker = record.result()
        except RuntimeError as error:
            raise RecipeError(f"tracking: {error}") from None
    if tracker.notice:
        live.say(tracker.notice)
    tracker.detach()
    with _stopping(run, live):  # after Ray, which installs a handler of its own
        fault = _fit(experiment, manifests, run, live, still_held, flow)
    result = run.result()
    status = result.get("status", "failed")
    tracker = Tracker.resume(run.path, handover=run.handover)
    ended = {"finished": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED")
    message = result.get("message") or fault or "the workers ended without a result"
    if ended == "FAILED":
        if not result:
            run.write_result({"status": "failed", "message": message})
        tracker.tags({"polytrain.error": message})
    notice = tracker.close(ended)
    if notice:
        live.say(notice)
    if status == "finished":
        print()
        _print_results(experiment, run, result)
        return FINISHED
    if status == "stopped":
        live.say(f"Stopped after step {result['step']} with a checkpoint; the same command goes on from there.")
        live.say(f"Until then: {_took(result)}")
        return STOPPED
    print(f"{recipe.run_name} failed: {message}", file=sys.stderr)
    if took := result if "spent" in result else run.progress().get("took"):
        live.say(f"Until then: {_took(took)}")
    return FAILED


def _open_record(experiment: Experiment, manifests: list[Manifest], run: RunFolder) -> Tracker:
    """The MLflow run with everything known before the first step."""
    recipe = experiment.recipe
    local = local_uri(recipe.output)
    tracker = Tracker.open(
        run.path,
        uri=chosen_uri(recipe.tracking.uri, recipe.output),
        fallback_uri=local,
        experiment=recipe.tracking.experiment or recipe.name,
        run_name=recipe.run_name,
        artifact_root=artifact_root(recipe.output),
        tags={
            "polytrain.kind": "single_task" if len(experiment.architecture.tasks) == 1 else "cotrain",
            "polytrain.schedule": recipe.schedule,
            "polytrain.plan_digest": experiment.plan.digest,
            "polytrain.git_commit": git_commit(),
        }
        | link_tags(recipe)
        | ({"polytrain.init": experiment.initial.kind} if experiment.initial else {}),
        params=flat(recipe.plain()),
        handover=run.handover,
    )
    for task, manifest in zip(experiment.tasks, manifests, strict=True):
        profile = {"classes": len(task.classes), "modality": task.modality, **manifest.sizes}
        tracker.dataset(name=task.name, uri=task.manifest, digest=task.digest, context="training", profile=profile)
    tracker.artifact(run.path / "recipe.yaml")
    if experiment.initial:
        tracker.artifact(run.path / "init.txt")
    schedule = experiment.schedule
    picture = run.path / "figures" / "schedule.png"
    order = schedule.draws.reshape(-1, schedule.draws_per_step)
    figures.schedule_strip(
        [task.name for task in experiment.tasks], order.squeeze(1) if order.shape[1] == 1 else order, picture
    )
    tracker.artifact(picture)
    return tracker


def cpus_for(recipe: Recipe) -> int:
    """CPUs of a Ray that is started here: a worker and a decoder at least, also on one core."""
    return max(os.cpu_count() or 1, recipe.train.workers + 1)


def flow_of(recipe: Recipe, streams: int) -> Flow:
    """What each of a run's streams may use of a Ray that has been joined."""
    import ray

    from polytrain.data.reading import Flow

    cpus = recipe.data.decode_cpus or max(0.5, ray.cluster_resources().get("CPU", 1) - recipe.train.workers)
    return Flow.shared(streams, cpus=cpus, memory=recipe.data.memory_budget)


def warm_up(decoders: int) -> None:
    """Start so many decoding processes, in a Ray of our own."""
    from polytrain.data import decode_worker

    if is_own():
        decode_worker.warm_up(decoders, train_environment())


def stream_source(experiment: Experiment, manifests: list[Manifest], flow: Flow) -> StreamSource:
    """What the streams of a run are made from."""
    from polytrain.data.reading import StreamSource, TaskMedia
    from polytrain.data.views import views_at_test

    recipe = experiment.recipe
    media = tuple(
        TaskMedia(
            geometry := experiment.architecture.modalities[task.modality],
            all_splits(manifest),
            task.augmentation,
            test_views=views_at_test(geometry, recipe.eval.views_of(task.modality)),
        )
        for task, manifest in zip(experiment.tasks, manifests, strict=True)
    )
    return StreamSource(experiment.plan, media, recipe.data.decode_time_limit_s, flow)


def _fit(
    experiment: Experiment,
    manifests: list[Manifest],
    run: RunFolder,
    live: LiveLine,
    still_held: Callable[[], None],
    flow: Flow,
) -> str | None:
    """Train under Ray Train while this thread shows progress. Returns what went wrong, if the trainer failed.

    Raises BusyError where another driver has taken the run over.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from polytrain.data.stream import Streams
    from polytrain.trainer import make_trainer

    train = experiment.recipe.train
    resources = ray.cluster_resources()
    gpu = resources.get("GPU", 0) >= train.workers if train.use_gpu == "auto" else train.use_gpu
    if gpu and resources.get("GPU", 0) < train.workers:
        return f"train.use_gpu: {train.workers} workers want a GPU each, Ray has {resources.get('GPU', 0):g}"
    worker = {"CPU": 1} | ({"GPU": 1} if gpu else {}) | train.resources
    for name, amount in train.resources.items():
        if resources.get(name, 0) < amount * train.workers:
            return (
                f"train.resources: {train.workers} workers want {amount:g} {name} each, "
                f"Ray has {resources.get(name, 0):g}"
            )
    source = ray.put(stream_source(experiment, manifests, flow))
    trainer = make_trainer(
        lambda config: _train_on_worker(**config),
        {"experiment": experiment, "source": [source], "run_folder": run.place},
        streams=Streams(source, run.place, experiment.modalities),
        scaling=ScalingConfig(num_workers=train.workers, use_gpu=gpu, resources_per_worker=worker),
        run=RunConfig(
            name=f"attempt-{time.time_ns()}",  # Ray would take a finished run of the same name for this one
            storage_path=str(run.path / "ray_train"),
            failure_config=FailureConfig(max_failures=train.max_failures),
        ),
    )
    thread = Fit(trainer.fit)
    thread.start()
    attempt = 0
    while thread.is_alive():
        still_held()
        start, progress = run.news()
        if start and start["attempt"] != attempt:
            _say_start(start, attempt, experiment, live)
            attempt = start["attempt"]
        if progress and attempt:
            live.show(progress)
        thread.join(run.look_s)
    shutil.rmtree(run.path / "ray_train", ignore_errors=True)
    return last_line(thread.error) if thread.error else None


@faults_without_secrets()
def _train_on_worker(experiment: Experiment, source: list[Any], run_folder: str, streams: Streams) -> None:
    """What Ray Train runs on every worker. Decoders start while torch is imported, there and nowhere else."""
    from polytrain.data.decode_worker import source_behind
    from polytrain.training.start import Place, start

    run = open_run(run_folder)
    media = source_behind(source[0])  # in a list, or Ray would have put the value in its place
    begun = start(media, experiment.modalities, run, Place.in_worker_group(streams))
    from polytrain.training import loop

    loop.cotrain(experiment, media, run, begun)
    run.close()


def _say_start(start: dict[str, Any], attempt: int, experiment: Experiment, live: LiveLine) -> None:
    for fault in start["faults"]:
        live.say(f"Checkpoint passed over: {fault}")
    if attempt:
        live.say(f"A worker was lost; continuing from step {start['step']}")
    elif start["step"]:
        live.say(f"Continuing from step {start['step']} of {experiment.schedule.steps}")


@contextlib.contextmanager
def _stopping(run: RunFolder, live: LiveLine) -> Iterator[None]:
    """Ctrl-C and `ray job stop` ask the loop for a checkpoint and an end; a second Ctrl-C ends at once."""
    asked = threading.Event()

    def handler(number: int, _: Any) -> None:
        if asked.is_set():
            os._exit(STOPPED)
        asked.set()
        run.request_stop()
        live.say("Stopping with a checkpoint; once more to stop at once.")

    with asked_to_stop.heard(handler):
        yield


# --- telling ------------------------------------------------------------------------------------------------------


def _print_results(experiment: Experiment, run: RunFolder, result: dict[str, Any]) -> None:
    print(results_text(experiment, result))
    print(f"\ntrained in {_took(result)}\nthe model lies in {run.at('final')}")
    record = run.record()
    print(f"MLflow run {record['run_id']} in {record['uri']}")
    local = local_uri(experiment.recipe.output)
    if record["uri"] == local:
        here = Path(experiment.recipe.output) == Path(__file__).parents[2] / "runs"
        print(f"To compare runs: {'make ui' if here else f'mlflow ui --backend-store-uri {local}'}")


def _took(result: dict[str, Any]) -> str:
    """How long the loop ran, and what that time was spent on."""
    spent = result.get("spent")  # runs of before there were shares have none
    return duration(result["seconds"]) + (f": {shares_text(spent)}" if spent else "")


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A recipe as MLflow params: key.path -> value."""
    if isinstance(tree, dict):
        return {key: value for name, part in tree.items() for key, value in flat(part, f"{prefix}{name}.").items()}
    return {prefix[:-1]: tree}


def git_commit() -> str:
    """The commit of the code that runs, or "unknown" outside a checkout."""
    import subprocess

    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
