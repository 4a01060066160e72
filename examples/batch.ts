// Submit a file of requests, wait for the batch, and write what was answered.
//
//     node examples/batch.ts requests.jsonl answers.jsonl     (Node 23.6 or newer; npx tsx with an older one)
//
// Reads OPENAI_BASE_URL and OPENAI_API_KEY. Exits with 0 if every request was answered. Needs the package `openai`.

import fs from "node:fs";
import { Writable } from "node:stream";
import OpenAI from "openai";

const [source, target] = process.argv.slice(2);
const client = new OpenAI();

// The endpoint is the one that the first line names.
const content = fs.readFileSync(source, "utf8");
const endpoint = JSON.parse(content.split("\n", 1)[0]).url;

const file = await client.files.create({ file: fs.createReadStream(source), purpose: "batch" });
let batch = await client.batches.create({ input_file_id: file.id, endpoint, completion_window: "24h" });
while (["validating", "in_progress", "finalizing", "cancelling"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 2000));
  batch = await client.batches.retrieve(batch.id);
  console.error(batch.status, batch.request_counts);
}

for (const problem of batch.errors?.data ?? []) console.error(`line ${problem.line}: ${problem.message}`);
if (batch.output_file_id) {
  // Streamed: an output file can have hundreds of megabytes.
  const answer = await client.files.content(batch.output_file_id);
  if (answer.body) await answer.body.pipeTo(Writable.toWeb(fs.createWriteStream(target)));
}
if (batch.error_file_id) console.error(await (await client.files.content(batch.error_file_id)).text());
process.exitCode = batch.status === "completed" && batch.request_counts?.failed === 0 ? 0 : 1;
