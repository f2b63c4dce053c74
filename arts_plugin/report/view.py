"""`arts view`: a run's trees in one HTML file that needs no network and sends nothing anywhere.

Model text is data: it is in the page as JSON (what HTML could take for markup is escaped) and as compressed blocks in
base64, is only ever shown as text, and the page's policy lets no script run but its own and nothing be fetched.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from arts_plugin import __version__
from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.pool import is_rare
from arts_plugin.report.data import usable_trees
from arts_plugin.run import RunInfo
from arts_plugin.search.select import RULES, select
from arts_plugin.training.grades import GRADES_FILE, Graded, read_grades, voting
from arts_plugin.tree import Node, ReasoningTree
from arts_plugin.writing import write_whole

log = logging.getLogger(__name__)
Plain = dict[str, Any]
_HEAD = 140


def write_view(run: str | Path, out: str | Path | None = None, limit: int | None = None) -> tuple[Path, Plain]:
    """Write the page (default: RUN/view.html); its path, and the index of what is in it.

    Raises:
        ArtsError: no run is there, or nothing in it can be read.
    """
    info = RunInfo.read(run)
    grades = read_grades(run) if (Path(run) / GRADES_FILE).exists() else {}
    index: list[Plain] = []
    blocks: list[str] = []
    left_out: list[str] = []
    seen: set[str] = set()
    for place, tree in usable_trees(run, left_out):
        if limit is not None and len(index) >= limit:
            break
        graded = grades.get(str(tree.meta.get("key")))
        name = str(tree.meta.get("id") or (graded.id if graded else tree.meta.get("key") or f"tree {len(index) + 1}"))
        if name in seen:
            left_out.append(f"{place}: question {name} was there before")
            continue
        seen.add(name)
        shown = tree_record(tree, graded, info.seed)
        index.append(_entry(name, tree, graded, shown))
        packed = gzip.compress(_json(shown).encode("utf-8", "surrogatepass"), 6, mtime=0)
        blocks.append(base64.b64encode(packed).decode("ascii"))
    if not index:
        raise ArtsError(f"{run} has no tree that can be shown: {left_out[0] if left_out else 'it is empty'}")
    for reason in left_out:
        log.warning("%s: left out: %s", run, reason)
    if not grades:
        left_out.append(f"there is no {GRADES_FILE}, so nothing is marked right or wrong")
    head = {
        "run": Path(run).name, "model": info.model.get("name"), "version": __version__, "trees": index,
        "left_out": left_out, "graded": bool(grades),
    }  # fmt: skip
    page = Path(out) if out is not None else Path(run) / "view.html"
    write_whole(page, _page(head, blocks))
    return page, head


def tree_record(tree: ReasoningTree, graded: Graded | None, seed: int = 0) -> Plain:
    """What the page shows of a tree: columns of its nodes, and what each rule would choose. Answers are the task's where it
    was asked for them; `seed` is the run's, which decides between tied votes."""
    if graded is not None and graded.votes is not None:
        tree = voting(tree, graded.votes)
    correct: Mapping[int, bool] = graded.correct if graded else {}
    nodes = tree.nodes
    return {
        "prompt": tree.prompt,
        "question": str(tree.meta.get("question") or ""),
        "gold": graded.gold if graded else None,
        "strategy": tree.strategy,
        "select": tree.select,
        "scorer": tree.scorer,
        "ended_by": tree.ended_by,
        "error": tree.error,
        "cost": {name: getattr(tree.cost, name) for name in tree.cost.__slots__},
        "chosen": tree.chosen,
        "parent": [node.parent for node in nodes],
        "text": [node.text for node in nodes],
        "tokens": [len(node.token_ids) for node in nodes],
        "logprob": [_finite(node.logprob) for node in nodes],
        "flow": [_finite(node.log_flow) for node in nodes],
        "count": [node.count for node in nodes],
        "stop": [node.stop for node in nodes],
        "answer": [node.answer for node in nodes],
        "terminal": [int(node.terminal) for node in nodes],
        "right": [_mark(node, correct) for node in nodes],
        "cut": [node.cut_chars for node in nodes],
        "scores": {name: [_finite(node.scores.get(name)) for node in nodes] for name in _scorers(tree)},
        "rules": _rules(tree, correct, seed),
    }


def _entry(name: str, tree: ReasoningTree, graded: Graded | None, shown: Plain) -> Plain:
    leaves = [node for node in tree.nodes if node.terminal]
    marked = [node for node in leaves if graded and graded.correct.get(node.id)]
    drawn, right_drawn = (sum(node.count for node in nodes) for nodes in (leaves, marked))
    question = " ".join((shown["question"] or shown["prompt"]).split())
    return {
        "id": name,
        "head": question if len(question) <= _HEAD else f"{question[:_HEAD]}\N{HORIZONTAL ELLIPSIS}",
        "n": len(leaves),
        "right": len(marked) if graded else None,
        "chosen": None if graded is None or tree.chosen is None else bool(graded.correct.get(tree.chosen)),
        "rare": bool(is_rare(right_drawn, drawn)),
        "nodes": len(tree.nodes),
        "error": tree.error,
    }


def _scorers(tree: ReasoningTree) -> list[str]:
    return sorted({name for node in tree.nodes for name in node.scores})


def _rules(tree: ReasoningTree, correct: Mapping[int, bool], seed: int) -> list[Plain]:
    """The project's own selection rules on this tree, and the best trajectory by each other score."""
    if not any(node.terminal for node in tree.nodes):
        return []
    chosen = {rule: select(tree, rule, seed=seed) for rule in RULES if rule != "random"}
    for name in _scorers(tree):
        if name not in {tree.scorer, "logprob"}:
            scored = [n for n in tree.nodes if n.terminal and _finite(n.scores.get(name)) is not None]
            chosen[f"highest {name}"] = max(scored, key=lambda n: n.scores[name]).id if scored else None
    return [
        {"rule": rule, "leaf": leaf, "answer": tree.nodes[leaf].answer, "right": _mark(tree.nodes[leaf], correct)}
        for rule, leaf in chosen.items()
        if leaf is not None
    ]


def _mark(node: Node, correct: Mapping[int, bool]) -> int | None:
    return int(correct[node.id]) if node.terminal and node.id in correct else None


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 5)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _markup_free(text: str) -> str:
    """JSON in which HTML finds nothing: the escapes mean the same to a JSON parser."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _page(head: Plain, blocks: list[str]) -> str:
    folder = files("arts_plugin.report").joinpath("viewer")
    script, style, body = (folder.joinpath(f"view.{e}").read_text(encoding="utf-8") for e in ("js", "css", "html"))
    policy = (
        f"default-src 'none'; script-src '{_source_hash(script)}'; style-src '{_source_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>arts view</title>\n',
            f"<style>{style}</style>\n</head>\n<body>\n{body}",
            f'<script type="application/json" id="index">{_markup_free(_json(head))}</script>\n',
            f'<script type="application/json" id="blocks">{_json(blocks)}</script>\n',
            f"<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def _source_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
