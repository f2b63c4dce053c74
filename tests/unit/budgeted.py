"""What the tests of budgets share: traces without end, searches without a budget, and what a tree has spent."""

from scripted import Script, Step

from arts_plugin.tree import ReasoningTree

NO_BUDGET = {"budget_trajectories": None}


def loop_script(length: int = 4) -> Script:
    """Traces that never end by themselves."""
    return {"q": [Step("a" * length + "\n", 0.5, "q", length), Step("b" * length + "\n", 0.5, "q", length)]}


def spent(tree: ReasoningTree) -> int:
    return tree.cost.decoded_tokens + tree.cost.refilled_tokens
