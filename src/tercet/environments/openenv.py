"""`openenv@1`: an environment that an OpenEnv server plays (`pip install openenv-core`), each episode a session of it.

What the model writes goes into the field `act` of an action; what an observation says in the field `say` is the next
turn. The seed of an episode follows from the row's id, so that it can be played again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tercet.rows import Message, Row


class Adapted:
    """One session of the server at `url`. `say` may be empty: then the whole observation is told, as JSON."""

    def __init__(self, url: str, act: str = "message", say: str = "") -> None:
        try:
            from openenv.core import GenericEnvClient
        except ImportError as error:
            raise ImportError(f"openenv@1 needs OpenEnv ({error}): pip install openenv-core") from None
        self.url, self.act, self.say = url, act, say
        self.client: Any = GenericEnvClient(base_url=url)

    async def reset(self, row: Row) -> list[Message]:
        """The row's prompt, and what the server observes first."""
        found = await self.client.reset(seed=int(hashlib.sha256(row.id.encode()).hexdigest()[:7], 16))
        said = self._said(found.observation)
        return [*row.prompt, *([Message("user", said)] if said else [])]

    async def step(self, action: str) -> tuple[list[Message], float, bool, dict[str, Any]]:
        """What the server answers; no reward counts as 0."""
        found = await self.client.step({self.act: action})
        said = self._said(found.observation)
        return [Message("user", said)], float(found.reward or 0.0), bool(found.done), {}

    async def close(self) -> None:
        """End the session."""
        await self.client.close()

    def _said(self, observation: dict[str, Any]) -> str:
        if not self.say:
            return json.dumps(observation, ensure_ascii=False) if observation else ""
        if not isinstance(said := observation.get(self.say), str):
            raise TypeError(f"an observation has no text under {self.say!r}; it has {', '.join(observation)}")
        return said
