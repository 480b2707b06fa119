// The task endpoint from JavaScript (Node 18 or newer, no packages): whole, then streamed.

import { readFile } from "node:fs/promises";

const baseUrl = process.env.BASE_URL ?? "http://127.0.0.1:8000";

/** Sends a task; an error of the server is thrown with its own message. */
async function post(path, task) {
  const headers = { "Content-Type": "application/json" };
  if (process.env.API_KEY) headers.Authorization = `Bearer ${process.env.API_KEY}`;
  const response = await fetch(baseUrl + path, {
    method: "POST",
    headers,
    body: JSON.stringify(task),
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  return response;
}

/** The chunks of a streamed answer. */
async function* chunks(response) {
  let rest = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const events = (rest + text).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

const whole = await post("/v1/tasks", {
  model: "demo",
  messages: [{ role: "user", content: "Count from 3 to 9." }],
});
const answer = await whole.json();
console.log(answer.choices[0].message.content);

const image = await readFile(new URL("../demo/images/blue_star.png", import.meta.url));
const streamed = await post("/v1/tasks?stream=true", {
  model: "demo",
  messages: [
    {
      role: "user",
      content: [
        { type: "image", base64: image.toString("base64") },
        { type: "text", text: "What is in this image?" },
      ],
    },
  ],
});
for await (const chunk of chunks(streamed)) {
  process.stdout.write(chunk.choices[0].delta.content);
}
console.log();
