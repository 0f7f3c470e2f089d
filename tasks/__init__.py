"""Steps that flows are made of: Prefect wrappers around the plain functions of `tasks.ops`."""
