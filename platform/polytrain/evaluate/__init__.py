"""Evaluation of a checkpoint: every task, on any splits and views, and what a person wants to see beside the number.

parts        which splits of which tasks are judged, how, and what the training run said of them
calibration  does it know what it knows: ECE and the reliability diagram
per_class    how it does on each class
mistakes     the mistakes it was surest of, as a contact sheet
outcome      one split's numbers, files and pictures; the tables
driver       all of it in order, through Ray Data, recorded in MLflow
command      the command line

Only the driver knows Ray and MLflow.
"""
