"""The report stage: a page with every search on the data set, and the pipelines that were trained beside them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.autovideo.config import ReportConfig
from training.autovideo.report.search_page import SearchReport
from training.autovideo.search.importance import importance
from training.core.pages import percent, render_page, write_text


class AutoVideoReport:
    """Writes `page.html` with every search in it; the page of each alone lies in `searches/`.

    Args:
        config: of the stage.
        results: stage → run folders of its instances.
    """

    def __init__(self, config: ReportConfig, classes: tuple[str, ...], results: Mapping[str, tuple[Path, ...]]) -> None:
        self.config, self.classes, self.results = config, classes, results

    def write(self, folder: Path) -> dict[str, float]:
        """See `training.core.stage.Report`; a search whose winner was not evaluated yet is shown without it."""
        evaluated = {path.name: path for path in self.results["autovideo_found_eval"] if path.exists()}
        figures: dict[str, float] = {}
        pages: list[tuple[str, str]] = []
        best: list[float] = []
        for run in self.results["autovideo_search"]:
            board = json.loads((run / "leaderboard.json").read_text())
            page = SearchReport(
                leaderboard=shown(board),
                winner_yaml=(run / "winner.yaml").read_text(),
                evaluation=evaluated.get(run.name),
                importance=_importance(board, self.config.seed),
                title=f"Search {run.name}",
            )
            found = page.write(folder / "searches" / run.name)
            pages.append((run.name, (folder / "searches" / run.name / "page.html").read_text()))
            figures |= {f"{key}_{run.name}" if key.startswith("search/") else "": value for key, value in found.items()}
            best += [found[key] for key in ("search/best_top1",) if key in found]
        figures.pop("", None)
        pipelines = self._pipelines()
        if best or pipelines:
            figures["val/best_top1"] = max([*best, *(row["val"] for row in pipelines)])
        write_text(folder / "report.json", json.dumps({"figures": figures, "pipelines": pipelines}, indent=1) + "\n")
        write_text(
            folder / "page.html",
            render_page("training.autovideo", "autovideo.html.j2", pages=pages, pipelines=pipelines, percent=percent),
        )
        return figures

    def _pipelines(self) -> list[dict[str, Any]]:
        """Return a row per pipeline that was trained by itself."""
        tested = {path.name: path for path in self.results["autovideo_eval"]}
        rows = []
        for run in self.results["autovideo_train"]:
            metrics = json.loads((run / "metrics.json").read_text())
            config = json.loads((run / "config.json").read_text())
            row = {"name": run.name, "net": config["learner"]["use"], "test": None, "videos": None}
            row |= {"val": metrics["val/top1"], "gmac": metrics["val/gmac_per_video"], "params": metrics["val/params"]}
            if run.name in tested and (tested[run.name] / "metrics.json").exists():
                test = json.loads((tested[run.name] / "metrics.json").read_text())
                row |= {"test": test["test/top1"], "videos": int(test["test/num_evaluated"])}
            rows.append(row)
        return rows


def shown(board: Mapping[str, Any]) -> dict[str, Any]:
    """Return a leaderboard as the page takes it."""
    budget = board["budget"]
    return {
        "trials": [
            {
                "name": trial["name"],
                "status": trial["status"],
                "value": trial["value"],
                "gmac": trial["gmac"],
                "params": int(trial["params"]),
                "choices": with_lists(trial["flat"]),
                "error": trial["error"],
                "front": trial["front"],
            }
            for trial in sorted(board["trials"], key=lambda trial: str(trial["name"]))
        ],
        "refused": [
            {
                "digest": str(number),
                "gmac": item.get("gmac"),
                "params": int(item["params"]) if "params" in item else None,
                "why": item["message"],
            }
            for number, item in enumerate(board["refused"])
        ],
        "budget": {
            "trials": {"used": budget["used_trials"], "limit": budget["trials"]},
            "seconds": {"used": round(budget["used_seconds"]), "limit": budget["seconds"]},
        },
        "winner": next((trial["name"] for trial in board["trials"] if trial["winner"]), None),
        "engine": board["engine"],
    }


def with_lists(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return choices with each ordered list as one text, `brightness, hflip`, instead of a place for each item."""
    joined = dict(flat)
    for head in flat:
        # `net:recognition/tsm.lr` is a setting of a step's alternative, no item of a list.
        places = {name: flat[name] for name in flat if name.startswith(f"{head}:") and "." not in name[len(head) + 1 :]}
        if not places:
            continue
        chosen = sorted((place, name) for name, place in places.items() if place)
        joined[head] = ", ".join(name.rpartition("/")[2] for _, name in chosen) if flat[head] is not None else None
        for name in places:
            del joined[name]
    return joined


def _importance(board: Mapping[str, Any], seed: int) -> dict[str, tuple[float, float]] | str:
    done = [trial for trial in board["trials"] if trial["status"] == "finished" and trial["value"] is not None]
    found = importance([trial["flat"] for trial in done], [trial["value"] for trial in done], seed=seed)
    return {column.name: (column.mean, column.std) for column in found.columns} or found.note
