"""The side of `verifiers@1` that speaks the package's own language: its environment, a harness, a server that it asks.

The package starts a program per rollout, which talks to the model through its interception server. A harness may also
run where it stands, and ours does: a conversation with tools, without a process per turn. Programs that need a
container (coding agents) are not played. `verifiers` and what it brings along are imported where a function is called.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from types import ModuleType
from typing import Any

ALIAS = "tercet_turns"  # the package's plugins are modules without a dot in their names
Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def made(taskset: str, settings: Mapping[str, Any], max_turns: int | None) -> Any:
    """The package's environment over a task set, with our harness in its one seat."""
    from verifiers.v1.configs.agent import AgentConfig
    from verifiers.v1.utils.loaders import env_config_type, load_environment

    kind = env_config_type(taskset)
    seats = [name for name, field in kind.model_fields.items() if isinstance(field.default, AgentConfig)]
    if len(seats) != 1:
        raise ValueError(f"{taskset} has the agents {', '.join(seats)}; verifiers@1 plays one model")
    seat = {"harness": {"id": _plugin()}, "runtime": {"type": "subprocess"}, "max_turns": max_turns}
    return load_environment(kind.model_validate({"taskset": {"id": taskset, **settings}, seats[0]: seat}))


async def play(environment: Any, task: Any, answer: Answer) -> float:
    """One rollout, which asks `answer` for the model's turns; the sum of its rewards."""
    import verifiers.v1 as vf

    async with _listening(answer) as url, environment.serving():
        client = vf.EvalClientConfig(base_url=url, api_key_var="TERCET_NO_KEY")
        episode = await environment.run_episode(task, vf.ModelContext(model="tercet", client=client))
    if not episode.ok:
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        raise RuntimeError("; ".join(f"{error.type}: {error.message}" for error in errors) or "the rollout failed")
    return float(sum(trace.reward for trace in episode.traces))


@cache
def _plugin() -> str:
    """Our harness as a plugin of the package, which loads one by the name of its module."""
    import verifiers.v1 as vf

    class ToolConversation(vf.Harness[vf.HarnessConfig]):
        APPENDS_SYSTEM_PROMPT = True
        SUPPORTS_MCP = True
        SUPPORTS_RESUME = True
        EXECUTES_CODE = False
        NEEDS_CONTAINER = False

        async def launch(self, *given: Any, **_: Any) -> Any:
            _ctx, _trace, _runtime, endpoint, secret, mcp_urls, data = given
            system, prompt = self.resolve_prompt(data)
            servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
            refused = await _converse(endpoint, secret, _opening(system, prompt), servers)
            return vf.ProgramResult(int(bool(refused)), "", refused)

    module = ModuleType(ALIAS)
    vars(module).update(__all__=["ToolConversation"], ToolConversation=ToolConversation)
    sys.modules[ALIAS] = module
    return ALIAS


def _opening(system: str | None, prompt: Any) -> list[dict[str, Any]]:
    """A task's prompt, a text or turns, as turns of OpenAI's protocol."""
    from verifiers.v1.dialects.chat import message_to_wire

    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else map(message_to_wire, prompt or ())
    return [*([{"role": "system", "content": system}] if system else []), *turns]


async def _converse(endpoint: str, secret: str, turns: list[dict[str, Any]], servers: Mapping[str, Any]) -> str:
    """Ask the model and call its tools until it calls none; why that was refused (a limit, the task's own stop)."""
    import httpx
    from verifiers.v1.harnesses.utils.mcp import connect_mcp

    async with AsyncExitStack() as stack:
        http = httpx.AsyncClient(timeout=None, headers={"Authorization": f"Bearer {secret}"})
        await stack.enter_async_context(http)
        tools, where, open_servers = await connect_mcp({"mcpServers": dict(servers)}, stack)
        while True:
            asked = {"model": "tercet", "messages": turns} | ({"tools": tools} if tools else {})
            done = await http.post(f"{endpoint}/chat/completions", json=asked)
            if done.is_error:
                return done.text or "refused"
            turns.append(done.json()["choices"][0]["message"])
            if not (calls := turns[-1].get("tool_calls")):
                return ""
            for call in calls:
                result = await _result(call["function"], where, open_servers)
                turns.append({"role": "tool", "tool_call_id": call["id"], "content": result})


async def _result(function: Mapping[str, str], where: Mapping[str, Any], servers: Mapping[str, Any]) -> Any:
    """What a tool says to a call, or what is wrong with the call."""
    from verifiers.v1.harnesses.utils.mcp import call_mcp

    if (name := function["name"]) not in where:
        return f"error: there is no tool {name!r}; there are {', '.join(where)}"
    arguments = json.loads(function["arguments"])
    if not isinstance(arguments, dict):
        return "error: the arguments are no JSON object"
    return await call_mcp(servers, where, name, arguments)


@asynccontextmanager
async def _listening(answer: Answer) -> AsyncIterator[str]:
    """The address of a server of one model, whose turns come from `answer`."""
    from aiohttp import web

    async def complete(request: web.Request) -> web.Response:
        message = await answer(await request.json())
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        body = {"id": "turn", "object": "chat.completion", "created": 0, "model": "tercet"}
        return web.json_response({**body, "choices": [choice], "usage": usage})

    app = web.Application(client_max_size=2**28)
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
