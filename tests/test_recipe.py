"""Recipes: what is right is completed, what is wrong is named."""

import copy
from pathlib import Path

import pytest
import yaml

from polytrain.recipe import Recipe, RecipeError, byte_count, check, describe
from polytrain.recipe_file import load

SMALLEST = {
    "modalities": {"image": {"size": [64, 64], "patch": [8, 8]}},
    "tasks": {"shapes": {"modality": "image", "manifest": "m.parquet", "steps": 3, "lr": 0.001, "batch_size": 4}},
}


def changed(**changes):
    """The smallest recipe with values at double-underscored paths."""
    tree = copy.deepcopy(SMALLEST)
    for path, value in changes.items():
        *parents, key = path.split("__")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
    return tree


def test_only_tasks_and_geometry_are_required():
    recipe = check(SMALLEST)
    assert (recipe.schedule, recipe.optimizer.name, recipe.model.depth) == ("weighted", "sgd", 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks__shapes__lrate": 1}, "tasks.shapes.lrate: unknown key; did you mean lr?"),
        ({"schedul": "weighted"}, "schedul: unknown key; did you mean schedule?"),
        ({"model__depht": 4}, "model.depht: unknown key; did you mean depth?"),
        ({"modalities__image__sizes": 3}, "modalities.image.sizes: unknown key; did you mean size?"),
        ({"train__qqq": 3}, "train.qqq: unknown key; known here: workers, use_gpu"),
        ({"modalities__image__patch": [7, 8]}, "height: input 64 is not a multiple of patch 7; 63 or 70 would be"),
        ({"modalities__video": {"frames": 6, "stride": 1, "size": [8, 8], "tubelet": [4, 8, 8]}}, "frames: input 6"),
        ({"model__width": 100}, "width: 100 is not a multiple of heads: 12"),
        ({"model__adaptor_layers": 13}, "adaptor_layers: 13 is more than depth: 12"),
        ({"model__size": "base", "model__width": 96}, "size: base already says width: 768"),
        ({"tasks__shapes__steps": "many"}, "tasks.shapes.steps: input should be a valid integer"),
        ({"tasks__shapes__steps": 0}, "tasks.shapes.steps: input should be greater than or equal to 1, not 0"),
        ({"tasks__shapes__lr": -1}, "tasks.shapes.lr: input should be greater than 0, not -1"),
        ({"tasks__shapes__modality": "smell"}, "tasks.shapes.modality: input should be 'image', 'video' or 'audio'"),
        ({"tasks__shapes__modality": "video"}, "modalities.video is not given"),
        ({"tasks__shapes__warmup_steps": 9}, "warmup_steps 9 is more than steps 3"),
        ({"schedule": "random"}, "schedule: input should be 'task_by_task', 'alternating'"),
        ({"tasks__shapes__augment": "audio"}, "audio is not for image tasks; none, image, randaugment would be"),
        ({"tasks__shapes__augment": "imagenet"}, "tasks.shapes.augment: input should be 'none', 'image'"),
        ({"tasks__shapes__augment_magnitude": 9}, "only randaugment has one, augment: none has not"),
        (
            {"tasks__shapes__label_smoothing": 0.1, "tasks__shapes__loss": "sigmoid"},
            "label_smoothing: 0.1 would spread a label over classes that sigmoid judges one by one; 0 is right",
        ),
        ({"data__memory_budget": "3 bananas"}, "'3 bananas' is no amount of memory; 512MB or 2GiB would be"),
        ({"tasks": {}}, "tasks: dictionary should have at least 1 item"),
        ({"name": "a/b"}, "name: string should match pattern"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(change, message):
    with pytest.raises(RecipeError) as error:
        check(changed(**change))
    assert message in str(error.value)


def test_a_missing_key_is_named():
    tree = changed()
    del tree["tasks"]["shapes"]["lr"]
    with pytest.raises(RecipeError, match="tasks.shapes.lr: missing; it is required"):
        check(tree)


def test_all_faults_are_told_at_once():
    with pytest.raises(RecipeError) as error:
        check(changed(tasks__shapes__lr=-1, model__depth=0, nonsense=1))
    assert len(str(error.value).splitlines()) == 3


def test_overrides_replace_values_and_make_sections(recipe_file):
    recipe = load(
        recipe_file(SMALLEST), ["tasks.shapes.lr=0.1", "optimizer.name=adamw", "modalities.image.size=[32,32]"]
    )
    assert (recipe.tasks["shapes"].lr, recipe.optimizer.name) == (0.1, "adamw")
    assert recipe.modalities.image.size == (32, 32)


@pytest.mark.parametrize("override", ["tasks.shapes.lr", "=3"])
def test_an_override_without_key_or_value_is_refused(recipe_file, override):
    with pytest.raises(RecipeError, match="key.path=value"):
        load(recipe_file(SMALLEST), [override])


def test_an_override_of_an_unknown_key_is_refused(recipe_file):
    with pytest.raises(RecipeError, match="did you mean batch_size"):
        load(recipe_file(SMALLEST), ["tasks.shapes.batchsize=3"])


def test_a_value_may_name_another_value_of_the_recipe(recipe_file):
    recipe = load(recipe_file(SMALLEST | {"name": "mine", "license": "that of ${name}"}))
    assert recipe.license == "that of mine"


@pytest.mark.parametrize(
    "value",
    ["${oc.env:DB_PASS}", "mine ${oc.env:DB_PASS,none}", "${oc.${name}:DB_PASS}", "${oc.decode:'${oc.env:DB_PASS}'}"],
)
def test_a_recipe_fetches_nothing_from_the_environment(recipe_file, value, monkeypatch):
    """Nor does somebody else's, of a checkpoint, which is loaded in the same way."""
    monkeypatch.setenv("DB_PASS", "hunter2")
    for tree, overrides in ((SMALLEST | {"license": value}, []), (SMALLEST, [f"license={value}"])):
        with pytest.raises(RecipeError, match="license: .* is given on the command line, license=VALUE") as refused:
            load(recipe_file(tree | {"name": "env"}), overrides)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(RecipeError, match=r"tasks\.shapes\.manifest: .* is given on the command line"):
        load(recipe_file(SMALLEST), [f"tasks.shapes.manifest={value}"])
    with pytest.raises(RecipeError, match="tasks: .* is given on the command line"):
        load(recipe_file(SMALLEST | {"tasks": value}), ["tasks.shapes.lr=0.1"])


@pytest.mark.parametrize(("name", "hint"), [("shaps", "did you mean tasks.shapes?"), ("xyz", "its tasks are shapes")])
def test_an_override_of_a_task_that_is_not_there_names_those_that_are(recipe_file, name, hint):
    path = recipe_file(SMALLEST)
    with pytest.raises(RecipeError, match=f"tasks.{name}: .* has no such task; {hint}".replace("?", r"\?")):
        load(path, [f"tasks.{name}.lr=0.1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [", "not valid YAML"),
        ("- a\n- b\n", "holds no mapping"),
        ("name: a\nname: b\n", "the key 'name' stands twice"),
        ("", "holds no mapping"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_recipe_that_is_not_there_is_named_with_its_nearest_neighbour(tmp_path):
    (tmp_path / "sample.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"no recipe at .*sampel.yaml; did you mean .*sample.yaml"):
        load(tmp_path / "sampel.yaml")


def test_exponents_without_a_point_are_numbers(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(SMALLEST).replace("0.001", "1e-3"))
    assert load(path).tasks["shapes"].lr == 0.001


def test_relative_paths_become_absolute_from_the_current_directory(recipe_file, tmp_path, monkeypatch):
    path = recipe_file(SMALLEST)
    monkeypatch.chdir(tmp_path)
    recipe = load(path)
    assert recipe.tasks["shapes"].manifest == str(tmp_path / "m.parquet")
    assert recipe.output == str(tmp_path / "runs")


def test_uris_stay_as_they_are():
    recipe = check(changed(tasks__shapes__manifest="s3://bucket/m.parquet"))
    assert recipe.tasks["shapes"].manifest == "s3://bucket/m.parquet"


def test_the_resolved_recipe_is_a_recipe_of_the_same_run(tmp_path):
    recipe = check(SMALLEST)
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.yaml())
    assert load(path) == recipe
    assert load(path).run_name == recipe.run_name


@pytest.mark.parametrize("change", [{"output": "elsewhere"}, {"train__workers": 4}, {"train__checkpoint_every": 9}])
def test_what_cannot_change_the_result_leaves_the_digest(change):
    assert check(changed(**change)).digest == check(SMALLEST).digest


@pytest.mark.parametrize("change", [{"seed": 1}, {"tasks__shapes__lr": 0.2}, {"train__precision": "bf16"}])
def test_what_changes_the_result_changes_the_digest(change):
    assert check(changed(**change)).digest != check(SMALLEST).digest


def test_sizes_are_the_papers():
    assert check(changed(model__size="large")).model.model_dump(include={"depth", "width", "heads", "mlp_width"}) == {
        "depth": 24, "width": 1024, "heads": 16, "mlp_width": 4096,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "count"), [("512MB", 512_000_000), ("1.5 GB", 1_500_000_000), ("2GiB", 2**31), (7, 7)]
)
def test_amounts_of_memory(text, count):
    assert byte_count(text) == count


def test_help_describes_every_key():
    text = describe()

    def keys(model, prefix=""):
        for name, field in model.model_fields.items():
            section = next(
                (a for a in getattr(field.annotation, "__args__", (field.annotation,)) if hasattr(a, "model_fields")),
                None,
            )
            yield from keys(section, f"{prefix}{name}.") if section and name != "tasks" else [f"{prefix}{name}"]

    assert [key for key in keys(Recipe) if key not in text] == []
    assert "None" not in text


RECIPES = sorted((Path(__file__).parents[1] / "jobs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid_and_says_what_it_costs(path):
    load(path)
    comment = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert "python jobs/" in comment
