"""What `jobs/export.py` refuses before it does anything, and what it takes from the lock."""

import pytest

from polytrain.export.command import export_command
from polytrain.export.requirements import LOCK, SERVING, serving_requirements


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{checkpoint}", "--task", "color"], "no task color; it has colours"),
        (["{checkpoint}", "--formats", "onnx,tflite"], "tflite: is none of mlflow, pt2, onnx"),
        (["{checkpoint}", "--formats", "pt2", "--int8"], "--formats has to name onnx"),
        (["{checkpoint}", "--alias", "latest"], "but not latest"),
        (["{checkpoint}", "--name", "a/b"], "names without / and :"),
        (["{checkpoint}", "--out", "{folder}"], "holds files that are no export"),
        (["{checkpoint}", "{checkpoint}"], "2 checkpoints were given"),
        (["{checkpoint}", "--examples", "0"], "--examples 0: 1 at least"),
        (["{checkpoint}", "trian.threads=1"], "did you mean train"),
        (["{folder}"], "holds no checkpoint"),
        (["{folder}/nowhere"], "there is nothing at"),
    ],
)
def test_what_is_wrong_is_one_message_and_exit_code_2(checkpoint_of_three, tmp_path, capsys, words, said):
    (tmp_path / "thesis.txt").write_text("not to be lost")
    words = [word.format(checkpoint=checkpoint_of_three, folder=tmp_path) for word in words]
    assert export_command("usage", words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert said in message
    assert (tmp_path / "thesis.txt").exists()


def test_a_served_model_s_requirements_are_the_lock_s():
    needs = serving_requirements()
    lines = LOCK.read_text().splitlines()
    assert [pin.partition("==")[0] for pin in needs.pins] == list(SERVING)
    for pin in [*needs.pins, *needs.constraints]:
        assert any(line.split(" ;")[0] == pin for line in lines), pin


def test_constraints_are_what_the_requirements_need_in_turn_and_no_more():
    names = {pin.partition("==")[0] for pin in serving_requirements().constraints}
    assert {"sympy", "uvicorn", "mlflow-skinny", "pandas"} <= names
    assert not names & {"pytest", "ray", "ruff", "optuna", "torchvision", *SERVING}


def test_of_two_versions_for_different_pythons_the_one_of_this_is_taken(tmp_path):
    lock = tmp_path / "requirements.lock"
    lines = ["numpy==1.0 ; python_full_version < '3'", "    # via torch", "numpy==2.0 ; python_full_version >= '3'"]
    others = [f"{name}==7.0" for name in SERVING if name != "numpy"]
    child = ["child==3.0", "    # via", "    #   parent", "parent==4.0", "    # via torch", "alone==5.0"]
    lock.write_text("\n".join([*lines, *others, *child]))
    needs = serving_requirements(lock)
    assert "numpy==2.0" in needs.pins
    assert needs.constraints == ["child==3.0", "parent==4.0"]


def test_without_a_lock_the_installed_versions_are_taken(tmp_path):
    import torch

    needs = serving_requirements(tmp_path / "none.lock")
    assert f"torch=={torch.__version__.partition('+')[0]}" in [pin.partition("+")[0] for pin in needs.pins]


def test_opening_and_predicting_import_nothing_but_what_is_required(checkpoint_of_three, media):
    """In a process of its own: what it has loaded, seen by the packages that were asked for directly."""
    import subprocess
    import sys

    image = sorted(media["image"].parent.glob("test_*.png"))[0]
    code = f"""
import sys, polytrain
from importlib import metadata
from pathlib import Path
from polytrain.export.answering import Answering
path = Path({str(image)!r})
answers = Answering(polytrain.load({str(checkpoint_of_three)!r})).answer([path.read_bytes()], [None])
assert answers[0]["error"] is None
owners = metadata.packages_distributions()
print(" ".join({{owner.lower() for name in sys.modules for owner in owners.get(name.partition(".")[0], [])}}))
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    direct = set(_declared())
    assert set(found.stdout.split()) & direct <= set(SERVING)


def _declared() -> list[str]:
    """polytrain's own dependencies."""
    import re
    import tomllib

    project = tomllib.loads((LOCK.parent / "pyproject.toml").read_text())["project"]
    return [re.split(r"[\[<>=~ ]", dependency)[0].lower() for dependency in project["dependencies"]]
