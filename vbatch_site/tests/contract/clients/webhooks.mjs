// Manage webhook endpoints with the official Node SDK, unmodified, receive a test, and print what it saw as JSON.
//
//     node webhooks.mjs BASE_URL API_KEY

import http from "node:http";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const report = { version: VERSION };

const received = [];
const server = http.createServer((request, response) => {
  const blocks = [];
  request.on("data", (block) => blocks.push(block));
  request.on("end", () => {
    received.push({ headers: request.headers, body: Buffer.concat(blocks).toString() });
    response.writeHead(200).end();
  });
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const url = `http://127.0.0.1:${server.address().port}/hook`;

const unwrap = async (request, secret) => {
  try {
    return await client.webhooks.unwrap(request.body, request.headers, secret);
  } catch (error) {
    return { refused: error.constructor.name };
  }
};

// The management of endpoints came with the SDK's 7.x; before that the same requests are sent by its generic calls.
const made = await client.post("/webhook_endpoints", {
  body: { name: "node", url, event_types: ["batch.completed"] },
});
const test = () => client.post(`/webhook_endpoints/${made.id}/test`, { body: { event_type: "batch.completed" } });
report.test = await test();
report.event = await unwrap(received[0], made.signing_secret);
report.forged = await unwrap({ ...received[0], body: received[0].body + " " }, made.signing_secret);

const rotated = await client.post(`/webhook_endpoints/${made.id}/rotate_secret`, {
  body: { keep_old_secret_active_for_24_hours: true },
});
await test();
report.with_old = await unwrap(received[1], made.signing_secret);
report.with_new = await unwrap(received[1], rotated.signing_secret);

server.close();
console.log(JSON.stringify(report));
process.exit(0);
