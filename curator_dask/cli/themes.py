"""The list of commands in the order of the work, under headings: of two dozen names in a row nobody finds the one."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

THEMES = {
    "All of it": ("curate",),
    "Begin": ("links", "fetch", "import", "check", "index"),
    "Embed and measure": ("embed", "classify", "caption", "detect", "ask", "score", "retry"),
    "Look": ("info", "report", "browse", "search", "compare"),
    "Choose": ("filter", "dedup", "join", "label", "fit", "centroids", "balance", "retrieve"),
    "Write": ("export", "remove"),
}


class ThemedGroup(TyperGroup):
    """The commands of an app, listed by theme.

    Notes
    -----
    A command that no theme names would not be listed: a test compares the two.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order in which they are listed."""
        return [name for names in THEMES.values() for name in names if name in self.commands]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a heading a theme, and its commands with one line each below."""
        longest = max(map(len, self.commands))
        for theme, names in THEMES.items():
            rows = [
                (name, self.commands[name].get_short_help_str(80)) for name in names if name in self.commands
            ]
            with formatter.section(theme):
                formatter.write_dl([(name.ljust(longest), text) for name, text in rows])
