"""Scores and figures of models: predicting, evaluators, ensembles."""
