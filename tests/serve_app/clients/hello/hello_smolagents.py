"""smolagents: a ToolCallingAgent, which forces a call at every step, the answer included."""

from smolagents import OpenAIModel, ToolCallingAgent, tool
from weather import BASE_URL, MODEL, QUESTION, check, get_weather

for stream in (False, True):
    agent = ToolCallingAgent(
        tools=[tool(get_weather)],
        model=OpenAIModel(model_id=MODEL, api_base=f"{BASE_URL}/v1", api_key="none"),
        max_steps=3,
        stream_outputs=stream,
        verbosity_level=0,
    )
    check(agent.run(QUESTION))
