"""What the .pth file of this name does, for Python 3.15 and later: there, the .start file names `install` instead.

Both run in every interpreter, so all that they do is to define a finder that waits for lm-eval. The .pth file holds it as
text because importing a module costs most of a millisecond where no .pyc was written.
"""

import os
import sys


class Finder:
    arts_plugin_autoload = True

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name.startswith("lm_eval."):
            try:
                from arts_plugin.autoload.hooks import find_spec
            except Exception:  # half uninstalled
                return None
            return find_spec(name, path, target)
        return None


def install():  # type: ignore[no-untyped-def]
    # site may run a .start file twice in a venv.
    if not os.environ.get("ARTS_NO_AUTOLOAD") and not any(hasattr(f, "arts_plugin_autoload") for f in sys.meta_path):
        sys.meta_path.insert(0, Finder())
