// Drive a server with the official Node SDK, unmodified, and print what it saw as JSON.
//
//     node flow.mjs BASE_URL API_KEY MODEL FOLDER
//
// The same flow as flow.py; the checks are the tests'.

import fs from "node:fs";
import path from "node:path";
import OpenAI, { toFile } from "openai";
import { VERSION } from "openai/version";

const [baseURL, apiKey, model, folder] = process.argv.slice(2);
let sent = 0;
const counted = (url, options) => {
  sent += 1;
  return fetch(url, options);
};
const client = new OpenAI({ baseURL, apiKey, fetch: counted });
const report = { version: VERSION };

const line = (custom_id, text) => {
  const body = { model, messages: [{ role: "user", content: text }], max_tokens: 8 };
  return JSON.stringify({ custom_id, method: "POST", url: "/v1/chat/completions", body }) + "\n";
};

const failure = async (call) => {
  const before = sent;
  try {
    await call();
  } catch (error) {
    return {
      class: error.constructor.name,
      status: error.status,
      code: error.code ?? null,
      param: error.param ?? null,
      type: error.type,
      message: error.message,
      request_id: error.requestID,
      requests: sent - before,
    };
  }
  return {};
};

const wait = async (id) => {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const batch = await client.batches.retrieve(id);
    if (["completed", "failed", "expired", "cancelled"].includes(batch.status) || Date.now() > deadline) return batch;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
};

const upload = async (text) => client.files.create({ file: await toFile(Buffer.from(text)), purpose: "batch" });
const lines = (text) => text.trimEnd().split("\n");

const files = async () => {
  const content = line("1", "hello").repeat(3);
  const source = path.join(folder, "my \u5165\u529b.jsonl");
  fs.writeFileSync(source, content);
  const opened = await client.files.create({ file: fs.createReadStream(source), purpose: "batch" });
  report.file = opened;
  report.file_request_id = opened._request_id;
  report.from_bytes = await upload(content);
  const large = path.join(folder, "piped.jsonl");
  fs.writeFileSync(large, content.repeat(2000));
  report.streamed = await client.files.create({ purpose: "batch", file: fs.createReadStream(large) });
  report.streamed_size = fs.statSync(large).size;
  const expiring = await client.files.create({
    file: fs.createReadStream(source),
    purpose: "user_data",
    expires_after: { anchor: "created_at", seconds: 3600 },
  });
  report.expiring = expiring;
  const before = sent;
  report.waited = await client.files.waitForProcessing(opened.id);
  report.waited_requests = sent - before;
  const answer = await client.files.content(opened.id);
  const text = await answer.text();
  report.text_is_same = text === content;
  report.lines = lines(text).length === 3;
  let size = 0;
  for await (const block of (await client.files.content(report.streamed.id)).body) size += block.length;
  report.streamed_back = size;
  const raw = await client.files.retrieve(opened.id).withResponse();
  report.raw_request_id = raw.request_id;
  report.made = [];
  for (let i = 0; i < 3; i += 1) {
    report.made.push((await client.files.create({ file: fs.createReadStream(source), purpose: "vision" })).id);
  }
  report.paged = [];
  for await (const file of client.files.list({ purpose: "vision", limit: 1 })) report.paged.push(file.id);
  report.deleted = await client.files.delete(opened.id);
  report.deleted_request_id = report.deleted._request_id;
  report.missing = await failure(() => client.files.retrieve(opened.id));
  report.private = await failure(() => client.files.content(expiring.id));
  report.not_jsonl = await failure(() => upload(""));
  report.purpose = await failure(async () =>
    client.files.create({ file: await toFile(Buffer.from("{}")), purpose: "nonsense" }),
  );
};

const batches = async () => {
  const source = await upload(line("good", "hello") + line("bad", "[[sim:400]]"));
  const wanted = { endpoint: "/v1/chat/completions", completion_window: "24h" };
  const batch = await client.batches.create({
    input_file_id: source.id,
    ...wanted,
    metadata: { team: "\u7814\u7a76" },
  });
  report.created = batch;
  const done = await wait(batch.id);
  report.done = done;
  report.output = lines(await (await client.files.content(done.output_file_id)).text()).map(JSON.parse);
  report.errors = lines(await (await client.files.content(done.error_file_id)).text()).map(JSON.parse);
  report.late_cancel = await failure(() => client.batches.cancel(batch.id));
  const stuck = await upload(line("stuck", "[[sim:hang]]"));
  const other = await client.batches.create({ input_file_id: stuck.id, ...wanted, metadata: null });
  report.null_metadata = other.metadata;
  report.cancelling = await client.batches.cancel(other.id);
  report.cancelled = await wait(other.id);
  report.cancel_again = await client.batches.cancel(other.id);
  const listed = [];
  for await (const item of client.batches.list({ limit: 1 })) listed.push(item.id);
  report.listed = listed.slice(0, 2);
  report.listed_by_default = (await client.batches.list()).data.map((item) => item.id).slice(0, 2);
  report.unknown_batch = await failure(() => client.batches.retrieve("batch_" + "0".repeat(32)));
};

const rest = async () => {
  report.models = [];
  for await (const item of client.models.list()) report.models.push(item.id);
  report.model = await client.models.retrieve(model);
  report.unknown_model = await failure(() => client.models.retrieve("no/such model"));
  const wrong = new OpenAI({ baseURL, apiKey: "sk-wrong", organization: "org-x", project: "proj_x", fetch: counted });
  report.wrong_key = await failure(() => wrong.models.list());
};

await files();
await batches();
await rest();
process.stdout.write(JSON.stringify(report));
