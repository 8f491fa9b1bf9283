"""Sweeps: single-task runs over a grid or a search, and their winners, which co-training reuses (PolyViT, section 4).

points   which runs a sweep wants, and what makes two of them the same    (knows neither Ray nor MLflow)
past     which of them MLflow or this disk has already
search   hands points to Ray Tune: Optuna's grid or TPE, a study a task
trial    one point in a trial's process
board    the live table                                                  (knows neither Ray nor MLflow)
outcome  table and winners                                                (knows neither Ray nor MLflow)
plots    a picture a task                                                 (knows neither Ray nor MLflow)
artifacts  what the sweep's MLflow run carries
driver   all of it in order
reuse    winners into a recipe that co-trains
"""
