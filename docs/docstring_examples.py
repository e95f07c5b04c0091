"""An extension of griffe, which reads docstrings for the site: `Example:` is what it calls `Examples:`."""

import re

import griffe


class Examples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **options) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
