"""DSPy: a ReAct module, whose calls are texts of its own form, and fields read as JSON."""

import dspy
from weather import BASE_URL, MODEL, QUESTION, check, get_weather

model = dspy.LM(f"openai/{MODEL}", api_base=f"{BASE_URL}/v1", api_key="none", cache=False)
dspy.configure(lm=model)
check(dspy.ReAct("question -> answer", tools=[get_weather])(question=QUESTION).answer)

with dspy.context(adapter=dspy.JSONAdapter()):
    assert dspy.Predict("question -> city")(question=QUESTION).city == "Paris"
