"""What a task says of the trees of run folders: labels beside them, for `arts report`, `view`, `compare` and `train`."""

from __future__ import annotations

import logging

from arts_plugin.errors import NotWrittenError
from arts_plugin.training.grades import Graded, GradesFile

log = logging.getLogger("lm_eval.arts")


class Labels:
    """Labels of one task, written as they arise: of several processes each has a run folder, and only one adds up."""

    def __init__(self) -> None:
        self._files: dict[str, GradesFile] = {}
        self._of: dict[tuple[str, str], str] = {}
        self._said = self._failed = False

    def put(self, run: str, graded: Graded) -> None:
        """Note the labels of a tree in the run folder `run`, unless they are there.

        What was said of the same question before is replaced. Two questions may have one tree, if they have one prompt:
        the first one's labels stay, and that is said once. A label that cannot be written costs nobody the figures of the
        evaluation: that is said once, too.
        """
        try:
            self._put(run, graded)
        except NotWrittenError as error:
            if not self._failed:
                log.warning("labels of trees are not kept: %s", error)
            self._failed = True

    def _put(self, run: str, graded: Graded) -> None:
        if run not in self._files:
            self._files[run] = GradesFile(run)
        file = self._files[run]
        known = file.known.get(graded.key)
        owner = self._of.get((run, graded.key))
        if owner is None:
            # A tree that another task labelled is its question's; what has no task was labelled before tasks were noted.
            foreign = known is not None and known.task not in {"", graded.task}
            owner = known.id if known is not None and foreign else graded.id
            self._of[run, graded.key] = owner
        if owner != graded.id:
            self._say(run, graded.id, owner)
        elif known != graded:
            file.put(graded)

    def _say(self, run: str, left_out: str, owner: str) -> None:
        if not self._said:
            log.warning(
                "%s asks what %s asks, and the tree of both in %s keeps the labels of the latter; others like it are not named",
                left_out, owner, run,
            )  # fmt: skip
            self._said = True

    def close(self) -> None:
        """Close the files; they are opened again when there is more to note."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __del__(self) -> None:
        self.close()
