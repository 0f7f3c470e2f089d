"""`promote`: judge the challenger, move the alias, and write down why."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_specs.schema import digest
from infra.settings import Settings
from training.core.gate import Evidence, GateConfig, GateReport, evidence_from, judge, load_gate_config
from training.core.modelcard import Facts, card, read_facts, report_as_json
from training.core.registration import CHALLENGER, CHAMPION, Registry, RegistryError, Version
from training.core.tracking import attach_run, file_lock


@dataclass(frozen=True)
class Promotion:
    """Outcome of `promote`."""

    name: str
    champion: Version | None
    """Champion afterwards."""
    judged: Version | None
    """None when there was nothing to judge."""
    report: GateReport | None
    text: str

    @property
    def refused(self) -> bool:
        """Whether a challenger was judged and did not become champion."""
        return self.judged is not None and (self.champion is None or self.champion.version != self.judged.version)


def promote(
    settings: Settings, dataset: str, family: str = "adafocus", *, accept: bool = False, reevaluate: bool = False
) -> Promotion:
    """Judge the version with the alias `challenger` against the one with the alias `champion`.

    Whoever set the aliases, `fovea register` or a person in MLflow's page, the versions that they name now
    are compared. A passed challenger gets the alias `champion` and loses `challenger`; a failed one keeps
    it. With nothing to judge nothing changes.

    Args:
        settings: where the registry is.
        dataset: data set; with the family it names the registered model.
        family: model family.
        accept: let an underpowered challenger pass; never a failed one.
        reevaluate: where both were evaluated on different data, evaluate the champion again on the
            challenger's. It takes as long as the evaluation stage, and registrations wait for it.

    Raises:
        RegistryError: no such model, or a version without its evaluation; or the champion cannot be
            evaluated again (see `training.core.reevaluate`).
    """
    name = f"{family}-{dataset}"
    config = load_gate_config(settings.root / "params" / f"{dataset}.yaml")
    registry = Registry.open(settings)
    with file_lock(settings.work / "registry.lock"):
        if name not in registry.names():
            raise RegistryError(f"no registered model {name!r}; run `fovea register {family}_eval@{dataset}` first")
        champion, challenger = registry.by_alias(name, CHAMPION), registry.by_alias(name, CHALLENGER)
        if challenger is None or (champion is not None and champion.version == challenger.version):
            return Promotion(name, champion, None, None, _nothing_to_judge(name, champion))
        with tempfile.TemporaryDirectory() as temporary:
            facts, mine = _evidence(registry, challenger, Path(temporary) / "challenger")
            theirs = None
            if champion is not None:
                _, theirs = _evidence(registry, champion, Path(temporary) / "champion")
                if reevaluate and theirs.data_digest != mine.data_digest:
                    from training.core.reevaluate import evaluate_again  # imports torch

                    theirs = evaluate_again(registry, champion, theirs, challenger, facts)
            report = judge(mine, theirs, config)
        moved = report.decision == "passed" or (report.decision == "underpowered" and accept)
        _write_down(registry, challenger, facts, report, config, accept)
        if moved:
            registry.set_alias(challenger, CHAMPION)
            registry.drop_alias(name, CHALLENGER)
            text = f"{challenger} is champion of {name} now"
            champion = registry.version(name, challenger.version)
        else:
            text = f"{challenger} is not promoted; " + (f"{champion} stays champion" if champion else "no champion yet")
            if report.decision == "underpowered":
                text += "; `--accept` promotes it in spite of the small test set"
        judged = registry.version(name, challenger.version)
    return Promotion(name, champion, judged, report, text)


def _nothing_to_judge(name: str, champion: Version | None) -> str:
    if champion is None:
        return f"{name} has neither challenger nor champion; set an alias, or run `fovea register`"
    return f"{name}: no challenger; {champion} stays champion ({champion.gate})"


def _evidence(registry: Registry, version: Version, target: Path) -> tuple[Facts, Evidence]:
    folder = registry.fetch_evaluation(version, target)
    facts = read_facts(folder)
    with np.load(folder / "predictions.npz") as arrays:
        evidence = evidence_from(
            dict(arrays),
            name=str(version),
            data_digest=facts.eval_data_digest,
            gmac=facts.gmac,
            round_trip=facts.round_trip,
        )
    return facts, evidence


def _write_down(
    registry: Registry, version: Version, facts: Facts, report: GateReport, config: GateConfig, accept: bool
) -> None:
    """Log the report as table and text, write the model card into the description, and tag the version.

    A challenger that failed is judged at every reproduction; what would be written twice is not.
    """
    accepted = report.decision == "underpowered" and accept
    content = digest([report_as_json(report), config.model_dump(mode="json"), accepted])
    if version.tags.get("gate_content") == content:
        return
    run = attach_run(registry.settings.tracking_uri, version.run_id)
    run.log_table(report.table(), "gate/table.json")
    run.log_text(report.text() + "\n", "gate/report.txt")
    run.log_text(report_as_json(report) + "\n", "gate/report.json")
    run.log_text(config.model_dump_json(indent=1) + "\n", "gate/config.json")
    text = card(facts, report)
    run.log_text(text, "model_card.md")
    registry.describe(version, text)
    registry.tag(
        version,
        {
            "gate": "accepted" if accepted else report.decision,
            "gate_reason": report.reason[:4000],
            "gate_against": report.champion or "none",
            "gate_content": content,
        },
    )
