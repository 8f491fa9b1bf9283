"""Linear probes: new heads for new tasks on a model that stays as it is (PolyViT, section 5.3 and Table 9).

opening   which model is asked which tasks, at which points of a grid      (knows neither Ray nor MLflow)
trunk     the model: tokenizers converted where it does not know a modality (knows neither Ray nor MLflow)
features  what it makes of each example, computed once and kept on disk    (knows neither Ray nor MLflow)
heads     heads trained on features, as the co-training loop would         (knows neither Ray nor MLflow)
outcome   winners, tables, the time that was saved                         (knows neither Ray nor MLflow)
driver    all of it in order
command   the command line
"""
