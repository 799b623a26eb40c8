"""Members of an export that models make: latents of images, and states of captions; what is noted of them together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from curator_dask.outputs.latents import Latents, check_no_latents, put_latents, settings_of_latents
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.text_states import TextStates, check_new_states, put_states, settings_of_states


@dataclass(frozen=True)
class MadeMembers:
    """What models make for an export.

    Attributes
    ----------
    latents
        Of images; None: none.
    states
        Of captions, by each encoder.
    """

    latents: Latents | None
    states: tuple[TextStates, ...]

    def check_new(self, found: Collection[Mapping[str, int]]) -> None:
        """Raise ConfigError where samples have such members already: by suffix, how many, of each file of rows."""
        check_no_latents(self.latents, found)
        check_new_states(self.states, found)

    def settings(self, path: str, before: Mapping[str, Any]) -> dict[str, Any]:
        """What is noted of them; raises OutputError where those of the tars that stay are of other models."""
        latents = settings_of_latents(path, before, self.latents)
        return {**latents, **settings_of_states(path, before, self.states)}

    def put(self, target: Folder, is_wanted: bool, is_whole: bool) -> None:
        """Write what they are beside the tars, or remove what another export has said.

        Parameters
        ----------
        target
            Of the tars.
        is_wanted
            These do not lie there alone.
        is_whole
            None of them has failed, maybe for what a text encoder makes.
        """
        put_latents(*target, self.latents, is_wanted)
        if is_whole:
            put_states(*target, self.states if is_wanted else ())
