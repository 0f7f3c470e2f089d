"""What is kept of a run of a pipeline: a page in the workspace, and a run of the tracking store with the document."""

from pathlib import Path

from data_specs.schema import digest
from infra.settings import Settings
from training.autovideo.pipeline import PipelineRun
from training.autovideo.report.run_page import RunReport
from training.autovideo.values import Metrics, Model

EXPERIMENT = "autovideo"


def write_page(run: PipelineRun) -> Path:
    """Write `page.html` of a run into its workspace and return its path."""
    checked = run.document.checked()
    metrics = {
        name: dict(value.values)
        for name, ran in run.steps.items()
        for value in ran.values.values()
        if isinstance(value, Metrics)
    }
    edges = [(f"{edge.source}.{edge.output}", f"{edge.target}.{edge.input}") for edge in checked.graph.edges]
    folder = run.workspace / "page"
    RunReport(run.document.to_yaml(), metrics, edges=edges, title=f"Pipeline {run.document.name}").write(folder)
    return folder / "page.html"


def log_run(run: PipelineRun, project: Settings) -> str:
    """Log document, resolved form, digest, figures and page into the tracking store; return the id of the MLflow run.

    The same results of the same pipeline are one run, however often it is called.
    """
    from training.core.tracking import ensure_store, find_runs, git_facts, start_run

    ensure_store(project)
    results = {f"{name}.{port}": value.digest for name, ran in run.steps.items() for port, value in ran.values.items()}
    key = digest({"pipeline": run.document.digest(), "results": results})
    known = find_runs(project, {"pipeline_run": key}, finished=True)
    if known:
        return known[0].run_id
    models = [value.digest for ran in run.steps.values() for value in ran.values.values() if isinstance(value, Model)]
    record = start_run(
        project,
        experiment=EXPERIMENT,
        name=f"pipeline {run.document.name}",
        tags={
            "kind": "pipeline",
            "pipeline": run.document.name,
            "pipeline_digest": run.document.digest(),
            "pipeline_models": ",".join(models),
            **git_facts(project.root),
        },
        params={"pipeline": run.document.name, "seed": run.document.seed},
        resume_tag=("pipeline_run", key),
    )
    record.log_metrics({name.replace(".", "/"): value for name, value in run.metrics().items()})
    for path in (run.workspace / "pipeline.yaml", run.workspace / "resolved.yaml", write_page(run)):
        record.log_artifact(path)
    record.finish()
    return record.run_id
