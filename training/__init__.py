"""Stages that turn shards into models. `python -m training --help` lists the commands."""
