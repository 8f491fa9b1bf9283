"""The recipe: one YAML file that says everything about an experiment.

Loading goes in four steps, each of which names what is wrong: read the YAML, apply `key.path=value` overrides
(OmegaConf), check keys, types and ranges (the models below), then check what must agree between sections. Every key
is described where it is defined; `python jobs/cotrain.py --help` prints those descriptions.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from polytrain import secrecy
from polytrain.base_folder import base_folder
from polytrain.data.augmentation import AUGMENTATIONS, fitting
from polytrain.data.views import views_at_test
from polytrain.modalities import MODALITIES, Audio, Geometry, Image, Video
from polytrain.schedule import KINDS

SIZES = {
    "base": {"depth": 12, "width": 768, "heads": 12, "mlp_width": 3072},
    "large": {"depth": 24, "width": 1024, "heads": 16, "mlp_width": 4096},
}
"""PolyViT, section 5.1."""

SWEEP_KEYS = ("grid", "search", "sweep", "probe", "hparams", "hparams_missing", "hparams_mismatch")
"""Keys that say where hyperparameters come from, not what is trained."""


NO_SMOOTHING = "{:g} would spread a label over classes that sigmoid judges one by one; 0 is right, or loss: softmax"
"""What is wrong with label smoothing where classes do not exclude each other."""


class RecipeError(ValueError):
    """What is wrong with a recipe, a line a fault: key, value, what would be right."""


def byte_count(value: Any) -> Any:
    """Bytes of "512MB" or "1.5 GB" (powers of 1,000) and "1GiB" (powers of 1,024); numbers are left as they are."""
    if not isinstance(value, str):
        return value
    units = {"": 1, "b": 1} | {f"{p}b": 1000**n for n, p in enumerate("kmgt", 1)}
    units |= {f"{p}ib": 1024**n for n, p in enumerate("kmgt", 1)}
    text = value.strip().lower()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    try:
        return round(float(number) * units[text[len(number) :].strip()])
    except (ValueError, KeyError):
        raise ValueError(f"{value!r} is no amount of memory; 512MB or 2GiB would be") from None


Bytes = Annotated[int, BeforeValidator(byte_count)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """The transformer that all tasks share."""

    size: Literal["base", "large"] | None = Field(None, description="a named size instead of the four numbers below")
    depth: int = Field(12, ge=1, description="layers that an input passes, adaptor layers included")
    width: int = Field(768, ge=1, description="hidden width, a multiple of heads")
    heads: int = Field(12, ge=1, description="attention heads")
    mlp_width: int = Field(3072, ge=1, description="hidden width of the MLPs, customarily 4 x width")
    adaptor_layers: int = Field(0, ge=0, description="how many of the layers are private to each modality (L_adapt)")
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="stochastic depth: rate of the last layer, for every task that sets no drop_path of its own",
    )
    init: str | None = Field(
        None,
        description="weights to start from: a ViT's .npz, weights of timm or Hugging Face (ViT, DeiT, AST, ViViT; file "
        "or folder), a checkpoint folder of polytrain; path or URI; null: fresh",
    )
    init_tubelet: Literal["central", "inflate", "repeat", "random"] = Field(
        "central",
        description="video kernels from image kernels: in the central frame, in every frame divided by their number "
        "(inflate) or not (repeat), or fresh",
    )
    init_allow: tuple[str, ...] = Field(
        (), description="tensors of init that may fit nowhere and weights that may stay fresh, by name, * for any part"
    )
    norm_eps: float | None = Field(None, gt=0, description="LayerNorm's epsilon; null: that of init's source, or 1e-6")
    gelu: Literal["tanh", "none"] | None = Field(
        None, description="GELU by tanh or exact (none); null: that of init's source, or tanh"
    )

    @model_validator(mode="before")
    @classmethod
    def _named_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("size") in SIZES:
            numbers = SIZES[values["size"]]
            clash = [key for key in numbers if key in values and values[key] != numbers[key]]
            if clash:
                raise ValueError(
                    f"size: {values['size']} already says {clash[0]}: {numbers[clash[0]]}; give one of them"
                )
            return values | numbers
        return values

    @model_validator(mode="after")
    def _agrees(self) -> Model:
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is not a multiple of heads: {self.heads}")
        if self.adaptor_layers > self.depth:
            raise ValueError(f"adaptor_layers: {self.adaptor_layers} is more than depth: {self.depth}")
        return self


NEWER_MODEL_KEYS = ("init_tubelet", "init_allow", "norm_eps", "gelu")
"""Runs of before there were such keys keep their names."""


class Modalities(Section):
    """The geometry of the inputs, for each modality in use."""

    image: Image | None = Field(None, description="size and patch: [height, width] in pixels")
    video: Video | None = Field(
        None, description="frames a clip, stride between them, size [height, width], tubelet [frames, height, width]"
    )
    audio: Audio | None = Field(
        None,
        description="sample_rate in Hz, seconds a clip, mel_bins, patch [time, frequency], "
        "window_ms, hop_ms; mean and deviation standardise the log-mel, with 0 and 0.5 it stays as it is",
    )

    def in_use(self) -> dict[str, Geometry]:
        return {name: geometry for name in MODALITIES if (geometry := getattr(self, name)) is not None}


class Task(Section):
    """One dataset with its single-task hyperparameters, which co-training reuses unchanged."""

    modality: Literal["image", "video", "audio"] = Field(description="image, video or audio")
    manifest: str = Field(description="the Parquet table of examples that jobs/prepare.py writes; path or URI")
    steps: int = Field(ge=1, description="steps of the single-task run (U_j)")
    lr: float = Field(gt=0, description="peak learning rate")
    batch_size: int = Field(ge=1, description="examples of a minibatch over all workers")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up; co-training sums them over the tasks")
    loss: Literal["softmax", "sigmoid"] | None = Field(
        None,
        description="softmax cross-entropy, or sigmoid cross-entropy summed over classes; null: sigmoid for "
        "manifests with several labels an example, else softmax",
    )
    head_init: Literal["zeros", "lecun_normal"] | None = Field(
        None, description="the head's first weights; null: lecun_normal for images, zeros for video and audio"
    )
    mixup_alpha: float = Field(0.0, ge=0, description="mixup: one weight a minibatch from Beta(alpha, alpha); 0: none")
    drop_path: float | None = Field(None, ge=0, lt=1, description="stochastic depth of this task; null: the model's")
    augment: Literal[tuple(AUGMENTATIONS)] = Field(
        "none",
        description="what is changed at random in training. none: the whole frame. image: Inception crop and flip. "
        "video: crop, scale jitter, flip, colours, grey. audio: SpecAugment. randaugment (images, videos): crop, flip "
        "and two random operations. A flip turns left into right, and its classes with it",
    )
    augment_magnitude: float | None = Field(
        None, ge=0, description="randaugment: how strong its operations are, 10 ends the scale; null: 15"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="softmax: part of a label that is spread evenly over all classes"
    )

    @model_validator(mode="after")
    def _agrees(self) -> Task:
        right = fitting(self.modality)
        if self.augment not in right:
            raise ValueError(f"augment: {self.augment} is not for {self.modality} tasks; {', '.join(right)} would be")
        if self.augment_magnitude is not None and self.augment != "randaugment":
            raise ValueError(f"augment_magnitude: only randaugment has one, augment: {self.augment} has not")
        if self.label_smoothing and self.loss == "sigmoid":
            raise ValueError(f"label_smoothing: {NO_SMOOTHING.format(self.label_smoothing)}")
        return self


class Optimizer(Section):
    """One optimizer state for all tasks."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="sgd (the paper's) or adamw")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd: momentum")
    betas: tuple[float, float] = Field((0.9, 0.999), description="adamw: decay of the two running means")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="decoupled for adamw, L2 for sgd; kernels only, never biases, norms, class tokens or positions",
    )
    clip_norm: float | None = Field(
        1.0, gt=0, description="largest global norm of a step's gradient; null: no clipping"
    )


class Train(Section):
    """How the loop runs. Of these, only freeze, precision and eval_every may change the result."""

    workers: int = Field(1, ge=1, description="training workers; each takes a share of every minibatch")
    use_gpu: bool | Literal["auto"] = Field("auto", description="a GPU a worker; auto: where Ray has enough of them")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on GPUs and on CPUs made for it")
    threads: int | None = Field(
        None, ge=1, description="cores of a CPU worker, each taking a part of its share; null: cores / workers"
    )
    freeze: Literal["encoder"] | None = Field(
        None,
        description="encoder: of model.init nothing is changed, no old head either; only heads of new tasks are "
        "trained, and the result serves old and new tasks",
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="what else a worker needs of its node, as `ray start --resources` names it: {trainer: 1} keeps "
        "training to nodes that have a trainer",
    )
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=2, description="checkpoints kept beside best and final")
    eval_every: int = Field(1000, ge=1, description="steps between validations; one more runs at the end")
    log_every: int = Field(10, ge=1, description="steps between looks at the losses (NaN is found then) and live lines")
    max_failures: int = Field(3, ge=0, description="how often lost workers are replaced before the run gives up")


class Data(Section):
    """How media are read."""

    memory_budget: Bytes = Field(
        1_000_000_000,
        gt=0,
        description="bytes of decoded minibatches that may wait in all streams together, e.g. 512MB",
    )
    decode_cpus: float | None = Field(None, gt=0, description="CPUs for decoding; null: what the workers leave")
    decode_time_limit_s: float = Field(30.0, gt=0, description="seconds one file may take before it counts as bad")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="share of a task's examples that may be undecodable; judged once 100 were tried"
    )
    shuffle_window: int = Field(
        32, ge=1, description="row groups of a packed collection that are shuffled together: more mix better"
    )
    sample_suite: str | None = Field(None, description="folder in which the sample suite is made if it isn't there")


PAPER_VIEWS = {"image": (1, 1), "video": (4, 3), "audio": (4, 1)}
"""PolyViT's, which takes them from ViViT and MBT."""


class Views(Section):
    """Views of an example in the final test, [clips, crops], logits averaged; null: one; paper: PolyViT's 4 x 3."""

    image: tuple[int, int] = Field((1, 1), description="an image has one clip; crops lie along its longer side")
    video: tuple[int, int] = Field((1, 1), description="clips from the first to the last; 1 crop is the whole frame")
    audio: tuple[int, int] = Field((1, 1), description="clips from the first to the last; a sound has one crop")

    @model_validator(mode="after")
    def _possible(self) -> Views:
        for name, kind in MODALITIES.items():
            try:
                views_at_test(kind, getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return self


class Evaluation(Section):
    """How the final test judges."""

    views: Annotated[Views | None, BeforeValidator(lambda given: PAPER_VIEWS if given == "paper" else given)] = Field(
        None, description="views of an example in the final test; paper: video [4, 3], audio [4, 1]"
    )

    def views_of(self, modality: str) -> tuple[int, int]:
        return getattr(self.views, modality) if self.views else (1, 1)


class Tracking(Section):
    """Where MLflow keeps the run."""

    uri: str | None = Field(None, description="tracking server; null: MLFLOW_TRACKING_URI, else sqlite under output")
    experiment: str | None = Field(None, description="MLflow experiment; null: the recipe's name")


class Search(Section):
    """How a sweep finds its points. Further keys are ranges of tpe: search.lr: [low, high]."""

    model_config = ConfigDict(extra="allow", frozen=True)

    sampler: Literal["grid", "tpe"] = Field("grid", description="every point of grid, or tpe: Optuna's, within ranges")
    trials: int | None = Field(None, ge=1, description="tpe: trials of each task")


class Sweep(Section):
    """How a sweep's trials run; none of these changes a trial's result."""

    tasks: list[str] | None = Field(None, description="tasks to sweep; null: all. On the command line: tasks=[a,b]")
    concurrent: int | None = Field(
        None, ge=1, description="trials at a time; null: one a core, or as many as GPUs / gpus_per_trial"
    )
    gpus_per_trial: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of a GPU, and of its memory, that a trial gets; null: one, where Ray has any",
    )
    test: bool = Field(False, description="judge trials on the test split too; winners are chosen by validation")


class Probe(Section):
    """How jobs/probe.py asks a trained model, besides grid and eval."""

    conversion: Literal["paper", "code"] = Field(
        "paper",
        description="videos probed by a model that knows none: its image kernel in every frame (paper) or in the "
        "central one (code), zeros in the others",
    )


class Reused(Section):
    """What one task took from a sweep."""

    values: dict[str, Any] = Field(description="the winner's values, as in the sweep's grid")
    run_id: str = Field(description="MLflow run of the winning trial")
    sweep_run_id: str = Field(description="MLflow run of its sweep")


class Hparams(Section):
    """Values that were taken from sweeps, by task; they stand in the tasks already."""

    tasks: dict[str, Reused] = Field(default_factory=dict, description="the winners taken")


class Recipe(Section):
    """An experiment."""

    name: str = Field(
        "cotrain", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run and its experiment"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, schedule, order of examples and augmentation")
    model: Model = Field(default_factory=Model, description="the transformer")
    modalities: Modalities = Field(description="input geometry of each modality")
    tasks: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Task] = Field(
        min_length=1, description="the tasks by name"
    )
    schedule: Literal[KINDS] = Field("weighted", description="how steps are dealt to tasks: " + ", ".join(KINDS))
    optimizer: Optimizer = Field(default_factory=Optimizer, description="the update rule")
    train: Train = Field(default_factory=Train, description="the loop")
    data: Data = Field(default_factory=Data, description="the streams")
    eval: Evaluation = Field(default_factory=Evaluation, description="the final test")
    tracking: Tracking = Field(default_factory=Tracking, description="MLflow")
    grid: dict[str, Any] | None = Field(
        None,
        description="a sweep's points: key: [values]; lr means tasks.NAME.lr, a path with dots itself; "
        "null: lr: [0.03, 0.1, 0.3] for sgd",
    )
    search: Search = Field(default_factory=Search, description="how a sweep finds its points")
    sweep: Sweep = Field(default_factory=Sweep, description="how a sweep's trials run")
    probe: Probe = Field(default_factory=Probe, description="how a trained model is probed")
    hparams: Hparams | str | None = Field(
        None,
        description="take each task's winner of a sweep: latest, an MLflow run id, or a best_hparams.yaml; "
        "once taken, hparams.tasks holds values and run ids",
    )
    hparams_missing: Literal["refuse", "allow"] = Field(
        "refuse", description="allow: tasks that no sweep has a winner for keep the recipe's values"
    )
    hparams_mismatch: Literal["refuse", "allow"] = Field(
        "refuse", description="allow: also winners that were found under another model, manifest or step count"
    )
    license: str | None = Field(
        None, min_length=1, description="under which others may use the weights, e.g. Apache-2.0; checkpoints carry it"
    )
    output: str = Field(
        "runs",
        description="folder for runs, checkpoints and the local MLflow store; a URI (s3://BUCKET/runs) where nodes "
        "share no disk",
    )

    @model_validator(mode="after")
    def _geometries_given(self) -> Recipe:
        for name, task in self.tasks.items():
            if getattr(self.modalities, task.modality) is None:
                raise ValueError(f"tasks.{name} is a {task.modality} task, but modalities.{task.modality} is not given")
            if self.schedule != "accumulated" and task.warmup_steps > task.steps:
                raise ValueError(f"tasks.{name}: warmup_steps {task.warmup_steps} is more than steps {task.steps}")
        return self

    @model_validator(mode="after")
    def _frozen_from_something(self) -> Recipe:
        if self.train.freeze and not self.model.init:
            raise ValueError(
                f"train.freeze: {self.train.freeze} keeps the weights that model.init starts from, and it is not given"
            )
        return self

    def geometries(self) -> dict[str, Geometry]:
        """The modalities that some task uses, in a fixed order."""
        used = {task.modality for task in self.tasks.values()}
        return {name: geometry for name, geometry in self.modalities.in_use().items() if name in used}

    def plain(self) -> dict[str, Any]:
        """As nested dicts and lists, every default filled in: a recipe that gives the same run."""
        return self.model_dump(mode="json")

    def yaml(self) -> str:
        return yaml.safe_dump(self.plain(), sort_keys=False, width=120)

    @property
    def digest(self) -> str:
        """Eight hex digits of everything that may change the result: not names, folders, or how the work is spread."""
        plain = self.plain()
        for key in ("name", "license", "output", "tracking", "data", *SWEEP_KEYS):
            del plain[key]
        plain["train"] = {key: plain["train"][key] for key in ("precision", "eval_every")} | (
            {"freeze": self.train.freeze} if self.train.freeze else {}
        )
        if self.eval == Evaluation():
            del plain["eval"]  # runs of before there was such a key keep their names
        if self.data.shuffle_window != Data().shuffle_window:  # alone among the keys of `data`, it decides what is seen
            plain["shuffle_window"] = self.data.shuffle_window
        for key in NEWER_MODEL_KEYS:
            if getattr(self.model, key) == Model.model_fields[key].default:
                del plain["model"][key]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def run_name(self) -> str:
        return f"{self.name}-{self.digest}"


# --- checking ------------------------------------------------------------------------------------------------------


def check(tree: dict[str, Any], *, source: str = "recipe") -> Recipe:
    """A Recipe from nested dicts, paths made absolute. Raises RecipeError with a line a fault."""
    if secret := list(secrecy.faults(tree)):
        raise RecipeError("\n".join(f"{source}: {line}" for line in secret))
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [f"{source}: {line}" for line in _explain(error)]
        raise RecipeError("\n".join(lines)) from None
    tasks = {name: task.model_copy(update={"manifest": absolute(task.manifest)}) for name, task in recipe.tasks.items()}
    suite, init = recipe.data.sample_suite, recipe.model.init
    return recipe.model_copy(
        update={
            "tasks": tasks,
            "output": absolute(recipe.output),
            "data": recipe.data.model_copy(update={"sample_suite": suite and absolute(suite)}),
            "model": recipe.model.model_copy(update={"init": init and absolute(init)}),
        }
    )


def absolute(path: str) -> str:
    """A local path made absolute from where relative ones begin (base_folder.py); a URI as it is."""
    return path if "://" in path else os.path.normpath(base_folder() / os.path.expanduser(path))


def _explain(error: ValidationError) -> Iterator[str]:
    """Pydantic's faults in the recipe's words."""
    for fault in error.errors():
        where = [part for part in fault["loc"] if part not in ("Image", "Video", "Audio", "[key]")]
        key = ".".join(map(str, where)) or "recipe"
        if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = _keys_at(where[:-1])
            close = difflib.get_close_matches(str(where[-1]), known, 1, 0.5)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            yield f"{key}: unknown key; {hint}"
        elif fault["type"] in ("missing", "missing_argument"):
            yield f"{key}: missing; it is required"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = fault["input"]
            simple = isinstance(given, (str, int, float, bool, list)) and not fault["type"].startswith("value_error")
            yield f"{key}: {message[0].lower() + message[1:]}" + (f", not {given!r}" if simple else "")


def _keys_at(where: Sequence[Any]) -> list[str]:
    """The keys that a section of the recipe knows."""
    model: Any = Recipe
    for part in where:
        fields = getattr(model, "model_fields", None)
        if fields is None or part not in fields:
            continue  # a task's name
        annotation = fields[part].annotation
        candidates = [annotation, *get_args(annotation), *(a for arg in get_args(annotation) for a in get_args(arg))]
        model = next((c for c in candidates if hasattr(c, "model_fields") or hasattr(c, "__dataclass_fields__")), model)
    return list(getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {}))


# --- help ---------------------------------------------------------------------------------------------------------


def describe() -> str:
    """Every key of a recipe with its default and meaning, as text for --help."""
    lines: list[str] = []

    def section(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            nested = [
                a
                for a in (field.annotation, *get_args(field.annotation))
                if isinstance(a, type) and issubclass(a, Section) and str not in get_args(field.annotation)
            ]
            if nested:
                lines.append("")
                lines.append(f"{prefix}{name}: {nested[0].__doc__}")
                section(nested[0], f"{prefix}{name}." + ("NAME." if name == "tasks" else ""))
            else:
                default = "required" if field.is_required() else f"default {json.dumps(field.default)}"
                lines.append(f"  {prefix}{name} ({default}): {field.description}")

    section(Recipe, "")
    return "\n".join(lines)
