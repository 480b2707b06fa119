"""DSPy: a ReAct module, which asks for its calls of tools in a text of its own form."""

import dspy
from weather import BASE_URL, MODEL, QUESTION, check, get_weather

dspy.configure(
    lm=dspy.LM(f"openai/{MODEL}", api_base=f"{BASE_URL}/v1", api_key="none", cache=False)
)
agent = dspy.ReAct("question -> answer", tools=[get_weather])
check(agent(question=QUESTION).answer)
