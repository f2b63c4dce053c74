"""What `model.generate(..., custom_generate="owner/arts")` runs."""

from typing import Any


def generate(model: Any, inputs: Any = None, tokenizer: Any = None, arts: Any = None, **arguments: Any) -> Any:
    """Search a tree of reasoning steps; see `arts_hf.generate.arts_generate`."""
    from arts_hf.generate import arts_generate

    if inputs is not None:
        arguments["input_ids"] = inputs
    given = {name: value for name, value in arguments.items() if value is not None}
    return model.generate(**given, custom_generate=arts_generate, arts_tokenizer=tokenizer, arts=arts)
