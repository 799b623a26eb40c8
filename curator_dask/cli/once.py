"""Options of one value are given once: of two the command line's parser would take the last, without a word."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand


class OnceCommand(TyperCommand):
    """A command that refuses an option that takes one value and is given several times; switches may be repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments.

        Raises
        ------
        typer.BadParameter
            An option of one value is given several times.
        """
        given: list[str] = []
        if not ctx.resilient_parsing:  # of completion in a shell
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            options: list[Any] = [each for each in order if each.param_type_name == "option"]
            single = [each for each in options if not (each.multiple or each.count or each.is_flag)]
            given = [max(each.opts, key=len) for each in single]
        for name in given:
            if (times := given.count(name)) > 1:
                raise typer.BadParameter(
                    f"given {times} times, and takes one value: only the last would count. Give it once",
                    param_hint=name,
                )
        return super().parse_args(ctx, args)
