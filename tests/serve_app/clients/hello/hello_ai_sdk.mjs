// The AI SDK: generateText, streamText and generateObject, by chat completions and responses.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import assert from "node:assert";
import { z } from "zod";

const baseURL = `${process.env.BASE_URL ?? "http://127.0.0.1:8000"}/v1`;
const name = process.env.MODEL ?? "weather";
const compatible = createOpenAICompatible({
  name: "server",
  baseURL,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL, apiKey: "none" });

const schema = z.object({ city: z.string() });
let calls = 0;
const get_weather = tool({
  description: "Get the weather in a city.",
  inputSchema: schema,
  execute: async ({ city }) => {
    assert.equal(city, "Paris");
    calls += 1;
    return `18 degrees and sunny in ${city}`;
  },
});

let runs = 0;
function check(answer) {
  runs += 1;
  assert.equal(calls, runs, "the tool is called once");
  assert.match(answer, /sunny/);
  console.log(answer);
}

const question = { role: "user", content: "What is the weather in Paris?" };
for (const model of [compatible(name), openai.chat(name), openai.responses(name)]) {
  const asked = {
    model,
    tools: { get_weather },
    stopWhen: stepCountIs(4),
    maxRetries: 0,
    // The server keeps no responses, so that the client has to send the items, not their ids.
    providerOptions: { openai: { store: false } },
  };
  const first = await generateText({ ...asked, messages: [question] });
  check(first.text);
  const messages = [question, ...first.response.messages, question];
  check((await generateText({ ...asked, messages })).text);
  const onError = ({ error }) => {
    throw error;
  };
  const streamed = streamText({ ...asked, messages: [question], onError });
  let text = "";
  for await (const piece of streamed.textStream) text += piece;
  check(text);
  const read = await generateObject({ model, schema, messages: [question], maxRetries: 0 });
  assert.deepEqual(read.object, { city: "Paris" });
}
