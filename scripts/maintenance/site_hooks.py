"""What `make docs` changes in Markdown: underscores are letters, as GitHub reads them in x̃_k, and never emphasis.

Without it formulas lose their indices. Emphasis is written with asterisks.
"""

from typing import Any

from markdown import Markdown
from markdown.extensions import Extension


class PlainUnderscores(Extension):
    """Take emphasis by underscores out of Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Remove the delimiter."""
        md.delimiters.remove("_")  # pyright: ignore[reportAttributeAccessIssue]  # newer than its types


def on_config(config: Any) -> Any:
    """Add the extension; mkdocs calls this by its name."""
    config.markdown_extensions.append(PlainUnderscores())
    return config
