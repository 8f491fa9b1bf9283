"""The model: a tokenizer a modality, one shared encoder, a linear head a task. Needs torch alone."""
