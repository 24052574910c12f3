"""What the nodes do alike on every host: words for the search, folded inputs, errors in one plain sentence."""

import functools
import inspect
from dataclasses import fields

from comfy_api.latest import io


def aliases(*words: str) -> dict:
    """Words under which the host's search finds a node, as an argument of its schema; nothing on older hosts."""
    known = "search_aliases" in {field.name for field in fields(io.Schema)}
    return {"search_aliases": list(words)} if known else {}


def advanced(kind: type) -> dict:
    """Marks an input of this kind as one for those who know, folded away where the host can do that."""
    return {"advanced": True} if "advanced" in inspect.signature(kind.Input.__init__).parameters else {}


def plain_errors(execute):
    """An ``execute`` whose errors reach the user without the path of a class of this pack in front of them."""
    ours = f"{__package__.rpartition('.')[0]}."

    @functools.wraps(execute)
    def wrapped(*args, **kwargs):
        try:
            return execute(*args, **kwargs)
        except Exception as error:
            if not type(error).__module__.startswith(ours):
                raise
            plain = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
            raise plain(str(error)) from error
    return wrapped
