// The AI SDK: generateText and streamText with a tool, by its three providers.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import assert from "node:assert";
import { z } from "zod";

const baseURL = `${process.env.BASE_URL ?? "http://127.0.0.1:8000"}/v1`;
const name = process.env.MODEL ?? "weather";
const compatible = createOpenAICompatible({ name: "server", baseURL, includeUsage: true });
const openai = createOpenAI({ baseURL, apiKey: "none" });

let calls = 0;
const get_weather = tool({
  description: "Get the weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => {
    assert.equal(city, "Paris");
    calls += 1;
    return `18 degrees and sunny in ${city}`;
  },
});

let runs = 0;
for (const model of [compatible(name), openai.chat(name), openai.responses(name)]) {
  const asked = {
    model,
    tools: { get_weather },
    stopWhen: stepCountIs(4),
    prompt: "What is the weather in Paris?",
    maxRetries: 0,
  };
  const whole = await generateText(asked);
  assert.match(whole.text, /sunny/);
  let text = "";
  const streamed = streamText({ ...asked, onError: ({ error }) => { throw error; } });
  for await (const piece of streamed.textStream) text += piece;
  assert.match(text, /sunny/);
  runs += 2;
  assert.equal(calls, runs, "the tool is called once a run");
  console.log(text);
}
