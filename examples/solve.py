"""Search one question from Python and print the steps as they come.

python examples/solve.py [MODEL.gguf]
"""

from __future__ import annotations

import sys

from arts_plugin import Arts

QUESTION = "A farmer has 12 hens. Each hen lays 2 eggs a day. How many eggs does he collect in 3 days?"


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else None
    with Arts(model=model, strategy="arts", budget_trajectories=4, max_gen_toks=160, verifier="none") as arts:
        for event in arts.stream([QUESTION]):
            for node in event.nodes:
                print(f"step {node.step}, score {node.log_flow:.2f}: {node.text.strip()!r}")
            if event.kind == "finished":
                print(
                    f"{event.tree.n_finished} finished, answer {event.tree.answer!r}, {event.tree.cost.decoded_tokens} tokens"
                )


if __name__ == "__main__":
    main()
