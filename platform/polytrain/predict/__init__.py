"""What a trained model says of files: which files (files.py), ranked classes (ranking.py), the command (command.py).

`Trained.predict` answers in its own process (here.py), `jobs/predict.py` on Ray where there is more to do.
"""


class InputError(ValueError):
    """Nothing that was asked for can be predicted: a message for the user."""
