"""Sequential Monte Carlo with the flow as twist (Doucet and Johansen 2009; for language models Lew et al. 2023, arXiv
2306.03081, and Zhao et al. 2024, arXiv 2404.17546)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from arts_plugin.randomness import branch_key, mix
from arts_plugin.search.base import Proposal, Taken
from arts_plugin.search.budget import Budget
from arts_plugin.search.rounds import RoundStrategy
from arts_plugin.search.select import PARTICLES
from arts_plugin.tree import EndedBy, ReasoningTree

ESS_SHARE = 0.5
"""Resample when the effective sample size falls below this share of the particles."""
Floats = npt.NDArray[np.float64]


class Smc(RoundStrategy):
    """N particles, each a state that takes one step a round, weighted by how much the flow through it has grown.

    A step from s to s' multiplies a particle's weight by (F(s') / F(s))^beta; a finished one keeps its own. When
    1 / sum of the squared normalised weights of the m that are under way is below m / 2, these are drawn anew in
    proportion to their weights (systematic resampling), and each gets the mean of them. That keeps the sum, and so what
    particles estimate (Liu 2001, "Monte Carlo Strategies in Scientific Computing", on resampling a part of them). Finished
    ones are not drawn along: each particle finishes once, and N is the trajectory budget.

    So particles are a weighted sample of p(trace) F(trace)^beta, and exp(`tree.meta["smc_log_z"]`), the mean weight, is an
    unbiased estimate of E_p[F(trace)^beta] / F(root)^beta if the search is `exhausted`. One that another budget has cut
    short weighs unfinished particles by the flow through them, which estimates the same only if flows are right.

    At the end all particles are drawn a last time, so that they count alike, and `tree.meta["particles"]` says how many
    each finished trajectory has (leaf -> number): selection counts these instead of proposals.

    Args:
        particles: N.
        beta: exponent of the flow.
        seed: with the tree's `problem`, seeds the resampling.
    """

    def __init__(
        self, tree: ReasoningTree, budget: Budget, *, particles: int, beta: float = 1.0, seed: int = 0
    ) -> None:
        # Their number keeps the trajectory budget, and the last of them is to be weighed like the others.
        super().__init__(tree, Budget(None, budget.tokens, budget.seconds, budget.nodes))
        self.beta = beta
        self._key = branch_key(seed, int(tree.problem or "0", 16), (-2,))
        self._round_number = 0
        particles = min(particles, budget.nodes or particles)
        self._at = [0] * particles
        self._log_weight: Floats = np.zeros(particles)
        self._owner: dict[tuple[int, int], int] = {}
        self._launch_round()

    def _launch_round(self) -> None:
        """One proposal for each particle that is not finished."""
        waiting: dict[int, list[int]] = {}
        for particle, node in enumerate(self._at):
            if not self.tree.nodes[node].terminal:
                waiting.setdefault(node, []).append(particle)
        if self.budget.nodes is not None and self._launched + sum(map(len, waiting.values())) > self.budget.nodes:
            self.ended_by = "budget_nodes"  # particles that stay behind would have no weight to compare
            self._conclude()
            return
        for node, particles in waiting.items():
            for expansion, particle in zip(self.propose(node, len(particles)), particles, strict=True):
                self._owner[expansion.node, expansion.index] = particle

    def next_round(self, taken: Sequence[Taken]) -> None:
        """Resample if few particles carry the weight, and go on with those that are not finished."""
        fresh = {t.node.id for t in taken if t.node and not t.node.terminal}
        under_way = [i for i, node in enumerate(self._at) if not self.tree.nodes[node].terminal]
        if not under_way:
            self.ended_by = "exhausted"
            self._conclude()
            return
        if self._ess(under_way) < ESS_SHARE * len(under_way):
            self._resample(under_way)
        self.released += sorted(fresh - set(self._at))
        self._launch_round()

    def close(self, ended_by: EndedBy) -> list[Taken]:
        """Weigh what was told of an unfinished round."""
        open_until_now = not self.ended_by
        taken = super().close(ended_by)
        if open_until_now:
            self._conclude()
        return taken

    def take_in(self, proposal: Proposal) -> Taken:
        """Move its particle to it."""
        taken = self.take(proposal, merge=True)
        if taken.node:
            particle = self._owner.pop((proposal.expansion.node, proposal.expansion.index))
            self._log_weight[particle] += self.beta * (self._flow(taken.node.id) - self._flow(self._at[particle]))
            self._at[particle] = taken.node.id
        return taken

    def _flow(self, node: int) -> float:
        log_flow = self.tree.nodes[node].log_flow
        return log_flow if log_flow is not None and math.isfinite(log_flow) else -1e3

    def _shares(self, particles: Sequence[int]) -> Floats:
        log_weight = self._log_weight[particles]
        weight = np.exp(log_weight - log_weight.max())
        made: Floats = weight / weight.sum()
        return made

    def _ess(self, particles: Sequence[int]) -> float:
        return float(1 / (self._shares(particles) ** 2).sum())

    def _resample(self, particles: Sequence[int]) -> None:
        """Draw these anew, each with the mean of their weights."""
        n = len(particles)
        rng = np.random.Generator(np.random.PCG64(mix(self._key, self._round_number)))
        self._round_number += 1
        ticks = (rng.random() + np.arange(n)) / n
        chosen = np.minimum(np.searchsorted(np.cumsum(self._shares(particles)), ticks, side="right"), n - 1)
        places = [self._at[particles[int(i)]] for i in chosen]
        for particle, place in zip(particles, places, strict=True):
            self._at[particle] = place
        self._log_weight[particles] = float(np.logaddexp.reduce(self._log_weight[particles])) - math.log(n)

    def _conclude(self) -> None:
        self._resample(range(len(self._at)))
        self.tree.meta["smc_log_z"] = float(self._log_weight[0])
        held = Counter(node for node in self._at if self.tree.nodes[node].terminal)
        self.tree.meta[PARTICLES] = {str(node): count for node, count in sorted(held.items())}
