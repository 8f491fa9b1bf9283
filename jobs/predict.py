"""Predict the classes of files with a trained model: top-k class names and probabilities as a table and Parquet."""

import sys

from polytrain.predict.command import predict_command

if __name__ == "__main__":
    sys.exit(predict_command(__doc__))
