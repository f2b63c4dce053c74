"""ARTS inside EleutherAI's lm-evaluation-harness: the model `arts`, the tasks `arts_*`, and filters and metrics.

Importing this package makes them known to lm-eval, before or after lm-eval itself is imported. An installed package needs
no such import: its start-up file does the same. Folders of `pip install --target` or PYTHONPATH have no start-up files.
"""

from arts_plugin.autoload.hooks import attach

attach()
