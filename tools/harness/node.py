"""Calling a node of the host as the executor does, whichever form the host's version writes it in."""


def call(node: type, *args, **kwargs) -> tuple:
    """The outputs of a node class: V3 (``execute``) or, as most of the older host is, V1 (``FUNCTION``)."""
    if hasattr(node, "define_schema"):
        result = node.execute(*args, **kwargs)
    else:
        result = getattr(node(), node.FUNCTION)(*args, **kwargs)
    return tuple(getattr(result, "args", result))
